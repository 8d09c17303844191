"""Encode publications for their subscribers: once for each dialect, and compressed where clients want that.

A variant is a dialect with or without compression; its number in the reactor is its index in `VARIANTS`. The
variants without compression come first and have the numbers of their dialects. After them, each dialect comes
once more for every window size of permessage-deflate. A publication is compressed at most once for each
dialect and window size, however many subscribers share it.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

from wsgate.deflate import NARROW_BITS, WIDE_BITS, deflate, is_shared
from wsgate.dialects import DIALECTS, Dialect
from wsgate.reactor import event_kinds

__all__ = [
    "DIALECT_OF",
    "PLAIN_VARIANTS",
    "VARIANTS",
    "PublicationEncoder",
    "Variant",
    "opcodes",
    "variant_of",
]


class Variant(NamedTuple):
    """A dialect with or without compression, for which publications are encoded.

    Attributes:
        dialect: The dialect.
        window_bits: The window size of the compression, as the exponent of 2; 0: no compression.
    """

    dialect: Dialect
    window_bits: int


VARIANTS: Final = tuple(
    Variant(dialect, bits) for bits in (0, WIDE_BITS, NARROW_BITS) for dialect in DIALECTS
)
DIALECT_OF: Final = tuple(variant.dialect for variant in VARIANTS)
"""The dialect of a connection, by `Reactor.variant`."""
PLAIN_VARIANTS: Final = (1 << len(DIALECTS)) - 1
"""The variants without compression, as bits of `Reactor.variants`."""


def variant_of(dialect: Dialect, window_bits: int) -> int:
    """Return the reactor's number for a dialect with a window size; 0 bits: without compression."""
    return VARIANTS.index(Variant(dialect, window_bits))


def opcodes(*, is_compressing: bool) -> tuple[int, ...]:
    """Return the opcode of every variant for the reactor, with the flag `DEFLATED` where it is compressed.

    Args:
        is_compressing: Whether the variants with compression are included.
    """
    return tuple(
        variant.dialect.opcode | (event_kinds.DEFLATED if variant.window_bits else 0)
        for variant in VARIANTS
        if is_compressing or not variant.window_bits
    )


class PublicationEncoder:
    """Encodes publications for the variants that have subscribers.

    Args:
        threshold_bytes: Publications below this size are never compressed.
        count: Adds to a counter of the shard, by its name.
    """

    def __init__(self, threshold_bytes: int, count: Callable[[str, int], None]) -> None:
        self.threshold_bytes = threshold_bytes
        self._count = count

    def make(self, variants: int, encode: Callable[[Dialect], bytes]) -> list[bytes | int | None]:
        """Encode one publication for every variant that has subscribers.

        Args:
            variants: The variants that have subscribers, as bits of `Reactor.variants`.
            encode: Returns the message in a dialect; called once for each dialect that is needed.

        Returns:
            The argument of `Reactor.publish`, by variant: the payload; the number of an earlier variant whose
            frame is shared; or None, if the variant has no subscribers.
        """
        if not variants & ~PLAIN_VARIANTS:
            return [encode(dialect) if variants >> dialect.variant & 1 else None for dialect in DIALECTS]
        forms: list[bytes | int | None] = [None] * len(VARIANTS)
        contents: dict[int, bytes] = {}
        made: dict[tuple[int, bool], int] = {}  # by dialect and whether both window sizes share: the variant
        for number, (dialect, window_bits) in enumerate(VARIANTS):
            if not variants >> number & 1:
                continue
            plain = dialect.variant
            content = contents.get(plain)
            if content is None:
                content = contents[plain] = encode(dialect)
            if not window_bits:
                forms[number] = content
                continue
            key = plain, is_shared(content)
            if key[1] and key in made:
                forms[number] = made[key]
                continue
            deflated = self._deflate(content, window_bits)
            if deflated is None:
                forms[plain] = content  # even without plain subscribers, because its frame is shared
                forms[number] = plain
            else:
                forms[number] = deflated
                made[key] = number
        return forms

    def _deflate(self, content: bytes, window_bits: int) -> bytes | None:
        """Compress a message and count it; None: it is below the threshold, or would not become smaller."""
        if len(content) < self.threshold_bytes:
            return None
        deflated = deflate(content, window_bits)
        self._count("publications_deflated", 1)
        self._count("deflate_bytes_in", len(content))
        self._count("deflate_bytes_out", len(deflated))
        return deflated if len(deflated) < len(content) else None
