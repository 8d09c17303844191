"""Writes the test vectors in `protocols/websocket/vectors/*.json`, which are committed.

Run `python tools/make_vectors.py` after a change and commit the files. It needs only the standard library and
imports nothing of wsgate: the expected outcomes come from the RFC, not from the code.
"""

import json
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1] / "protocols" / "websocket" / "vectors"

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
MASK = bytes.fromhex("37fa213d")  # the masking key of the examples in RFC 6455 section 5.7
ZERO_MASK = bytes(4)

Vector = dict[str, Any]
Part = str | dict[str, Any]


def header(opcode: int, length: int, *, fin: bool = True, rsv: int = 0, form: int = 0) -> bytes:
    """Build the header of a masked frame without its key; `form` 126 or 127 forces that length encoding."""
    form = form or (length if length < 126 else 126 if length < 65536 else 127)
    extended = {126: struct.pack("!H", length & 0xFFFF), 127: struct.pack("!Q", length)}.get(form, b"")
    return bytes([fin << 7 | rsv << 4 | opcode, 0x80 | form]) + extended


def masked(payload: bytes, mask: bytes = MASK) -> bytes:
    """Mask a payload as a client sends it."""
    return bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))


def frame(opcode: int, payload: bytes = b"", *, mask: bytes = MASK, **more: Any) -> bytes:
    """Build one masked frame with its payload."""
    return header(opcode, len(payload), **more) + mask + masked(payload, mask)


def close(code: int, reason: bytes = b"") -> bytes:
    """Build a masked Close frame with a code and a reason."""
    return frame(CLOSE, struct.pack("!H", code) + reason)


def long_frame(opcode: int, unit: bytes, times: int, **more: Any) -> list[Part]:
    """Build a masked frame whose payload repeats a unit of 1, 2 or 4 bytes, in compact form."""
    unit *= 4 // len(unit)
    whole, rest = divmod(times, len(unit))
    parts: list[Part] = [(header(opcode, times, **more) + MASK).hex()]
    parts.append({"hex": masked(unit).hex(), "times": whole})
    return parts + ([masked(unit[:rest]).hex()] if rest else [])


def text(payload: bytes) -> dict[str, Any]:
    """Return the text message that the server must deliver."""
    return {"opcode": TEXT, "payload": [payload.hex()]}


def binary(payload: bytes) -> dict[str, Any]:
    """Return the binary message that the server must deliver."""
    return {"opcode": BINARY, "payload": [payload.hex()]}


def repeated(opcode: int, unit: bytes, times: int) -> dict[str, Any]:
    """Return a message of one repeated byte, in compact form."""
    return {"opcode": opcode, "payload": [{"hex": unit.hex(), "times": times}]}


def vector(
    name: str,
    rfc: str,
    stream: bytes | Iterable[bytes | Part],
    *,
    messages: Iterable[dict[str, Any]] = (),
    pongs: Iterable[bytes] = (),
    failed: int = 0,
    peer_closed: int = 0,
    settings: dict[str, int] | None = None,
) -> Vector:
    """Build one vector. The connection stays open unless `failed` or `peer_closed` gives a Close code."""
    parts = [stream] if isinstance(stream, bytes) else list(stream)
    state = "failed" if failed else "peer_closed" if peer_closed else "open"
    end: dict[str, Any] = {"state": state}
    if state != "open":
        end["code"] = failed or peer_closed
    made: Vector = {"name": name, "rfc": rfc}
    if settings:
        made["settings"] = settings
    made["stream"] = [part.hex() if isinstance(part, bytes) else part for part in parts]
    made["messages"] = list(messages)
    made["pongs"] = [pong.hex() for pong in pongs]
    made["end"] = end
    return made


HELLO = frame(TEXT, b"Hello")
AFTER = frame(TEXT, b"after")  # a message that must not be delivered


