"""Check reconnecting of a client: when, how often, with which token, and when not."""

import asyncio
import time
from collections import deque

import pytest

from tests.support.memory_gateway import (
    PING_S,
    ManualClock,
    MemoryGateway,
    MemoryLink,
    World,
    run,
    until,
    world,
)
from wsgate.client import (
    BadMessage,
    Client,
    ClientOptions,
    ClientState,
    ClosedError,
    CommandError,
    Disconnected,
    Ending,
    Environment,
    Opening,
    TokenError,
    UnauthorizedError,
    session,
)
from wsgate.client.close_info import after_refusal
from wsgate.client.connector import TRANSITIONS
from wsgate.errors import InternalError, SettingsError

MARGIN_S = ClientOptions().silence_margin_s


def refused(status: int, retry_after: str | None = None) -> Disconnected:
    return Disconnected(after_refusal(status, retry_after))


def unreachable() -> Disconnected:
    return Disconnected(Ending(0, "unreachable"))


class Tokens:
    """A provider that returns a new token each time, or raises."""

    def __init__(self) -> None:
        self.asked = 0
        self.failing = False
        self.stopped = False

    async def __call__(self) -> str:
        self.asked += 1
        if self.stopped:
            raise UnauthorizedError("the user has logged out")
        if self.failing:
            raise ValueError("no token today")
        return f"token-{self.asked}"


# --- start and close ----------------------------------------------------------------------------------


def test_client_connects_in_the_background_and_closes_with_its_context() -> None:
    async def main() -> None:
        async with world(token="fixed") as here:
            states = [here.client.state]
            await here.client.connected()
            states.append(here.client.state)
            assert (here.client.conn, here.client.user) == (f"{1:016x}", "42")
            assert here.gateway.openings[0].token == "fixed"
            assert "fixed" not in repr(here.gateway.openings[0])
        assert [*states, here.client.state] == [ClientState.IDLE, ClientState.OPEN, ClientState.CLOSED]
        assert (await here.client.closed()).reason == "closed_by_application"
        with pytest.raises(ClosedError):
            await here.client.publish("c", 1)
        with pytest.raises(ClosedError):
            here.client.subscribe("c")
        assert here.errors == []

    run(main())


def test_close_in_any_state_ends_the_client() -> None:
    async def main() -> None:
        never_started = Client("ws://gateway/ws")
        await never_started.close()
        assert never_started.state is ClientState.CLOSED
        async with world() as unstarted:
            pass  # closed before its task took a step
        assert (await unstarted.client.closed()).reason == "closed_by_application"
        async with world(MemoryGateway(silent={"welcome"})) as connecting:
            await until(lambda: connecting.gateway.links)
        async with world(MemoryGateway(refusals=deque([unreachable()]))) as waiting:
            await until(lambda: waiting.client.state is ClientState.WAITING)
        async with world() as opened:
            await opened.client.connected()
            await opened.client.close()
            await opened.client.close()

    run(main())


def test_client_raises_an_error_for_a_second_start_and_for_invalid_urls() -> None:
    async def main() -> None:
        async with world() as here:
            with pytest.raises(InternalError):
                here.client.start()

    run(main())
    for url in ("http://h/ws", "ws://", "ws:///ws", "h:8000", "", "ws://h:x/", "ws://h/#f", "ws://h:0/"):
        with pytest.raises(SettingsError):
            Client(url)


def test_transitions_cover_every_state_and_closed_is_final() -> None:
    assert TRANSITIONS.keys() == set(ClientState)
    assert TRANSITIONS[ClientState.CLOSED] == set()
    assert all(ClientState.CLOSED in TRANSITIONS[state] for state in set(ClientState) - {ClientState.CLOSED})


# --- back-off -----------------------------------------------------------------------------------------


def test_backoff_grows_with_failed_attempts_and_resets_after_a_lasting_connection() -> None:
    async def main() -> None:
        gateway = MemoryGateway(refusals=deque(unreachable() for _ in range(8)))
        async with world(gateway, random=lambda: 1.0) as here:
            for window_s in (0.5, 1, 2, 4, 8, 16, 30, 30):
                await until(lambda: here.client.state is ClientState.WAITING and here.clock.sleeping)
                assert here.clock.sleeping == [pytest.approx(window_s)]
                here.clock.advance(window_s)
                await until(lambda: here.client.state is not ClientState.WAITING)
            link = await here.opened(1)
            here.clock.advance(5)
            link.end(1001)
            await until(lambda: here.client.state is ClientState.WAITING)
            assert here.clock.sleeping == [pytest.approx(0.5)]
        assert {type(each) for each in here.errors} == {Disconnected}

    run(main())


