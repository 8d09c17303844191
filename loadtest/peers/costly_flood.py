"""A process of clients that flood a gateway with messages that are costly to handle; see cpu_floods.py.

``python -m loadtest.peers.costly_flood PORT PEERS LIMIT_S KIND`` is controlled over standard input and output
like message_flood.py. KIND is a key of `FLOODS`, or `handshakes`: RATE_PER_S handshakes a second, each with a
bad token, from as many connections as that needs.
"""

from __future__ import annotations

import json
import select
import sys
import time
import zlib
from collections.abc import Callable
from typing import Final

import jwt
from websockets.frames import Frame, Opcode

from loadtest.experiments.newcomer_access import Attack, Door
from loadtest.peers.message_flood import FloodResult, Peer, flood, serve_parent

__all__ = ["FLOODS", "HANDSHAKES", "question"]

HANDSHAKES: Final = "handshakes"
RATE_PER_S: Final = 1_470
_RING_BYTES: Final = 128 * 1024  # more than a send buffer accepts at once
_MESSAGE_BYTES: Final = 65_000  # below the default limit of 64 KiB
_TOKEN_BYTES: Final = 8_000  # below the limit of a token, 8 KiB
_LEVELS: Final = 880
_FRAGMENTS: Final = 1_000
_DEFLATE: Final = "Sec-WebSocket-Extensions: permessage-deflate\r\n"
_HEAD: Final = (
    "GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
    "Authorization: Bearer {token}%d\r\n\r\n"
)


def question(text: str) -> bytes:
    """Return a text message of a client as one masked frame."""
    return Frame(Opcode.TEXT, text.encode()).serialize(mask=True)


def _bad_token(**claims: str) -> str:
    """Return a token of nearly 8 KiB that is well-formed and signed with another key."""
    claims |= {"sub": "x", "exp": "", "pad": ""}
    now_s = int(time.time())
    short = len(jwt.encode({**claims, "exp": now_s + 3_600}, "k" * 32, algorithm="HS256"))
    padding = "x" * ((_TOKEN_BYTES - short) * 3 // 4)
    return jwt.encode({**claims, "exp": now_s + 3_600, "pad": padding}, "k" * 32, algorithm="HS256")


def _publish(channel: str, data: str) -> str:
    return json.dumps({"op": "pub", "ch": channel, "data": None}).replace("null", data)


def _arrays() -> bytes:
    """Return a publish of nested arrays, which is refused because the namespace does not exist."""
    inner = "[" + ",".join(["[]"] * 100) + "]"
    return question(_publish("nowhere:x", "[" + ",".join([inner] * (_MESSAGE_BYTES // len(inner) - 1)) + "]"))


def _escapes() -> bytes:
    return question(_publish("nowhere:x", '"' + "\\u00e4" * ((_MESSAGE_BYTES - 100) // 6) + '"'))


def _deep() -> bytes:
    return question(_publish("nowhere:x", "[" * _LEVELS + "]" * _LEVELS))


def _fragments() -> bytes:
    text = b'{"op":"ping"' + b" " * (_FRAGMENTS - 12) + b"}"
    last = len(text) - 1
    return b"".join(
        Frame(Opcode.CONT if at else Opcode.TEXT, text[at : at + 1], fin=at == last).serialize(mask=True)
        for at in range(len(text))
    )


def _deflated() -> bytes:
    text = _publish("nowhere:x", '"' + "a" * (_MESSAGE_BYTES - 100) + '"')
    deflater = zlib.compressobj(wbits=-15)
    data = deflater.compress(text.encode()) + deflater.flush(zlib.Z_SYNC_FLUSH)
    frame = Frame(Opcode.TEXT, data[:-4]).serialize(mask=True)
    return bytes((frame[0] | 0x40,)) + frame[1:]  # RSV1: RFC 7692 section 6


FLOODS: Final[dict[str, Callable[[], bytes]]] = {
    "ping": lambda: question('{"op":"ping"}'),
    "refused_pub": _arrays,
    "escapes": _escapes,
    "deep": _deep,
    "fragments": _fragments,
    "refresh": lambda: question(json.dumps({"op": "refresh", "token": _bad_token()})),
    "deflated": _deflated,
    "sub_token": lambda: question(
        json.dumps({"op": "sub", "ch": "room", "token": _bad_token(channel="room")})
    ),
}
"""One message of each flood, as bytes on the wire."""


def _knock(port: int, limit_s: float, stdin: int) -> FloodResult:
    """Send handshakes with bad tokens until standard input ends."""
    head = _HEAD.format(token=_bad_token().replace("%", "")).encode()
    attack = Attack(Door(0, RATE_PER_S, head, 0, 0.0), port, "127.0.0.1")
    began_s = time.monotonic()
    attack.start()
    select.select([stdin], [], [], limit_s)
    attack.stop()
    took_s = time.monotonic() - began_s
    return FloodResult(
        sent=attack.opened, sent_bytes=attack.opened * len(head), answered=0, ended=0, elapsed_s=took_s
    )


def main(port: int, peers: int, limit_s: float, kind: str) -> None:
    """Open the connections for one kind of costly message, and run that flood for the parent."""
    if kind == HANDSHAKES:
        serve_parent(lambda stdin: _knock(port, limit_s, stdin))
        return
    message = FLOODS[kind]()
    ring = message * (_RING_BYTES // len(message) + 1)
    headers = _DEFLATE if kind == "deflated" else ""
    connections = [Peer(port, ring, headers) for _ in range(peers)]
    serve_parent(lambda stdin: flood(connections, limit_s, stdin))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4])
