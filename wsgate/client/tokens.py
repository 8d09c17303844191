"""Where tokens come from: a text, or a provider that is asked for a fresh one.

A provider is somebody else's code: it may raise, hang, block, or cancel itself. It runs in a task of its
own, or in a thread when it is no coroutine function, so that none of this reaches who asked.
"""

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import copy_context
from typing import Any, Final

from wsgate.client.errors import TokenError

__all__ = ["Token", "TokenSource"]

TokenSource = str | Callable[[], str | Awaitable[str]] | None
"""A token, who makes one (a function or a coroutine function without arguments), or nothing."""

_CANCEL_S: Final = 1.0
"""How long a provider that was told to stop is waited for."""


class Token:
    """A source of tokens, asked with a time limit."""

    def __init__(self, source: TokenSource, timeout_s: float) -> None:
        """`timeout_s` is how long a provider may take."""
        self._source = source
        self._timeout_s = timeout_s

    @property
    def can_renew(self) -> bool:
        """Whether asking again may bring another token."""
        return callable(self._source)

    async def get(self) -> str | None:
        """A token, fresh from the provider if there is one; None where there is no source at all.

        Raises:
            TokenError: The provider raised, took too long, or gave no text.
        """
        source = self._source
        if source is None or isinstance(source, str):
            return _checked(source) if source else None
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
            # Its text is not ours to repeat: it may hold a secret.
            raise TokenError(f"the token provider raised {type(error).__name__}") from error
        return _checked(asked.result())


def _checked(token: object) -> str:
    """One that can stand in a header; a file's last newline is nobody's mistake."""
    text = token.strip() if isinstance(token, str) else ""
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise TokenError(f"what the token provider gave is no token: {type(token).__name__}")
    return text


async def _end(task: asyncio.Task[Any]) -> None:
    if not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_CANCEL_S)


async def _ask(source: Callable[[], str | Awaitable[str]]) -> Any:
    called = getattr(source, "__call__", None)  # noqa: B004 - of an object that can be called
    if inspect.iscoroutinefunction(source) or inspect.iscoroutinefunction(called):
        found: Any = source()
    else:
        found = await _in_thread(source)
    return await found if inspect.isawaitable(found) else found


async def _in_thread(source: Callable[[], Any]) -> Any:
    """What a function gives that may block: a daemon, so that one that hangs holds up no exit."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Any] = loop.create_future()
    context = copy_context()

    def settle(result: Any, error: Exception | None) -> None:
        if answer.done():
            return  # nobody waits any more
        if error is None:
            answer.set_result(result)
        else:
            answer.set_exception(error)

    def run() -> None:
        result: Any = None
        failure: Exception | None = None
        try:
            result = context.run(source)
        except Exception as error:
            failure = error
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, name="wsgate-token", daemon=True).start()
    return await answer
