"""A pass of a shard: unseen tokens are verified in turns, and the others never wait."""

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import pytest

from tests.unit.test_shard_faults import OPTIONS
from wsgate.auth import NO_PERMISSIONS, Identity, TokenError
from wsgate.shard import verification
from wsgate.shard.numbers import LAYOUT
from wsgate.shard.options import Shared
from wsgate.shard.process import Shard
from wsgate.shard.sessions import now_ms
from wsgate.shard.tokens import Tokens
from wsgate.statistics import StatisticsBlock

REPORTING = replace(OPTIONS, reactor=replace(OPTIONS.reactor, report_meta=True))
HEAD = (
    "GET /ws HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n{header}\r\n\r\n"
)


class FakeTokens:
    """Tokens that begin with "known" are cached, those that begin with "good" are new; all others are bad."""

    def __init__(self, count: Any) -> None:
        self.count = count
        self.verified: list[str] = []

    def recall(self, token: str, now_s: float) -> Identity | None:
        return Identity("", NO_PERMISSIONS, 0) if self.knows(token, now_s) else None

    def knows(self, token: str, now_s: float) -> bool:
        return token.startswith("known")

    def connection(self, token: str, now_s: float) -> Identity:
        self.verified.append(token)
        if not token.startswith("good"):
            self.count("tokens_refused", 1)
            raise TokenError("malformed")
        return Identity("", NO_PERMISSIONS, 0)


class Hall:
    """A shard and clients of several addresses, without a bus."""

    def __init__(self) -> None:
        self.shard = Shard(REPORTING, -1, Shared(StatisticsBlock.create(LAYOUT, 1)), -1)
        self.shard._build(asyncio.get_running_loop())
        self.tokens = FakeTokens(self.shard.count)
        self.shard._front._tokens = self.shard._sessions.tokens = cast(Tokens, self.tokens)
        self.sockets: list[socket.socket] = []

    def come(self, source: str, *, upgraded: bool = False) -> socket.socket:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            theirs = socket.create_connection(listener.getsockname(), source_address=(source, 0))
            ours, _ = listener.accept()
        self.shard._reactor.adopt(os.dup(ours.fileno()), now_ms=now_ms(), upgraded=upgraded)
        ours.close()
        theirs.setblocking(False)
        self.sockets.append(theirs)
        return theirs

    def ask(self, source: str, header: str) -> socket.socket:
        sock = self.come(source)
        sock.sendall(HEAD.format(header=header).encode())
        return sock

    def status(self, sock: socket.socket) -> bytes:
        """The status a handshake was answered with; nothing while it waits."""
        try:
            return sock.recv(4_096)[9:12]
        except BlockingIOError:
            return b""


@contextmanager
def hall() -> Iterator[Hall]:
    made = Hall()
    try:
        yield made
    finally:
        made.shard._is_over = True
        made.shard._reactor.shutdown()
        for sock in made.sockets:
            sock.close()


@pytest.mark.parametrize(
    "way", ["Authorization: Bearer {}", "Sec-WebSocket-Protocol: wsgate.v1.json, wsgate.bearer.{}"]
)
def test_bad_tokens_of_one_address_do_not_delay_newcomers_of_another(
    monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(verification, "PASS_NS", 0)  # one in each pass

    async def main() -> None:
        with hall() as at:
            for number in range(40):
                at.ask("127.0.0.2", way.format(f"bad{number}"))
            for _ in range(4):
                at.shard._pump()
            before = len(at.tokens.verified)
            assert 1 <= before <= 4
            good = at.ask("127.0.0.3", way.format("good"))
            at.shard._pump()
            at.shard._pump()
            assert "good" in at.tokens.verified[before : before + 2]
            assert at.status(good) == b"101"
            for _ in range(60):
                at.shard._pump()
            assert len(at.tokens.verified) == 41, "and nobody is refused unheard"
            assert at.shard._verification.waiting_bytes == 0

    asyncio.run(main())


def test_a_token_that_was_seen_before_and_no_token_at_all_never_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "PASS_NS", 0)

    async def main() -> None:
        with hall() as at:
            for number in range(20):
                at.ask("127.0.0.2", f"Authorization: Bearer bad{number}")
            at.shard._pump()
            known = at.ask("127.0.0.2", "Authorization: Bearer known")
            guest = at.ask("127.0.0.2", "X-Nothing: 1")
            at.shard._pump()
            assert at.status(known) == at.status(guest) == b"101"
            assert len(at.shard._verification) > 10

    asyncio.run(main())


def test_a_handshake_that_left_while_it_waited_is_not_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "PASS_NS", 0)

    async def main() -> None:
        with hall() as at:
            socks = [at.ask("127.0.0.2", f"Authorization: Bearer bad{number}") for number in range(10)]
            at.shard._pump()
            for conn in list(at.shard._verification._waiting):
                at.shard._reactor.abort(conn)
            for sock in socks:
                sock.close()
            for _ in range(10):
                at.shard._pump()
            assert len(at.tokens.verified) == 1
            assert len(at.shard._verification) == 0

    asyncio.run(main())
