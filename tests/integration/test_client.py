"""The Python client against a real gateway, and on real sockets against one that follows a script."""

import asyncio
import json
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import jwt
import pytest
from redis.asyncio import Redis

from tests.support.event_stream import Hall, consuming
from tests.support.fault_proxy import fault_proxy
from tests.support.gateway import Gateway, running_gateway
from tests.support.memory_gateway import ManualClock, run
from tests.support.scripted_gateway import ScriptedGateway, scripted_gateway
from wsgate.client import (
    Backoff,
    Client,
    ClientOptions,
    ClientState,
    ClosedError,
    CommandError,
    Disconnected,
    Environment,
    Gap,
    GapReason,
    SyncClient,
    TokenError,
)
from wsgate.client.backend import Publisher

WITHIN_S = 30.0
QUICK = ClientOptions(backoff=Backoff(base_s=0.01, cap_s=0.1))
ENVIRON = {
    "WSGATE_EVENTS__ENABLED": "message",
    "WSGATE_HEARTBEAT__PING_INTERVAL": "1s",
    "WSGATE_SERVER__DRAIN_TIMEOUT": "1s",
}


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with running_gateway(environ=ENVIRON) as running:
        yield running


class Tokens:
    """A provider over a list of tokens, the last one again and again."""

    def __init__(self, *tokens: str) -> None:
        self.asked = 0
        self._tokens = tokens

    async def __call__(self) -> str:
        self.asked += 1
        return self._tokens[min(self.asked, len(self._tokens)) - 1]


class Errors(list[Exception]):
    """What a client reports, and when it has."""

    def __init__(self) -> None:
        super().__init__()
        self._came = asyncio.Event()

    def append(self, error: Exception) -> None:
        super().append(error)
        self._came.set()

    async def until(self, claim: Callable[[Exception], object]) -> Exception:
        """The first of which it is true."""
        async with asyncio.timeout(WITHIN_S):
            while not (found := [error for error in self if claim(error)]):
                self._came.clear()
                await self._came.wait()
        return found[0]


def has_reason(reason: str) -> Callable[[Exception], bool]:
    return lambda error: isinstance(error, Disconnected) and error.ending.reason == reason


# --- a real gateway -----------------------------------------------------------------------------------


def test_what_is_published_is_heard_whoever_publishes_it(gateway: Gateway) -> None:
    async def main() -> None:
        token = await asyncio.to_thread(gateway.token, "42")
        async with (
            Publisher(gateway.bus_url) as publisher,
            Client(gateway.ws_url, token=token) as client,
            Client(gateway.ws_url) as other,
        ):
            inbox = client.inbox()
            await inbox.ready()
            assert client.user == "42"
            async with client.subscribe("chat:1") as chat, other.subscribe("chat:1") as theirs:
                await client.publish("chat:1", {"a": [1, None, 2.5]}, echo=False)
                heard = await anext(theirs)
                assert (heard.data, heard.user, heard.channel) == ({"a": [1, None, 2.5]}, "42", "chat:1")
                assert heard.timestamp_ms is not None
                await other.publish("chat:1", b"\x00\xff")
                assert (await anext(chat)).data == b"\x00\xff", "the first was not for its own publisher"
                assert await publisher.publish("chat:1", "é", user="backend", exclude=other.conn) == 1
                heard = await anext(chat)
                assert (heard.data, heard.user) == ("é", "backend")
                await publisher.publish("chat:1", b"raw text")
                assert (await anext(theirs)).data == b"\x00\xff"
                assert (await anext(theirs)).data == "raw text"
            await publisher.publish_to_user("42", {"for": "you"})
            heard = await anext(inbox)
            assert (heard.channel, heard.data) == ("@me", {"for": "you"})

    run(main())


