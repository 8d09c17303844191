"""The forms in which a publication leaves a shard: a dialect, deflated or not.

A variant is the reactor's number for one form, its place in VARIANTS. Those of the dialects come first
and keep the dialects' numbers; behind them each stands once more for every window class of
permessage-deflate. A publication is encoded once per dialect and deflated at most once per dialect and
class, whatever number of subscribers shares it.
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
    """One form."""

    dialect: Dialect
    window_bits: int
    """What it is deflated with; 0: it is not."""


VARIANTS: Final = tuple(
    Variant(dialect, bits) for bits in (0, WIDE_BITS, NARROW_BITS) for dialect in DIALECTS
)
DIALECT_OF: Final = tuple(variant.dialect for variant in VARIANTS)
"""The dialect of a connection, by `Reactor.variant`."""
PLAIN_VARIANTS: Final = (1 << len(DIALECTS)) - 1
"""Those that are not deflated, as bits of `Reactor.variants`."""


def variant_of(dialect: Dialect, window_bits: int) -> int:
    """The number of a form."""
    return VARIANTS.index(Variant(dialect, window_bits))


def opcodes(*, is_compressing: bool) -> tuple[int, ...]:
    """What the reactor is told about every variant; only the plain ones without compression."""
    return tuple(
        variant.dialect.opcode | (event_kinds.DEFLATED if variant.window_bits else 0)
        for variant in VARIANTS
        if is_compressing or not variant.window_bits
    )


class PublicationEncoder:
    """Makes the forms of publications.

    Args:
        threshold_bytes: Publications below are never deflated.
        count: Adds to a counter by name.
    """

    def __init__(self, threshold_bytes: int, count: Callable[[str, int], None]) -> None:
        self.threshold_bytes = threshold_bytes
        self._count = count

    def make(self, variants: int, encode: Callable[[Dialect], bytes]) -> list[bytes | int | None]:
        """One publication for `Reactor.publish`.

        Args:
            variants: Which have subscribers, as `Reactor.variants` says.
            encode: The content in a dialect; called once for each that is needed.
        """
        if not variants & ~PLAIN_VARIANTS:
            return [encode(dialect) if variants >> dialect.variant & 1 else None for dialect in DIALECTS]
        forms: list[bytes | int | None] = [None] * len(VARIANTS)
        contents: dict[int, bytes] = {}
        made: dict[tuple[int, bool], int] = {}  # by dialect and whether both classes share it: its variant
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
                forms[plain] = content  # nobody may want it plain: it is still the frame that is shared
                forms[number] = plain
            else:
                forms[number] = deflated
                made[key] = number
        return forms

    def _deflate(self, content: bytes, window_bits: int) -> bytes | None:
        """None when it is not worth it."""
        if len(content) < self.threshold_bytes:
            return None
        deflated = deflate(content, window_bits)
        self._count("publications_deflated", 1)
        self._count("deflate_bytes_in", len(content))
        self._count("deflate_bytes_out", len(deflated))
        return deflated if len(deflated) < len(content) else None
