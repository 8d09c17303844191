"""Compare the Python client with the table "passing or final" after every refusal, error and Close.

The gateway follows a script on real sockets; the test moves the clock of the client's back-off.
"""

import asyncio
from collections import deque
from typing import Any

import pytest

from tests.support.memory_gateway import ManualClock, run, until
from tests.support.passing_table import ROWS
from tests.support.scripted_gateway import ScriptedGateway, Visit, scripted_gateway
from wsgate.client import (
    Client,
    ClientOptions,
    ClientState,
    ClosedError,
    CommandError,
    Disconnected,
    Environment,
)

WITHIN_S = 30.0
RETRY_S = 7
JITTER_S = 0.25  # half of the first window
LIMIT = ClientOptions().unauthorized_limit
KINDS = ("provider", "fixed", "none")


def cases(*kinds: str) -> list[Any]:
    return [
        pytest.param(row, token, id=f"{row['name']}-{token}")
        for row in ROWS
        if row["kind"] in kinds
        for token in KINDS
    ]


class Observed:
    """A client and the errors that it reported."""

    def __init__(self, url: str, token: str) -> None:
        self.clock = ManualClock()
        self.asked = 0
        self.errors: list[Exception] = []
        self._reported = asyncio.Event()
        source: Any = {"provider": self._token, "fixed": "fixed", "none": None}[token]
        self.client = Client(
            url,
            token=source,
            on_error=self._report,
            environment=Environment(clock=self.clock, random=lambda: 0.5),
        )

    async def _token(self) -> str:
        self.asked += 1
        return f"token-{self.asked}"

    def _report(self, error: Exception) -> None:
        self.errors.append(error)
        self._reported.set()

    async def has_slept(self, count: int) -> None:
        """Wait until this many tasks of the client sleep; answers come over sockets and need real time."""
        while len(self.clock.sleeping) < count:  # noqa: ASYNC110 - the clock has no event
            await asyncio.sleep(0)

    async def reported(self, count: int) -> None:
        """Wait until this many errors were reported, and the client has handled the last one."""
        async with asyncio.timeout(WITHIN_S):
            while len(self.errors) < count:
                self._reported.clear()
                await self._reported.wait()
        await until(lambda: self.client.state not in (ClientState.CONNECTING, ClientState.OPEN))


async def assert_follows(
    observed: Observed, gateway: ScriptedGateway, action: str, row: dict[str, Any], least_s: float
) -> None:
    """Assert that the client, which has met this row once, acts as the row states."""
    client = observed.client
    await observed.reported(1)
    if action == "end":
        async with asyncio.timeout(WITHIN_S):
            ending = await client.closed()
        assert (ending.code, ending.may_return) == (row["code"], False)
        with pytest.raises(ClosedError, match=str(row["code"])):
            await client.connected()
        assert [error.temporary for error in observed.errors if isinstance(error, Disconnected)] == [False]
        assert not observed.clock.sleeping
        return
    assert client.state is ClientState.WAITING
    await until(lambda: observed.clock.sleeping)
    assert observed.clock.sleeping == [pytest.approx(least_s + JITTER_S)]
    for count in range(2, LIMIT + 1 if action == "limited" else 2):
        observed.clock.advance(3600)
        await observed.reported(count)
    observed.clock.advance(3600)
    async with asyncio.timeout(WITHIN_S):
        if action == "limited":
            assert (await client.closed()).code == row["code"]
            assert len(gateway.requests) == LIMIT
        else:
            await client.connected()
            assert len(gateway.requests) == 2


@pytest.mark.parametrize(("row", "token"), cases("close"))
def test_client_after_each_close_code_reconnects_or_ends_as_the_table_states(
    row: dict[str, Any], token: str
) -> None:
    async def main() -> None:
        async with scripted_gateway() as gateway:
            observed = Observed(gateway.url, token)
            async with observed.client:
                visit = await gateway.visit(1)
                retry_ms = RETRY_S * 1000 if row["retry"] else None
                await visit.close(row["code"], row["name"], retry_ms)
                await assert_follows(observed, gateway, row[token], row, RETRY_S if row["retry"] else 0)
                if row[token] == "reconnect" and token == "provider":
                    assert (await gateway.visit(2)).token == "token-2"

    run(main())