def framing() -> Iterator[Vector]:
    """Vectors for sections 5.1 to 5.3: masks, reserved bits, opcodes, length encodings."""
    yield vector("nothing", "5", b"")
    yield vector("rfc-masked-hello", "5.7", HELLO, messages=[text(b"Hello")])
    yield vector("empty-text", "5.6", frame(TEXT), messages=[text(b"")])
    yield vector("empty-binary", "5.6", frame(BINARY), messages=[binary(b"")])
    yield vector(
        "binary-every-byte", "5.6", frame(BINARY, bytes(range(256))), messages=[binary(bytes(range(256)))]
    )
    yield vector(
        "three-messages-in-order",
        "5.4",
        frame(TEXT, b"a") + frame(BINARY, b"b") + frame(TEXT, b"c"),
        messages=[text(b"a"), binary(b"b"), text(b"c")],
    )
    yield vector(
        "fifty-messages",
        "5.4",
        b"".join(frame(TEXT, b"%d" % n) for n in range(50)),
        messages=[text(b"%d" % n) for n in range(50)],
    )
    yield vector("incomplete-header", "5.2", HELLO[:1])
    yield vector("incomplete-mask", "5.2", HELLO[:5])
    yield vector("incomplete-payload", "5.2", HELLO[:-1])
    yield vector("incomplete-after-complete", "5.2", HELLO + HELLO[:-1], messages=[text(b"Hello")])
    for name, mask in (("zero", ZERO_MASK), ("ones", b"\xff" * 4), ("one-byte", b"\x00\x00\x00\x01")):
        yield vector(f"mask-{name}", "5.3", frame(TEXT, b"masks", mask=mask), messages=[text(b"masks")])
    yield vector(
        "mask-differs-per-frame",
        "5.3",
        frame(TEXT, b"abcde") + frame(TEXT, b"abcde", mask=b"\xa5\x5a\x0f\xf0"),
        messages=[text(b"abcde")] * 2,
    )
    for size in range(1, 9):  # every remainder of the mask, and more than one machine word
        payload = b"abcdefgh"[:size]
        yield vector(f"mask-of-{size}-bytes", "5.3", frame(BINARY, payload), messages=[binary(payload)])
    for opcode, name in (
        (TEXT, "text"),
        (BINARY, "binary"),
        (PING, "ping"),
        (PONG, "pong"),
        (CLOSE, "close"),
    ):
        unmasked = bytes([0x80 | opcode, 0x00])
        yield vector(f"unmasked-{name}", "5.1", unmasked + AFTER, failed=1002)
    yield vector("unmasked-continuation", "5.1", frame(TEXT, b"a", fin=False) + b"\x80\x00", failed=1002)
    yield vector(
        "unmasked-after-message", "5.1", HELLO + b"\x81\x01a", messages=[text(b"Hello")], failed=1002
    )
    for rsv in range(1, 8):
        yield vector(f"rsv-{rsv:03b}-text", "5.2", frame(TEXT, b"a", rsv=rsv) + AFTER, failed=1002)
    for opcode, name in ((BINARY, "binary"), (PING, "ping"), (PONG, "pong"), (CLOSE, "close")):
        yield vector(f"rsv-100-{name}", "5.2", frame(opcode, rsv=4) + AFTER, failed=1002)
    yield vector(
        "rsv-100-continuation", "5.2", frame(TEXT, b"a", fin=False) + frame(CONT, b"b", rsv=4), failed=1002
    )
    for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15):
        yield vector(f"reserved-opcode-{opcode}", "5.2", frame(opcode) + AFTER, failed=1002)
    yield vector("reserved-opcode-with-payload", "5.2", frame(3, b"abc"), failed=1002)
    yield vector(
        "reserved-opcode-after-message", "5.2", HELLO + frame(3), messages=[text(b"Hello")], failed=1002
    )
    for size in (124, 125, 126, 127, 128, 255, 256, 4096):
        yield vector(
            f"length-{size}", "5.2", long_frame(BINARY, b"x", size), messages=[repeated(BINARY, b"x", size)]
        )
    for size in (65535, 65536):
        yield vector(
            f"length-{size}",
            "5.2",
            long_frame(BINARY, b"x", size),
            messages=[repeated(BINARY, b"x", size)],
            settings={"max_message_bytes": 65536},
        )
    for size in (0, 1, 125):
        yield vector(f"length-{size}-in-two-bytes", "5.2", frame(BINARY, b"x" * size, form=126), failed=1002)
    for size in (0, 125, 126, 65535):
        yield vector(
            f"length-{size}-in-eight-bytes", "5.2", header(BINARY, size, form=127) + MASK, failed=1002
        )
    for length, name in ((1 << 63, "top-bit"), ((1 << 63) + 5, "top-bit-and-5"), ((1 << 64) - 1, "all-bits")):
        yield vector(f"length-{name}", "5.2", header(BINARY, length) + MASK, failed=1002)


