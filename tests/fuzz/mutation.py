"""Make bytes that are nearly right: examples that are cut, repeated, joined and changed."""

import random
from collections.abc import Callable, Sequence
from typing import Final

from tests.support.sizes import BOUNDS, around, draw_size

__all__ = ["mutate", "pieces"]

EDGES: Final = (
    b"\x00",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\r\n",
    b"\n",
    b"\r",
    b" ",
    b"\t",
    b",",
    b";",
    b'"',
    b"\\",
)
NUMBERS: Final = (
    *(b"%d" % size for size in around((*BOUNDS, 1 << 53))),
    *(b"-1", b"00", b"-0", b"1e999", b"1.5"),
)
PART_BYTES: Final = 65
"""Most bytes of a part of an example that is cut out, repeated or inserted."""
LARGEST_BYTES: Final = 8_192


def _flip(dice: random.Random, data: bytearray) -> None:
    if data:
        place = dice.randrange(len(data))
        data[place] ^= 1 << dice.randrange(8)


def _cut(dice: random.Random, data: bytearray) -> None:
    start = dice.randrange(len(data) + 1)
    del data[start : start + draw_size(dice, PART_BYTES, least=1)]


def _insert(dice: random.Random, data: bytearray) -> None:
    place = dice.randrange(len(data) + 1)
    data[place:place] = dice.choice((*EDGES, *NUMBERS, dice.randbytes(draw_size(dice, PART_BYTES, least=1))))


def _repeat(dice: random.Random, data: bytearray) -> None:
    start = dice.randrange(len(data) + 1)
    part = data[start : start + draw_size(dice, PART_BYTES, least=1)]
    data[start:start] = part * dice.choice((1, 2, draw_size(dice, PART_BYTES)))


def _shorten(dice: random.Random, data: bytearray) -> None:
    del data[dice.randrange(len(data) + 1) :]


OPERATIONS: Final[tuple[Callable[[random.Random, bytearray], None], ...]] = (
    _flip,
    _flip,
    _cut,
    _insert,
    _insert,
    _repeat,
    _shorten,
)


def mutate(dice: random.Random, examples: Sequence[bytes]) -> bytes:
    """Return one example, or two joined ones, changed in up to six places; every tenth stays unchanged."""
    data = bytearray(dice.choice(examples))
    if dice.random() < 0.1:
        return bytes(data)
    if dice.random() < 0.2:
        other = dice.choice(examples)
        data[dice.randrange(len(data) + 1) :] = other[dice.randrange(len(other) + 1) :]
    for _ in range(dice.randint(1, 6)):
        dice.choice(OPERATIONS)(dice, data)
    return bytes(data[:LARGEST_BYTES])


def pieces(dice: random.Random, data: bytes) -> list[bytes]:
    """Return the same bytes in pieces, as they might arrive."""
    if dice.random() < 0.5:
        return [data]
    cuts = sorted(dice.randrange(len(data) + 1) for _ in range(dice.randint(1, 6)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
