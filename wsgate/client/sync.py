"""The blocking client, for programs without an event loop: it runs `Client` on a loop in its own thread.

It has the most used methods of `Client`. Every call blocks until the result arrives. Callbacks run in the
client's thread.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar

from wsgate.client.callbacks import ErrorCallback
from wsgate.client.client import Client
from wsgate.client.connector import BY_APPLICATION
from wsgate.client.errors import ClosedError, NotConnected
from wsgate.client.feed import Gap
from wsgate.client.options import ClientOptions
from wsgate.client.protocol import Publication
from wsgate.client.subscription import Subscription
from wsgate.client.tokens import TokenSource
from wsgate.errors import InternalError

__all__ = ["SyncClient", "SyncSubscription"]

T = TypeVar("T")


class SyncClient:
    """A blocking client with the methods of `Client`, for programs without an event loop.

        with SyncClient("ws://localhost:8000/ws") as client:
            for publication in client.subscribe("news"):
                ...

    Several threads may use one client. The `with` statement connects on entry and closes on exit.
    """

    def __init__(
        self,
        url: str,
        *,
        token: TokenSource = None,
        options: ClientOptions | None = None,
        on_error: ErrorCallback | None = None,
    ) -> None:
        """Create a client; its thread does not run before `connect`.

        The arguments and errors are those of `Client`.
        """
        self._client = Client(url, token=token, options=options, on_error=on_error)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()  # held to start the thread, so that only one is started
        self._is_closed = False
        self._closing = asyncio.Event()

    def connect(self, timeout_s: float | None = None) -> None:
        """Start the client's thread if it does not run, and block until the client is connected.

        Also connects again after `disconnect`.

        Args:
            timeout_s: How long to wait, > 0; None: without limit. After a TimeoutError the client still tries
                to connect.

        Raises:
            TimeoutError: The client was not connected in time.
            ClosedError: The client has ended.
            InternalError: The operating system refused the thread or its event loop. Another call tries it
                again.
        """
        with self._lock:
            if not self._is_closed and not (self._thread and self._thread.is_alive()):
                self._start()
        self.call(_within(self._client.connect, timeout_s))

    def disconnect(self) -> None:
        """Close the connection and keep the subscriptions for a later `connect`; block until it is closed."""
        if self._loop is not None:
            self.call(self._client.disconnect())

    def publish(self, channel: str, data: Any, *, key: str | None = None, echo: bool = True) -> str | None:
        """Publish data to a channel and block until the gateway's reply. See `Client.publish`."""
        return self.call(self._client.publish(channel, data, key=key, echo=echo))

    def send(self, data: Any) -> None:
        """Send a message to the backend and block until the gateway's reply. See `Client.send`."""
        self.call(self._client.send(data))

    def subscribe(
        self,
        channel: str,
        *,
        token: TokenSource = None,
        on_gap: Callable[[Gap], object] | None = None,
        timeout_s: float | None = None,
    ) -> "SyncSubscription":
        """Subscribe to a channel and return a blocking iterator of its publications. See `Client.subscribe`.

        Args:
            channel: The name of the channel.
            token: The channel token or its provider.
            on_gap: Called in the client's thread.
            timeout_s: How long one step of an iteration waits before TimeoutError; None: without limit.
        """
        return SyncSubscription(self, self.call(self._subscribe(channel, token, on_gap)), timeout_s)

    def inbox(
        self, *, on_gap: Callable[[Gap], object] | None = None, timeout_s: float | None = None
    ) -> "SyncSubscription":
        """Return a blocking iterator of the publications to this user's inbox.

        See `subscribe`, `Client.inbox`.
        """
        return SyncSubscription(self, self.call(self._inbox(on_gap)), timeout_s)

    def close(self) -> None:
        """End the client and join its thread; calls that block in other threads raise ClosedError.

        May be called twice. Does nothing when called in the client's own thread.
        """
        if threading.current_thread() is self._thread:
            return
        with self._lock:  # wait for a thread that starts now
            self._is_closed = True
            thread, loop = self._thread, self._loop
        if thread is None:
            return
        if loop is not None:
            with suppress(RuntimeError):  # the loop has ended in the meantime
                loop.call_soon_threadsafe(self._closing.set)
        thread.join()

    def __enter__(self) -> Self:
        try:
            self.connect()
        except BaseException:  # `__exit__` is not called after a failed `__enter__`
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def _subscribe(
        self, channel: str, token: TokenSource, on_gap: Callable[[Gap], object] | None
    ) -> Subscription:
        return self._client.subscribe(channel, token=token, on_gap=on_gap)

    async def _inbox(self, on_gap: Callable[[Gap], object] | None) -> Subscription:
        return self._client.inbox(on_gap=on_gap)

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the client's loop and block until it returns.

        An interrupt of the waiting thread cancels the coroutine.

        Raises:
            NotConnected: There is no loop, because `connect` was never called.
            ClosedError: There is no loop any more, because the client is closed.
            Exception: The exception of the coroutine.
        """
        loop = self._loop
        if loop is None:
            work.close()
            if self._is_closed:
                raise ClosedError(BY_APPLICATION)
            raise NotConnected("the client is not started: call connect(), or use `with`")
        try:
            future = asyncio.run_coroutine_threadsafe(work, loop)
        except RuntimeError:  # the loop has ended in the meantime
            work.close()
            raise ClosedError(BY_APPLICATION) from None
        try:
            return future.result()
        except CancelledError:
            raise ClosedError(BY_APPLICATION) from None
        except BaseException:
            future.cancel()  # interrupted while waiting; has no effect on a future that is done
            raise

    def _start(self) -> None:
        """Start the client's thread, and wait until its event loop runs."""
        is_up: Future[None] = Future()
        thread = threading.Thread(target=self._work, args=(is_up,), name="wsgate-client", daemon=True)
        try:
            thread.start()
            self._thread = thread
            is_up.result()
        except (OSError, RuntimeError) as error:  # RuntimeError: no thread could be started
            raise InternalError(f"the thread of the client cannot start: {error}") from error

    def _work(self, is_up: "Future[None]") -> None:
        try:
            with asyncio.Runner() as runner:  # the operating system may refuse the loop
                runner.run(self._live(is_up))
        except BaseException as error:
            if is_up.done():
                raise
            is_up.set_exception(error)

    async def _live(self, is_up: "Future[None]") -> None:
        self._loop = asyncio.get_running_loop()
        async with self._client:
            is_up.set_result(None)
            if not self._is_closed:  # `close` came before there was a loop
                await self._closing.wait()
        self._loop = None


