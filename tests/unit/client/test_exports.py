"""Check the names that the packages of the client export."""

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
BACKEND = {
    "BusError",
    "ConsumerOptions",
    "Event",
    "EventConsumer",
    "HandlerCancelled",
    "MalformedEvent",
    "Publisher",
}


def test_client_packages_export_exactly_the_listed_names() -> None:
    assert set(wsgate.client.__all__) == CLIENT
    assert set(wsgate.client.backend.__all__) == BACKEND


def test_every_exported_name_exists_and_the_lists_are_sorted() -> None:
    for package in (wsgate.client, wsgate.client.backend):
        assert all(hasattr(package, name) for name in package.__all__)
        assert package.__all__ == sorted(package.__all__)
