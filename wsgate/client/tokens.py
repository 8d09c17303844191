"""Provides the tokens of a client: a fixed text, or a provider function that returns a fresh token.

A provider is code of the application: it may raise, hang, block, or cancel itself. It therefore runs in its
own task, or in a thread if it is not a coroutine function, so that none of this affects the caller;
only a coroutine function that blocks the event loop blocks the client too.
"""

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import copy_context
from typing import Any, Final

from wsgate.client.errors import TokenError, UnauthorizedError

__all__ = ["Token", "TokenSource"]

TokenSource = str | Callable[[], str | Awaitable[str]] | None
"""A token, a provider of tokens (a function or a coroutine function without arguments), or None."""

_CANCEL_S: Final = 1.0
"""Seconds to wait for a provider that was cancelled."""

_CAUSE_CHARACTERS: Final = 200
"""Characters of a provider's error text that our error repeats: enough for a sentence, too few for a
document."""


class Token:
    """A fixed token or a token provider, which is called with a time limit."""

    def __init__(self, source: TokenSource, timeout_s: float) -> None:
        """Create a source. `timeout_s` is how long one call of the provider may take."""
        self._source = source
        self._timeout_s = timeout_s

    @property
    def can_renew(self) -> bool:
        """Whether there is a provider, so that another call may return another token."""
        return callable(self._source)

    @property
    def is_fixed(self) -> bool:
        """Whether the source is a fixed, non-empty text."""
        return isinstance(self._source, str) and bool(self._source)

    def replace(self, token: str) -> None:
        """Replace a fixed token, so that the next attempt sends the newer one. A provider is kept."""
        if self.is_fixed:
            self._source = token

    async def get(self) -> str | None:
        """Return the fixed token or a fresh one of the provider, or None if there is no source.

        Raises:
            UnauthorizedError: The provider raised it, or the fixed text cannot be a token.
            TokenError: The provider raised another error, took too long, or returned no token; a later call
                may succeed.
        """
        source = self._source
        if source is None or isinstance(source, str):
            return _fixed(source) if source else None
        asked = asyncio.create_task(_ask(source))
        try:
            await asyncio.wait({asked}, timeout=self._timeout_s)
            if not asked.done():
                raise TokenError(f"the token provider did not answer within {self._timeout_s} s")
        finally:
            await _end(asked)
        if asked.cancelled():
            raise TokenError("the token provider was cancelled")
        if (error := asked.exception()) is not None:
            if isinstance(error, UnauthorizedError):
                raise error
            raise TokenError(f"the token provider raised {_described(error)}") from error
        return _checked(asked.result())


def _described(error: BaseException) -> str:
    """Return the type and the text of an exception as one line of bounded length."""
    text = " ".join(str(error).split())
    shown = text if len(text) <= _CAUSE_CHARACTERS else text[: _CAUSE_CHARACTERS - 3] + "..."
    return f"{type(error).__name__}: {shown}" if shown else type(error).__name__


def _fixed(token: str) -> str:
    """Check a fixed token; an error is final, because the text will not change."""
    try:
        return _checked(token)
    except TokenError:
        raise UnauthorizedError("the token of this client is not a valid token") from None


def _checked(token: object) -> str:
    """Return the token without surrounding white space, if it can stand in an HTTP header.

    White space is removed because a token that is read from a file often ends with a newline.

    Raises:
        TokenError: It is not a text, is empty, or holds a space, a control character or one outside ASCII.
    """
    text = token.strip() if isinstance(token, str) else ""
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise TokenError(f"the token provider returned something that is not a token: {type(token).__name__}")
    return text


async def _end(task: asyncio.Task[Any]) -> None:
    if not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_CANCEL_S)


async def _ask(source: Callable[[], str | Awaitable[str]]) -> Any:
    called = getattr(source, "__call__", None)  # noqa: B004 - a callable object may have a coroutine method
    if inspect.iscoroutinefunction(source) or inspect.iscoroutinefunction(called):
        found: Any = source()
    else:
        found = await _in_thread(source)
    return await found if inspect.isawaitable(found) else found


async def _in_thread(source: Callable[[], Any]) -> Any:
    """Run a blocking provider in a daemon thread, so that a provider that hangs does not delay the exit."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Any] = loop.create_future()
    context = copy_context()

    def settle(result: Any, error: Exception | None) -> None:
        if answer.done():
            return  # the caller has stopped waiting
        if error is None:
            answer.set_result(result)
        else:
            answer.set_exception(error)

    def run() -> None:
        result: Any = None
        failure: Exception | None = None
        try:
            result = context.run(source)
        except StopIteration:  # a future refuses StopIteration, so that the caller would time out
            failure = RuntimeError("the provider raised StopIteration")
        except Exception as error:
            failure = error
        with suppress(RuntimeError):  # the loop has ended in the meantime
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, name="wsgate-token", daemon=True).start()
    return await answer