def control() -> Iterator[Vector]:
    """Vectors for section 5.5: pings, pongs, and the rules for control frames."""
    yield vector("ping-empty", "5.5.2", frame(PING), pongs=[b""])
    yield vector("ping-text", "5.5.2", frame(PING, b"Hello"), pongs=[b"Hello"])
    yield vector("ping-not-utf8", "5.5.2", frame(PING, b"\x00\xff\xfe\xc0"), pongs=[b"\x00\xff\xfe\xc0"])
    yield vector("ping-125", "5.5.2", frame(PING, b"p" * 125), pongs=[b"p" * 125])
    yield vector(
        "pings-in-order",
        "5.5.2",
        b"".join(frame(PING, b"%d" % n) for n in range(10)),
        pongs=[b"%d" % n for n in range(10)],
    )
    yield vector(
        "forty-pings",
        "5.5.2",
        b"".join(frame(PING, b"%d" % n) for n in range(40)),
        pongs=[b"%d" % n for n in range(40)],
    )
    yield vector(
        "ping-between-messages",
        "5.5.2",
        HELLO + frame(PING, b"p") + HELLO,
        messages=[text(b"Hello")] * 2,
        pongs=[b"p"],
    )
    yield vector("pong-unsolicited", "5.5.3", frame(PONG))
    yield vector("pong-unsolicited-125", "5.5.3", frame(PONG, b"p" * 125))
    yield vector("pongs-then-message", "5.5.3", frame(PONG, b"a") * 10 + HELLO, messages=[text(b"Hello")])
    yield vector("pong-then-ping", "5.5.3", frame(PONG, b"a") + frame(PING, b"b"), pongs=[b"b"])
    for opcode, name in ((PING, "ping"), (PONG, "pong"), (CLOSE, "close")):
        yield vector(f"{name}-fragmented", "5.5", frame(opcode, fin=False) + AFTER, failed=1002)
        yield vector(f"{name}-126", "5.5", frame(opcode, b"\x03\xe8" + b"p" * 124), failed=1002)
        yield vector(f"{name}-126-header-only", "5.5", header(opcode, 126) + MASK, failed=1002)
        yield vector(f"{name}-65536-header-only", "5.5", header(opcode, 65536) + MASK, failed=1002)
        yield vector(f"{name}-5-in-two-bytes", "5.5", frame(opcode, b"\x03\xe8abc", form=126), failed=1002)
    yield vector(
        "ping-fragmented-with-continuation",
        "5.5",
        frame(PING, b"a", fin=False) + frame(CONT, b"b"),
        failed=1002,
    )
    yield vector("ping-then-fault", "5.5.2", frame(PING, b"p") + frame(3), pongs=[b"p"], failed=1002)
    yield vector("ping-incomplete", "5.5.2", frame(PING, b"abc")[:-1])