def test_backoff_grows_if_connections_end_right_after_the_welcome() -> None:
    async def main() -> None:
        async with world(random=lambda: 1.0) as here:
            for count, window_s in enumerate((0.5, 1, 2, 4), 1):
                (await here.opened(count)).end(1011)
                await until(lambda: here.client.state is ClientState.WAITING and here.clock.sleeping)
                assert here.clock.sleeping == [pytest.approx(window_s)]
                here.clock.advance(window_s)

    run(main())


@pytest.mark.parametrize("slow", ["token", "handshake", "welcome", "close"])
def test_time_before_the_welcome_and_for_closing_does_not_reset_the_backoff(slow: str) -> None:
    async def main() -> None:
        gateway, clock = MemoryGateway(), ManualClock()

        def takes(part: str) -> None:
            clock.advance(6 if part == slow else 0)

        class SlowLink(MemoryLink):
            async def close(self) -> None:
                takes("close")
                await super().close()

            async def receive(self) -> object:
                if self.said_welcome:
                    return await super().receive()
                takes("welcome")
                self.said_welcome = True
                return await super().receive()

            said_welcome = False

        async def token() -> str:
            takes("token")
            return "t"

        async def connect(opening: Opening) -> MemoryLink:
            takes("handshake")
            link = await gateway.connect(opening)
            link.__class__ = SlowLink
            return link

        environment = Environment(clock=clock, random=lambda: 1.0, connect=connect)
        client = Client("ws://gateway/ws", token=token, environment=environment, on_error=lambda _: None)
        async with client:
            for count, window_s in enumerate((0.5, 1, 2, 4), 1):
                await client.connected()
                assert len(gateway.links) == count
                gateway.link.end(1011)
                await until(lambda: client.state is ClientState.WAITING and clock.sleeping)
                assert clock.sleeping == [pytest.approx(window_s)]
                clock.advance(window_s)
                await until(lambda: client.state is not ClientState.WAITING)

    run(main())


def test_backoff_starts_again_after_a_disconnect_from_a_lasting_connection() -> None:
    async def main() -> None:
        async with world(random=lambda: 1.0) as here:
            for count, window_s in enumerate((0.5, 1, 2), 1):
                (await here.opened(count)).end(1011)
                await until(lambda: here.client.state is ClientState.WAITING and here.clock.sleeping)
                assert here.clock.sleeping == [pytest.approx(window_s)]
                here.clock.advance(window_s)
            await here.opened(4)
            here.clock.advance(5)
            await here.client.disconnect()
            await here.client.connect()
            (await here.opened(5)).end(1011)
            await until(lambda: here.client.state is ClientState.WAITING and here.clock.sleeping)
            assert here.clock.sleeping == [pytest.approx(0.5)]

    run(main())


@pytest.mark.parametrize("random", [0.0, 0.5, 0.999])
def test_retry_time_of_a_bye_is_the_least_wait_and_jitter_is_added(random: float) -> None:
    async def main() -> None:
        async with world(random=lambda: random) as here:
            link = await here.opened(1)
            link.say("bye", code=4012, reason="drain", reconnect=True, retry_ms=2300)
            link.end(4012, "drain")
            await until(lambda: here.client.state is ClientState.WAITING and here.clock.sleeping)
            assert here.clock.sleeping == [pytest.approx(2.3 + random * 0.5)]
            (error,) = here.errors
            assert isinstance(error, Disconnected)
            assert error.ending == Ending(4012, "drain", True, 2.3)

    run(main())


def test_retry_after_of_a_503_or_429_is_the_least_wait() -> None:
    async def main() -> None:
        async with world(MemoryGateway(refusals=deque([refused(503, "7"), refused(429, "3")]))) as here:
            for expected_s in (7 + 0.25, 3 + 0.5):
                await until(lambda: here.client.state is ClientState.WAITING and here.clock.sleeping)
                assert here.clock.sleeping == [pytest.approx(expected_s)]
                here.clock.advance(expected_s)
                await until(lambda: here.client.state is not ClientState.WAITING)
            await here.client.connected()

    run(main())


