"""Define the readers that are fuzzed with coverage feedback: the entry point and the check of each.

Inputs of libFuzzer are plain bytes. Where a reader needs a choice beside the stream (compression, a proxy),
the first byte of the input makes it. The cuts of the stream depend only on its length, so that the same input
repeats a fault.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tests.fuzz.frames import FramesTarget, make_stream
from tests.fuzz.heads import HeadsTarget, head_seeds, sized_head
from tests.fuzz.proxies import check_proxy, proxy_seeds
from tests.fuzz.pushes import check_pushes
from tests.fuzz.pushes import seeds as push_seeds
from tests.support.resp import BOUNDS, hostile_reply
from tests.support.sizes import draw_size, sizes_up_to

__all__ = ["READERS", "Reader"]

GENERATED: Final = 300
ROUND: Final = 200
"""Number of inputs for one target object; then its `close` checks that all memory is returned."""
HEAD_LIMIT_BYTES: Final = 1_200
"""Inputs of a guided fuzzer are short, so the limit for heads is low."""


@dataclass(frozen=True)
class Reader:
    """One reader of foreign bytes.

    Attributes:
        modules: The compiled modules that are instrumented, as a pattern below the repository.
        start: Makes the function that checks one input; it raises AssertionError for a fault.
        seeds: Makes the inputs to begin with.
        words: Parts of inputs for libFuzzer's dictionary, as libFuzzer spells them.
    """

    modules: str
    start: Callable[[], Callable[[bytes], None]]
    seeds: Callable[[], list[bytes]]
    words: tuple[str, ...]


def _dice(data: bytes) -> random.Random:
    return random.Random(len(data))


def _judge_pushes(data: bytes) -> None:
    check_pushes(_dice(data), data)


def _judge_proxy(data: bytes) -> None:
    check_proxy(_dice(data), data)


def _judge_with(
    make: Callable[[], FramesTarget | HeadsTarget], check: Callable[..., None]
) -> Callable[[bytes], None]:
    """Give a round of inputs to one target object, then close it, which finds memory that is not returned."""
    targets, count = [make()], 0

    def judge(data: bytes) -> None:
        nonlocal count
        if not data:
            return
        check(targets[0], data)
        count += 1
        if count % ROUND == 0:
            targets[0].close()
            targets[0] = make()

    return judge


def _check_frames(target: FramesTarget, data: bytes) -> None:
    target.check(_dice(data), data[1:], is_deflating=bool(data[0] & 1))


def _check_head(target: HeadsTarget, data: bytes) -> None:
    target.check(_dice(data), data[1:], is_proxied=bool(data[0] & 1))


def _pushes() -> list[bytes]:
    dice = random.Random(1)
    return push_seeds() + [hostile_reply(dice, (b"wsgate:ch:n", b"other")) for _ in range(GENERATED)]


def _frames() -> list[bytes]:
    dice = random.Random(1)
    return [
        bytes([number & 1]) + make_stream(dice, is_deflating=bool(number & 1)) for number in range(GENERATED)
    ]


def _heads() -> list[bytes]:
    dice = random.Random(1)
    heads = head_seeds() + [sized_head(draw_size(dice, HEAD_LIMIT_BYTES + 1)) for _ in range(20)]
    return [b"\0" + head for head in heads] + [b"\1" + proxy + heads[0] for proxy in proxy_seeds()]


READERS: Final[dict[str, Reader]] = {
    "pushes": Reader(
        modules="wsgate/bus/push.pyx",
        start=lambda: _judge_pushes,
        seeds=_pushes,
        words=(
            *("message", "smessage", "subscribe", "ssubscribe", "unsubscribe", "sunsubscribe", "pong"),
            *(r"\x0d\x0a", "*3", "*2", "$", ":", "+", "-", "$-1", "wsgate:ch:"),
            *map(str, BOUNDS),
        ),
    ),
    "codec": Reader(
        modules="wsgate/reactor/*.pyx",
        start=lambda: _judge_with(FramesTarget, _check_frames),
        seeds=_frames,
        words=(
            *(
                rf"\x{first:02x}"
                for first in (0x00, 0x01, 0x02, 0x80, 0x81, 0x82, 0x88, 0x89, 0x8A, 0xC1, 0x41)
            ),
            *(rf"\x{0x80 | size:02x}" for size in (0, 1, 2, 125, 126, 127)),
            *(r"\xfe\x00\x7d", r"\xfe\x00\x7e", r"\xfe\xff\xff", r"\xff\x00\x00\x00\x00\x00\x01\x00\x00"),
            *(r"\xff\x80\x00\x00\x00\x00\x00\x00\x00", r"\x03\xe8", r"\x03\xed", r"\x0b\xb8"),
            *(r"\xed\xa0\x80", r"\xf4\x90\x80\x80", r"\xc3\xa4", r"\xf0\x9f\x8e\x88", r"\x00\x00\xff\xff"),
        ),
    ),
    "proxy": Reader(
        modules="wsgate/reactor/*.pyx",
        start=lambda: _judge_proxy,
        seeds=proxy_seeds,
        words=(
            *("PROXY ", "TCP4 ", "TCP6 ", "UNKNOWN", r"\x0d\x0a", r"\x0d\x0a\x0d\x0a\x00\x0d\x0aQUIT\x0a"),
            *(r"\x21\x11\x00\x0c", r"\x21\x21\x00\x24", r"\x20\x00\x00\x00", "::", "::ffff:", "255", "256"),
            *map(str, sizes_up_to(65_536)),
        ),
    ),
    "head": Reader(
        modules="wsgate/reactor/*.pyx",
        start=lambda: _judge_with(lambda: HeadsTarget(HEAD_LIMIT_BYTES), _check_head),
        seeds=_heads,
        words=(
            *(
                r"\x0d\x0a",
                r"\x0d\x0a\x0d\x0a",
                r"\x0a\x0a",
                r"\x0a",
                "GET ",
                " HTTP/1.1",
                "Host: ",
                "PROXY ",
            ),
            *(
                "Upgrade: websocket",
                "Connection: Upgrade",
                "Sec-WebSocket-Version: 13",
                "Sec-WebSocket-Key: ",
            ),
        ),
    ),
}
