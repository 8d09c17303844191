"""Make RESP2 replies as a hostile or broken bus may send them, from a seed, with numbers around every bound.

A reply is built from its grammar, so that it gets past the first checks of a reader, and then one of its
numbers, elements or bytes is wrong. The result may also be a correct reply.
"""

import random
from typing import Final

__all__ = ["BOUNDS", "NUMBERS", "hostile_reply", "number_text"]

_CENTRES: Final = (
    *(0, 1, 4, 19, 25, 33, 64, 1_000, 1_024, 2_048, 4_096, 16_384),
    *(1 << 16, 1 << 29, 1 << 31, 1 << 32, 10**17, 10**18, 1 << 63, 1 << 64),
)
BOUNDS: Final = tuple(sorted({near for each in _CENTRES for near in (each - 1, each, each + 1)}))
"""Sizes and counts on both sides of each limit of a reader, of a size class and of a machine integer."""
NUMBERS: Final = tuple(sorted({*BOUNDS, *(-each for each in BOUNDS)}))
_WORDS: Final = (
    *(b"message", b"smessage", b"subscribe", b"ssubscribe", b"unsubscribe", b"sunsubscribe"),
    *(b"pong", b"pmessage", b"s", b"", b"messag", b"messages", b"sssubscribe"),
)
_LINES: Final = (
    *(b"+OK", b"+PONG", b"+", b"-", b"-ERR no", b"-MOVED 1 127.0.0.1:1", b"-MOVED", b"-MOVED x y z"),
    *(b"-NOSCRIPT No matching script", b"-OOM full", b"-CLUSTERDOWN down", b"-TRYAGAIN later"),
    *(b"-ASK 1 127.0.0.1:1", b"-WRONGTYPE wrong", b"-NOPERM no", b"-LOADING", b"_", b"#t", b",1.5", b"(1"),
)
_CONTENT_MOST: Final = 70_000
"""Most bytes that are sent for a length; of a longer string the rest is missing."""


def number_text(dice: random.Random) -> bytes:
    """Return a number as a reply has it, or text that is no number."""
    if dice.random() < 0.1:
        return dice.choice(
            (b"", b"-", b"+1", b"1e3", b"0x10", b" 1", b"1 ", b"--1", b"1" * 40, b"\xb2", b"nan")
        )
    text = b"%d" % dice.choice(NUMBERS)
    return b"00" + text if dice.random() < 0.05 else text


def _string(dice: random.Random, content: bytes) -> bytes:
    """Return a bulk string, mostly with its correct length."""
    length = b"%d" % len(content) if dice.random() < 0.8 else number_text(dice)
    return b"$" + length + b"\r\n" + content + dice.choice((b"\r\n",) * 9 + (b"", b"\n", b"\r", b"xx"))


def _sized_string(dice: random.Random) -> bytes:
    """Return a bulk string with a length at a bound; a long one is incomplete."""
    size = dice.choice(BOUNDS)
    if not 0 <= size <= _CONTENT_MOST:
        return b"$%d\r\n" % size
    return b"$%d\r\n" % size + dice.choice((b"x", b"7", b" ", b"\xff")) * size + b"\r\n"


def _element(dice: random.Random, names: tuple[bytes, ...]) -> bytes:
    kind = dice.randrange(12)
    if kind < 3:
        return _string(dice, dice.choice(_WORDS))
    if kind < 6 and names:
        return _string(dice, dice.choice(names))
    if kind < 9:
        return b":" + number_text(dice) + b"\r\n"
    if kind == 9:
        return _sized_string(dice)
    return dice.choice(
        (b"$-1\r\n", b"*-1\r\n", b"*0\r\n", b"*1\r\n:1\r\n", b"+OK\r\n", b"$", b":", b"$-2\r\n")
    )


def hostile_reply(dice: random.Random, names: tuple[bytes, ...] = ()) -> bytes:
    """Return one reply, whole or cut.

    Args:
        dice: Random numbers; the same state makes the same reply.
        names: Names of the reader, for use in the reply.
    """
    kind = dice.randrange(8)
    if kind == 0:
        wire = dice.choice(_LINES) + dice.choice((b"\r\n", b"\r\n", b"\n", b"\r", b""))
    elif kind == 1:
        wire = b":" + number_text(dice) + b"\r\n"
    elif kind == 2:
        wire = _sized_string(dice)
    elif kind == 3:
        wire = b"*" + number_text(dice) + b"\r\n" + b"".join(_element(dice, names) for _ in range(3))
    elif kind == 4:
        wire = dice.randbytes(dice.randrange(1, 40))
    else:
        count = dice.choice((1, 2, 3, 3, 3, 3, 4))
        wire = b"*%d\r\n" % count + b"".join(_element(dice, names) for _ in range(count))
    return wire[: dice.randrange(len(wire) + 1)] if dice.random() < 0.1 else wire
