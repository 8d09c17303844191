"""Token providers are somebody else's code: whatever they do is a failed attempt and nothing more."""

import asyncio
import threading
from collections.abc import Awaitable
from contextvars import ContextVar
from functools import partial
from typing import Any

import pytest

from tests.support.memory_gateway import run
from wsgate.client import TokenError
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
    raise ValueError("a secret")


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
        lambda: b"bytes",
        lambda: "two words",
        lambda: "a\r\nHost: elsewhere",
        lambda: "é",
        lambda: raises(),
    ],
)
def test_one_that_fails_is_a_token_error_that_tells_no_secret(source: Any) -> None:
    with pytest.raises(TokenError) as caught:
        get(source)
    assert "secret" not in str(caught.value)
    assert caught.value.temporary


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
