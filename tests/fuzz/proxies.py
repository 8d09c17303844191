"""Compare the reader of the PROXY header with a slow one that is easy to read: size and address must agree.

The slow reader follows the specification line by line and slices; it never looks at memory.

Source: the PROXY protocol, haproxy.org/download/3.0/doc/proxy-protocol.txt, sections 2.1 and 2.2.
"""

import ipaddress
import random
import re
from typing import Final

from tests.fuzz.mutation import mutate
from tests.support.sizes import draw_size
from tests.unit.reactor.test_proxy import BAD, GOOD
from wsgate.reactor.testing import read_proxy_header

__all__ = ["ProxiesTarget", "check_proxy", "proxy_seeds", "read_proxy_slowly"]

SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
WORD: Final = b"PROXY "
TEXT_MOST: Final = 107
BINARY_MOST: Final = 4_096
FIXED: Final = 16
ADDRESS_BYTES: Final = {0x11: 4, 0x21: 16}
WITHOUT_ADDRESS: Final = (0x00, 0x31)
MAPPED: Final = b"\0" * 10 + b"\xff\xff"
MORE: Final = (0, None)
BROKEN: Final = (-1, None)
LINE: Final = re.compile(rb"PROXY TCP([46]) ([^ ]+) ([^ ]+) (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4})\r\n")
IPV6: Final = re.compile(rb"[0-9A-Fa-f:.]+")

Answer = tuple[int, bytes | None]


def read_proxy_slowly(data: bytes) -> Answer:
    """Return the size of the header (0: incomplete, -1: none) and the address that it names."""
    if SIGNATURE.startswith(data[:12]):
        return MORE if len(data) < FIXED else _binary(data)
    if data[:1] != b"\r" and WORD.startswith(data[:6]):
        return MORE if len(data) < len(WORD) else _text(data)
    return BROKEN


def _text(data: bytes) -> Answer:
    end = data.find(b"\n", 0, TEXT_MOST) + 1
    if end == 0:
        return MORE if len(data) < TEXT_MOST else BROKEN
    line = data[:end]
    if not line.endswith(b"\r\n"):
        return BROKEN
    if line.startswith((b"PROXY UNKNOWN\r", b"PROXY UNKNOWN ")):
        return end, None
    found = LINE.fullmatch(line)
    if found is None or max(int(found[4]), int(found[5])) > 65_535:
        return BROKEN
    source, other = (_address(found[1], found[index]) for index in (2, 3))
    return BROKEN if source is None or other is None else (end, source)


def _address(family: bytes, text: bytes) -> bytes | None:
    """Return the 16 bytes of an address, IPv4 mapped; None for text that is no address of this family."""
    try:
        if family == b"4":
            return MAPPED + ipaddress.IPv4Address(text.decode("ascii")).packed
        # The format has no zone, although `ipaddress` accepts one.
        return ipaddress.IPv6Address(text.decode("ascii")).packed if IPV6.fullmatch(text) else None
    except ValueError:
        return None


def _binary(data: bytes) -> Answer:
    command, family = data[12], data[13]
    length = int.from_bytes(data[14:16], "big")
    if command not in (0x20, 0x21) or FIXED + length > BINARY_MOST:
        return BROKEN
    names_one = command == 0x21 and family in ADDRESS_BYTES
    if command == 0x21 and not names_one and family not in WITHOUT_ADDRESS:
        return BROKEN
    size = ADDRESS_BYTES.get(family, 0)
    if names_one and length < 2 * size + 4:
        return BROKEN
    if len(data) < FIXED + length:
        return MORE
    source = data[FIXED : FIXED + size]
    return FIXED + length, (MAPPED[: 16 - size] + source if names_one else None)


def check_proxy(dice: random.Random, data: bytes) -> None:
    """Compare with the slow reader, for the whole bytes and for a few beginnings of them."""
    for size in (len(data), *(dice.randrange(len(data) + 1) for _ in range(3))):
        part = data[:size]
        found, expected = read_proxy_header(part), read_proxy_slowly(part)
        assert found == expected, f"{part!r}: {found}, and by the slow reader {expected}"


def proxy_seeds() -> list[bytes]:
    """Return the first examples: valid and invalid headers."""
    return [*(wire for wire, _ in GOOD.values()), *BAD.values()]


class ProxiesTarget:
    """Headers that are mutated, or built with sizes and numbers around every bound."""

    def __init__(self) -> None:
        self._examples = proxy_seeds()

    def run(self, dice: random.Random) -> bytes:
        """See `Target`."""
        choice = dice.random()
        if choice < 0.5:
            data = mutate(dice, self._examples)
        elif choice < 0.8:
            length = draw_size(dice, 65_535)
            body = dice.randbytes(dice.choice((length, draw_size(dice, 5_000))))
            kind = bytes((dice.choice((0x20, 0x21, 0x21, 0x22)), dice.choice((0, 0x11, 0x21, 0x31, 0x12))))
            data = SIGNATURE + kind + length.to_bytes(2, "big") + body
        else:
            address = dice.choice((b"203.0.113.9", b"::1", b"::ffff:1.2.3.4", b"1" * draw_size(dice, 120)))
            port = b"%d" % draw_size(dice, 1 << 17)
            family = dice.choice((b"4", b"6"))
            data = b"PROXY TCP%b %b %b %b %b\r\n" % (family, address, address, port, port)
        check_proxy(dice, data)
        return data

    def close(self) -> None:
        """Do nothing, because the target keeps nothing."""
