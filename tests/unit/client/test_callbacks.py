"""Check that callbacks of the application run, and that their failures are reported once and stop nothing."""

import asyncio
from collections import deque

import pytest

from tests.support.memory_gateway import ManualClock, MemoryGateway, run, until
from wsgate.client import Client, Disconnected, Ending, Environment
from wsgate.client.callbacks import Callbacks

TURNS = 50


async def turns() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)


def test_coroutine_on_error_that_raises_is_called_once_for_each_error_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        received: list[str] = []

        async def on_error(error: Exception) -> None:
            received.append(str(error))
            raise ValueError("in on_error")

        callbacks = Callbacks(on_error)
        for text in ("first", "second"):
            callbacks.report(RuntimeError(text))
            await turns()
        assert received == ["first", "second"]
        await callbacks.cancel()

    run(main())
    assert [record.message for record in caplog.records] == ["on_error raised"] * 2
    assert all(record.exc_info for record in caplog.records)


def test_client_whose_coroutine_on_error_raises_continues(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        received: list[Exception] = []

        async def on_error(error: Exception) -> None:
            received.append(error)
            raise ValueError("in on_error")

        refusals: deque[Exception] = deque([Disconnected(Ending(0, "unreachable"))])
        clock, gateway = ManualClock(), MemoryGateway(refusals=refusals)
        environment = Environment(clock=clock, random=lambda: 0.5, connect=gateway.connect)
        async with Client("ws://gateway/ws", on_error=on_error, environment=environment) as client:
            await until(lambda: clock.sleeping)
            await turns()
            clock.advance(1)
            await client.connected()
        assert [type(error) for error in received] == [Disconnected]

    run(main())
    assert "on_error raised" in caplog.text


@pytest.mark.parametrize("is_coroutine", [False, True])
def test_failure_of_another_callback_is_reported_to_on_error(*, is_coroutine: bool) -> None:
    async def main() -> None:
        reported: list[Exception] = []

        def fails(_: object) -> None:
            raise KeyError("in on_gap")

        async def fails_later(_: object) -> None:
            raise KeyError("in on_gap")

        callbacks = Callbacks(reported.append)
        callbacks.tell(fails_later if is_coroutine else fails, "gap")
        await turns()
        assert [type(error) for error in reported] == [KeyError]
        await callbacks.cancel()

    run(main())


def test_cancel_ends_the_coroutines_of_callbacks_and_of_reports_that_they_cause() -> None:
    async def main() -> None:
        ended: list[str] = []

        async def on_gap(_: object) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("on_gap")
                raise ValueError("while it is cancelled")

        async def on_error(_: Exception) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("on_error")

        callbacks = Callbacks(on_error)
        callbacks.tell(on_gap, "gap")
        callbacks.report(RuntimeError())
        await asyncio.sleep(0)
        async with asyncio.timeout(10):
            await callbacks.cancel()
        assert ended[:2] == ["on_gap", "on_error"]

    run(main())