# --- final codes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1000, 1001, 1005, 1006, 1011, 1012, 1013, 4001, 4012, 4029, 4050, 4499])
def test_client_reconnects_after_a_temporary_close_code(code: int) -> None:
    async def main() -> None:
        async with world(token=Tokens()) as here:
            (await here.opened(1)).end(code)
            await here.comes_back()

    run(main())


@pytest.mark.parametrize("code", [1002, 1003, 1007, 1008, 1009, 1010, 4500, 4501, 4503, 4520, 4999])
def test_final_close_code_ends_the_client_and_all_its_calls(code: int) -> None:
    async def main() -> None:
        async with world(token=Tokens()) as here:
            chat, inbox = here.client.subscribe("chat"), here.client.inbox()
            link = await here.opened(1)
            await chat.ready()
            publishing = asyncio.create_task(here.client.publish("silent", 1))
            here.gateway.silent.add("silent")
            await until(lambda: link.commands("pub"))
            link.publish("chat", "last message")
            link.end(code, "why")
            ending = await here.client.closed()
            assert ending == Ending(code, "why", may_return=False)
            assert (await anext(chat)).data == "last message"
            for ended in (chat, inbox):
                with pytest.raises(ClosedError) as caught:
                    await anext(ended)
                assert caught.value.ending == ending
            for call in (here.client.connected(), here.client.publish("chat", 1), chat.ready()):
                with pytest.raises(ClosedError, match=str(code)):
                    await call
            with pytest.raises(Disconnected):
                await publishing

    run(main())


def test_bye_decides_when_its_close_frame_is_lost() -> None:
    async def main() -> None:
        async with world() as here:
            link = await here.opened(1)
            link.say("bye", code=4501, reason="invalid_token", reconnect=False)
            link.end(1006, "connection_lost")
            assert await here.client.closed() == Ending(4501, "invalid_token", may_return=False)

    run(main())


@pytest.mark.parametrize("status", [400, 404, 405, 426, 431, 501])
def test_final_handshake_status_ends_the_client(status: int) -> None:
    async def main() -> None:
        async with world(MemoryGateway(refusals=deque([refused(status)]))) as here:
            assert (await here.client.closed()).code == status
            with pytest.raises(ClosedError):
                await here.client.connected()

    run(main())


# --- tokens -------------------------------------------------------------------------------------------


def test_every_attempt_requests_a_new_token_from_the_provider() -> None:
    async def main() -> None:
        async with world(token=Tokens()) as here:
            link = await here.opened(1)
            link.say("bye", code=4001, reason="token_expired", reconnect=True, retry_ms=0)
            link.end(4001, "token_expired")
            await here.comes_back()
            assert [opening.token for opening in here.gateway.openings] == ["token-1", "token-2"]

    run(main())


@pytest.mark.parametrize("status", [401, 403])
def test_refused_fixed_token_ends_the_client_after_one_attempt(status: int) -> None:
    async def main() -> None:
        for token in ("fixed", None):
            async with world(MemoryGateway(refusals=deque([refused(status)])), token=token) as here:
                assert (await here.client.closed()).code == status
                assert len(here.gateway.openings) == 1

    run(main())


@pytest.mark.parametrize("status", [401, 403])
def test_refused_tokens_of_a_provider_end_the_client_at_the_limit(status: int) -> None:
    async def main() -> None:
        gateway = MemoryGateway(refusals=deque(refused(status) for _ in range(9)))
        async with world(gateway, token=Tokens(), options=ClientOptions(unauthorized_limit=3)) as here:
            while here.client.state is not ClientState.CLOSED:
                here.clock.advance(30)
                await asyncio.sleep(0)
            assert [each.token for each in gateway.openings] == ["token-1", "token-2", "token-3"]

    run(main())


@pytest.mark.parametrize("reason", ["token_expired", "closed", "why"])
@pytest.mark.parametrize("url", ["ws://gateway/ws", "ws://gateway/ws?token=fixed"])
def test_expired_fixed_token_ends_the_client(reason: str, url: str) -> None:
    async def main() -> None:
        token = None if "token=" in url else "fixed"
        async with world(token=token, url=url) as here:
            link = await here.opened(1)
            link.say("bye", code=4001, reason=reason, reconnect=True, retry_ms=2000)
            link.end(4001)
            ending = await here.client.closed()
            assert str(ending) == f"4001 {reason}: the token of this client cannot change"
            assert [str(each) for each in here.errors] == [f"disconnected: {ending}"]

    run(main())


