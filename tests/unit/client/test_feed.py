"""Check the queue of one channel: each publication once, and every loss reported and counted."""

import asyncio
from itertools import product
from typing import Any

import pytest

from tests.support.memory_gateway import run
from wsgate.client import ClosedError, CommandError, Gap, GapReason, Publication
from wsgate.client.feed import TRANSITIONS, Feed, FeedState
from wsgate.client.protocol import Dropped
from wsgate.client.tokens import Token


def feed(gaps: list[Gap] | None = None, *, limit: int = 3, since: str | None = None) -> Feed:
    reported = gaps if gaps is not None else []
    return Feed("c", Token(None, 1), queue_limit=limit, on_gap=reported.append, since=since)


def publication(data: Any, position: str | None = None) -> Publication:
    return Publication("c", data, position=position)


async def everything(source: Feed) -> list[Any]:
    """Return everything that can be taken until the feed ends."""
    taken = []
    while True:
        try:
            taken.append((await source.take()).data)
        except StopAsyncIteration:
            return taken


def test_feed_queues_publications_only_while_the_subscription_is_confirmed() -> None:
    async def main() -> None:
        source = feed()
        source.offer(publication(1))
        source.confirm(None, recovered=None)
        source.offer(publication(2))
        source.suspend()
        source.offer(publication(3))
        source.confirm(None, recovered=None)
        source.offer(publication(4))
        source.end(None)
        source.offer(publication(5))
        assert await everything(source) == [2, 4]

    run(main())


def test_full_queue_drops_the_oldest_and_reports_gaps_at_begin_and_end() -> None:
    async def main() -> None:
        gaps: list[Gap] = []
        source = feed(gaps)
        source.confirm("e-0", recovered=None)
        source.offer(publication(1, "e-1"))
        assert (await source.take()).data == 1
        for number in range(2, 9):
            source.offer(publication(number, f"e-{number}"))
        begun = Gap("c", "e-1", "e-2", GapReason.OVERFLOW, 1)
        assert gaps == [begun]
        assert source.dropped == 4
        assert (await source.take()).data == 6
        assert gaps == [begun, Gap("c", "e-1", "e-5", GapReason.OVERFLOW, 4)]
        assert [(await source.take()).data for _ in range(2)] == [7, 8]
        for number in range(9, 13):
            source.offer(publication(number))
        assert gaps[2:] == [Gap("c", "e-8", None, GapReason.OVERFLOW, 1)]
        assert (await source.take()).data == 10
        assert len(gaps) == 3, "a gap that did not grow is reported once"
        assert source.dropped == 5

    run(main())


def test_resubscription_without_recovery_reports_a_gap() -> None:
    gaps: list[Gap] = []
    source = feed(gaps)
    source.confirm("e-5", recovered=None)
    assert gaps == [], "the first subscription misses nothing"
    source.suspend()
    source.confirm("e-5", recovered=True)
    assert gaps == []
    source.suspend()
    source.confirm("f-2", recovered=False)
    source.suspend()
    source.confirm(None, recovered=None)
    assert gaps == [
        Gap("c", "e-5", "f-2", GapReason.NOT_RECOVERED),
        Gap("c", "f-2", None, GapReason.NOT_RECOVERED),
    ]
    assert [str(reason) for reason in GapReason] == [
        "slow",
        "bus",
        "too_large",
        "dropped",
        "not_recovered",
        "overflow",
    ]


def test_recovered_publications_are_delivered_once_each_in_order() -> None:
    async def main() -> None:
        source = feed(limit=10)
        source.confirm("e-5", recovered=None)
        source.offer(publication("old", "e-5"))
        source.offer(publication(6, "e-6"))
        source.suspend()
        source.confirm("e-8", recovered=True)  # the newest position: the missed publications follow
        for number in (6, 7, 8, 9, 8):
            source.offer(publication(number, f"e-{number}"))
        source.end(None)
        assert await everything(source) == [6, 7, 8, 9]

    run(main())


def test_feed_starts_from_the_position_that_the_application_passes() -> None:
    gaps: list[Gap] = []
    source = feed(gaps, since="e-3")
    assert source.track.last == "e-3"
    source.confirm("f-1", recovered=False)
    assert gaps == [Gap("c", "e-3", "f-1", GapReason.NOT_RECOVERED)]


def test_gap_of_the_gateway_is_reported_with_its_fields_once_confirmed() -> None:
    gaps: list[Gap] = []
    source = feed(gaps)
    lost = Gap.told(Dropped("c", "e-1", "e-2", "slow", 40))
    source.tell_gap(lost)
    assert gaps == []
    source.confirm(None, recovered=None)
    source.tell_gap(lost)
    assert gaps == [Gap("c", "e-1", "e-2", GapReason.SLOW, retry_ms=40)]


def test_gap_with_an_unknown_reason_becomes_dropped_and_its_retry_time_is_limited() -> None:
    for reason in (None, "later", "overflow", "not_recovered"):
        assert Gap.told(Dropped("c", reason=reason)).reason is GapReason.DROPPED
    assert [Gap.told(Dropped(None, reason=each)).reason.value for each in ("slow", "bus", "too_large")] == [
        "slow",
        "bus",
        "too_large",
    ]
    assert Gap.told(Dropped(None, retry_ms=2**53)).retry_ms == 3_600_000


def test_queued_publication_is_taken_before_the_error_is_raised_to_all_takers() -> None:
    async def main() -> None:
        source = feed()
        source.confirm(None, recovered=None)
        takers = [asyncio.create_task(source.take()) for _ in range(3)]
        await asyncio.sleep(0)
        source.offer(publication(1))
        source.end(CommandError(403, "permission_denied"))
        source.end(None)  # the first reason counts
        found = await asyncio.gather(*takers, return_exceptions=True)
        assert [each.data for each in found if isinstance(each, Publication)] == [1]
        assert [type(each) for each in found if not isinstance(each, Publication)] == [CommandError] * 2
        with pytest.raises(CommandError):
            await source.ready()

    run(main())


def test_ready_waits_until_the_subscription_is_confirmed_or_ended() -> None:
    async def main() -> None:
        source = feed()
        waiting = asyncio.create_task(source.ready())
        await asyncio.sleep(0)
        assert not waiting.done()
        source.confirm(None, recovered=None)
        await waiting
        source.suspend()
        again = asyncio.create_task(source.ready())
        await asyncio.sleep(0)
        assert not again.done()
        source.end(None)
        with pytest.raises(ClosedError):
            await again

    run(main())


def test_publication_of_a_cancelled_take_goes_to_the_next_taker() -> None:
    async def main() -> None:
        source = feed()
        source.confirm(None, recovered=None)
        first = asyncio.create_task(source.take())
        second = asyncio.create_task(source.take())
        await asyncio.sleep(0)
        source.offer(publication(1))
        first.cancel()  # woken and cancelled in one turn
        assert (await second).data == 1
        assert (await asyncio.gather(first, return_exceptions=True))[0].__class__ is asyncio.CancelledError

    run(main())


@pytest.mark.parametrize("calls", list(product(["confirm", "suspend", "end"], repeat=3)))
def test_any_order_of_calls_follows_the_table_of_transitions(calls: tuple[str, ...]) -> None:
    source = feed()
    for call in calls:
        before = source.state
        if call == "confirm":
            source.confirm(None, recovered=None)
        elif call == "suspend":
            source.suspend()
        else:
            source.end(None)
        assert source.state is before or source.state in TRANSITIONS[before]
        assert before is not FeedState.ENDED or source.state is FeedState.ENDED
