"""A pass of a shard: unseen tokens are verified in turns, and the others never wait."""

import asyncio
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import pytest

from tests.support.frames import CLOSE, FrameReader, client_frame
from tests.unit.shard.test_faults import OPTIONS
from wsgate.auth import NO_PERMISSIONS, Identity, TokenError
from wsgate.reactor.testing import trust_charges
from wsgate.shard import verification
from wsgate.shard.members import now_ms
from wsgate.shard.options import Shared
from wsgate.shard.process import Shard
from wsgate.shard.statistics_layout import LAYOUT
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
        tokens = cast(Tokens, self.tokens)
        self.shard._parts.handshakes._tokens = self.shard._parts.commands._tokens = tokens
        self.shard._parts.logins._parts = replace(self.shard._parts.logins._parts, tokens=tokens)
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
            assert at.shard._parts.newcomers._verification.waiting_bytes == 0

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
            assert len(at.shard._parts.newcomers._verification) > 10

    asyncio.run(main())


def test_a_handshake_that_left_while_it_waited_is_not_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "PASS_NS", 0)

    async def main() -> None:
        with hall() as at:
            socks = [at.ask("127.0.0.2", f"Authorization: Bearer bad{number}") for number in range(10)]
            at.shard._pump()
            for conn in list(at.shard._parts.newcomers._verification._waiting):
                at.shard._reactor.abort(conn)
            for sock in socks:
                sock.close()
            for _ in range(10):
                at.shard._pump()
            assert len(at.tokens.verified) == 1
            assert len(at.shard._parts.newcomers._verification) == 0

    asyncio.run(main())


def said(*messages: dict[str, Any]) -> bytes:
    """What a client sends: one text frame for each message."""
    return b"".join(client_frame(1, json.dumps(message).encode()) for message in messages)


def told(sock: socket.socket) -> list[str]:
    """What a client was told: the name of each message, and the reason of a Close."""
    try:
        data = sock.recv(1 << 16)
    except BlockingIOError:
        return []
    frames = FrameReader().receive_data(data)
    return ["Close" if frame.opcode == CLOSE else json.loads(frame.payload)["op"] for frame in frames]


def test_unseen_tokens_in_messages_are_verified_in_turns_by_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "PASS_NS", 0)  # one in each pass

    async def main() -> None:
        with hall() as at:
            for number in range(40):
                at.come("127.0.0.2", upgraded=True).sendall(said({"op": "auth", "token": f"bad{number}"}))
            for _ in range(4):
                at.shard._pump()
            before = len(at.tokens.verified)
            assert 1 <= before <= 4
            good = at.come("127.0.0.3", upgraded=True)
            good.sendall(said({"op": "auth", "token": "good"}))
            for _ in range(60):
                at.shard._pump()
            assert at.tokens.verified.index("good") <= before + 5
            assert len(at.tokens.verified) == 41, "and nobody is refused unheard"
            assert (
                at.shard._parts.newcomers._verification.waiting_bytes
                == at.shard._parts.logins._buffered_bytes
                == 0
            )

    asyncio.run(main())


def test_token_in_a_message_that_was_seen_before_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "PASS_NS", 0)

    async def main() -> None:
        with hall() as at:
            for number in range(20):
                at.come("127.0.0.2", upgraded=True).sendall(said({"op": "auth", "token": f"bad{number}"}))
            at.shard._pump()
            known = at.come("127.0.0.2", upgraded=True)
            known.sendall(said({"op": "auth", "token": "known"}))
            heard: list[str] = []
            for _ in range(5):  # a slow machine may need a second pass to read it
                at.shard._pump()
                heard += told(known)
            assert heard == ["welcome"]
            assert len(at.shard._parts.newcomers._verification) > 10

    asyncio.run(main())


def test_what_follows_a_token_that_waits_is_answered_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "PASS_NS", 0)

    async def main() -> None:
        with hall() as at:
            for number in range(20):
                at.come("127.0.0.2", upgraded=True).sendall(said({"op": "auth", "token": f"bad{number}"}))
            at.shard._pump()
            talker = at.come("127.0.0.2", upgraded=True)
            talker.sendall(
                said(
                    {"op": "ping"},
                    {"op": "auth", "token": "good"},
                    {"op": "ping"},
                    {"op": "refresh", "token": "bad", "id": 1},
                    {"op": "ping"},
                )
            )
            heard = []
            for _ in range(60):
                at.shard._pump()
                heard += told(talker)
            assert heard == ["pong", "welcome", "pong", "err", "pong"]
            talker.sendall(said({"op": "ping"}))
            at.shard._pump()
            assert told(talker) == ["pong"], "it is read again"

    asyncio.run(main())


def test_connection_that_left_while_its_token_waited_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "PASS_NS", 0)

    async def main() -> None:
        with hall() as at:
            socks = [at.come("127.0.0.2", upgraded=True) for _ in range(10)]
            for sock in socks:
                sock.sendall(said({"op": "auth", "token": "bad"}, {"op": "ping"}))
            while len(at.tokens.verified) + len(at.shard._parts.newcomers._verification) < len(socks):
                at.shard._pump()
            before = len(at.tokens.verified)
            assert before < len(socks)
            for conn in list(at.shard._parts.newcomers._verification._waiting):
                at.shard._reactor.abort(conn)
            for _ in range(10):
                at.shard._pump()
            assert len(at.tokens.verified) == before
            assert (
                at.shard._parts.newcomers._verification.waiting_bytes
                == at.shard._parts.logins._buffered_bytes
                == 0
            )
            assert not at.shard._parts.logins.buffered

    asyncio.run(main())


def test_message_that_took_long_is_charged_to_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the test moves while a message is handled; the reactor takes its word for it."""
    clock_ns = [0]
    monkeypatch.setattr("wsgate.shard.process.time.perf_counter_ns", lambda: clock_ns[0])

    async def main() -> None:
        with hall() as at:
            trust_charges(at.shard._reactor)
            costly, cheap = at.come("127.0.0.2", upgraded=True), at.come("127.0.0.2", upgraded=True)
            run = at.shard._parts.commands.run

            def slowly(conn: int, dialect: Any, message: bytes, opcode: int) -> None:
                clock_ns[0] += 3_000_000 if b"costly" in message else 4_000
                run(conn, dialect, message, opcode)

            monkeypatch.setattr(at.shard._parts.commands, "run", slowly)
            costly.sendall(said({"op": "ping", "x": "costly"}))
            cheap.sendall(said({"op": "ping"}))
            at.shard._pump()
            handles, _ = at.shard._reactor.connections(0, 10)
            found = [at.shard._reactor.inspect(conn) for conn in handles]
            assert sorted(each["debt_ns"] for each in found if each is not None) == [0, 3_000_000]

    asyncio.run(main())