@pytest.mark.parametrize("reason", ["key_awaited", "token_not_yet_valid"])
def test_fixed_token_that_is_valid_later_is_sent_again(reason: str) -> None:
    async def main() -> None:
        async with world(token="fixed") as here:
            link = await here.opened(1)
            link.say("bye", code=4001, reason=reason, reconnect=True, retry_ms=2000)
            link.end(4001)
            await here.comes_back()

    run(main())


def test_invalid_fixed_token_ends_the_client_without_an_attempt() -> None:
    async def main() -> None:
        async with world(token="no token at all") as here:
            with pytest.raises(
                ClosedError, match="401 unauthorized: the token of this client is not a valid token"
            ):
                await here.client.connected()
            assert here.gateway.openings == []

    run(main())


def test_missing_token_ends_the_client_when_the_gateway_requires_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(session, "PROBE_S", 0.01)

    async def main() -> None:
        gateway = MemoryGateway(silent={"welcome"}, faults={"unsub": (401, "unauthorized")})
        async with world(gateway) as here:
            text = "401 unauthorized: the gateway requires a token, and this client has none"
            with pytest.raises(ClosedError, match=text):
                await here.client.connected()
        async with world(MemoryGateway(silent={"welcome"})) as here:
            await until(lambda: here.gateway.links)
            here.gateway.link.end(4002, "auth_timeout")
            with pytest.raises(ClosedError, match="4002 auth_timeout: the gateway requires a token"):
                await here.client.connected()

    run(main())


def test_session_with_a_welcome_in_time_sends_no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "PROBE_S", 0.0)

    async def main() -> None:
        async with world() as here:
            link = await here.opened(1)
            await here.client.publish("c", 1)
            assert link.commands("unsub") == []

    run(main())


def test_retry_time_is_limited_to_one_hour() -> None:
    async def main() -> None:
        async with world(MemoryGateway(silent={"c"}), random=lambda: 0.0) as here:
            here.client.subscribe("c")
            link = await here.opened(1)
            await until(lambda: link.commands("sub"))
            number = link.said[-1]["id"]
            link.say("err", id=number, code=503, error="unavailable", message="x", retry_ms=2**53)
            await until(lambda: 3600.0 in here.clock.sleeping)
            link.say("bye", code=4012, reason="drain", reconnect=True, retry_ms=2**53)
            link.end(4012)
            await until(lambda: here.client.state is ClientState.WAITING and here.clock.sleeping)
            assert here.clock.sleeping == [3600.0]

    run(main())


def test_only_consecutive_refusals_count_for_the_unauthorized_limit() -> None:
    async def main() -> None:
        gateway = MemoryGateway(refusals=deque([refused(401), refused(401)]))
        async with world(gateway, token=Tokens(), options=ClientOptions(unauthorized_limit=3)) as here:
            for count in (1, 2):
                if count == 2:
                    gateway.refusals.extend([refused(401), refused(401)])
                    gateway.link.end(1001)
                while len(gateway.links) < count:
                    here.clock.advance(30)
                    await asyncio.sleep(0)
                await here.opened(count)

    run(main())


def test_exception_of_a_provider_is_a_failed_attempt_and_is_reported() -> None:
    async def main() -> None:
        tokens = Tokens()
        tokens.failing = True
        async with world(token=tokens, random=lambda: 1.0) as here:
            for window_s in (0.5, 1, 2):
                await until(lambda: here.client.state is ClientState.WAITING and here.clock.sleeping)
                assert here.clock.sleeping == [pytest.approx(window_s)]
                if window_s == 2:
                    tokens.failing = False
                here.clock.advance(window_s)
                await until(lambda: here.client.state is not ClientState.WAITING)
            await here.client.connected()
            assert [type(each) for each in here.errors] == [TokenError] * 3
            assert [opening.token for opening in here.gateway.openings] == ["token-4"]

    run(main())