def fragmentation() -> Iterator[Vector]:
    """Vectors for section 5.4: fragmented messages, and control frames between fragments."""

    def fragments(*payloads: bytes, opcode: int = TEXT, last: bool = True) -> bytes:
        final = len(payloads) - 1
        return b"".join(
            frame(CONT if n else opcode, each, fin=last and n == final) for n, each in enumerate(payloads)
        )

    hello = [text(b"Hello")]
    yield vector("rfc-hello-in-two", "5.7", fragments(b"Hel", b"lo"), messages=hello)
    yield vector(
        "binary-in-two",
        "5.4",
        fragments(b"\x00\xff", b"\xfe", opcode=BINARY),
        messages=[binary(b"\x00\xff\xfe")],
    )
    yield vector("one-byte-each", "5.4", fragments(*[b"H", b"e", b"l", b"l", b"o"]), messages=hello)
    for place, name in ((0, "first"), (1, "middle"), (2, "last")):
        parts = [b"Hel", b"lo"]
        parts.insert(place, b"")
        yield vector(f"empty-{name}-fragment", "5.4", fragments(*parts), messages=hello)
    yield vector("all-fragments-empty", "5.4", fragments(b"", b"", b""), messages=[text(b"")])
    yield vector(
        "all-fragments-empty-binary", "5.4", fragments(b"", b"", opcode=BINARY), messages=[binary(b"")]
    )
    yield vector("hundred-fragments", "5.4", fragments(*[b"x"] * 100), messages=[text(b"x" * 100)])
    yield vector("two-fragmented-messages", "5.4", fragments(b"Hel", b"lo") * 2, messages=hello * 2)
    yield vector("unfinished", "5.4", fragments(b"Hel", b"lo", last=False))
    yield vector("finished-by-empty-fragment", "5.4", fragments(b"Hello", b""), messages=hello)
    yield vector(
        "sizes-of-every-encoding",
        "5.4",
        [
            *long_frame(BINARY, b"x", 200, fin=False),
            frame(CONT, b"y", fin=False),
            *long_frame(CONT, b"x", 300),
        ],
        messages=[
            {"opcode": BINARY, "payload": [{"hex": "78", "times": 200}, "79", {"hex": "78", "times": 300}]}
        ],
    )
    for opcode, name, pongs in ((PING, "ping", [b"p"]), (PONG, "pong", [])):
        control_frame = frame(opcode, b"p")
        yield vector(
            f"{name}-inside",
            "5.4",
            frame(TEXT, b"Hel", fin=False) + control_frame + frame(CONT, b"lo"),
            messages=hello,
            pongs=pongs,
        )
        yield vector(
            f"{name}-between-all",
            "5.5",
            control_frame.join(
                [
                    frame(TEXT, b"He", fin=False),
                    frame(CONT, b"l", fin=False),
                    frame(CONT, b"", fin=False),
                    frame(CONT, b"lo"),
                ]
            ),
            messages=hello,
            pongs=pongs * 3,
        )
    yield vector(
        "ping-inside-a-character",
        "5.4",
        frame(TEXT, b"\xe2", fin=False) + frame(PING, b"\xff") + frame(CONT, b"\x82\xac"),
        messages=[text("€".encode())],
        pongs=[b"\xff"],
    )
    yield vector(
        "close-inside",
        "5.4",
        frame(TEXT, b"Hel", fin=False) + close(1000) + frame(CONT, b"lo"),
        peer_closed=1000,
    )
    yield vector("continuation-first", "5.4", frame(CONT, b"a") + AFTER, failed=1002)
    yield vector("continuation-first-not-final", "5.4", frame(CONT, b"a", fin=False) + AFTER, failed=1002)
    yield vector("continuation-first-empty", "5.4", frame(CONT), failed=1002)
    yield vector("continuation-after-message", "5.4", HELLO + frame(CONT, b"a"), messages=hello, failed=1002)
    yield vector(
        "continuation-after-fragments",
        "5.4",
        fragments(b"Hel", b"lo") + frame(CONT),
        messages=hello,
        failed=1002,
    )
    yield vector("continuation-after-ping", "5.4", frame(PING) + frame(CONT), pongs=[b""], failed=1002)
    for opcode, name in ((TEXT, "text"), (BINARY, "binary")):
        yield vector(
            f"new-{name}-inside-text", "5.4", frame(TEXT, b"a", fin=False) + frame(opcode, b"b"), failed=1002
        )
        yield vector(
            f"new-{name}-inside-binary",
            "5.4",
            frame(BINARY, b"a", fin=False) + frame(opcode, b"b"),
            failed=1002,
        )
    yield vector("new-fragment-inside", "5.4", fragments(b"a", last=False) * 2, failed=1002)
    yield vector(
        "new-message-after-ping-inside",
        "5.4",
        frame(TEXT, b"a", fin=False) + frame(PING, b"p") + frame(TEXT, b"b"),
        pongs=[b"p"],
        failed=1002,
    )


# RFC 3629: the first and the last code point of each encoded length, the limits of the surrogates, the last
# code point.
CODE_POINTS = (
    0x00,
    0x7F,
    0x80,
    0x7FF,
    0x800,
    0xFFF,
    0x1000,
    0xCFFF,
    0xD000,
    0xD7FF,
    0xE000,
    0xFDD0,
    0xFEFF,
    0xFFFD,
    0xFFFE,
    0xFFFF,
    0x10000,
    0x3FFFF,
    0x40000,
    0xFFFFF,
    0x100000,
    0x10FFFF,
)

