"""Send raw bytes on a socket to the client port of a gateway; this client does nothing by itself."""

import contextlib
import json
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import msgpack

from tests.support.frames import BINARY, CLOSE, PING, PONG, TEXT, FrameReader, ServerFrame, client_frame
from tests.support.frames import close_code as code_of
from tests.support.gateway import Gateway

__all__ = ["LIMIT_S", "Answer", "Ending", "RawClient", "bearer", "request"]

LIMIT_S = 30.0  # for any one answer; no healthy run needs so long
_KEY = "dGhlIHNhbXBsZSBub25jZQ=="


class Answer(NamedTuple):
    """The answer to a request head."""

    status: int
    headers: Mapping[str, str]
    raw: bytes


class Ending(NamedTuple):
    """The end of a connection: the last messages, and the code of the Close; 1006 without one."""

    code: int
    messages: list[dict[str, Any]]

    @property
    def bye(self) -> dict[str, Any]:
        """Return the `bye`, which is the last message; empty when there is none."""
        is_there = bool(self.messages) and self.messages[-1].get("op") == "bye"
        return self.messages[-1] if is_there else {}


def request(
    path: str = "/ws", *, host: str = "gate.example", headers: Sequence[tuple[str, str]] = ()
) -> bytes:
    """Return an opening handshake with these additional headers."""
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: {host}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {_KEY}",
        "Sec-WebSocket-Version: 13",
        *(f"{name}: {value}" for name, value in headers),
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def bearer(token: str) -> tuple[str, str]:
    """Return the header with a token."""
    return "Authorization", f"Bearer {token}"


class RawClient:
    """One TCP connection to the client port; it sends only the bytes that a test gives it, and pongs."""

    def __init__(
        self,
        gateway: Gateway,
        *,
        receive_buffer_bytes: int = 0,
        limit_s: float = LIMIT_S,
        source: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self._limit_s = limit_s
        self.sock = socket.socket()
        self.sock.bind((source, 0))
        self.sock.settimeout(limit_s)
        if receive_buffer_bytes:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self.sock.connect(("127.0.0.1", port or gateway.port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.heard = bytearray()  # all received bytes
        self.answers_pings = True
        self._reader = FrameReader()
        self._frames: list[ServerFrame] = []
        self._is_binary = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    @classmethod
    def welcomed(
        cls, gateway: Gateway, token: str, *headers: tuple[str, str], path: str = "/ws", **options: Any
    ) -> Self:
        """Connect a client with a token in the header; return after `welcome` and its inbox."""
        client = cls(gateway, **options)
        try:
            answer = client.ask(request(path, headers=(bearer(token), *headers)))
            assert answer.status == 101, answer
            assert client.hear()["op"] == "welcome"
            assert client.hear() == {"op": "subbed", "ch": "@me"}
        except BaseException:
            client.sock.close()
            raise
        return client

    def ask(self, head: bytes) -> Answer:
        """Send a request head and return its answer; after a refusal the stream must have ended."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.sock.sendall(head)
        return self.answer()

    def answer(self) -> Answer:
        """Return the answer to a request head."""
        while b"\r\n\r\n" not in self.heard:
            self._receive()
        head, _, rest = bytes(self.heard).partition(b"\r\n\r\n")
        status_line, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        status = int(status_line.split()[1])
        if status == 101:
            self._is_binary = headers.get("sec-websocket-protocol") == "wsgate.v1.msgpack"
            self._frames += self._reader.receive_data(rest)
        else:
            with contextlib.suppress(EOFError):
                while True:
                    self._receive()
        return Answer(status, headers, bytes(self.heard))

    def say(self, **fields: Any) -> None:
        """Send one command in the dialect of the connection."""
        payload = msgpack.packb(fields) if self._is_binary else json.dumps(fields).encode()
        self.say_raw(payload)

    def say_at_once(self, *commands: dict[str, Any]) -> None:
        """Send several JSON commands in one write, so that no pause of this process comes between them."""
        self.sock.sendall(b"".join(client_frame(TEXT, json.dumps(each).encode()) for each in commands))

    def say_raw(self, payload: bytes, opcode: int = 0) -> None:
        """Send one message with any content."""
        self.sock.sendall(client_frame(opcode or (BINARY if self._is_binary else TEXT), payload))

    def frame(self) -> ServerFrame:
        """Return the next frame that is no ping and no pong; pings are answered.

        Raises:
            EOFError: The stream has ended.
            TimeoutError: No such frame came in time, however many pings came.
        """
        end_s = time.monotonic() + self._limit_s
        while time.monotonic() < end_s:
            while not self._frames:
                self._frames += self._reader.receive_data(self._receive())
            frame = self._frames.pop(0)
            if frame.opcode == PING and self.answers_pings:
                self.sock.sendall(client_frame(PONG, frame.payload))
            elif frame.opcode not in (PING, PONG):
                return frame
        raise TimeoutError("nothing but pings")

    def hear(self) -> dict[str, Any]:
        """Return the next message as an object."""
        frame = self.frame()
        assert frame.opcode != CLOSE, code_of(frame)
        said = msgpack.unpackb(frame.payload) if self._is_binary else json.loads(frame.payload)
        assert isinstance(said, dict)
        return said

    def hear_answer(self, id: int) -> dict[str, Any]:
        """Return the answer with this id; earlier messages are skipped."""
        while (said := self.hear()).get("id") != id:
            pass
        return said

    def ending(self) -> Ending:
        """Read to the end of the stream, and answer a Close as RFC 6455 requires."""
        messages: list[dict[str, Any]] = []
        code = 1006
        with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
            while True:
                frame = self.frame()
                if frame.opcode == CLOSE:
                    code = code_of(frame)
                    self.sock.sendall(client_frame(CLOSE, frame.payload[:2]))
                else:
                    said = msgpack.unpackb(frame.payload) if self._is_binary else json.loads(frame.payload)
                    messages.append(said)
        return Ending(code, messages)

    def _receive(self) -> bytes:
        data = self.sock.recv(1 << 16)
        if not data:
            raise EOFError
        self.heard += data
        return data
