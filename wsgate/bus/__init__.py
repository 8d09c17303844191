"""The bus (Redis or Valkey) carries publications between shards, nodes and backends.

- `subscriber` receives publications, and `backlog` queues them until the shard delivers them.
- `publisher` publishes and runs commands; `appender` adds events to streams.
- Each of these has a `connection` of its own, whose bytes the compiled reader in `push` parses.
- `cluster` does the same over all servers of a cluster. `topology` finds these servers and the primary behind
  sentinels, with requests that `question` sends.
- `envelope` encodes a publication; `names` builds channel names and keys; `receivers` checks channel names.
- `script` runs Lua scripts on the bus, `leases` and `revocations` use them.
- `once` sends a single command for code that runs without an event loop.

The contract for backends is protocols/bus/v1.
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
