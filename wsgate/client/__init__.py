"""The Python clients of a gateway: they connect over the network and import no server code.

`Client` and `SyncClient` are WebSocket clients. `wsgate.client.backend` publishes to clients and reads their
events over the bus.
"""

from wsgate.client.backoff import Backoff
from wsgate.client.client import Client
from wsgate.client.close_info import Ending
from wsgate.client.connector import ClientState
from wsgate.client.environment import Clock, Environment
from wsgate.client.errors import (
    BadMessage,
    ClosedError,
    CommandError,
    CommandTimeout,
    Disconnected,
    NotConnected,
    TokenError,
    UnauthorizedError,
)
from wsgate.client.feed import Gap, GapReason
from wsgate.client.listen import listen
from wsgate.client.options import ClientOptions
from wsgate.client.protocol import Publication
from wsgate.client.subscription import Subscription
from wsgate.client.sync import SyncClient, SyncSubscription
from wsgate.client.tokens import TokenSource
from wsgate.client.transport import Opening, Transport

__all__ = [
    "Backoff",
    "BadMessage",
    "Client",
    "ClientOptions",
    "ClientState",
    "Clock",
    "ClosedError",
    "CommandError",
    "CommandTimeout",
    "Disconnected",
    "Ending",
    "Environment",
    "Gap",
    "GapReason",
    "NotConnected",
    "Opening",
    "Publication",
    "Subscription",
    "SyncClient",
    "SyncSubscription",
    "TokenError",
    "TokenSource",
    "Transport",
    "UnauthorizedError",
    "listen",
]