# Sequences that no continuation can make valid: the last byte of each is the first wrong one.
BROKEN = {
    "lone-continuation-80": "80", "lone-continuation-bf": "bf",
    "overlong-c0": "c0", "overlong-c1": "c1", "overlong-e0-80": "e080", "overlong-e0-9f": "e09f",
    "overlong-f0-80": "f080", "overlong-f0-8f": "f08f",
    "surrogate-d800": "eda0", "surrogate-dfff": "edbf",
    "beyond-110000": "f490", "beyond-f4-bf": "f4bf", "beyond-f5": "f5", "beyond-f7": "f7",
    "five-bytes-f8": "f8",
    "six-bytes-fc": "fc", "byte-fe": "fe", "byte-ff": "ff",
    "ascii-in-2": "c341", "lead-in-2": "c3c3", "ascii-in-3": "e28241", "lead-in-3": "e2e2",
    "ascii-in-4": "f09f9841", "lead-in-4": "f0f0", "continuation-too-many": "c3a9a9",
}  # fmt: skip
SAMPLE = "κόσμε€😀".encode()


def utf8() -> Iterator[Vector]:
    """Vectors for sections 5.6 and 8.1: text must be UTF-8, and is checked byte by byte."""
    for point in CODE_POINTS:
        encoded = chr(point).encode()
        yield vector(
            f"u+{point:04x}",
            "5.6",
            frame(TEXT, b"a" + encoded + b"z"),
            messages=[text(b"a" + encoded + b"z")],
        )
    yield vector("mixed", "5.6", frame(TEXT, SAMPLE * 5), messages=[text(SAMPLE * 5)])
    # Lengths at which validators switch between words and bytes
    for ascii_bytes in (7, 8, 9, 15, 16, 17, 31, 32, 33):
        payload = b"a" * ascii_bytes + "é".encode() + b"b" * ascii_bytes
        yield vector(f"after-{ascii_bytes}-ascii", "5.6", frame(TEXT, payload), messages=[text(payload)])
        wrong = b"a" * ascii_bytes + b"\xa9" + b"b" * ascii_bytes
        yield vector(f"wrong-after-{ascii_bytes}-ascii", "8.1", frame(TEXT, wrong), failed=1007)
    for cut in range(len(SAMPLE) + 1):
        yield vector(
            f"cut-into-fragments-at-{cut}",
            "5.6",
            frame(TEXT, SAMPLE[:cut], fin=False) + frame(CONT, SAMPLE[cut:]),
            messages=[text(SAMPLE)],
        )
    yield vector(
        "one-byte-per-fragment",
        "5.6",
        b"".join(
            frame(CONT if n else TEXT, SAMPLE[n : n + 1], fin=n == len(SAMPLE) - 1)
            for n in range(len(SAMPLE))
        ),
        messages=[text(SAMPLE)],
    )
    for name, broken in BROKEN.items():
        payload = bytes.fromhex(broken)
        yield vector(name, "8.1", frame(TEXT, payload + b"z") + AFTER, failed=1007)
        yield vector(
            f"{name}-fail-fast", "8.1", frame(TEXT, payload + b"z" * 20)[: 6 + len(payload)], failed=1007
        )
    for encoded, name in (
        (b"\xc3", "1-of-2"),
        (b"\xe2", "1-of-3"),
        (b"\xe2\x82", "2-of-3"),
        (b"\xf0", "1-of-4"),
        (b"\xf0\x9f", "2-of-4"),
        (b"\xf0\x9f\x98", "3-of-4"),
    ):
        yield vector(f"truncated-{name}", "8.1", frame(TEXT, b"a" + encoded) + AFTER, failed=1007)
        yield vector(
            f"truncated-{name}-in-fragments",
            "8.1",
            frame(TEXT, encoded, fin=False) + frame(CONT) + AFTER,
            failed=1007,
        )
        yield vector(f"undecided-{name}", "8.1", frame(TEXT, b"a" + encoded, fin=False))
        yield vector(
            f"broken-by-next-fragment-{name}",
            "8.1",
            frame(TEXT, encoded, fin=False) + frame(CONT, b"a", fin=False),
            failed=1007,
        )
    yield vector(
        "wrong-in-second-fragment",
        "8.1",
        frame(TEXT, b"a", fin=False) + frame(CONT, b"\xff", fin=False),
        failed=1007,
    )
    yield vector(
        "state-is-per-message",
        "8.1",
        frame(TEXT, "é".encode()) + frame(TEXT, b"\xa9"),
        messages=[text("é".encode())],
        failed=1007,
    )
    yield vector(
        "wrong-after-good-message",
        "8.1",
        HELLO + frame(TEXT, b"\xff"),
        messages=[text(b"Hello")],
        failed=1007,
    )
    yield vector(
        "binary-is-not-judged", "5.6", frame(BINARY, b"\xff\xc0\x80"), messages=[binary(b"\xff\xc0\x80")]
    )
    yield vector(
        "binary-fragments-are-not-judged",
        "5.6",
        frame(BINARY, b"\xff", fin=False) + frame(CONT, b"\xc0"),
        messages=[binary(b"\xff\xc0")],
    )


