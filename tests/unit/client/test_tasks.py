"""Check that tasks end with their owner, however long they take, and that each failure is reported."""

import asyncio

from tests.support.memory_gateway import run
from wsgate.client.tasks import Tasks


async def stubborn(ended: list[str]) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        for _ in range(5):
            await asyncio.sleep(0)
        ended.append("stubborn")


async def fails() -> None:
    raise ValueError


def test_cancel_returns_only_after_every_task_has_ended() -> None:
    async def main() -> None:
        ended: list[str] = []
        tasks = Tasks(lambda error: ended.append("failed"))
        for _ in range(3):
            tasks.start(stubborn(ended))
        await asyncio.sleep(0)
        tasks.start(stubborn(ended))  # cancelled before it starts
        await tasks.cancel()
        assert ended == ["stubborn"] * 3
        assert len(asyncio.all_tasks()) == 1

    run(main())


def test_failure_of_a_task_is_reported_and_cancellation_is_not() -> None:
    async def main() -> None:
        reported: list[Exception] = []
        tasks = Tasks(reported.append)
        failing = tasks.start(fails())
        await asyncio.wait({failing})
        tasks.start(asyncio.sleep(60)).cancel()
        await tasks.cancel()
        assert [type(each) for each in reported] == [ValueError]

    run(main())


def test_task_may_cancel_all_other_tasks() -> None:
    async def main() -> None:
        ended: list[str] = []
        tasks = Tasks(lambda error: None)

        async def ends_all() -> None:
            await tasks.cancel()
            ended.append("last")

        tasks.start(stubborn(ended))
        await asyncio.wait({tasks.start(ends_all())})
        assert ended == ["stubborn", "last"]

    run(main())
