"""Check which commands the subscriber queues, cancels and replaces, with a connection that only records."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest

from wsgate.bus import Backlog, Subscriber, parse_address, push
from wsgate.bus.connection import Connection, pack
from wsgate.bus.subscriber import UNANSWERED_LIMIT

MOVED = b"MOVED 1 10.0.0.1:6379"


class Wire:
    """Act as a connection: record what is written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.publications = 0

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def abort(self, why: str) -> None:
        raise AssertionError(why)


class Listener:
    """Accept every event, and record the lost and refused names."""

    def __init__(self) -> None:
        self.ended: list[bytes] = []

    def on_up(self) -> None: ...

    def on_down(self) -> None: ...

    def on_failed(self, why: str) -> None: ...

    def on_control(self, name: bytes, payload: bytes | None) -> None: ...

    def on_pass(self) -> None: ...

    def on_subscribed(self, name: bytes) -> bool:
        return True

    def on_refused(self, name: bytes) -> bool:
        self.ended.append(name)
        return True

    def on_lost(self, name: bytes, *, was_asked: bool) -> None:
        self.ended.append(name)


class Bench:
    """A subscriber of one server of a cluster, with a recording connection and listener."""

    def __init__(self) -> None:
        self.wire = Wire()
        self.listener = Listener()
        self.subscriber = Subscriber(
            parse_address("redis://127.0.0.1:1"), b"p:", self.listener, Backlog(1 << 20), is_sharded=True
        )
        self.subscriber._connection = cast(Connection, self.wire)

    async def fill(self) -> None:
        """Send as many names as may be unanswered, so that further commands wait."""
        assert self.subscriber.subscribe([b"{x}%d" % number for number in range(UNANSWERED_LIMIT)]) == []
        await asyncio.sleep(0)
        assert not self.subscriber.unsent
        self.wire.written.clear()

    async def answer(self) -> list[bytes]:
        """Answer the names of `fill` and return what is written then."""
        for number in range(UNANSWERED_LIMIT):
            self.subscriber.hand_up([(push.SUBSCRIBED, b"{x}%d" % number, None)])
        await asyncio.sleep(0)
        return self.wire.written


def run(main: Callable[[Bench], Coroutine[Any, Any, None]]) -> None:
    async def with_bench() -> None:
        await main(Bench())

    asyncio.run(with_bench())


@pytest.mark.parametrize("is_first_uncertain", [True, False])
def test_subscribe_replaces_a_queued_unsubscribe_if_the_server_may_lack_the_name(
    is_first_uncertain: bool,
) -> None:
    async def main(bench: Bench) -> None:
        await bench.fill()
        assert bench.subscriber.unsubscribe([b"news"], may_cancel=not is_first_uncertain) == []
        assert bench.subscriber.subscribe([b"news"], may_cancel=is_first_uncertain) == []
        assert bench.subscriber.subscribe([b"news"]) == [b"news"], "it is queued already"
        assert await bench.answer() == [pack("SSUBSCRIBE", b"p:news")]

    run(main)


def test_unsubscribe_replaces_a_queued_subscribe_if_the_server_may_have_the_name() -> None:
    async def main(bench: Bench) -> None:
        await bench.fill()
        before_bytes = bench.subscriber.waiting_bytes
        for _ in range(3):
            assert bench.subscriber.subscribe([b"news"], may_cancel=False) == []
            assert bench.subscriber.unsubscribe([b"news"]) == [b"news"], "no reply to SUBSCRIBE will come"
        assert bench.subscriber.unsent == 1
        assert await bench.answer() == [pack("SUNSUBSCRIBE", b"p:news")]
        bench.subscriber.hand_up([(push.UNSUBSCRIBED, b"news", None)])
        assert bench.subscriber.waiting_bytes == 0 < before_bytes

    run(main)


def test_opposite_commands_cancel_each_other_again_after_one_of_them_was_sent() -> None:
    async def main(bench: Bench) -> None:
        bench.subscriber.subscribe([b"news"], may_cancel=False)
        await asyncio.sleep(0)
        bench.subscriber.hand_up([(push.SUBSCRIBED, b"news", None)])
        await bench.fill()
        assert bench.subscriber.unsubscribe([b"news"]) == []
        assert bench.subscriber.subscribe([b"news"]) == [b"news"]
        assert bench.subscriber.unsent == 0

    run(main)


def test_queued_unsubscribe_is_dropped_when_the_server_ends_the_subscription() -> None:
    async def main(bench: Bench) -> None:
        await bench.fill()
        bench.subscriber.unsubscribe([b"news"])
        bench.subscriber.hand_up([(push.UNSUBSCRIBED, b"news", None)])
        assert bench.listener.ended == [b"news"]
        assert bench.subscriber.subscribe([b"news"]) == []
        assert await bench.answer() == [pack("SSUBSCRIBE", b"p:news")]

    run(main)


@pytest.mark.parametrize("error", [MOVED, b"NOPERM this user has no permissions"])
def test_queued_unsubscribe_is_dropped_when_its_subscribe_is_refused(error: bytes) -> None:
    async def main(bench: Bench) -> None:
        bench.subscriber.subscribe([b"news"])
        await asyncio.sleep(0)
        bench.subscriber.subscribe([b"{x}%d" % number for number in range(UNANSWERED_LIMIT - 1)])
        await asyncio.sleep(0)
        bench.subscriber.unsubscribe([b"news"])
        bench.subscriber.hand_up([(push.ERROR, error, None)])
        assert bench.listener.ended == [b"news"]
        assert bench.subscriber.unsent == 0
        assert bench.subscriber.subscribe([b"news"]) == []

    run(main)