def test_what_the_gateway_refuses_has_its_name() -> None:
    async def main(gateway: Gateway) -> None:
        async with Client(gateway.ws_url) as client:
            for work, code, error in (
                (client.publish("@42", 1), 400, "bad_request"),
                (client.publish("c", "x" * 70_000), 413, "too_large"),
                (client.subscribe("a b").ready(), 400, "bad_request"),
                (client.inbox().ready(), 400, "bad_request"),
                (client.refresh("no token"), 401, "unauthorized"),
            ):
                with pytest.raises(CommandError) as caught:
                    await work
                assert (caught.value.code, caught.value.error) == (code, error)
            await client.publish("c", 1)

    # Larger than a payload may be, but no larger than a message: that would close the connection.
    with running_gateway(environ={"WSGATE_LIMITS__MAX_MESSAGE": "1MiB"}) as gateway:
        run(main(gateway))


def test_what_a_client_sends_reaches_the_backend_and_back(gateway: Gateway) -> None:
    async def main() -> None:
        token = await asyncio.to_thread(gateway.token, "sender")
        async with (
            Redis.from_url(gateway.bus_url) as bus,
            Publisher(bus) as publisher,
            Client(gateway.ws_url, token=token) as client,
        ):
            here = Hall(bus)

            async def handle(event: Any) -> None:
                await here.handle(event)
                await publisher.publish_to_user(event.user, {"you said": event.data})

            async with consuming(bus, handle), client.inbox() as inbox:
                await client.send({"x": [1]})
                assert (await anext(inbox)).data == {"you said": {"x": [1]}}
            (event,) = here.handled
            assert (event.type, event.user, event.conn, event.encoding) == (
                "message",
                "sender",
                client.conn,
                "json",
            )

    run(main())


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_gateway_that_is_restarted_finds_its_clients_again(
    end: signal.Signals, port: int, tmp_path: Path
) -> None:
    environ = ENVIRON | {"WSGATE_AUTH__HMAC_SECRET": "a secret that outlives a restart"}

    async def main() -> None:
        errors, gaps = Errors(), list[Gap]()
        with running_gateway("--port", str(port), environ=environ, directory=tmp_path) as first:
            token = first.run("token", "--user", "42", environ=environ).stdout.strip()
            client = Client(first.ws_url, token=token, options=QUICK, on_error=errors.append)
            client.start()
            chat, inbox = client.subscribe("chat:1", on_gap=gaps.append), client.inbox()
            await chat.ready()
            await inbox.ready()
            await client.publish("chat:1", "before")
            assert (await anext(chat)).data == "before"
            await asyncio.to_thread(first.stop, end)
        await errors.until(lambda error: isinstance(error, Disconnected))
        with running_gateway("--port", str(port), environ=environ, directory=tmp_path) as second:
            async with asyncio.timeout(WITHIN_S):
                await chat.ready()
                await inbox.ready()
            async with Publisher(second.bus_url) as publisher:
                await client.publish("chat:1", "after")
                assert (await anext(chat)).data == "after"
                await publisher.publish_to_user("42", "after")
                assert (await anext(inbox)).data == "after"
            assert gaps == [Gap("chat:1", None, None, GapReason.NOT_RECOVERED)]
            await client.close()

    run(main())


def test_a_backend_that_throws_somebody_out_is_obeyed(gateway: Gateway) -> None:
    async def main() -> None:
        token = await asyncio.to_thread(gateway.token, "thrown")
        async with Redis.from_url(gateway.bus_url) as bus, Client(gateway.ws_url, token=token) as client:
            await client.connected()
            await bus.publish("wsgate:ctl", json.dumps({"op": "disconnect", "user": "thrown"}))
            ending = await client.closed()
            assert (ending.code, ending.may_return) == (4520, False)

    run(main())


def test_a_token_that_expires_is_followed_by_a_fresh_one_and_the_connection_goes_on(gateway: Gateway) -> None:
    """Refreshed ahead of its end; the connection is still the same after that."""

    async def main() -> None:
        short = await asyncio.to_thread(gateway.token, "42", "--ttl", "3s")
        long = await asyncio.to_thread(gateway.token, "42", "--ttl", "1h")
        tokens, errors = Tokens(short, long), Errors()
        async with Client(gateway.ws_url, token=tokens, on_error=errors.append) as client:
            await client.connected()
            conn = client.conn
            async with asyncio.timeout(WITHIN_S):
                while tokens.asked < 2:  # noqa: ASYNC110 - the gateway's clock decides when
                    await asyncio.sleep(0.01)
            expires_s = await client.refresh()
            assert expires_s is not None and expires_s > 3000
            assert (client.conn, list(errors)) == (conn, [])

    run(main())


