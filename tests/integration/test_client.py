"""Run the Python client against a real gateway, and on real sockets against a scripted one."""

import asyncio
import json
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
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
    transport,
)
from wsgate.client.backend import Publisher

WITHIN_S = 30.0
UNSENT_BYTES = 16 * 1024 * 1024  # random, so that no compression shrinks them; the kernel takes about 4 MiB
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
    """A token provider that returns a list of tokens, and then the last one again and again."""

    def __init__(self, *tokens: str) -> None:
        self.asked = 0
        self._tokens = tokens

    async def __call__(self) -> str:
        self.asked += 1
        return self._tokens[min(self.asked, len(self._tokens)) - 1]


class Errors(list[Exception]):
    """The errors that a client reports, with a way to wait for them."""

    def __init__(self) -> None:
        super().__init__()
        self._came = asyncio.Event()

    def append(self, error: Exception) -> None:
        super().append(error)
        self._came.set()

    async def until(self, claim: Callable[[Exception], object]) -> Exception:
        """Wait for the first error of which the claim is true; return it."""
        async with asyncio.timeout(WITHIN_S):
            while not (found := [error for error in self if claim(error)]):
                self._came.clear()
                await self._came.wait()
        return found[0]


def has_reason(reason: str) -> Callable[[Exception], bool]:
    return lambda error: isinstance(error, Disconnected) and error.ending.reason == reason


# --- a real gateway -----------------------------------------------------------------------------------


def test_client_receives_publications_of_clients_and_backends_with_user_and_data(gateway: Gateway) -> None:
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
                assert (await anext(chat)).data == b"\x00\xff", (
                    "a publication without echo reached its publisher"
                )
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


def test_command_error_has_the_code_and_name_of_the_refusal() -> None:
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

    # Larger than a payload, but not than a message, because that would close the connection.
    with running_gateway(environ={"WSGATE_LIMITS__MAX_MESSAGE": "1MiB"}) as gateway:
        run(main(gateway))