VALID_CODES = (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999)
INVALID_CODES = (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 1999, 2000, 2999, 5000, 32768, 65535)


def close_handshake() -> Iterator[Vector]:
    """Vectors for sections 5.5.1 and 7: the peer's Close, its codes and its reason."""
    yield vector("empty", "7.1.5", frame(CLOSE), peer_closed=1005)
    for code in VALID_CODES:
        yield vector(f"code-{code}", "7.4", close(code), peer_closed=code)
    for code in INVALID_CODES:
        yield vector(f"invalid-code-{code}", "7.4", close(code), failed=1002)
    yield vector("one-byte", "5.5.1", frame(CLOSE, b"\x03"), failed=1002)
    yield vector("reason", "5.5.1", close(1000, b"bye"), peer_closed=1000)
    yield vector("reason-not-ascii", "5.5.1", close(1001, SAMPLE), peer_closed=1001)
    yield vector("reason-123", "5.5.1", close(4000, b"r" * 123), peer_closed=4000)
    yield vector("reason-124", "5.5", close(4000, b"r" * 124), failed=1002)
    yield vector("reason-not-utf8", "8.1", close(1000, b"\xff"), failed=1007)
    yield vector("reason-truncated", "8.1", close(1000, b"a\xe2\x82"), failed=1007)
    yield vector("reason-surrogate", "8.1", close(1000, b"\xed\xa0\x80"), failed=1007)
    yield vector("invalid-code-and-reason", "7.4", close(1005, b"bye"), failed=1002)
    yield vector("after-message", "7.1.2", HELLO + close(1000), messages=[text(b"Hello")], peer_closed=1000)
    yield vector("after-ping", "7.1.2", frame(PING, b"p") + close(1000), pongs=[b"p"], peer_closed=1000)
    yield vector("then-message", "5.5.1", close(1000) + AFTER, peer_closed=1000)
    yield vector("then-ping", "5.5.1", close(1000) + frame(PING, b"p"), peer_closed=1000)
    yield vector("then-close", "5.5.1", close(1000) + close(1001), peer_closed=1000)
    yield vector("then-fault", "5.5.1", close(1000) + frame(3), peer_closed=1000)
    yield vector("then-garbage", "5.5.1", close(1000) + b"GET / HTTP/1.1\r\n\r\n", peer_closed=1000)
    yield vector("fault-then-close", "7.1.7", frame(3) + close(1000), failed=1002)
    yield vector("fault-then-ping", "7.1.7", frame(3) + frame(PING, b"p"), failed=1002)
    yield vector("inside-empty-fragment", "5.4", frame(TEXT, fin=False) + close(1001), peer_closed=1001)
    yield vector("incomplete", "5.5.1", close(1000, b"bye")[:-1])


