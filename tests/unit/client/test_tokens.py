"""Token providers are somebody else's code: whatever they do is a failed attempt and nothing more."""

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
def test_any_kind_of_provider_is_asked(source: TokenSource) -> None:
    assert get(source) == "fresh"
    assert Token(source, 1).can_renew


def test_a_text_and_nothing_at_all() -> None:
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
def test_one_that_fails_is_a_token_error_that_tells_no_secret(source: Any) -> None:
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
def test_a_provider_that_raises_is_quoted_with_its_message(error: Exception, text: str) -> None:
    def provider() -> str:
        raise error

    with pytest.raises(TokenError) as caught:
        get(provider)
    assert str(caught.value) == f"the token provider raised {text}"
    assert isinstance(error, StopIteration) or caught.value.__cause__ is error


def test_a_provider_may_say_that_there_will_be_no_token() -> None:
    async def asynchronous() -> str:
        raise UnauthorizedError("the user has logged out")

    def blocking() -> str:
        raise UnauthorizedError("the user has logged out")

    for provider in (asynchronous, blocking):
        with pytest.raises(UnauthorizedError, match="the user has logged out") as caught:
            get(provider)
        assert not caught.value.temporary


def test_a_fixed_text_that_is_no_token_will_never_be_one() -> None:
    with pytest.raises(UnauthorizedError) as caught:
        get("two secret words")
    assert "secret" not in str(caught.value)


def test_one_that_hangs_is_given_up_and_cancelled() -> None:
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


def test_one_that_blocks_holds_up_nobody() -> None:
    """It runs in a thread of its own: the loop goes on meanwhile, and its late answer is dropped."""
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


def test_a_function_sees_the_context_of_who_asks() -> None:
    name: ContextVar[str] = ContextVar("name")

    async def main() -> None:
        name.set("here")
        assert await Token(name.get, LONG_S).get() == "here"

    run(main())


def test_who_is_cancelled_while_asking_cancels_the_provider() -> None:
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