def test_a_token_that_expired_leads_to_a_fresh_one(gateway: Gateway) -> None:
    """The provider has none in time: the gateway ends it with 4001, and the next attempt has another."""

    async def main() -> None:
        long = await asyncio.to_thread(gateway.token, "42", "--ttl", "1h")
        errors, asked = Errors(), 0

        async def provider() -> str:
            nonlocal asked
            asked += 1
            if asked > 1 and not any(map(is_expired, errors)):
                raise ValueError("no fresh one yet")
            if asked > 1:
                return long
            # Signed here and now, so that on a busy machine the token does not expire before it is shown.
            return jwt.encode({"sub": "42", "exp": int(time.time()) + 3}, gateway.secret)

        async with Client(gateway.ws_url, token=provider, options=QUICK, on_error=errors.append) as client:
            await client.connected()
            first = client.conn
            await errors.until(is_expired)
            async with asyncio.timeout(WITHIN_S):
                await client.publish("c", 1)
            assert client.conn != first
            assert any(isinstance(error, TokenError) for error in errors)

    run(main())


def is_expired(error: Exception) -> bool:
    return isinstance(error, Disconnected) and error.ending.code == 4001


def test_a_backend_that_wants_fresh_tokens_gets_them(gateway: Gateway) -> None:
    async def main() -> None:
        first = await asyncio.to_thread(gateway.token, "fresh")
        tokens, errors = Tokens(first), Errors()
        async with (
            Redis.from_url(gateway.bus_url) as bus,
            Client(gateway.ws_url, token=tokens, on_error=errors.append) as client,
            Client(gateway.ws_url, token=first, on_error=errors.append, options=QUICK) as fixed,
        ):
            await client.connected()
            await fixed.connected()
            conn = client.conn
            await bus.publish("wsgate:ctl", json.dumps({"op": "refresh", "user": "fresh", "within_s": 1}))
            # Who has no provider cannot, is told so, and is closed when the time is over; who has is not.
            await errors.until(lambda error: isinstance(error, TokenError))
            await errors.until(is_expired)
            assert tokens.asked == 2
            await client.publish("c", 1)
            assert client.conn == conn

    run(main())


def test_a_gateway_that_vanished_without_a_word_is_noticed(gateway: Gateway) -> None:
    """Not a byte comes any more, and no FIN: only silence tells."""

    async def main() -> None:
        with fault_proxy("127.0.0.1", gateway.port) as proxy:
            errors = Errors()
            options = ClientOptions(backoff=QUICK.backoff, silence_margin_s=0.2)
            url = f"ws://127.0.0.1:{proxy.port}/ws"
            async with Client(url, options=options, on_error=errors.append) as client:
                chat = client.subscribe("c")
                await chat.ready()
                proxy.faults.is_stalled = True
                await errors.until(has_reason("silence"))
                proxy.faults.is_stalled = False
                async with asyncio.timeout(WITHIN_S):
                    await chat.ready()
                    await client.publish("c", "back")
                    assert (await anext(chat)).data == "back"

    run(main())


