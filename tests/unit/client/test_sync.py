"""Check the thread of the blocking client: when it starts, what it raises without one, and how it ends."""

import asyncio
import errno
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from wsgate.client import Backoff, ClientOptions, ClosedError, NotConnected, SyncClient
from wsgate.errors import InternalError

WITHIN_S = 30.0
CLOSED_PORT = "ws://127.0.0.1:9/ws"
QUICK = ClientOptions(backoff=Backoff(base_s=0.01, cap_s=0.1))


def client() -> SyncClient:
    return SyncClient(CLOSED_PORT, options=QUICK, on_error=lambda _: None)


def in_thread(call: Callable[[], Any]) -> "Future[Any]":
    """Call a function in a thread of its own, so that a call that hangs fails the test."""
    done: Future[Any] = Future()

    def run() -> None:
        try:
            done.set_result(call())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return done


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "wsgate-client"]


CALLS: dict[str, Callable[[SyncClient], object]] = {
    "publish": lambda it: it.publish("c", 1),
    "send": lambda it: it.send(1),
    "subscribe": lambda it: it.subscribe("c"),
    "inbox": lambda it: it.inbox(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_call_before_connect_raises_not_connected_and_after_close_closed_error(
    call: Callable[[SyncClient], object],
) -> None:
    blocking = client()
    with pytest.raises(NotConnected, match=r"call connect\(\), or use `with`"):
        call(blocking)
    blocking.disconnect()
    with pytest.raises(TimeoutError):
        blocking.connect(0.01)
    blocking.close()
    with pytest.raises(ClosedError, match="closed_by_application"):
        call(blocking)
    assert threads() == []


def test_close_before_connect_ends_the_client() -> None:
    blocking = client()
    blocking.close()
    with pytest.raises(ClosedError):
        blocking.connect(0.01)
    with pytest.raises(ClosedError):
        blocking.publish("c", 1)
    assert threads() == []


def test_connect_raises_if_there_is_no_event_loop_and_a_later_call_succeeds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse() -> asyncio.AbstractEventLoop:
        raise OSError(errno.EMFILE, "Too many open files")

    blocking = client()
    with monkeypatch.context() as patch:
        patch.setattr(asyncio.events, "new_event_loop", refuse)
        for _ in range(2):
            with pytest.raises(InternalError, match="Too many open files"):
                in_thread(lambda: blocking.connect(0.01)).result(WITHIN_S / 3)
    with pytest.raises(TimeoutError):
        blocking.connect(0.01)
    in_thread(blocking.close).result(WITHIN_S)
    assert threads() == []


def test_connect_raises_if_there_is_no_thread_and_a_later_call_succeeds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    blocking = client()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(InternalError, match="can't start new thread"):
            blocking.connect(0.01)
    with pytest.raises(TimeoutError):
        blocking.connect(0.01)
    in_thread(blocking.close).result(WITHIN_S)


def slow_start(monkeypatch: pytest.MonkeyPatch) -> None:
    work = SyncClient._work

    def slow(self: SyncClient, *arguments: Any) -> None:
        time.sleep(0.2)
        work(self, *arguments)

    monkeypatch.setattr(SyncClient, "_work", slow)


def test_threads_that_connect_at_the_same_time_share_one_thread_of_the_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow_start(monkeypatch)
    blocking = client()
    calls = [in_thread(lambda: blocking.connect(0.01)) for _ in range(5)]
    assert [type(call.exception(WITHIN_S)) for call in calls] == [TimeoutError] * 5
    assert len(threads()) == 1
    blocking.close()
    assert threads() == []


def test_close_while_the_thread_starts_ends_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    slow_start(monkeypatch)
    blocking = client()
    connecting = in_thread(blocking.connect)
    while not threads():
        time.sleep(0.001)
    in_thread(blocking.close).result(WITHIN_S)
    assert isinstance(connecting.exception(WITHIN_S), ClosedError)
    assert threads() == []


def test_client_whose_connect_was_interrupted_can_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    slow_start(monkeypatch)

    class Interrupted(Future[None]):
        def result(self, timeout: float | None = None) -> None:
            raise KeyboardInterrupt

    blocking = client()
    with monkeypatch.context() as patch:
        patch.setattr("wsgate.client.sync.Future", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            blocking.connect(0.01)
    in_thread(blocking.close).result(WITHIN_S)
    assert threads() == []
