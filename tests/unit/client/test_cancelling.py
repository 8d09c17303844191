"""Check cancellation at every await: the client still works, and no task is left.

A scenario runs in a wrapper that counts how often it waits, and is cancelled at the k-th time, for every k.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any

import pytest

from tests.support.memory_gateway import ManualClock, MemoryGateway, World, run, until, world
from wsgate.client import Client, ClientState, Environment, Gap

Scenario = Callable[[World], Coroutine[Any, Any, None]]


class CancelledAtWait:
    """Await a coroutine and cancel its task at the k-th wait, as `Task.cancel` would."""

    def __init__(self, work: Coroutine[Any, Any, None], k: int) -> None:
        self._work = work
        self._k = k
        self.waits = 0

    def __await__(self) -> Generator[Any, Any, None]:
        steps = self._work.__await__()
        try:
            waited_for = next(steps)
            while True:
                self.waits += 1
                if self.waits == self._k:
                    task = asyncio.current_task()
                    assert task is not None
                    task.cancel()
                try:
                    answer = yield waited_for
                except BaseException as error:
                    waited_for = steps.throw(error)
                else:
                    waited_for = steps.send(answer)
        except StopIteration:
            return


async def outcome(work: Awaitable[None]) -> bool:
    """Return whether the work was cancelled; any other exception of the work is a failure."""
    task = asyncio.ensure_future(_run(work))
    await asyncio.wait({task})
    if task.cancelled():
        return True
    task.result()
    return False


async def _run(work: Awaitable[None]) -> None:
    await work


async def commands(here: World) -> None:
    await here.client.connected()
    await here.client.publish("a", 1)
    await here.client.send({"x": 1})
    await here.client.refresh()


async def subscribing(here: World) -> None:
    async with here.client.subscribe("a") as chat:
        await here.client.publish("a", 1)
        here.gateway.link.publish("a", 1)
        assert (await anext(chat)).data == 1
    inbox = here.client.inbox()
    try:
        await inbox.ready()
        here.gateway.link.publish("@me", 2)
        assert (await anext(inbox)).data == 2
    finally:
        await inbox.close()


async def across_a_reconnect(here: World) -> None:
    async with here.client.subscribe("a") as chat:
        here.gateway.link.end(1001)
        await here.comes_back()
        await here.client.publish("a", 1)
        await chat.ready()
        here.gateway.link.publish("a", 3)
        assert (await anext(chat)).data == 3


async def two_readers(here: World) -> None:
    async with here.client.subscribe("a") as chat:
        other = asyncio.ensure_future(anext(chat))
        try:
            await asyncio.sleep(0)
            here.gateway.link.publish("a", 1)
            here.gateway.link.publish("a", 2)
            assert {(await anext(chat)).data, (await other).data} == {1, 2}
        finally:
            other.cancel()
            await asyncio.wait({other})


async def still_works(here: World) -> None:
    """Use every function of a client in which a task was cancelled."""

    def is_back() -> bool:
        if here.client.state is ClientState.WAITING:
            here.clock.advance(30)
        return not here.gateway.links or not here.gateway.link.has_ended

    await until(is_back)
    await here.client.publish("still", 1)
    for _ in range(2):
        async with here.client.subscribe("a") as chat:
            here.gateway.link.publish("a", "works")
            assert (await anext(chat)).data == "works"
    async with here.client.inbox() as inbox:
        here.gateway.link.publish("@me", "too")
        assert (await anext(inbox)).data == "too"
    session = here.client._connector.session
    assert session is not None
    await until(lambda: session.waiting == 0)


async def provider() -> str:
    await asyncio.sleep(0)
    return "fresh"


async def cancelled_at(scenario: Scenario, k: int) -> bool:
    """Return whether there was a k-th wait at which to cancel."""
    async with world(MemoryGateway(positions={"a": "e-1"}), token=provider) as here:
        wrapper = CancelledAtWait(scenario(here), k)
        was_cancelled = await outcome(wrapper)
        assert was_cancelled is (wrapper.waits >= k)
        await still_works(here)
        assert here.errors == [] or scenario is across_a_reconnect
    return was_cancelled


@pytest.mark.parametrize("scenario", [commands, subscribing, across_a_reconnect, two_readers])
def test_client_still_works_after_a_caller_is_cancelled_at_any_await(scenario: Scenario) -> None:
    async def main() -> None:
        k = 1
        while await cancelled_at(scenario, k):
            k += 1
        assert k > 3, "the scenario has too few waits"

    run(main())


@pytest.mark.parametrize("wants", [[], ["a"], ["a", "b", "@me"]])
def test_client_cancelled_at_any_await_of_its_life_leaves_no_task_or_link(wants: list[str]) -> None:
    """The life includes starting, connecting, a reconnect and closing."""

    async def life(here: World) -> None:
        async with here.client:
            chats = [here.client.subscribe(each) for each in wants]
            for chat in chats:
                await chat.ready()
            await here.client.publish("x", 1)
            here.gateway.link.end(1001)
            await here.comes_back()
            await here.client.publish("x", 1)
            await here.client.refresh()

    async def main() -> None:
        k = 1
        while True:
            here = unstarted()
            if not await outcome(CancelledAtWait(life(here), k)):
                break
            # A client that is cancelled while it closes ends by itself soon.
            await here.client.closed()
            await until(lambda: len(asyncio.all_tasks()) == 1)
            assert all(link.is_closed for link in here.gateway.links)
            k += 1
        assert k > 5

    def unstarted() -> World:
        gateway, clock, errors = MemoryGateway(), ManualClock(), list[Exception]()
        environment = Environment(clock=clock, random=lambda: 0.5, connect=gateway.connect)
        client = Client("ws://gateway/ws", token=provider, on_error=errors.append, environment=environment)
        return World(client, gateway, clock, errors, asyncio.Event())

    run(main())


def test_closing_the_client_at_any_moment_ends_every_task() -> None:
    """Another task closes the client after any number of turns of the loop."""

    async def busy(here: World) -> None:
        gaps: list[Gap] = []
        chat = here.client.subscribe("a", token=provider, on_gap=gaps.append)
        await here.client.publish("a", 1)
        here.gateway.link.say("refresh", within_s=0)
        here.gateway.link.say("unsubbed", ch="a", resubscribe=True)
        here.gateway.link.end(1012)
        await here.comes_back()
        await chat.ready()

    async def main() -> None:
        turns, is_over = 0, False
        while not is_over:
            async with world(token=provider) as here:
                working = asyncio.create_task(busy(here))
                for _ in range(turns):
                    await asyncio.sleep(0)
                is_over = working.done()
                await here.client.close()
                working.cancel()
                await asyncio.wait({working})
            assert len(asyncio.all_tasks()) == 1
            turns += 1
        assert turns > 10

    run(main())


def test_wrapper_cancels_exactly_at_the_chosen_wait() -> None:
    async def main() -> None:
        seen: list[int] = []

        async def scenario() -> None:
            for step in range(3):
                seen.append(step)
                await asyncio.sleep(0)

        assert await outcome(CancelledAtWait(scenario(), 2))
        assert seen == [0, 1]
        assert not await outcome(CancelledAtWait(scenario(), 4))
        assert seen == [0, 1, 0, 1, 2]

    run(main())
