"""Check `disconnect`: the client may connect again afterwards, and `close` stays final."""

import asyncio
from collections import deque
from collections.abc import Callable

import pytest

from tests.support.memory_gateway import MemoryGateway, World, run, until, world
from wsgate.client import (
    Client,
    ClientState,
    ClosedError,
    CommandTimeout,
    Disconnected,
    Ending,
    Gap,
    NotConnected,
)
from wsgate.client.options import ClientOptions
from wsgate.errors import InternalError


async def connects(here: World) -> None:
    await here.client.connected()


async def is_asked_for_a_token(here: World) -> None:
    await until(lambda: here.client.state is ClientState.CONNECTING)


async def waits(here: World) -> None:
    await until(lambda: here.client.state is ClientState.WAITING and here.clock.sleeping)


async def nothing(_: World) -> None:
    pass


STATES: list[tuple[str, Callable[[], MemoryGateway], object]] = [
    ("started", MemoryGateway, nothing),
    ("connecting", lambda: MemoryGateway(silent={"welcome"}), is_asked_for_a_token),
    ("waiting", lambda: MemoryGateway(refusals=deque([Disconnected(Ending(0, "unreachable"))])), waits),
    ("open", MemoryGateway, connects),
]


@pytest.mark.parametrize(("name", "gateway", "reach"), STATES, ids=[name for name, *_ in STATES])
def test_client_disconnected_in_any_state_stays_idle_and_can_connect_again(
    name: str, gateway: Callable[[], MemoryGateway], reach: Callable[[World], object]
) -> None:
    async def main() -> None:
        async with world(gateway()) as here:
            chat = here.client.subscribe("chat")
            await reach(here)  # type: ignore[misc]
            await here.client.disconnect()
            await here.client.disconnect()
            assert here.client.state is ClientState.IDLE
            assert here.clock.sleeping == []
            assert all(link.is_closed for link in here.gateway.links)
            count = len(here.gateway.openings)
            for _ in range(50):
                here.clock.advance(60)
                await asyncio.sleep(0)
            assert len(here.gateway.openings) == count, "no attempt while the client is disconnected"
            here.gateway.silent.clear()
            await here.client.connect()
            await chat.ready()
            await here.client.publish("chat", 1)
            assert here.client.conn is not None

    run(main())


def test_subscriptions_positions_and_iterators_survive_a_disconnect() -> None:
    async def main() -> None:
        gaps: list[Gap] = []
        gateway = MemoryGateway(positions={"chat": "e-1"})
        async with world(gateway) as here:
            chat, plain = here.client.subscribe("chat", on_gap=gaps.append), here.client.subscribe("plain")
            await chat.ready()
            await plain.ready()
            here.gateway.link.publish("chat", "first", "e-2")
            assert (await anext(chat)).data == "first"
            taking = asyncio.create_task(anext(chat))
            await asyncio.sleep(0)
            await here.client.disconnect()
            assert not taking.done()
            gateway.recovered = True
            here.client.subscribe("meanwhile")
            await here.client.connect()
            await chat.ready()
            asked = here.gateway.link.commands("sub")
            assert {each["ch"]: each.get("from") for each in asked} == {
                "chat": "e-2",
                "plain": None,
                "meanwhile": None,
            }
            here.gateway.link.publish("chat", "second", "e-3")
            assert (await taking).data == "second"
            assert gaps == []

    run(main())


def test_rapid_disconnects_and_connects_end_with_one_open_connection() -> None:
    async def main() -> None:
        async with world() as here:
            tasks = []
            for _ in range(5):
                tasks.append(asyncio.create_task(here.client.disconnect()))
                tasks.append(asyncio.create_task(here.client.connect()))
            await asyncio.gather(*tasks, return_exceptions=True)
            await here.client.connect()
            assert here.client.state is ClientState.OPEN
            assert sum(not link.is_closed for link in here.gateway.links) == 1
            assert tasks[-1].exception() is None

    run(main())


def test_sent_commands_fail_at_disconnect_and_later_ones_wait_for_connect() -> None:
    async def main() -> None:
        async with world(MemoryGateway(silent={"pub"})) as here:
            link = await here.opened(1)
            sent = asyncio.create_task(here.client.publish("c", 1))
            await until(lambda: link.commands("pub"))
            await here.client.disconnect()
            with pytest.raises(Disconnected):
                await sent
            waiting = asyncio.create_task(here.client.publish("c", 2))
            await asyncio.sleep(0)
            here.gateway.silent.clear()
            await here.client.connect()
            await waiting
        async with world(options=ClientOptions(command_timeout_s=0.01)) as here:
            await here.client.connected()
            await here.client.disconnect()
            with pytest.raises(CommandTimeout):
                await here.client.publish("c", 3)

    run(main())


def test_retry_time_of_a_bye_is_kept_across_a_disconnect() -> None:
    async def main() -> None:
        async with world(random=lambda: 0.0) as here:
            link = await here.opened(1)
            link.say("bye", code=4012, reason="drain", reconnect=True, retry_ms=10_000)
            link.end(4012)
            await waits(here)
            here.clock.advance(4)
            await here.client.disconnect()
            here.client.start()
            await waits(here)
            assert here.clock.sleeping == [pytest.approx(6)]
            here.clock.advance(6)
            await here.client.connected()

    run(main())


def test_close_is_final_after_a_disconnect_too() -> None:
    async def main() -> None:
        async with world() as here:
            chat = here.client.subscribe("chat")
            await here.client.connected()
            await here.client.disconnect()
            await here.client.close()
            assert here.client.state is ClientState.CLOSED
            await here.client.disconnect()
            for call in (here.client.connect(), here.client.publish("c", 1)):
                with pytest.raises(ClosedError):
                    await call
            with pytest.raises(StopAsyncIteration):
                await anext(chat)
        async with world() as here:
            await here.client.connected()
            await asyncio.gather(here.client.disconnect(), here.client.close())
            assert here.client.state is ClientState.CLOSED

    run(main())


def test_a_task_that_waits_for_a_connection_gets_an_error_on_disconnect() -> None:
    async def main() -> None:
        async with world(MemoryGateway(silent={"welcome"})) as here:
            waiting = asyncio.create_task(here.client.connected())
            await until(lambda: here.gateway.links)
            await here.client.disconnect()
            with pytest.raises(NotConnected):
                await waiting
            with pytest.raises(NotConnected):
                await here.client.connected()

    run(main())


def test_a_client_that_was_never_started_raises_instead_of_waiting() -> None:
    async def main() -> None:
        client = Client("ws://gateway/ws", token=lambda: "t")
        chat, inbox = client.subscribe("chat"), client.inbox()
        await client.disconnect()
        for call in (
            client.connected(),
            client.publish("chat", 1),
            client.send(1),
            client.refresh(),
            chat.ready(),
            anext(chat),
            inbox.ready(),
        ):
            with pytest.raises(NotConnected, match=r"call connect\(\) or start\(\)"):
                await call
        await chat.close()
        with pytest.raises(StopAsyncIteration):
            await anext(chat)
        await client.close()

    run(main())


def test_start_is_refused_while_the_client_runs_and_works_after_a_disconnect() -> None:
    async def main() -> None:
        async with world() as here:
            await here.client.connect()
            with pytest.raises(InternalError):
                here.client.start()
            await here.client.disconnect()
            here.client.start()
            await here.client.connected()

    run(main())
