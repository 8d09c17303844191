"""Check that the phone of the push example requests the missing notifications until a request succeeds."""

import asyncio
from typing import Any, cast

import pytest

from examples.push import phone as example
from examples.push.phone import Phone
from wsgate.client import Client, CommandError, CommandTimeout, NotConnected


class FakeClient:
    """A client whose `send` raises the given errors in turn, and succeeds after the last of them."""

    def __init__(self, *errors: Exception) -> None:
        self._errors = list(errors)
        self.sent: list[Any] = []

    async def send(self, data: Any) -> None:
        self.sent.append(data)
        if self._errors:
            raise self._errors.pop(0)


def ask(client: FakeClient) -> None:
    phone = Phone("ws://nowhere", "token", lambda text: None)
    asyncio.run(phone._ask(cast(Client, client), 0))


@pytest.fixture(autouse=True)
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(example, "_RETRY_S", 0.0)


def test_request_is_repeated_after_each_temporary_error_while_the_connection_stays() -> None:
    client = FakeClient(
        CommandError(503, "unavailable", retry_s=0.001),
        CommandError(429, "rate_limited", retry_s=0.001),
        CommandTimeout(),
        CommandError(503, "unavailable"),
    )
    ask(client)
    assert client.sent == [{"have": 0}] * 5


def test_request_is_not_repeated_without_a_connection_because_a_gap_follows() -> None:
    client = FakeClient(NotConnected())
    ask(client)
    assert client.sent == [{"have": 0}]


def test_request_that_is_refused_for_good_raises_the_error() -> None:
    client = FakeClient(CommandError(413, "too_large"))
    with pytest.raises(CommandError):
        ask(client)
    assert client.sent == [{"have": 0}]