@pytest.mark.parametrize(("row", "token"), cases("http", "answer"))
def test_client_after_each_http_refusal_retries_or_ends_as_the_table_states(
    row: dict[str, Any], token: str
) -> None:
    async def main() -> None:
        headers = {"Retry-After": str(RETRY_S)} if row["retry"] else {}
        times = LIMIT if row[token] == "limited" else 1
        gateway = ScriptedGateway(refusals=deque([(row["code"], headers)] * times))
        async with scripted_gateway(gateway):
            observed = Observed(gateway.url, token)
            async with observed.client:
                await assert_follows(observed, gateway, row[token], row, RETRY_S if row["retry"] else 0)

    run(main())


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("location", [None, "/login", "http://portal/login", "ws://127.0.0.1:9/ws", "//"])
def test_client_retries_after_a_redirect_and_does_not_follow_it(status: int, location: str | None) -> None:
    """A second refusal shows whether the client follows: a page behind a redirect may answer 404."""

    async def main() -> None:
        headers = {} if location is None else {"Location": location}
        gateway = ScriptedGateway(refusals=deque([(status, headers), (404, {})]))
        async with scripted_gateway(gateway):
            observed = Observed(gateway.url, "none")
            async with observed.client:
                await observed.reported(1)
                assert observed.client.state is ClientState.WAITING
                assert len(gateway.requests) == 1
                (error,) = observed.errors
                assert isinstance(error, Disconnected)
                assert (error.ending.code, error.ending.reason) == (status, "refused")

    run(main())


@pytest.mark.parametrize(("row", "token"), cases("lost"))
def test_client_after_a_lost_connection_reconnects_as_the_table_states(
    row: dict[str, Any], token: str
) -> None:
    async def main() -> None:
        async with scripted_gateway() as gateway:
            observed = Observed(gateway.url, token)
            async with observed.client:
                (await gateway.visit(1)).socket.transport.abort()
                await assert_follows(observed, gateway, row[token], row, 0)

    run(main())


class Refusing(ScriptedGateway):
    """A gateway that answers a command with one error, a limited number of times."""

    def __init__(self, row: dict[str, Any]) -> None:
        super().__init__()
        self.row = row
        self.left = LIMIT

    async def _answer(self, visit: Visit, command: dict[str, Any]) -> None:
        if self.left == 0 or command["op"] == "unsub":
            await super()._answer(visit, command)
            return
        self.left -= 1
        more = {"retry_ms": RETRY_S * 1000} if self.row["retry"] else {}
        fields = {"code": self.row["code"], "error": self.row["name"], "message": "no", **more}
        await visit.say("err", id=command["id"], ch=command.get("ch"), **fields)


@pytest.mark.parametrize(("row", "token"), cases("error"))
def test_subscription_after_each_error_is_retried_or_fails_as_the_table_states(
    row: dict[str, Any], token: str
) -> None:
    async def main() -> None:
        gateway = Refusing(row)
        async with scripted_gateway(gateway):
            observed = Observed(gateway.url, "none")
            channel_token: Any = {"provider": observed._token, "fixed": "fixed", "none": None}[token]
            async with observed.client as client, asyncio.timeout(WITHIN_S):
                chat = client.subscribe("chat", token=channel_token)
                visit = await gateway.visit(1)
                action = row[token]
                tries = {"retry": LIMIT + 1, "limited": LIMIT}.get(action, 1)
                for count in range(2, tries + 1):
                    # One task sleeps until silence is noticed, one until the next attempt.
                    await observed.has_slept(2)
                    assert observed.clock.sleeping[0] > (RETRY_S if row["retry"] else 0)
                    observed.clock.advance(observed.clock.sleeping[0])
                    await visit.heard("sub", count)
                if action in ("retry", "held"):
                    await chat.ready()
                else:
                    with pytest.raises(CommandError, match=f"{row['code']} {row['name']}"):
                        await chat.ready()
                assert client.state is ClientState.OPEN
                gateway.left = 1
                with pytest.raises(CommandError) as caught:
                    await client.publish("chat", 1)
                assert caught.value.temporary is (row["state"] == "passing")
                assert caught.value.retry_s == (RETRY_S if row["retry"] else None)

    run(main())
