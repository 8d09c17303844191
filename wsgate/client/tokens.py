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

from wsgate.client.errors import TokenError, UnauthorizedError

__all__ = ["Token", "TokenSource"]

TokenSource = str | Callable[[], str | Awaitable[str]] | None
"""A token, who makes one (a function or a coroutine function without arguments), or nothing."""

_CANCEL_S: Final = 1.0
"""How long a provider that was told to stop is waited for."""

_CAUSE_CHARACTERS: Final = 200
"""How much of a provider's own error text is repeated: enough for a sentence, too little for a document."""


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

    @property
    def is_fixed(self) -> bool:
        """Whether there is a token that is the same each time."""
        return isinstance(self._source, str) and bool(self._source)

    def replace(self, token: str) -> None:
        """Take another token in the place of a fixed one, so that the next attempt shows the newer one."""
        if self.is_fixed:
            self._source = token

    async def get(self) -> str | None:
        """A token, fresh from the provider if there is one; None where there is no source at all.

        Raises:
            UnauthorizedError: The provider says that there will be none, or the fixed text is no token.
            TokenError: The provider raised, took too long, or gave no text; asking again may help.
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
    """The type and the text of an error, as one line of bounded length."""
    text = " ".join(str(error).split())
    shown = text if len(text) <= _CAUSE_CHARACTERS else text[: _CAUSE_CHARACTERS - 3] + "..."
    return f"{type(error).__name__}: {shown}" if shown else type(error).__name__


def _fixed(token: str) -> str:
    """A fixed token is as wrong on the next attempt as on this one."""
    try:
        return _checked(token)
    except TokenError:
        raise UnauthorizedError("the token of this client is no token") from None


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
        except StopIteration:  # a future refuses it, and the provider would seem to hang
            failure = RuntimeError("the provider raised StopIteration")
        except Exception as error:
            failure = error
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, name="wsgate-token", daemon=True).start()
    return await answer