def limits() -> Iterator[Vector]:
    """Vectors for section 10.4: limits of the server, which apply as soon as the frame header has arrived."""
    limit = {"max_message_bytes": 1000}
    yield vector(
        "at-the-limit",
        "10.4",
        long_frame(BINARY, b"x", 1000),
        messages=[repeated(BINARY, b"x", 1000)],
        settings=limit,
    )
    yield vector("over-the-limit", "10.4", header(BINARY, 1001) + MASK, failed=1009, settings=limit)
    yield vector("text-over-the-limit", "10.4", header(TEXT, 1001) + MASK, failed=1009, settings=limit)
    yield vector(
        "over-the-limit-with-payload", "10.4", long_frame(BINARY, b"x", 1001), failed=1009, settings=limit
    )
    for length, name in (
        (65536, "65536"),
        (1 << 31, "2^31"),
        (1 << 32, "2^32"),
        ((1 << 32) + 5, "2^32+5"),
        ((1 << 63) - 1, "2^63-1"),
    ):
        yield vector(f"declares-{name}", "10.4", header(BINARY, length) + MASK, failed=1009, settings=limit)
    first = frame(BINARY, b"x" * 600, fin=False)
    yield vector(
        "sum-at-the-limit",
        "10.4",
        first + frame(CONT, b"x" * 400),
        messages=[repeated(BINARY, b"x", 1000)],
        settings=limit,
    )
    yield vector("sum-over-the-limit", "10.4", first + header(CONT, 401) + MASK, failed=1009, settings=limit)
    yield vector(
        "sum-over-the-limit-not-final",
        "10.4",
        first + header(CONT, 401, fin=False) + MASK,
        failed=1009,
        settings=limit,
    )
    yield vector(
        "sum-of-three-over-the-limit",
        "10.4",
        frame(TEXT, b"x" * 500, fin=False) + frame(CONT, b"x" * 500, fin=False) + header(CONT, 1) + MASK,
        failed=1009,
        settings=limit,
    )
    yield vector(
        "sum-at-the-limit-then-empty",
        "10.4",
        frame(TEXT, b"x" * 1000, fin=False) + frame(CONT),
        messages=[repeated(TEXT, b"x", 1000)],
        settings=limit,
    )
    yield vector(
        "sum-is-2^63", "10.4", first + header(CONT, (1 << 63) - 600) + MASK, failed=1009, settings=limit
    )
    yield vector(
        "sum-passes-2^63", "10.4", first + header(CONT, (1 << 63) - 1) + MASK, failed=1009, settings=limit
    )
    yield vector(
        "control-frames-do-not-count",
        "10.4",
        first + frame(PING, b"p" * 125) * 4 + frame(CONT, b"x" * 400),
        messages=[repeated(BINARY, b"x", 1000)],
        pongs=[b"p" * 125] * 4,
        settings=limit,
    )
    yield vector(
        "limit-is-per-message",
        "10.4",
        [part for _ in range(3) for part in long_frame(BINARY, b"x", 1000)],
        messages=[repeated(BINARY, b"x", 1000)] * 3,
        settings=limit,
    )
    yield vector(
        "over-the-limit-after-message",
        "10.4",
        HELLO + header(BINARY, 1001) + MASK,
        messages=[text(b"Hello")],
        failed=1009,
        settings=limit,
    )
    four = {"max_fragments": 4}
    parts = [frame(TEXT, b"x", fin=False), *[frame(CONT, b"x", fin=False)] * 4]
    yield vector(
        "fragments-at-the-limit",
        "10.4",
        b"".join(parts[:3]) + frame(CONT, b"x"),
        messages=[text(b"xxxx")],
        settings=four,
    )
    yield vector("fragments-over-the-limit", "10.4", b"".join(parts), failed=1008, settings=four)
    yield vector(
        "final-fragment-over-the-limit",
        "10.4",
        b"".join(parts[:4]) + frame(CONT, b"x"),
        failed=1008,
        settings=four,
    )
    yield vector(
        "empty-fragments-over-the-limit",
        "10.4",
        frame(TEXT, fin=False) + frame(CONT, fin=False) * 4,
        failed=1008,
        settings=four,
    )
    yield vector(
        "control-frames-are-no-fragments",
        "10.4",
        b"".join(part + frame(PING, b"p") for part in parts[:3]) + frame(CONT, b"x"),
        messages=[text(b"xxxx")],
        pongs=[b"p"] * 3,
        settings=four,
    )


THEMES = {
    "framing": framing,
    "control": control,
    "fragmentation": fragmentation,
    "utf8": utf8,
    "close": close_handshake,
    "limits": limits,
}


def render(vectors: list[Vector]) -> str:
    """Format the vectors as JSON, one per line, so that a diff shows the changed vectors."""
    return "[\n" + ",\n".join(json.dumps(each, separators=(", ", ": ")) for each in vectors) + "\n]\n"


def rendered() -> dict[str, str]:
    """Return the content of each vector file by its name; a test compares it with the committed files."""
    return {f"{theme}.json": render(list(make())) for theme, make in THEMES.items()}


if __name__ == "__main__":
    for file_name, content in rendered().items():
        (HERE / file_name).write_text(content, encoding="ascii")