class SyncSubscription:
    """A blocking view of a `Subscription`: iterate over it, or call `take` for single publications."""

    def __init__(self, client: SyncClient, subscription: Subscription, timeout_s: float | None) -> None:
        """Wrap a subscription; applications call `SyncClient.subscribe` or `SyncClient.inbox` instead."""
        self._client = client
        self._subscription = subscription
        self._timeout_s = timeout_s

    def ready(self, timeout_s: float | None = None) -> None:
        """Block until the gateway has confirmed the subscription.

        Raises TimeoutError, and the errors of `Subscription.ready`.
        """
        self._client.call(_within(self._subscription.ready, timeout_s))

    def take(self, timeout_s: float | None = None) -> Publication:
        """Block until the next publication arrives, and return it.

        Args:
            timeout_s: How long to wait, >= 0; None: without limit.

        Raises:
            TimeoutError: No publication arrived in time. None is lost.
            ClosedError, CommandError: The subscription has ended; the error holds the reason.
        """
        try:
            return self._client.call(_within(self._subscription.__anext__, timeout_s))
        except StopAsyncIteration:
            raise ClosedError(BY_APPLICATION) from None

    def close(self) -> None:
        """End the subscription. May be called twice."""
        with suppress(ClosedError):
            self._client.call(self._subscription.close())

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Publication:
        try:
            return self.take(self._timeout_s)
        except ClosedError as error:
            if error.ending is BY_APPLICATION:
                raise StopIteration from None
            raise

    def __enter__(self) -> Self:
        try:
            self.ready()
        except BaseException:  # `__exit__` is not called after a failed `__enter__`
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


async def _within(begin: Callable[[], Awaitable[T]], timeout_s: float | None) -> T:
    """Await `begin()` with a time limit. The limit runs on the client's loop, so that no result is lost."""
    async with asyncio.timeout(timeout_s):
        return await begin()
