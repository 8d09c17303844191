"""Check the passes of a shard: new tokens are verified in turns by address, and others never wait."""

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
from wsgate.bus.revocations import ENTRY_BYTES
from wsgate.dialects import DIALECTS, Dialect
from wsgate.reactor.testing import trust_charges
from wsgate.shard import verification
from wsgate.shard.members import FRACTION_BYTES, now_ms
from wsgate.shard.options import ShardOptions, Shared
from wsgate.shard.process import Shard
from wsgate.shard.statistics_layout import LAYOUT
from wsgate.shard.tokens import Tokens
from wsgate.shard.users import REMOVAL_BYTES
from wsgate.statistics import StatisticsBlock

JSON = DIALECTS[0]
REPORTING = replace(OPTIONS, reactor=replace(OPTIONS.reactor, report_meta=True))
HEAD = (
    "GET /ws HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n{header}\r\n\r\n"
)


class FakeTokens:
    """Fake tokens: "known..." is cached, "good..." is new and valid, and any other one is invalid."""

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


class ShardRig:
    """A shard and clients of several addresses, without a bus."""

    def __init__(self, options: ShardOptions = REPORTING) -> None:
        self.shard = Shard(options, -1, Shared(StatisticsBlock.create(LAYOUT, 1)), -1)
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
        """Return the status that a handshake was answered with, or nothing while it waits."""
        try:
            return sock.recv(4_096)[9:12]
        except BlockingIOError:
            return b""


@contextmanager
def shard_rig(options: ShardOptions = REPORTING) -> Iterator[ShardRig]:
    made = ShardRig(options)
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
        with shard_rig() as at:
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
            assert len(at.tokens.verified) == 41, "and every token is verified"
            assert at.shard._parts.newcomers._verification.waiting_bytes == 0

    asyncio.run(main())


def test_pass_runs_no_more_released_messages_than_its_budget_and_one_turn_of_reading() -> None:
    async def main() -> None:
        with shard_rig() as at:
            at.shard._reactor.poll(now_ms())
            logins, runs = at.shard._parts.logins, 0
            for _ in range(40):
                at.come("127.0.0.2", upgraded=True)
            conns, _ = at.shard._reactor.connections(0, 100)
            for conn in conns:
                logins.await_token(conn, JSON, "good", lambda: True)
                for _ in range(60):
                    assert logins.buffer(conn, b'{"op":"ping"}', 1)

            def run(conn: int, dialect: Dialect, message: bytes, opcode: int) -> None:
                nonlocal runs
                runs += 1

            at.shard._parts.commands.run = run  # type: ignore[method-assign]
            total = 0
            while total < 40 * 60:
                most, runs = at.shard._budget.messages, 0
                at.shard._pump()
                assert runs < most + 60
                total += runs
            assert logins.waiting_bytes == 0

    asyncio.run(main())


def test_handshake_with_a_cached_token_or_without_a_token_is_answered_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(verification, "PASS_NS", 0)

    async def main() -> None:
        with shard_rig() as at:
            for number in range(20):
                at.ask("127.0.0.2", f"Authorization: Bearer bad{number}")
            at.shard._pump()
            known = at.ask("127.0.0.2", "Authorization: Bearer known")
            guest = at.ask("127.0.0.2", "X-Nothing: 1")
            at.shard._pump()
            assert at.status(known) == at.status(guest) == b"101"
            assert len(at.shard._parts.newcomers._verification) > 10

    asyncio.run(main())


def test_token_of_a_handshake_that_ended_while_waiting_is_not_verified(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(verification, "PASS_NS", 0)

    async def main() -> None:
        with shard_rig() as at:
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


def as_frames(*messages: dict[str, Any]) -> bytes:
    """Return the bytes that a client sends: one text frame for each message."""
    return b"".join(client_frame(1, json.dumps(message).encode()) for message in messages)


def received_ops(sock: socket.socket) -> list[str]:
    """Return the operation of each message that a client received, and `Close` for a Close."""
    try:
        data = sock.recv(1 << 16)
    except BlockingIOError:
        return []
    frames = FrameReader().receive_data(data)
    return ["Close" if frame.opcode == CLOSE else json.loads(frame.payload)["op"] for frame in frames]


def test_unseen_tokens_in_messages_are_verified_in_turns_by_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "PASS_NS", 0)  # one in each pass

    async def main() -> None:
        with shard_rig() as at:
            for number in range(40):
                at.come("127.0.0.2", upgraded=True).sendall(
                    as_frames({"op": "auth", "token": f"bad{number}"})
                )
            for _ in range(4):
                at.shard._pump()
            before = len(at.tokens.verified)
            assert 1 <= before <= 4
            good = at.come("127.0.0.3", upgraded=True)
            good.sendall(as_frames({"op": "auth", "token": "good"}))
            for _ in range(60):
                at.shard._pump()
            assert at.tokens.verified.index("good") <= before + 5
            assert len(at.tokens.verified) == 41, "and every token is verified"
            assert (
                at.shard._parts.newcomers._verification.waiting_bytes
                == at.shard._parts.logins._buffered_bytes
                == 0
            )

    asyncio.run(main())