def test_provider_timeout_is_a_failed_attempt_and_is_reported() -> None:
    async def main() -> None:
        asked = 0

        async def token() -> str:
            nonlocal asked
            asked += 1
            if asked == 1:
                await asyncio.Event().wait()
            return "fresh"

        async with world(token=token, options=ClientOptions(token_timeout_s=0.01)) as here:
            await here.failed.wait()
            assert isinstance(here.errors[0], TokenError)
            await here.comes_back()
            assert here.gateway.openings[0].token == "fresh"

    run(main())


# --- refreshing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("random", "part"), [(0.0, 0.8), (0.5, 0.85), (1.0, 0.9)])
def test_token_is_refreshed_at_80_to_90_percent_of_its_life_each_time(random: float, part: float) -> None:
    async def main() -> None:
        gateway = MemoryGateway(welcome={"user": "42", "expires_s": 100})
        async with world(gateway, token=Tokens(), random=lambda: random) as here:
            link = await here.opened(1)
            for count in (1, 2, 3):
                await until(lambda: any(each > 2 * PING_S for each in here.clock.sleeping))
                assert max(here.clock.sleeping) == pytest.approx(100 * part)
                link.hear()
                for _ in range(4):
                    here.clock.advance(25 * part)
                    link.hear()
                    await asyncio.sleep(0)
                await until(lambda count=count: len(link.commands("refresh")) == count)  # type: ignore[misc]
                assert link.commands("refresh")[-1] == {"token": f"token-{count + 1}"}
            assert here.errors == []
            assert len(gateway.links) == 1

    run(main())


@pytest.mark.parametrize(("random", "delay_s"), [(0.0, 0.0), (0.5, 7.5), (0.99, 14.85)])
def test_requested_refresh_is_sent_within_the_first_half_of_its_time(random: float, delay_s: float) -> None:
    async def main() -> None:
        gateway = MemoryGateway(welcome={"user": "42", "expires_s": 3600})
        async with world(gateway, token=Tokens(), random=lambda: random) as here:
            link = await here.opened(1)
            link.say("refresh", within_s=30)
            if delay_s:
                await until(lambda: here.clock.sleeping and here.clock.sleeping[0] == pytest.approx(delay_s))
                assert link.commands("refresh") == []
                here.clock.advance(delay_s)
            await until(lambda: link.commands("refresh") == [{"token": "token-2"}])
            await until(
                lambda: any(each > 2000 for each in here.clock.sleeping)
            )  # and the next ahead of its end

    run(main())


def test_requested_refresh_does_not_delay_a_refresh_that_is_due_earlier() -> None:
    async def main() -> None:
        gateway = MemoryGateway(welcome={"user": "42", "expires_s": 100})
        async with world(gateway, token=Tokens(), random=lambda: 0.5) as here:
            link = await here.opened(1)
            await until(lambda: 85 in map(round, here.clock.sleeping))
            for _ in range(4):
                here.clock.advance(20)
                link.hear()
                await asyncio.sleep(0)
            link.say("refresh", within_s=30)
            await until(lambda: round(here.clock.sleeping[0]) == 5)

    run(main())


def test_failed_refresh_is_reported_and_repeated_after_one_second() -> None:
    async def main() -> None:
        gateway = MemoryGateway(
            welcome={"user": "42", "expires_s": 3600}, faults={"refresh": (401, "unauthorized")}
        )
        async with world(gateway, token=Tokens(), random=lambda: 0.0) as here:
            link = await here.opened(1)
            link.say("refresh", within_s=30)
            for count in (1, 2, 3):
                await until(lambda count=count: len(link.commands("refresh")) == count)  # type: ignore[misc]
                await until(lambda: 1.0 in here.clock.sleeping)
                if count == 3:
                    gateway.faults.clear()
                here.clock.advance(1.0)
                link.hear()
            await until(lambda: any(each > 2000 for each in here.clock.sleeping))
            assert {type(each) for each in here.errors} == {CommandError}
            assert here.client.state is ClientState.OPEN

    run(main())


async def refreshes(here: World, link: MemoryLink, seconds: int) -> int:
    """Let so many seconds pass in steps of 100 ms and return the number of refreshes."""
    for _ in range(seconds * 10):
        for _ in range(20):
            await asyncio.sleep(0)
        here.clock.advance(0.1)
        link.hear()
    await asyncio.sleep(0)
    return len(link.commands("refresh"))


