"""What carries publications between shards, nodes and backends: Redis or Valkey.

`subscriber` is the way in, `publisher` the way out, each on a `connection` of its own with a compiled
reader; `envelope` is what a publication looks like on the way, `names` what it is called there. The
contract for others is protocols/bus/v1.
"""

from wsgate.bus.address import BusAddress, parse_address
from wsgate.bus.envelope import Publication, decode_publication, encode_publication
from wsgate.bus.names import Names
from wsgate.bus.publisher import Publisher
from wsgate.bus.subscriber import Subscriber, SubscriberListener

__all__ = [
    "BusAddress",
    "Names",
    "Publication",
    "Publisher",
    "Subscriber",
    "SubscriberListener",
    "decode_publication",
    "encode_publication",
    "parse_address",
]
