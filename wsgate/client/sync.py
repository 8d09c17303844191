"""The client for programs without an event loop: it runs on a loop in a thread of its own.

Every call waits for its answer. Callbacks run in that thread.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import CancelledError
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar

from wsgate.client.callbacks import ErrorCallback
from wsgate.client.client import Client
from wsgate.client.connector import BY_APPLICATION
from wsgate.client.errors import ClosedError
from wsgate.client.feed import Gap
from wsgate.client.options import ClientOptions
from wsgate.client.protocol import Publication
from wsgate.client.subscription import Subscription
from wsgate.client.tokens import TokenSource

__all__ = ["SyncClient", "SyncSubscription"]

T = TypeVar("T")


class SyncClient:
    """As `Client`, waiting.

        with SyncClient("ws://localhost:8000/ws") as client:
            for publication in client.subscribe("news"):
                ...

    May be used from several threads. Entered, it is connected.
    """

    def __init__(
        self,
        url: str,
        *,
        token: TokenSource = None,
        options: ClientOptions | None = None,
        on_error: ErrorCallback | None = None,
    ) -> None:
        """Nothing happens before `connect`. Arguments and errors are `Client`'s."""
        self._client = Client(url, token=token, options=options, on_error=on_error)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._work, name="wsgate-client", daemon=True)
        self._is_up = threading.Event()
        self._closing = asyncio.Event()

    def connect(self, timeout_s: float | None = None) -> None:
        """Start, or go on after `disconnect`, and wait until there is a connection.

        Args:
            timeout_s: How long, > 0; None: as long as it takes. The client goes on trying after that.

        Raises:
            TimeoutError: Not connected in time.
            ClosedError: The client has ended.
        """
        if not self._is_up.is_set():
            self._thread.start()
            self._is_up.wait()
        self.call(_within(self._client.connect, timeout_s))

    def disconnect(self) -> None:
        """Let the connection go and keep the subscriptions; `connect` goes on. See `Client.disconnect`."""
        if self._loop is not None:
            self.call(self._client.disconnect())

    def publish(self, channel: str, data: Any, *, key: str | None = None, echo: bool = True) -> str | None:
        """See `Client.publish`."""
        return self.call(self._client.publish(channel, data, key=key, echo=echo))

    def send(self, data: Any) -> None:
        """See `Client.send`."""
        self.call(self._client.send(data))

    def subscribe(
        self,
        channel: str,
        *,
        token: TokenSource = None,
        on_gap: Callable[[Gap], object] | None = None,
        timeout_s: float | None = None,
    ) -> "SyncSubscription":
        """Listen to a channel. See `Client.subscribe`.

        Args:
            channel: Its name.
            token: Of the channel.
            on_gap: Called in the client's thread.
            timeout_s: How long one step of an iteration waits before TimeoutError; None: as long as it takes.
        """
        return SyncSubscription(self, self.call(self._subscribe(channel, token, on_gap)), timeout_s)

    def inbox(
        self, *, on_gap: Callable[[Gap], object] | None = None, timeout_s: float | None = None
    ) -> "SyncSubscription":
        """Listen to what is published to this user alone. See `subscribe` and `Client.inbox`."""
        return SyncSubscription(self, self.call(self._inbox(on_gap)), timeout_s)

    def close(self) -> None:
        """End the client and its thread, and whoever waits in another one. Harmless twice."""
        loop = self._loop
        if loop is None or threading.current_thread() is self._thread:
            return
        with suppress(RuntimeError):  # the loop has ended between
            loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()

    def __enter__(self) -> Self:
        try:
            self.connect()
        except BaseException:  # it will not be left
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
        """Run it on the client's loop and return what it does; interrupted, it is cancelled there.

        Raises:
            ClosedError: There is no loop: not connected yet, or closed.
            Exception: What it raises.
        """
        loop = self._loop
        if loop is None:
            work.close()
            raise ClosedError(BY_APPLICATION)
        try:
            future = asyncio.run_coroutine_threadsafe(work, loop)
        except RuntimeError:  # the loop has ended between
            work.close()
            raise ClosedError(BY_APPLICATION) from None
        try:
            return future.result()
        except CancelledError:
            raise ClosedError(BY_APPLICATION) from None
        except BaseException:
            future.cancel()  # interrupted while it waited; of one that is done: nothing
            raise

    def _work(self) -> None:
        asyncio.run(self._live())

    async def _live(self) -> None:
        self._loop = asyncio.get_running_loop()
        async with self._client:
            self._is_up.set()
            await self._closing.wait()
        self._loop = None


class SyncSubscription:
    """As `Subscription`, waiting. Iterate over it, or take one by one."""

    def __init__(self, client: SyncClient, subscription: Subscription, timeout_s: float | None) -> None:
        """Made by `SyncClient.subscribe` and `SyncClient.inbox`."""
        self._client = client
        self._subscription = subscription
        self._timeout_s = timeout_s

    def ready(self, timeout_s: float | None = None) -> None:
        """Wait until it is confirmed. Raises TimeoutError, and what `Subscription.ready` does."""
        self._client.call(_within(self._subscription.ready, timeout_s))

    def take(self, timeout_s: float | None = None) -> Publication:
        """The next publication.

        Args:
            timeout_s: How long to wait, >= 0; None: as long as it takes.

        Raises:
            TimeoutError: None came; none is lost either.
            ClosedError, CommandError: It has ended, and why.
        """
        try:
            return self._client.call(_within(self._subscription.__anext__, timeout_s))
        except StopAsyncIteration:
            raise ClosedError(BY_APPLICATION) from None

    def close(self) -> None:
        """Listen no more. Harmless twice."""
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
        except BaseException:  # it will not be left
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
    """What `begin` gives, or TimeoutError. The limit is the loop's: nothing is lost to a race with it."""
    async with asyncio.timeout(timeout_s):
        return await begin()