@pytest.mark.parametrize("random", [0.0, 0.5, 0.999])
@pytest.mark.parametrize("expires_s", [-5, 0, 1])
def test_a_token_that_is_always_expired_is_refreshed_once_a_second(random: float, expires_s: int) -> None:
    async def main() -> None:
        gateway = MemoryGateway(welcome={"user": "42", "expires_s": expires_s})
        async with world(gateway, token=Tokens(), random=lambda: random) as here:
            link = await here.opened(1)
            assert 8 <= await refreshes(here, link, 10) <= 11

    run(main())


@pytest.mark.parametrize("random", [0.0, 0.5, 0.999])
def test_repeated_refresh_requests_cause_at_most_one_refresh_a_second(random: float) -> None:
    async def main() -> None:
        gateway = MemoryGateway(welcome={"user": "42", "expires_s": 3600})
        async with world(gateway, token=Tokens(), random=lambda: random) as here:
            link = await here.opened(1)
            for _ in range(100):
                link.say("refresh", within_s=0)
                for _ in range(20):
                    await asyncio.sleep(0)
                here.clock.advance(0.1)
            assert 8 <= len(link.commands("refresh")) <= 11

    run(main())


def test_refresh_in_progress_is_not_delayed_by_further_requests() -> None:
    async def main() -> None:
        asked = 0
        answer = asyncio.Event()

        async def slow() -> str:
            nonlocal asked
            asked += 1
            if asked > 1:
                await answer.wait()
            return f"token-{asked}"

        gateway = MemoryGateway(welcome={"user": "42", "expires_s": 3600})
        async with world(gateway, token=slow) as here:
            link = await here.opened(1)
            for _ in range(20):
                link.say("refresh", within_s=0)
                await asyncio.sleep(0)
                here.clock.advance(0.5)
                link.hear()
            await until(lambda: asked == 2)
            answer.set()
            await until(lambda: link.commands("refresh") == [{"token": "token-2"}])
            link.say("refresh", within_s=0)
            here.clock.advance(1)
            await until(lambda: len(link.commands("refresh")) == 2)
            assert here.errors == []

    run(main())


@pytest.mark.parametrize("random", [0.0, 0.5, 0.999])
def test_unchanged_token_is_a_failed_refresh_unless_the_gateway_requested_one(random: float) -> None:
    async def main() -> None:
        asked = 0

        async def same() -> str:
            nonlocal asked
            asked += 1
            return "same"

        gateway = MemoryGateway(welcome={"user": "42", "expires_s": 1})
        async with world(gateway, token=same, random=lambda: random) as here:
            link = await here.opened(1)
            assert await refreshes(here, link, 10) == 0
            assert 3 <= asked <= 11
            assert {type(each) for each in here.errors} == {TokenError}
            link.say("refresh", within_s=0)
            assert await refreshes(here, link, 2) >= 1
            assert link.commands("refresh")[0] == {"token": "same"}

    run(main())


def test_unauthorized_error_of_a_provider_ends_the_client_with_its_text() -> None:
    async def main() -> None:
        tokens = Tokens()
        gateway = MemoryGateway(welcome={"user": "42", "expires_s": 100})
        async with world(gateway, token=tokens) as here:
            link = await here.opened(1)
            await until(lambda: here.clock.sleeping)
            tokens.stopped = True
            link.say("refresh", within_s=0)
            ending = await here.client.closed()
            assert ending == Ending(401, "unauthorized", may_return=False)
            assert str(ending) == "401 unauthorized: the user has logged out"
        async with world(gateway, token=tokens) as here:
            with pytest.raises(ClosedError, match="the user has logged out"):
                await here.client.connected()
            assert [type(each) for each in here.errors] == [UnauthorizedError]

    run(main())


def test_token_passed_to_refresh_is_used_for_the_next_connection() -> None:
    async def main() -> None:
        async with world(token="first") as here:
            link = await here.opened(1)
            await here.client.refresh("second")
            link.end(1001)
            await here.comes_back()
            assert [opening.token for opening in here.gateway.openings] == ["first", "second"]

    run(main())


