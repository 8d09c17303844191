"""Tasks end with their owner, however long they take, and none fails unheard."""

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


def test_when_cancelling_returns_none_runs() -> None:
    async def main() -> None:
        ended: list[str] = []
        tasks = Tasks(lambda error: ended.append("failed"))
        for _ in range(3):
            tasks.start(stubborn(ended))
        await asyncio.sleep(0)
        tasks.start(stubborn(ended))  # cancelled before it begins
        await tasks.cancel()
        assert ended == ["stubborn"] * 3
        assert len(asyncio.all_tasks()) == 1

    run(main())


def test_one_that_fails_is_told_and_one_that_is_cancelled_is_not() -> None:
    async def main() -> None:
        told: list[Exception] = []
        tasks = Tasks(told.append)
        failing = tasks.start(fails())
        await asyncio.wait({failing})
        tasks.start(asyncio.sleep(60)).cancel()
        await tasks.cancel()
        assert [type(each) for each in told] == [ValueError]

    run(main())


def test_one_of_them_may_end_the_others() -> None:
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