def test_auth_message_with_a_cached_token_is_answered_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "PASS_NS", 0)

    async def main() -> None:
        with shard_rig() as at:
            for number in range(20):
                at.come("127.0.0.2", upgraded=True).sendall(
                    as_frames({"op": "auth", "token": f"bad{number}"})
                )
            at.shard._pump()
            known = at.come("127.0.0.2", upgraded=True)
            known.sendall(as_frames({"op": "auth", "token": "known"}))
            received: list[str] = []
            for _ in range(5):  # a slow machine may need a second pass to read it
                at.shard._pump()
                received += received_ops(known)
            assert received == ["welcome"]
            assert len(at.shard._parts.newcomers._verification) > 10

    asyncio.run(main())


def test_commands_behind_a_waiting_token_are_answered_in_order_after_the_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(verification, "PASS_NS", 0)

    async def main() -> None:
        with shard_rig() as at:
            for number in range(20):
                at.come("127.0.0.2", upgraded=True).sendall(
                    as_frames({"op": "auth", "token": f"bad{number}"})
                )
            at.shard._pump()
            talker = at.come("127.0.0.2", upgraded=True)
            talker.sendall(
                as_frames(
                    {"op": "ping"},
                    {"op": "auth", "token": "good"},
                    {"op": "ping"},
                    {"op": "refresh", "token": "bad", "id": 1},
                    {"op": "ping"},
                )
            )
            received = []
            for _ in range(60):
                at.shard._pump()
                received += received_ops(talker)
            assert received == ["pong", "welcome", "pong", "err", "pong"]
            talker.sendall(as_frames({"op": "ping"}))
            at.shard._pump()
            assert received_ops(talker) == ["pong"], "the connection is read again"

    asyncio.run(main())


def test_connection_that_ends_while_its_token_waits_leaves_no_buffered_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(verification, "PASS_NS", 0)

    async def main() -> None:
        with shard_rig() as at:
            socks = [at.come("127.0.0.2", upgraded=True) for _ in range(10)]
            for sock in socks:
                sock.sendall(as_frames({"op": "auth", "token": "bad"}, {"op": "ping"}))
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


def test_time_of_a_costly_message_is_charged_to_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the test moves while a message is handled, and the reactor trusts the charge."""
    clock_ns = [0]
    monkeypatch.setattr("wsgate.shard.process.time.perf_counter_ns", lambda: clock_ns[0])

    async def main() -> None:
        with shard_rig() as at:
            trust_charges(at.shard._reactor)
            costly, cheap = at.come("127.0.0.2", upgraded=True), at.come("127.0.0.2", upgraded=True)
            run = at.shard._parts.commands.run

            def slowly(conn: int, dialect: Any, message: bytes, opcode: int) -> None:
                clock_ns[0] += 3_000_000 if b"costly" in message else 4_000
                run(conn, dialect, message, opcode)

            monkeypatch.setattr(at.shard._parts.commands, "run", slowly)
            costly.sendall(as_frames({"op": "ping", "x": "costly"}))
            cheap.sendall(as_frames({"op": "ping"}))
            at.shard._pump()
            handles, _ = at.shard._reactor.connections(0, 10)
            found = [at.shard._reactor.inspect(conn) for conn in handles]
            assert sorted(each["debt_ns"] for each in found if each is not None) == [0, 3_000_000]

    asyncio.run(main())


def test_replies_that_fill_half_an_outbox_in_each_pass_delay_no_publication() -> None:
    """The socket takes the replies at once, so the client is not slow, and nobody must wait for it."""
    options = replace(REPORTING, reactor=replace(REPORTING.reactor, outbox_frames=100))

    async def main() -> None:
        with shard_rig(options) as at:
            talker = at.come("127.0.0.2", upgraded=True)
            at.shard._pump()
            pacer, waits = at.shard._parts.pacer, list[bool]()
            deliver = pacer.step

            def step() -> None:
                waits.append(at.shard._reactor.is_full)
                deliver()

            pacer.step = step  # type: ignore[method-assign]
            for _ in range(10):
                talker.sendall(client_frame(1, b'{"op":"ping"}') * 64)
                at.shard._pump()
                talker.recv(1 << 16)
            assert waits == [False] * 10

    asyncio.run(main())


def test_waiting_removals_and_revocations_are_in_the_account_of_the_shard() -> None:
    async def main() -> None:
        with shard_rig() as at:
            parts = at.shard._parts
            before = parts.capacity._outside()
            for number in range(100):
                parts.users._on_forgotten(f"u{number}", ["0@x"], ("down", "refused")[number % 2], b"")
                parts.revocations.store(f"u{number}", 5.0)
            parts.members._fractional[1] = 100.2
            assert parts.capacity._outside() - before == 100 * (REMOVAL_BYTES + ENTRY_BYTES) + FRACTION_BYTES

    asyncio.run(main())