def test_requested_refresh_without_a_provider_is_reported_and_not_sent() -> None:
    async def main() -> None:
        gateway = MemoryGateway(welcome={"user": "42", "expires_s": 100})
        async with world(gateway, token="fixed") as here:
            link = await here.opened(1)
            link.say("refresh", within_s=30)
            await until(lambda: here.errors)
            assert isinstance(here.errors[0], TokenError)
            assert all(each <= 2 * PING_S for each in here.clock.sleeping)
            with pytest.raises(TokenError):
                await here.client.refresh()
            assert await here.client.refresh("another") == 100
            assert link.commands("refresh") == [{"token": "another"}]

    run(main())


# --- liveness of the gateway --------------------------------------------------------------------------


async def assert_given_up(here: World) -> None:
    """Assert that the client has just ended its connection because of silence."""
    await until(lambda: here.client.state is ClientState.WAITING)
    (error,) = here.errors
    assert isinstance(error, Disconnected)
    assert error.ending.reason == "silence"


def test_silent_gateway_is_disconnected_after_a_ping_without_answer_but_not_a_pinging_one() -> None:
    async def main() -> None:
        async with world() as here:
            link = await here.opened(1)
            for _ in range(10):
                await until(lambda: here.clock.sleeping)
                here.clock.advance(PING_S)
                link.hear()  # a ping of the gateway
                await asyncio.sleep(0)
            await until(lambda: here.clock.sleeping == [2 * PING_S])
            assert (here.client.state, link.pings) == (ClientState.OPEN, 0)
            here.clock.advance(2 * PING_S)
            await until(lambda: link.pings == 1 and here.clock.sleeping == [MARGIN_S])
            here.clock.advance(MARGIN_S)
            await assert_given_up(here)
            await here.comes_back()

    run(main())


def test_connection_is_kept_if_the_gateway_sends_pings_less_often_than_it_stated() -> None:
    """A reload makes the ping interval longer, or ends the pings. The gateway still answers each ping."""

    async def main() -> None:
        async with world() as here:
            link = await here.opened(1)
            for count in range(1, 11):
                await until(lambda: here.clock.sleeping)
                here.clock.advance(here.clock.sleeping[0])
                await until(lambda count=count: link.pings == count and here.clock.sleeping == [MARGIN_S])  # type: ignore[misc]
                link.hear()  # the pong
                here.clock.advance(MARGIN_S)
                await until(lambda: here.clock.sleeping == [2 * PING_S - MARGIN_S])
            assert (here.client.state, here.errors) == (ClientState.OPEN, [])

    run(main())


def test_client_that_was_suspended_sends_a_ping_before_it_gives_up() -> None:
    async def main() -> None:
        async with world() as here:
            link = await here.opened(1)
            await until(lambda: here.clock.sleeping)
            here.clock.advance(3600)
            await until(lambda: link.pings == 1 and here.clock.sleeping == [MARGIN_S])
            link.hear()
            here.clock.advance(MARGIN_S)
            await until(lambda: here.clock.sleeping == [2 * PING_S - MARGIN_S])
            assert (here.client.state, here.errors) == (ClientState.OPEN, [])

    run(main())


@pytest.mark.parametrize("ping_s", [0, PING_S])
def test_silence_is_noticed_although_the_ping_waits_for_room_in_the_send_buffer(ping_s: int) -> None:
    async def main() -> None:
        async with world(MemoryGateway(welcome={"ping_s": ping_s})) as here:
            link = await here.opened(1)

            async def waits_for_ever() -> None:
                await asyncio.Event().wait()

            link.ping = waits_for_ever  # type: ignore[method-assign]
            await until(lambda: here.clock.sleeping)
            here.clock.advance(here.clock.sleeping[0])
            await until(lambda: here.clock.sleeping == [MARGIN_S])
            here.clock.advance(MARGIN_S)
            await assert_given_up(here)

    run(main())


def test_client_sends_pings_if_the_gateway_does_not() -> None:
    async def main() -> None:
        async with world(MemoryGateway(welcome={"ping_s": 0})) as here:
            link = await here.opened(1)
            for count in range(1, 6):
                await until(lambda: here.clock.sleeping)
                here.clock.advance(here.clock.sleeping[0])
                await until(lambda count=count: link.pings == count and here.clock.sleeping == [MARGIN_S])  # type: ignore[misc]
                link.hear()  # a pong
                here.clock.advance(MARGIN_S)
                await until(lambda: here.clock.sleeping == [25 - MARGIN_S])
            here.clock.advance(25 - MARGIN_S)
            await until(lambda: link.pings == 6 and here.clock.sleeping == [MARGIN_S])
            here.clock.advance(MARGIN_S)
            await assert_given_up(here)

    run(main())