def test_a_gateway_that_only_pings_is_alive_whatever_the_wall_clock_says(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Longer than the silence that would be too long, and the wall clock jumps meanwhile."""
    real = time.time

    async def main() -> None:
        errors, clock = Errors(), ManualClock()
        async with Client(
            gateway.ws_url, on_error=errors.append, environment=Environment(clock=clock)
        ) as client:
            await client.connected()
            conn = client.conn
            for step_s in (86_400.0, -86_400.0, 0.0):
                monkeypatch.setattr(time, "time", lambda step_s=step_s: real() + step_s)
                clock.advance(11.0)  # of the twelve that are allowed
                await client.publish("c", 1)  # a byte is heard
            assert (client.conn, client.state, list(errors)) == (conn, ClientState.OPEN, [])

    run(main())


def test_a_network_that_cuts_and_slices_loses_no_subscription(gateway: Gateway) -> None:
    async def main() -> None:
        with fault_proxy("127.0.0.1", gateway.port) as proxy:
            proxy.faults.slice_bytes = 3
            errors = Errors()
            url = f"ws://127.0.0.1:{proxy.port}/ws"
            async with Client(url, options=QUICK, on_error=errors.append) as client:
                chats = [client.subscribe(f"c{number}") for number in range(20)]
                for cut in range(1, 6):
                    async with asyncio.timeout(WITHIN_S):
                        for number, chat in enumerate(chats):
                            await chat.ready()
                            await client.publish(f"c{number}", cut)
                            assert (await anext(chat)).data == cut
                    before = len(errors)
                    proxy.reset_all()
                    await errors.until(lambda _, before=before: len(errors) > before)  # type: ignore[misc]

    run(main())


# --- one that follows a script ------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1000, 1001, 1011, 1012, 1013, 4000, 4001, 4010, 4012, 4029, 4050, 4499])
def test_who_is_closed_with_these_comes_back(code: int) -> None:
    async def main() -> None:
        async with scripted_gateway() as gateway:
            async with Client(gateway.url, options=QUICK, on_error=lambda _: None) as client:
                chat = client.subscribe("c")
                visit = await gateway.visit(1)
                await visit.heard("sub")
                await visit.close(code)
                again = await gateway.visit(2)
                await again.heard("sub")
                await again.say("msg", ch="c", data="heard")
                assert (await anext(chat)).data == "heard"

    run(main())


@pytest.mark.parametrize("code", [1002, 1003, 1007, 1008, 1009, 1010, 4500, 4501, 4503, 4520, 4999])
def test_who_is_closed_with_these_stays_away(code: int) -> None:
    async def main() -> None:
        async with scripted_gateway() as gateway:
            async with Client(gateway.url, options=QUICK, on_error=lambda _: None) as client:
                chat = client.subscribe("c")
                await (await gateway.visit(1)).close(code, "because")
                ending = await client.closed()
                assert (ending.code, ending.reason) == (code, "because")
                with pytest.raises(ClosedError, match=f"{code} because"):
                    await anext(chat)
            assert len(gateway.requests) == 1

    run(main())


def test_a_503_is_obeyed_and_so_is_what_bye_said() -> None:
    async def main() -> None:
        gateway = ScriptedGateway(refusals=deque([(503, {"Retry-After": "7"})]))
        async with scripted_gateway(gateway):
            clock, errors = ManualClock(), Errors()
            environment = Environment(clock=clock, random=lambda: 0.5)
            async with Client(gateway.url, on_error=errors.append, environment=environment) as client:
                await errors.until(lambda error: isinstance(error, Disconnected) and error.ending.code == 503)
                await asyncio.sleep(0)
                assert clock.sleeping == [pytest.approx(7.25)]
                clock.advance(7.25)
                visit = await gateway.visit(1)
                await client.connected()
                await visit.close(4012, "drain", retry_ms=2300)
                await errors.until(has_reason("drain"))
                await asyncio.sleep(0)
                assert clock.sleeping == [pytest.approx(2.3 + 0.5)]

    run(main())


def test_a_401_asks_the_provider_again_and_a_fixed_token_is_given_up() -> None:
    async def main() -> None:
        gateway = ScriptedGateway(refusals=deque([(401, {}), (403, {})]))
        async with scripted_gateway(gateway):
            tokens = Tokens("stale", "stale-too", "fresh")
            async with Client(gateway.url, token=tokens, options=QUICK, on_error=lambda _: None):
                assert (await gateway.visit(1)).token == "fresh"
            gateway.refusals.append((401, {}))
            async with Client(gateway.url, token="fixed", options=QUICK) as client:
                assert (await client.closed()).code == 401
        assert len(gateway.requests) == 4

    run(main())


def test_a_gateway_of_another_kind_is_not_asked_twice() -> None:
    async def main() -> None:
        async with scripted_gateway() as gateway:
            for status in (404, 426):
                gateway.refusals.append((status, {}))
                async with Client(gateway.url, options=QUICK) as client:
                    assert (await client.closed()).code == status
            assert len(gateway.requests) == 2

    run(main())


def test_nobody_at_the_port_is_waited_for() -> None:
    async def main() -> None:
        async with scripted_gateway() as gateway:
            url = gateway.url
        errors = Errors()
        async with Client(url, options=QUICK, on_error=errors.append) as client:
            await errors.until(has_reason("unreachable"))
            assert client.state is not ClientState.CLOSED

    run(main())


def test_a_message_that_is_too_large_ends_it_because_it_would_come_again() -> None:
    async def main() -> None:
        async with scripted_gateway() as gateway:
            options = ClientOptions(max_message_bytes=1_000)
            async with Client(gateway.url, options=options) as client:
                chat = client.subscribe("c")
                visit = await gateway.visit(1)
                await visit.heard("sub")
                await visit.say("msg", ch="c", data="x" * 2_000)
                assert (await client.closed()).reason == "message_too_big"
                with pytest.raises(ClosedError):
                    await anext(chat)

    run(main())


def test_a_provider_that_fails_and_then_hangs_costs_attempts_only() -> None:
    async def main() -> None:
        asked = 0

        async def provider() -> str:
            nonlocal asked
            asked += 1
            if asked == 1:
                raise ValueError
            if asked == 2:
                await asyncio.Event().wait()
            return "fresh"

        async with scripted_gateway() as gateway:
            errors = Errors()
            options = ClientOptions(backoff=QUICK.backoff, token_timeout_s=0.05)
            async with Client(gateway.url, token=provider, options=options, on_error=errors.append):
                assert (await gateway.visit(1)).token == "fresh"
            assert [type(error) for error in errors] == [TokenError, TokenError]

    run(main())


# --- without an event loop ----------------------------------------------------------------------------


def test_a_program_without_a_loop_has_it_all(gateway: Gateway) -> None:
    token = gateway.token("42")
    with SyncClient(gateway.ws_url, token=lambda: token) as client:
        inbox = client.inbox()
        inbox.ready(WITHIN_S)
        with client.subscribe("c", timeout_s=WITHIN_S) as chat:
            client.publish("c", {"a": 1})
            client.publish("c", 2)
            assert [publication.data for publication in islice(chat, 2)] == [{"a": 1}, 2]
            with pytest.raises(TimeoutError):
                chat.take(0)
            client.publish("c", 3)
            assert chat.take(WITHIN_S).data == 3
        assert list(chat) == []
        client.send("hello")
        with pytest.raises(CommandError, match="400 bad_request"):
            client.publish("@x", 1)
    for call in (client.connect, lambda: client.publish("c", 1), lambda: inbox.take(0)):
        with pytest.raises(ClosedError):
            call()
    client.close()
    assert list(inbox) == []


def test_closing_wakes_up_whoever_waits_in_another_thread(gateway: Gateway) -> None:
    client = SyncClient(gateway.ws_url)
    client.connect(WITHIN_S)
    chat = client.subscribe("c")
    heard: list[list[Any]] = []
    waiting = threading.Thread(target=lambda: heard.append(list(chat)))
    waiting.start()
    chat.ready(WITHIN_S)
    client.close()
    waiting.join(WITHIN_S)
    assert heard == [[]]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("wsgate")]


def test_connecting_to_nobody_ends_in_time() -> None:
    client = SyncClient("ws://127.0.0.1:9/ws", options=QUICK, on_error=lambda _: None)
    with pytest.raises(TimeoutError):
        client.connect(0.05)
    client.close()
    with pytest.raises(ClosedError):
        client.publish("c", 1)
