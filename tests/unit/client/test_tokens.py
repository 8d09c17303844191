"""Check token providers, which are code of the application: any fault of theirs is one failed attempt."""

import asyncio
import threading
from collections.abc import Awaitable
from contextvars import ContextVar
from functools import partial
from typing import Any

import pytest

from tests.support.memory_gateway import run
from wsgate.client import TokenError, UnauthorizedError
from wsgate.client.tokens import Token, TokenSource

LONG_S = 30.0
SHORT_S = 0.01


def get(source: Any, timeout_s: float = LONG_S) -> str | None:
    found: list[str | None] = []

    async def main() -> None:
        found.append(await Token(source, timeout_s).get())

    run(main())
    return found[0]


async def coroutine_function(prefix: str = "") -> str:
    await asyncio.sleep(0)
    return f"{prefix}fresh"


class Provider:
    async def __call__(self) -> str:
        return "fresh"


def made_on_the_loop() -> Awaitable[str]:
    return coroutine_function()


@pytest.mark.parametrize(
    "source",
    [
        lambda: "fresh",
        lambda: "fresh\n",
        coroutine_function,
        partial(coroutine_function, ""),
        Provider(),
        made_on_the_loop,
    ],
)
def test_token_is_taken_from_every_kind_of_provider(source: TokenSource) -> None:
    assert get(source) == "fresh"
    assert Token(source, 1).can_renew


def test_fixed_text_is_stripped_and_an_empty_one_counts_as_no_token() -> None:
    assert (get("fixed"), get(" fixed\n"), get(None), get("")) == ("fixed", "fixed", None, None)
    assert not Token("fixed", 1).can_renew


async def raises() -> str:
    raise ValueError("the token server is away")


async def cancels_itself() -> str:
    raise asyncio.CancelledError


async def exceeds_its_own_time() -> str:
    raise TimeoutError


@pytest.mark.parametrize(
    "source",
    [
        raises,
        cancels_itself,
        exceeds_its_own_time,
        lambda: 1 / 0,
        lambda: None,
        lambda: "",
        lambda: b"a secret",
        lambda: "two secret words",
        lambda: "a\r\nsecret: elsewhere",
        lambda: "é",
        lambda: raises(),
    ],
)
def test_faulty_provider_raises_temporary_token_error_without_the_secret(source: Any) -> None:
    with pytest.raises(TokenError) as caught:
        get(source)
    assert "secret" not in str(caught.value)
    assert caught.value.temporary


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("the token\nserver is away"), "ValueError: the token server is away"),
        (ValueError(), "ValueError"),
        (RuntimeError("x" * 500), f"RuntimeError: {'x' * 197}..."),
        (StopIteration(), "RuntimeError: the provider raised StopIteration"),
    ],
)
def test_token_error_contains_the_shortened_message_of_the_provider(error: Exception, text: str) -> None:
    def provider() -> str:
        raise error

    with pytest.raises(TokenError) as caught:
        get(provider)
    assert str(caught.value) == f"the token provider raised {text}"
    assert isinstance(error, StopIteration) or caught.value.__cause__ is error


def test_unauthorized_error_of_a_provider_is_raised_as_final() -> None:
    async def asynchronous() -> str:
        raise UnauthorizedError("the user has logged out")

    def blocking() -> str:
        raise UnauthorizedError("the user has logged out")

    for provider in (asynchronous, blocking):
        with pytest.raises(UnauthorizedError, match="the user has logged out") as caught:
            get(provider)
        assert not caught.value.temporary


def test_fixed_text_that_is_no_token_raises_unauthorized_error() -> None:
    with pytest.raises(UnauthorizedError) as caught:
        get("two secret words")
    assert "secret" not in str(caught.value)


def test_provider_that_hangs_is_cancelled_after_the_timeout() -> None:
    seen: list[str] = []

    async def hangs() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            seen.append("cancelled")
        return ""

    async def main() -> None:
        with pytest.raises(TokenError):
            await Token(hangs, SHORT_S).get()
        assert seen == ["cancelled"]

    run(main())


def test_blocking_provider_does_not_block_the_event_loop() -> None:
    """The provider runs in a thread of its own, and its late token is dropped."""
    release = threading.Event()

    def blocks() -> str:
        release.wait(LONG_S)
        return "late"

    async def main() -> None:
        with pytest.raises(TokenError):
            await Token(blocks, SHORT_S).get()
        release.set()
        for thread in threading.enumerate():
            if thread.name == "wsgate-token":
                await asyncio.to_thread(thread.join)
        await asyncio.sleep(0)

    try:
        run(main())
    finally:
        release.set()


def test_provider_function_runs_in_the_context_of_the_caller() -> None:
    name: ContextVar[str] = ContextVar("name")

    async def main() -> None:
        name.set("here")
        assert await Token(name.get, LONG_S).get() == "here"

    run(main())


def test_cancelling_the_caller_cancels_the_provider() -> None:
    async def main() -> None:
        begun = asyncio.Event()

        async def hangs() -> str:
            begun.set()
            await asyncio.Event().wait()
            return ""

        asking = asyncio.create_task(Token(hangs, LONG_S).get())
        await begun.wait()
        asking.cancel()
        assert isinstance((await asyncio.gather(asking, return_exceptions=True))[0], asyncio.CancelledError)

    run(main())