@pytest.mark.parametrize("step_s", [-86_400.0, 86_400.0])
def test_step_of_the_wall_clock_changes_no_timer(step_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    real = time.time

    async def main() -> None:
        gateway = MemoryGateway(welcome={"user": "42", "expires_s": 3600})
        async with world(gateway, token=Tokens()) as here:
            link = await here.opened(1)
            await until(lambda: len(here.clock.sleeping) == 2)
            before = here.clock.sleeping
            monkeypatch.setattr(time, "time", lambda: real() + step_s)
            monkeypatch.setattr(time, "time_ns", lambda: int((real() + step_s) * 1e9))
            await here.client.publish("c", 1)
            await until(lambda: link.commands("pub"))
            assert here.clock.sleeping == before
            assert here.client.state is ClientState.OPEN
            assert here.errors == []

    run(main())


def test_missing_welcome_is_a_failed_attempt_after_the_open_timeout() -> None:
    async def main() -> None:
        gateway = MemoryGateway(silent={"welcome"})
        async with world(gateway, options=ClientOptions(open_timeout_s=0.01)) as here:
            await here.failed.wait()
            gateway.silent.clear()
            await until(lambda: here.client.state is ClientState.WAITING and here.clock.sleeping)
            here.clock.advance(1)
            await here.opened(2)
            (error,) = here.errors
            assert isinstance(error, Disconnected)
            assert error.ending.reason == "welcome_timeout"

    run(main())


# --- faults -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frame", [b"\xc1", b"\x81\xa2op\x01", "{}"])
def test_undecodable_frame_ends_the_connection_and_the_client_reconnects(frame: bytes | str) -> None:
    async def main() -> None:
        async with world() as here:
            (await here.opened(1)).say_raw(frame)
            await here.comes_back()
            assert [type(each) for each in here.errors] == [BadMessage, Disconnected]

    run(main())


def test_unexpected_exception_is_a_failed_attempt_and_the_client_continues() -> None:
    async def main() -> None:
        async with world(MemoryGateway(refusals=deque([RuntimeError("a bug"), KeyError("x")]))) as here:
            for _ in range(2):
                await until(lambda: here.client.state is ClientState.WAITING and here.clock.sleeping)
                here.clock.advance(30)
                await until(lambda: here.client.state is not ClientState.WAITING)
            await here.client.connected()
            assert [type(each) for each in here.errors] == [RuntimeError, KeyError]

    run(main())


def test_exception_in_on_error_is_logged_and_the_client_continues(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        def on_error(_: Exception) -> None:
            raise ValueError("in on_error")

        clock, gateway = ManualClock(), MemoryGateway(refusals=deque([unreachable()]))
        environment = Environment(clock=clock, random=lambda: 0.5, connect=gateway.connect)
        async with Client("ws://gateway/ws", on_error=on_error, environment=environment) as client:
            await until(lambda: clock.sleeping)
            clock.advance(1)
            await client.connected()

    run(main())
    assert "on_error raised" in caplog.text


def test_errors_are_logged_without_an_on_error_callback(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        clock, gateway = ManualClock(), MemoryGateway(refusals=deque([unreachable()]))
        environment = Environment(clock=clock, random=lambda: 0.5, connect=gateway.connect)
        async with Client("ws://gateway/ws", environment=environment):
            await until(lambda: clock.sleeping)

    run(main())
    assert [record.levelname for record in caplog.records if record.name == "wsgate.client"] == ["WARNING"]


def test_unexpected_messages_of_the_gateway_do_not_disturb_the_client() -> None:
    async def main() -> None:
        async with world() as here:
            link = await here.opened(1)
            link.say("welcome", conn="f" * 16, node="n", ping_s=1)
            link.say("later", x=1)
            link.say("ok", id=999)
            link.say("err", code=503, error="unavailable", message="x", retry_ms=5)
            assert await here.client.publish("c", 1) is None
            assert here.client.conn == f"{1:016x}"
            (error,) = here.errors
            assert isinstance(error, CommandError)
            assert (error.error, error.retry_s, error.temporary) == ("unavailable", 0.005, True)

    run(main())
