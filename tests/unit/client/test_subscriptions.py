"""Check channels across connections: resubscription from positions, no duplicates, reported losses."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.memory_gateway import MemoryGateway, run, until, world
from wsgate.client import (
    ClientOptions,
    ClosedError,
    CommandError,
    CommandTimeout,
    Disconnected,
    Gap,
    GapReason,
    Publication,
    TokenError,
)

LOST = GapReason.NOT_RECOVERED


def test_subscription_iterates_over_the_publications_of_its_channel() -> None:
    async def main() -> None:
        async with world() as here, here.client.subscribe("chat:42") as chat:
            link = here.gateway.link
            assert link.commands("sub") == [{"ch": "chat:42"}]
            link.say("msg", ch="chat:42", data={"a": b"\xff"}, user="7", ts=1_600_000_000_000, pos="e-1")
            link.publish("elsewhere", "not mine")
            link.publish("chat:42", None)
            assert await anext(chat) == Publication("chat:42", {"a": b"\xff"}, "7", 1_600_000_000_000, "e-1")
            assert (await anext(chat)).data is None
            await chat.close()
            assert [each async for each in chat] == []
            await until(lambda: link.commands("unsub") == [{"ch": "chat:42"}])
        assert here.errors == []

    run(main())


def test_channels_requested_before_the_connection_are_subscribed_on_it_in_order() -> None:
    async def main() -> None:
        async with world() as here:
            subscriptions = [here.client.subscribe(f"c{number}") for number in range(5)]
            await asyncio.gather(*(each.ready() for each in subscriptions))
            assert here.gateway.link.commands("sub") == [{"ch": f"c{number}"} for number in range(5)]

    run(main())


def test_second_subscription_of_a_channel_fails_until_the_first_is_closed() -> None:
    async def main() -> None:
        async with world() as here:
            first = here.client.subscribe("c")
            with pytest.raises(CommandError, match="already_subscribed"):
                here.client.subscribe("c")
            await first.ready()
            await first.close()
            second = here.client.subscribe("c")
            await first.close()  # without effect on the second subscription
            await second.ready()
            link = here.gateway.link
            assert [each["op"] for each in link.said] == ["sub", "unsub", "sub"]
            link.publish("c", 1)
            assert (await anext(second)).data == 1
            assert [each async for each in first] == []

    run(main())


def test_confirmation_of_a_closed_subscription_does_not_confirm_the_next_one() -> None:
    async def main() -> None:
        gateway = MemoryGateway(silent={"c"})
        async with world(gateway) as here:
            link = await here.opened(1)
            first = here.client.subscribe("c")
            await until(lambda: link.commands("sub"))
            await first.close()
            second = here.client.subscribe("c")
            await until(lambda: len(link.commands("sub")) == 2)
            numbers = [each["id"] for each in link.said if each["op"] == "sub"]
            link.say("subbed", ch="c", id=numbers[0])
            link.publish("c", "for the first")
            link.say("unsubbed", ch="c", id=numbers[0] + 1)
            link.say("subbed", ch="c", id=numbers[1])
            link.publish("c", "for the second")
            assert (await anext(second)).data == "for the second"

    run(main())


def test_subscription_closed_while_its_token_is_awaited_is_never_sent() -> None:
    async def main() -> None:
        asked, answered = asyncio.Event(), asyncio.Event()

        async def token() -> str:
            asked.set()
            await answered.wait()
            return "late"

        async with world() as here:
            chat = here.client.subscribe("c", token=token)
            await asked.wait()
            await chat.close()
            answered.set()
            for _ in range(50):
                await here.client.publish("x", 1)
            assert here.gateway.link.commands("sub") == []

    run(main())


# --- reconnecting -------------------------------------------------------------------------------------


def test_channel_with_positions_is_recovered_after_a_reconnect_without_duplicates() -> None:
    async def main() -> None:
        gaps: list[Gap] = []
        gateway = MemoryGateway(positions={"c": "e-5"}, recovered=True)
        async with world(gateway) as here:
            chat = here.client.subscribe("c", on_gap=gaps.append)
            await chat.ready()
            link = here.gateway.link
            assert link.commands("sub") == [{"ch": "c"}]
            link.publish("c", 6, "e-6")
            assert (await anext(chat)).position == "e-6"
            link.end(1006)
            gateway.positions["c"] = "e-8"
            link = await here.comes_back()
            await chat.ready()
            assert link.commands("sub") == [{"ch": "c", "from": "e-6"}]
            for number in (6, 7, 8, 9):
                link.publish("c", number, f"e-{number}")
            assert [(await anext(chat)).data for _ in range(3)] == [7, 8, 9]
            assert gaps == []

    run(main())


def test_failed_recovery_reports_a_gap_with_both_positions() -> None:
    async def main() -> None:
        gaps: list[Gap] = []
        gateway = MemoryGateway(positions={"c": "e-5"})
        async with world(gateway) as here:
            chat = here.client.subscribe("c", on_gap=gaps.append)
            await chat.ready()
            here.gateway.link.end(1001)
            gateway.positions["c"] = "f-2"
            link = await here.comes_back()
            await chat.ready()
            assert gaps == [Gap("c", "e-5", "f-2", LOST)]
            link.publish("c", "old", "f-2")
            link.publish("c", "new", "f-3")
            assert (await anext(chat)).data == "new"

    run(main())


def test_channel_without_positions_reports_a_gap_after_a_reconnect() -> None:
    async def main() -> None:
        gaps: list[Gap] = []
        async with world() as here:
            chat = here.client.subscribe("c", on_gap=gaps.append)
            await chat.ready()
            here.gateway.link.end(1001)
            link = await here.comes_back()
            await chat.ready()
            assert link.commands("sub") == [{"ch": "c"}]
            assert gaps == [Gap("c", None, None, LOST)]

    run(main())


def test_subscription_begins_at_the_position_in_since() -> None:
    async def main() -> None:
        gateway = MemoryGateway(positions={"c": "e-9"}, recovered=True)
        async with world(gateway) as here:
            chat = here.client.subscribe("c", since="e-7")
            await chat.ready()
            assert here.gateway.link.commands("sub") == [{"ch": "c", "from": "e-7"}]
            here.gateway.link.publish("c", 8, "e-8")
            assert (await anext(chat)).data == 8

    run(main())


def test_gap_message_of_the_gateway_is_reported_to_its_subscription() -> None:
    async def main() -> None:
        gaps: list[Gap] = []
        async with world() as here:
            chat = here.client.subscribe("c", on_gap=gaps.append)
            await chat.ready()
            says = here.gateway.link.say
            says("gap", ch="c", reason="slow", retry_ms=7, **{"from": "e-3", "to": "e-9"})
            says("gap", ch="other", reason="slow", retry_ms=7)
            says("gap", ch="c")
            await until(lambda: len(gaps) >= 2)
            assert gaps == [
                Gap("c", "e-3", "e-9", GapReason.SLOW, retry_ms=7),
                Gap("c", None, None, GapReason.DROPPED),
            ]

    run(main())


def test_a_gap_of_all_channels_calls_each_function_once() -> None:
    async def main() -> None:
        whole: list[Gap] = []
        own: dict[str, list[Gap]] = {"d": [], "e": [], "later": []}
        async with world() as here:
            subscribe = here.client.subscribe
            held = [subscribe(name, on_gap=whole.append) for name in ("a", "b", "c")]
            held += [subscribe(name, on_gap=own[name].append) for name in ("d", "e")]
            held.append(subscribe("f"))
            for each in held:
                await each.ready()
            await held[0].close()
            here.gateway.silent.add("later")
            subscribe("later", on_gap=own["later"].append)
            here.gateway.link.say("gap", reason="bus", retry_ms=40)
            here.gateway.link.say("gap", reason="bus", retry_ms=50)
            await until(lambda: len(own["e"]) >= 2)
            reported = [Gap(None, None, None, GapReason.BUS, retry_ms=ms) for ms in (40, 50)]
            assert (whole, own) == (reported, {"d": reported, "e": reported, "later": []})
            assert here.errors == []

    run(main())


def test_queue_overflow_is_reported_and_an_application_that_keeps_up_loses_nothing() -> None:
    async def main() -> None:
        gaps: list[Gap] = []
        async with world(options=ClientOptions(queue_limit=100)) as here:
            chat = here.client.subscribe("c", on_gap=gaps.append)
            await chat.ready()
            for number in range(1_000):  # one burst of the gateway, ten times the queue
                here.gateway.link.publish("c", number)
            assert [(await anext(chat)).data for _ in range(1_000)] == list(range(1_000))
            assert (gaps, chat.dropped) == ([], 0)
            for number in range(300):
                here.gateway.link.publish("c", number)
            await here.client.publish("c", "done")  # answered behind them
            assert (len(gaps), gaps[0].reason, chat.dropped) == (1, GapReason.OVERFLOW, 200)
            assert (await anext(chat)).data == 200
            assert [gap.count for gap in gaps] == [1, 200]

    run(main())


@pytest.mark.parametrize("kind", ["function", "coroutine function", "one that raises"])
def test_on_gap_may_be_a_function_or_coroutine_function_and_may_raise(kind: str) -> None:
    async def main() -> None:
        reported: list[Gap] = []

        async def later(gap: Gap) -> None:
            await asyncio.sleep(0)
            reported.append(gap)

        def fails(gap: Gap) -> None:
            reported.append(gap)
            raise ValueError

        callbacks: dict[str, Callable[[Gap], object]] = {
            "function": reported.append,
            "coroutine function": later,
            "one that raises": fails,
        }
        async with world() as here:
            chat = here.client.subscribe("c", on_gap=callbacks[kind])
            await chat.ready()
            here.gateway.link.say("gap", ch="c")
            await until(lambda: reported)
            assert [type(each) for each in here.errors] == ([ValueError] if kind == "one that raises" else [])

    run(main())


# --- the inbox ----------------------------------------------------------------------------------------


def test_inbox_is_never_subscribed_and_is_recovered_through_the_url() -> None:
    async def main() -> None:
        gaps: list[Gap] = []
        gateway = MemoryGateway(positions={"@me": "e-1"}, recovered=True)
        async with world(gateway) as here:
            inbox = here.client.inbox(on_gap=gaps.append)
            await inbox.ready()
            link = here.gateway.link
            link.publish("@me", "hello", "e-2")
            assert (await anext(inbox)).data == "hello"
            link.end(1006)
            link = await here.comes_back()
            await inbox.ready()
            assert [each.url for each in gateway.openings] == [
                "ws://gateway/ws",
                "ws://gateway/ws?from=%40me%3Ae-2",
            ]
            link.publish("@me", "hello", "e-2")
            link.publish("@me", "again", "e-3")
            assert (await anext(inbox)).data == "again"
            assert gaps == []
            assert all(not each.commands("sub") for each in gateway.links)

    run(main())


def test_inbox_requested_after_the_welcome_is_ready_at_once() -> None:
    async def main() -> None:
        async with world() as here:
            link = await here.opened(1)
            await here.client.publish("c", 1)
            inbox = here.client.inbox()
            await inbox.ready()
            await inbox.close()
            assert link.commands("sub") == link.commands("unsub") == []

    run(main())


def test_inbox_of_an_anonymous_client_fails_with_bad_request() -> None:
    async def main() -> None:
        async with world(MemoryGateway(welcome={})) as here:
            early = here.client.inbox()
            await here.client.connected()
            with pytest.raises(CommandError, match="400 bad_request"):
                await early.ready()
            with pytest.raises(CommandError, match="400 bad_request"):
                await anext(here.client.inbox())
            assert here.client.user is None

    run(main())


# --- refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (400, "bad_request"),
        (401, "unauthorized"),
        (403, "permission_denied"),
        (404, "unknown_channel"),
        (501, "not_available"),
    ],
)
def test_finally_refused_subscription_ends_without_affecting_others(code: int, error: str) -> None:
    async def main() -> None:
        async with world(MemoryGateway(faults={"c": (code, error)})) as here:
            refused, other = here.client.subscribe("c"), here.client.subscribe("other")
            await other.ready()
            for call in (refused.ready(), anext(refused)):
                with pytest.raises(CommandError) as caught:
                    await call
                assert (caught.value.code, caught.value.error) == (code, error)
            here.gateway.faults.clear()
            await here.client.subscribe("c").ready()

    run(main())


def test_subscription_refused_at_its_context_may_be_subscribed_again() -> None:
    async def main() -> None:
        async with world(MemoryGateway(faults={"c": (403, "permission_denied")})) as here:
            with pytest.raises(CommandError):
                async with here.client.subscribe("c"):
                    raise AssertionError("the context must not be entered")
            here.gateway.faults.clear()
            async with here.client.subscribe("c"):
                pass

    run(main())


@pytest.mark.parametrize("fault", [(503, "unavailable"), (429, "rate_limited"), (500, "unknown_to_us")])
def test_temporarily_refused_subscription_is_repeated_until_confirmed(fault: tuple[int, str]) -> None:
    async def main() -> None:
        async with world(MemoryGateway(faults={"c": fault}), random=lambda: 0.0) as here:
            chat = here.client.subscribe("c")
            link = await here.opened(1)
            await until(lambda: len(link.commands("sub")) > 3)
            here.gateway.faults.clear()
            await chat.ready()
            assert here.errors == []

    run(main())


def test_refused_subscription_is_repeated_after_its_retry_time() -> None:
    async def main() -> None:
        async with world(MemoryGateway(silent={"c"})) as here:
            chat = here.client.subscribe("c")
            link = await here.opened(1)
            await until(lambda: link.commands("sub"))
            link.say(
                "err", id=link.said[-1]["id"], code=429, error="rate_limited", message="x", retry_ms=4000
            )
            await until(lambda: 4.25 in here.clock.sleeping)
            here.gateway.silent.clear()
            here.clock.advance(4.25)
            await chat.ready()

    run(main())


def test_new_channel_token_is_requested_after_a_refused_one() -> None:
    async def main() -> None:
        asked: list[str] = []

        async def token() -> str:
            asked.append("x")
            if len(asked) == 2:
                raise ValueError
            return f"channel-token-{len(asked)}"

        async with world(MemoryGateway(faults={"c": (401, "unauthorized")}), random=lambda: 0.0) as here:
            chat = here.client.subscribe("c", token=token)
            link = await here.opened(1)
            await until(lambda: len(asked) == 3)
            here.gateway.faults.clear()
            await chat.ready()
            assert [each["token"] for each in link.commands("sub")][:2] == [
                "channel-token-1",
                "channel-token-3",
            ]
            assert [type(each) for each in here.errors] == [TokenError]

    run(main())


def test_always_refused_channel_token_ends_the_subscription_at_the_limit() -> None:
    async def main() -> None:
        gateway = MemoryGateway(faults={"c": (401, "unauthorized")})
        async with world(gateway, random=lambda: 0.0, options=ClientOptions(unauthorized_limit=3)) as here:
            chat = here.client.subscribe("c", token=lambda: "bad")
            with pytest.raises(CommandError, match="401 unauthorized"):
                await anext(chat)
            assert len(gateway.link.commands("sub")) == 3

    run(main())


def test_channel_subscribed_by_the_token_is_ready_and_recovered_after_a_reconnect() -> None:
    async def main() -> None:
        gaps: list[Gap] = []
        gateway = MemoryGateway(faults={"c": (409, "already_subscribed")})
        async with world(gateway) as here:
            link = await here.opened(1)
            link.say("subbed", ch="c", pos="e-3")
            chat = here.client.subscribe("c", on_gap=gaps.append)
            await chat.ready()
            link.publish("c", "old", "e-3")
            link.publish("c", "new", "e-4")
            assert (await anext(chat)).data == "new"
            # On the next connection the channel is recovered, although the gateway confirmed it before.
            gateway.faults.clear()
            gateway.recovered = True
            gateway.silent.add("c")
            link.end(1006)
            link = await here.comes_back()
            link.say("subbed", ch="c", pos="e-9")
            await until(lambda: link.commands("sub") == [{"ch": "c", "from": "e-4"}])
            link.say("subbed", ch="c", id=link.said[-1]["id"], pos="e-9", recovered=True)
            link.publish("c", "missed", "e-5")
            assert (await anext(chat)).data == "missed"
            assert gaps == []

    run(main())


# --- unsubscribed by the gateway ----------------------------------------------------------------------


def test_unsubbed_with_resubscribe_subscribes_again_from_the_position() -> None:
    async def main() -> None:
        gateway = MemoryGateway(positions={"c": "e-5"}, recovered=True)
        async with world(gateway) as here:
            chat = here.client.subscribe("c")
            await chat.ready()
            link = gateway.link
            link.say("unsubbed", ch="c", code=4011, reason="position_lost", resubscribe=True)
            link.say("unsubbed", ch="other", code=4011, reason="position_lost", resubscribe=True)
            await until(lambda: 0.25 in here.clock.sleeping)
            here.clock.advance(0.25)
            await chat.ready()
            assert link.commands("sub") == [{"ch": "c"}, {"ch": "c", "from": "e-5"}]

    run(main())


def test_unsubbed_without_resubscribe_ends_the_subscription() -> None:
    async def main() -> None:
        async with world() as here:
            chat = here.client.subscribe("c")
            await chat.ready()
            here.gateway.link.publish("c", "last message")
            here.gateway.link.say("unsubbed", ch="c", code=4503, reason="forbidden", resubscribe=False)
            assert (await anext(chat)).data == "last message"
            with pytest.raises(CommandError, match="4503 forbidden"):
                await anext(chat)
            here.gateway.link.end(1001)
            assert (await here.comes_back()).commands("sub") == []

    run(main())


# --- commands -----------------------------------------------------------------------------------------


def test_publish_sends_all_its_options_and_returns_the_position() -> None:
    async def main() -> None:
        async with world(MemoryGateway(silent={"pub"})) as here:
            publishing = asyncio.create_task(here.client.publish("c", {"x": 1}, key="k", echo=False))
            link = await here.opened(1)
            await until(
                lambda: link.commands("pub") == [{"ch": "c", "data": {"x": 1}, "key": "k", "echo": False}]
            )
            link.say("ok", id=link.said[-1]["id"], pos="e-7")
            assert await publishing == "e-7"
            here.gateway.silent.clear()
            assert await here.client.publish("c", None) is None
            assert link.commands("pub")[-1] == {"ch": "c", "data": None}
            await here.client.send(b"\x00")
            assert link.commands("send") == [{"data": b"\x00"}]

    run(main())


def test_command_error_has_code_name_and_temporary_flag() -> None:
    async def main() -> None:
        async with world() as here:
            for code, name, temporary in (
                (403, "permission_denied", False),
                (413, "too_large", False),
                (429, "rate_limited", True),
                (503, "unavailable", True),
            ):
                here.gateway.faults["pub"] = (code, name)
                with pytest.raises(CommandError) as caught:
                    await here.client.publish("c", 1)
                error = caught.value
                assert (error.code, error.error, error.temporary) == (code, name, temporary)

    run(main())


def test_data_that_msgpack_cannot_encode_raises_and_is_not_sent() -> None:
    async def main() -> None:
        async with world() as here:
            link = await here.opened(1)
            for data, error in ((object(), TypeError), (2**70, OverflowError)):
                with pytest.raises(error):
                    await here.client.publish("c", data)
            assert link.said == []
            await here.client.publish("c", 1)

    run(main())


def test_command_times_out_without_a_connection_and_without_a_reply() -> None:
    async def main() -> None:
        options = ClientOptions(command_timeout_s=0.01)
        async with world(MemoryGateway(silent={"welcome"}), options=options) as here:
            with pytest.raises(CommandTimeout):
                await here.client.publish("c", 1)
        async with world(MemoryGateway(silent={"pub"}), options=options) as here:
            link = await here.opened(1)
            with pytest.raises(CommandTimeout) as caught:
                await here.client.publish("c", 1)
            assert caught.value.temporary
            link.say("ok", id=link.said[-1]["id"])  # too late for any caller
            here.gateway.silent.clear()
            await here.client.publish("c", 2)

    run(main())


def test_command_fails_with_its_connection_and_the_next_waits_for_the_reconnect() -> None:
    async def main() -> None:
        async with world(MemoryGateway(silent={"pub"})) as here:
            link = await here.opened(1)
            publishing = asyncio.create_task(here.client.publish("c", 1))
            await until(lambda: link.commands("pub"))
            link.end(1001)
            with pytest.raises(Disconnected) as caught:
                await publishing
            assert caught.value.temporary
            here.gateway.silent.clear()
            waiting = asyncio.create_task(here.client.publish("c", 2))
            assert (await here.comes_back()) is not link
            await waiting
            assert here.gateway.link.commands("pub") == [{"ch": "c", "data": 2}]

    run(main())


def test_replies_in_reverse_order_reach_their_commands() -> None:
    async def main() -> None:
        async with world(MemoryGateway(silent={"pub"})) as here:
            link = await here.opened(1)
            publishing = [asyncio.create_task(here.client.publish("c", number)) for number in range(20)]
            await until(lambda: len(link.commands("pub")) == 20)
            for each in reversed(link.said):
                link.say("ok", id=each["id"], pos=f"e-{each['data']}")
            assert await asyncio.gather(*publishing) == [f"e-{number}" for number in range(20)]

    run(main())


def test_close_ends_all_waiting_calls_of_the_client() -> None:
    async def main() -> None:
        async with world(MemoryGateway(silent={"pub", "c"})) as here:
            chat = here.client.subscribe("c")
            link = await here.opened(1)
            waiting: list[asyncio.Task[Any]] = [
                asyncio.create_task(here.client.publish("c", 1)),
                asyncio.ensure_future(anext(chat)),
                asyncio.create_task(chat.ready()),
                asyncio.create_task(here.client.closed()),
            ]
            await until(lambda: link.commands("pub"))
            await here.client.close()
            ends = await asyncio.gather(*waiting, return_exceptions=True)
            assert [type(each).__name__ for each in ends] == [
                "Disconnected",
                "StopAsyncIteration",
                "ClosedError",
                "Ending",
            ]

    run(main())


def test_hanging_gap_callback_ends_with_the_client() -> None:
    async def main() -> None:
        begun = asyncio.Event()

        async def hangs(_: Gap) -> None:
            begun.set()
            await asyncio.Event().wait()

        async with world() as here:
            await here.client.subscribe("c", on_gap=hangs).ready()
            here.gateway.link.say("gap", ch="c")
            await begun.wait()
        assert len(asyncio.all_tasks()) == 1

    run(main())


def test_gap_callback_may_close_the_client() -> None:
    async def main() -> None:
        async with world() as here:

            async def close(_: Gap) -> None:
                await here.client.close()

            chat = here.client.subscribe("c", on_gap=close)
            await chat.ready()
            here.gateway.link.say("gap", ch="c")
            await here.client.closed()
            with pytest.raises(ClosedError):
                await here.client.connected()

    run(main())