def test_message_sent_by_a_client_reaches_the_backend_and_its_answer_the_inbox(gateway: Gateway) -> None:
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
def test_client_reconnects_and_subscribes_again_after_a_gateway_restart_and_reports_a_gap(
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


def test_client_disconnected_by_the_backend_ends_with_4520_and_does_not_return(gateway: Gateway) -> None:
    async def main() -> None:
        token = await asyncio.to_thread(gateway.token, "thrown")
        async with Redis.from_url(gateway.bus_url) as bus, Client(gateway.ws_url, token=token) as client:
            await client.connected()
            await bus.publish("wsgate:ctl", json.dumps({"op": "disconnect", "user": "thrown"}))
            ending = await client.closed()
            assert (ending.code, ending.may_return) == (4520, False)

    run(main())


def test_client_refreshes_its_token_before_the_expiry_on_the_same_connection(gateway: Gateway) -> None:
    """The provider is called a second time before the first token expires."""

    async def main() -> None:
        short = await asyncio.to_thread(gateway.token, "42", "--ttl", "3s")
        long = await asyncio.to_thread(gateway.token, "42", "--ttl", "1h")
        tokens, errors = Tokens(short, long), Errors()
        async with Client(gateway.ws_url, token=tokens, on_error=errors.append) as client:
            await client.connected()
            conn = client.conn
            async with asyncio.timeout(WITHIN_S):
                while tokens.asked < 2:  # noqa: ASYNC110 - the clock of the gateway decides the time
                    await asyncio.sleep(0.01)
            expires_s = await client.refresh()
            assert expires_s is not None and expires_s > 3000
            assert (client.conn, list(errors)) == (conn, [])

    run(main())


def test_client_whose_token_expired_reconnects_with_a_new_one(gateway: Gateway) -> None:
    """The provider fails until the expiry, so the gateway closes with 4001."""

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
            # Signed just before its use, so that the token does not expire earlier on a busy machine.
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


def test_refresh_request_of_a_backend_renews_the_token_only_with_a_provider(gateway: Gateway) -> None:
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
            # A client without a provider reports an error and is closed after the time; the other one stays.
            await errors.until(lambda error: isinstance(error, TokenError))
            await errors.until(is_expired)
            assert tokens.asked == 2
            await client.publish("c", 1)
            assert client.conn == conn

    run(main())


def test_client_notices_a_silent_connection_and_reconnects(gateway: Gateway) -> None:
    """No byte and no FIN arrives, so only the silence shows the loss."""

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


def test_wall_clock_jump_does_not_make_the_client_notice_a_silence(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock of the client advances by 11 s of the 12 s that are allowed, three times."""
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
                clock.advance(11.0)  # of the 12 s that are allowed
                await client.publish("c", 1)  # a byte arrives
            assert (client.conn, client.state, list(errors)) == (conn, ClientState.OPEN, [])

    run(main())


def test_client_keeps_20_subscriptions_over_a_network_that_splits_and_resets(gateway: Gateway) -> None:
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


# --- a scripted gateway -------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1000, 1001, 1011, 1012, 1013, 4000, 4001, 4010, 4012, 4029, 4050, 4499])
def test_client_closed_with_a_temporary_code_reconnects_and_subscribes_again(code: int) -> None:
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
def test_client_closed_with_a_final_code_does_not_reconnect(code: int) -> None:
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


def test_client_waits_for_the_time_of_retry_after_and_of_bye() -> None:
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


def test_client_after_401_retries_with_a_token_provider_but_not_with_a_fixed_token() -> None:
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


def test_client_refused_with_404_or_426_does_not_retry() -> None:
    async def main() -> None:
        async with scripted_gateway() as gateway:
            for status in (404, 426):
                gateway.refusals.append((status, {}))
                async with Client(gateway.url, options=QUICK) as client:
                    assert (await client.closed()).code == status
            assert len(gateway.requests) == 2

    run(main())


def test_client_keeps_trying_a_closed_port() -> None:
    async def main() -> None:
        async with scripted_gateway() as gateway:
            url = gateway.url
        errors = Errors()
        async with Client(url, options=QUICK, on_error=errors.append) as client:
            await errors.until(has_reason("unreachable"))
            assert client.state is not ClientState.CLOSED

    run(main())


def test_client_ends_finally_when_it_receives_a_too_large_message() -> None:
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


@pytest.mark.parametrize("way", ["close", "disconnect", "bad message", "cancel"])
def test_client_ends_in_bounded_time_although_the_peer_has_stopped_reading(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unsent bytes of a large message wait in the client, so that its Close can never be sent."""
    monkeypatch.setattr(transport, "_CLOSE_S", 0.2)

    async def main() -> None:
        async with scripted_gateway() as gateway:
            client = Client(gateway.url, on_error=lambda _: None)
            client.start()
            visit = await gateway.visit(1)
            await client.connected()
            visit.socket.transport.pause_reading()
            publishing = asyncio.create_task(client.publish("c", os.urandom(UNSENT_BYTES)))
            await asyncio.sleep(0.1)  # the buffers of the kernel fill
            async with asyncio.timeout(WITHIN_S / 3):
                match way:
                    case "disconnect":
                        await client.disconnect()
                    case "bad message":
                        await visit.socket.send("not msgpack")
                        await gateway.visit(2)
                    case "cancel":
                        publishing.cancel()
                with suppress(asyncio.CancelledError, Disconnected, ClosedError):
                    if way != "close":
                        await publishing
                await client.close()
            await asyncio.gather(publishing, return_exceptions=True)

    run(main())


def test_token_provider_that_fails_and_then_hangs_is_reported_and_called_again() -> None:
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


def test_sync_client_subscribes_publishes_sends_and_reports_errors(gateway: Gateway) -> None:
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


def test_close_of_the_sync_client_ends_an_iteration_in_another_thread(gateway: Gateway) -> None:
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


def test_sync_client_connect_to_a_closed_port_raises_timeout_error() -> None:
    client = SyncClient("ws://127.0.0.1:9/ws", options=QUICK, on_error=lambda _: None)
    with pytest.raises(TimeoutError):
        client.connect(0.05)
    client.close()
    with pytest.raises(ClosedError):
        client.publish("c", 1)
