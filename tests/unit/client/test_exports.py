"""What the client's packages promise to export, and that it is all there."""

import wsgate.client
import wsgate.client.backend

CLIENT = {
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
}
BACKEND = {"BusError", "ConsumerOptions", "Event", "EventConsumer", "MalformedEvent", "Publisher"}


def test_the_names_are_these() -> None:
    assert set(wsgate.client.__all__) == CLIENT
    assert set(wsgate.client.backend.__all__) == BACKEND


def test_every_name_is_there() -> None:
    for package in (wsgate.client, wsgate.client.backend):
        assert all(hasattr(package, name) for name in package.__all__)
        assert package.__all__ == sorted(package.__all__)
