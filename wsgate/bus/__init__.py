"""What carries publications between shards, nodes and backends: Redis or Valkey.

`subscriber` is the way in, `backlog` where publications wait, `publisher` the way out, `appender` the way to
streams, each on a `connection` of its own with a compiled reader; `cluster` is these over many servers,
`topology` says which those are and asks through `question`; `envelope` is what a publication looks like on
the way, `names` what it is called there; `revocations` are kept on the bus for shards that come later. The
contract for others is protocols/bus/v1.
"""

from wsgate.bus.appender import Appender, AppenderOptions
from wsgate.bus.backlog import Backlog
from wsgate.bus.bus import Bus, BusPublisher, BusSubscriber, make_bus, make_publisher
from wsgate.bus.cluster import ClusterListener, Covers
from wsgate.bus.connection import pack
from wsgate.bus.envelope import Publication, decode_publication, encode_publication
from wsgate.bus.leases import hold_lease, read_leases
from wsgate.bus.names import Names
from wsgate.bus.publisher import CallDone, Publisher
from wsgate.bus.revocations import Revocation, RevocationKeeper, load_revocations, store_revocation
from wsgate.bus.script import (
    NODE_CLAIM,
    NODE_LEASE_MS,
    NODE_RELEASE,
    RATE_LEASE,
    SIGN_OF_LIFE,
    USER_ENTER,
    Script,
)
from wsgate.bus.subscriber import Subscriber, SubscriberListener, SubscriberOptions
from wsgate.bus_address import BusAddress, parse_address

__all__ = [
    "NODE_CLAIM",
    "NODE_LEASE_MS",
    "NODE_RELEASE",
    "RATE_LEASE",
    "SIGN_OF_LIFE",
    "USER_ENTER",
    "Appender",
    "AppenderOptions",
    "Backlog",
    "Bus",
    "BusAddress",
    "BusPublisher",
    "BusSubscriber",
    "CallDone",
    "ClusterListener",
    "Covers",
    "Names",
    "Publication",
    "Publisher",
    "Revocation",
    "RevocationKeeper",
    "Script",
    "Subscriber",
    "SubscriberListener",
    "SubscriberOptions",
    "decode_publication",
    "encode_publication",
    "hold_lease",
    "load_revocations",
    "make_bus",
    "make_publisher",
    "pack",
    "parse_address",
    "read_leases",
    "store_revocation",
]
