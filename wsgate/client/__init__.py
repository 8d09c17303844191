"""Programs that talk to a gateway from outside; they import nothing of the server.

`Client` and `SyncClient` speak to clients' side of a gateway, `wsgate.client.backend` to a backend's.
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
