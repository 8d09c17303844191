"""Check that the Python lists of reasons and events agree with the compiled reactor.

For every reason that the reactor finds by itself, a test provokes the reason and reads its close code or HTTP
status from the wire.
"""

import importlib
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    TEXT,
    client_close,
    client_frame,
    client_header,
    close_code,
)
from tests.support.reactor_rig import Peer, Rig, rig
from wsgate.reactor import GateLimits, Settings, event_kinds, loop
from wsgate.reactor import metric_names as names
from wsgate.reasons import REASONS, Reason

TURNS = 10  # enough for a peer to read what a tiny send buffer held back
HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"

# Every module that other packages may import from, and all names that they may import.
PUBLIC = {
    "wsgate": {"__version__"},
    "wsgate.admin": {"AdminOptions", "run_admin"},
    "wsgate.auth": {
        "ALGORITHMS",
        "FAULTS",
        "KEYS_LIMIT",
        "NO_PERMISSIONS",
        "ChannelGrant",
        "Identity",
        "KeyRing",
        "KeySource",
        "Member",
        "OriginPolicy",
        "PermissionTable",
        "Permissions",
        "TokenCache",
        "TokenError",
        "TokenPolicy",
        "VerificationKey",
        "Verifier",
        "kid_of",
        "make_key",
        "parse_jwks",
    },
    "wsgate.bus": {
        "NODE_CLAIM",
        "NODE_LEASE_MS",
        "NODE_RELEASE",
        "RATE_LEASE",
        "SIGN_OF_LIFE",
        "USER_ENTER",
        "Appender",
        "AppenderOptions",
        "Backlog",
        "Bus",
        "BusAddress",
        "BusPublisher",
        "BusSubscriber",
        "CallDone",
        "ClusterListener",
        "Covers",
        "Names",
        "Publication",
        "Publisher",
        "Revocation",
        "RevocationKeeper",
        "Script",
        "Subscriber",
        "SubscriberListener",
        "SubscriberOptions",
        "decode_publication",
        "encode_publication",
        "hold_lease",
        "load_revocations",
        "make_bus",
        "make_publisher",
        "pack",
        "parse_address",
        "read_leases",
        "store_revocation",
    },
    "wsgate.dialects": {
        "DIALECTS",
        "BadCommand",
        "Command",
        "Dialect",
        "Selection",
        "commands",
        "is_channel",
        "select",
    },
    "wsgate.errors": {"BackendError", "InternalError", "PeerError", "SettingsError", "WsgateError"},
    "wsgate.log": {"Log", "name_part", "set_up_logging"},
    "wsgate.output": {
        "LineStream",
        "Output",
        "dropped_lines",
        "finish_outputs",
        "flush_outputs",
        "waiting_bytes",
    },
    "wsgate.payload": {"BINARY", "JSON", "TEXT", "Payload", "classify", "is_json", "is_text"},
    "wsgate.statistics": {
        "PHASE_DRAINING",
        "PHASE_READY",
        "PHASE_STARTING",
        "Board",
        "Layout",
        "Region",
        "StatisticsBlock",
        "why_not_ready",
        "has_beaten",
    },
    "wsgate.handshake": {
        "HEADERS_LIMIT",
        "HEAD_LIMIT_BYTES",
        "REFUSALS",
        "REQUEST_LINE_LIMIT_BYTES",
        "Refusal",
        "Request",
        "Upgrade",
        "accept",
        "parse_head",
        "refusal",
    },
    "wsgate.reasons": {"ERRORS", "REASONS", "ErrorEntry", "Reason", "ReasonEntry"},
    "wsgate.reactor": {
        "GateLimits",
        "ListenerOptions",
        "Reactor",
        "Settings",
        "SharedAddresses",
        "open_listener",
    },
    "wsgate.reactor.event_kinds": {
        "BINARY",
        "CLOSED",
        "DEFLATED",
        "FAILING",
        "OPEN",
        "PEER_CLOSED",
        "POLICY_CLOSE",
        "POLICY_DROP_OLDEST",
        "POLICY_LATEST_ONLY",
        "TEXT",
        "Event",
    },
    "wsgate.reactor.listener": {"open_listener"},
    "wsgate.reactor.loop": {"ENUMERATIONS", "Reactor"},
    "wsgate.reactor.metric_names": {"COUNTER_NAMES", "KIND_NAMES", "REASON_NAMES", "STATE_NAMES"},
    "wsgate.reactor.settings": {"SOCKET_BYTES", "GateLimits", "ListenerOptions", "Settings"},
}


# --- two lists of the same things -------------------------------------------------------------------


def test_reason_enum_has_the_same_numbers_as_the_compiled_reactor() -> None:
    assert {reason.name.lower(): int(reason) for reason in Reason} == {
        name: number for number, name in enumerate(names.REASON_NAMES)
    }
    assert loop.ENUMERATIONS["reasons"] == len(Reason)
    # The compiled module exports the number of its last reason.
    assert loop.ENUMERATIONS["reason_last"] == max(Reason)
    assert sorted(Reason) == list(range(len(Reason)))


def test_every_reason_has_one_registry_row_with_valid_codes_and_ascii_text() -> None:
    assert list(REASONS) == list(Reason)
    for reason, row in REASONS.items():
        assert row.reason is reason
        assert not (row.close_code and row.http_status), "a peer sees one or the other"
        assert row.close_code == 0 or 1000 <= row.close_code <= 1014 or 4000 <= row.close_code <= 4999
        assert row.http_status == 0 or 400 <= row.http_status <= 599
        assert row.text and row.text.isascii()


def test_event_kinds_and_policies_have_the_same_numbers_as_the_compiled_reactor() -> None:
    numbers = {
        name.lower(): getattr(event_kinds, name)
        for name in event_kinds.__all__
        if isinstance(getattr(event_kinds, name), int)
    }
    compiled = {name: loop.ENUMERATIONS[name] for name in numbers}
    assert numbers == compiled
    # In the other direction: event_kinds.py has every number of the compiled module.
    sizes = {name for name in loop.ENUMERATIONS if name.endswith("_bytes")}
    counts = {"states", "kinds", "reasons", "counters", "reason_last", "has_exact_blocks"}
    assert set(loop.ENUMERATIONS) - sizes - counts == set(numbers)
    assert (event_kinds.TEXT, event_kinds.BINARY) == (TEXT, BINARY), "an echo needs no translation"


def test_lists_of_metric_names_are_as_long_as_the_compiled_enumerations() -> None:
    for listed, count in (
        (names.STATE_NAMES, "states"),
        (names.KIND_NAMES, "kinds"),
        (names.REASON_NAMES, "reasons"),
        (names.COUNTER_NAMES, "counters"),
    ):
        assert len(listed) == len(set(listed)) == loop.ENUMERATIONS[count]


def test_counters_and_bytes_held_return_exactly_the_listed_metric_names() -> None:
    with rig() as bench:
        counters = bench.reactor.counters()
        held = bench.reactor.bytes_held()
    named = set(names.COUNTER_NAMES)
    named |= {f"ended_{name}" for name in names.REASON_NAMES[1:]}
    named |= {f"now_{name}" for name in names.STATE_NAMES[1:]}
    named |= {f"now_{name}" for name in ("connections", "blocked", "pacing", "draining", "channels", "walks")}
    named |= {"now_short", "now_shedding"}
    assert set(counters) == named
    assert set(held) == {
        *names.KIND_NAMES,
        "pool",
        "kernel_queued",
        "kernel_orphans",
        "connections",
        "outside",
    }


def test_each_state_name_matches_the_state_that_a_connection_is_in() -> None:
    """The names are in the order of the numbers.

    The test reaches each state and compares number and counter.
    """
    seen: dict[str, str] = {}

    def look(bench: Rig, peer: Peer) -> None:
        numbers = bench.reactor.inspect(peer.conn)
        counters = bench.reactor.counters()
        (census,) = [name for name in names.STATE_NAMES[1:] if counters[f"now_{name}"]]
        seen[census] = names.STATE_NAMES[numbers["state"]] if numbers else census

    with rig() as bench:
        peer = bench.connect(upgraded=False)
        look(bench, peer)
        peer.send(HEAD)
        bench.step()
        look(bench, peer)
        bench.reactor.upgrade(peer.conn, b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
        look(bench, peer)
        peer.send(client_frame(CONTINUATION))
        bench.reactor.poll(bench.now_ms)
        look(bench, peer)
        bench.reactor.pause_reading(peer.conn)
        bench.turn()
        look(bench, peer)
    with rig() as bench:
        peer = bench.connect()
        bench.reactor.close(peer.conn, 1000)
        look(bench, peer)
        bench.reactor.abort(peer.conn)
        look(bench, peer)
    assert seen == {name: name for name in names.STATE_NAMES[1:]}


def test_connection_struct_has_128_bytes_and_other_structs_fit_their_size_classes() -> None:
    assert loop.ENUMERATIONS["connection_bytes"] == 128
    assert loop.ENUMERATIONS["user_link_bytes"] == 16
    assert loop.ENUMERATIONS["entry_bytes"] == 16
    # A control slot and the header of its block fit into one pooled block of 1,024 bytes.
    assert 512 < loop.ENUMERATIONS["control_slot_bytes"] <= 1024
    assert loop.ENUMERATIONS["outbox_bytes"] <= 128
    with rig() as bench:
        assert bench.reactor.bytes_held()["table"] == 0
        bench.connect()
        assert bench.reactor.bytes_held()["table"] == 1024 * (
            loop.ENUMERATIONS["connection_bytes"] + loop.ENUMERATIONS["user_link_bytes"]
        )


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_of_each_module_are_exactly_those_listed_here(module: str) -> None:
    loaded = importlib.import_module(module)
    exported = list(loaded.__all__)
    assert set(exported) == PUBLIC[module]
    assert len(exported) == len(set(exported))
    assert all(hasattr(loaded, name) for name in exported)


# --- what a peer sees of each -----------------------------------------------------------------------

Drive = Callable[[Rig, Peer], None]


def peer_sends(*frames: bytes) -> Drive:
    """Return a step in which the peer sends these frames."""

    def drive(bench: Rig, peer: Peer) -> None:
        peer.send(b"".join(frames))
        bench.turn()

    return drive


def peer_sends_and_waits(duration_ms: int, *frames: bytes) -> Drive:
    """Return a step in which the peer sends these frames and then nothing for a while."""

    def drive(bench: Rig, peer: Peer) -> None:
        peer.send(b"".join(frames))
        bench.turn()
        bench.pass_ms(duration_ms)

    return drive


def overflow(bench: Rig, peer: Peer) -> None:
    while not inspect(bench, peer)["blocked"]:
        assert bench.reactor.send(peer.conn, bytes(600))
        bench.turn()
    assert not bench.reactor.send(peer.conn, b"two")
    bench.turn()


def grow_old(bench: Rig, peer: Peer) -> None:
    # No byte of the second reply is written when the socket refuses it.
    while not inspect(bench, peer)["blocked"]:
        bench.reactor.send(peer.conn, bytes(600))
        bench.turn()
    bench.pass_ms(5_000)


def late(bench: Rig, peer: Peer) -> None:
    bench.reactor.set_deadline(peer.conn, bench.now_ms + 1_000, 4001)
    bench.pass_ms(2_000)


def late_to_authenticate(bench: Rig, peer: Peer) -> None:
    bench.reactor.set_deadline(peer.conn, bench.now_ms + 1_000, 4002)
    bench.pass_ms(2_000)


def break_the_encoder(bench: Rig, peer: Peer) -> None:
    bench.reactor.subscribe(peer.conn, b"news", policy=event_kinds.POLICY_DROP_OLDEST)
    while not inspect(bench, peer)["blocked"]:
        bench.reactor.send(peer.conn, bytes(600))
        bench.turn()
    for _ in range(2):
        bench.reactor.publish(b"news", [b"x"])
    peer.frames()
    bench.turn()


def inspect(bench: Rig, peer: Peer) -> dict[str, int]:
    numbers = bench.reactor.inspect(peer.conn)
    assert numbers is not None
    return numbers


def raise_error(variant: int, channel: bytes, first: int, last: int) -> bytes:
    raise ArithmeticError("planted")


def run_out_of_memory(bench: Rig, peer: Peer) -> None:
    peer_sends(client_header(BINARY, 5000), bytes(4000))(bench, peer)
    bench.reactor.set_gate(GateLimits(memory_bytes=1), b"")
    bench.pass_ms(250)


def limit_partial_bytes(bench: Rig, peer: Peer) -> None:
    bench.reactor.set_gate(GateLimits(partial_bytes=1024), b"")
    peer_sends(client_header(BINARY, 5000), bytes(4000))(bench, peer)


QUIET = {"ping_interval_ms": 0}
CLOSED_WITH: dict[Reason, tuple[dict[str, Any], Drive]] = {
    Reason.PEER_CLOSED: ({}, peer_sends(client_close(1000))),
    Reason.PROTOCOL_ERROR: ({}, peer_sends(client_frame(3))),
    Reason.INVALID_UTF8: ({}, peer_sends(client_frame(TEXT, b"\xff"))),
    Reason.MESSAGE_TOO_BIG: ({"max_message_bytes": 10}, peer_sends(client_frame(BINARY, bytes(11)))),
    Reason.TOO_MANY_FRAGMENTS: (
        {"max_fragments": 2},
        peer_sends(client_frame(TEXT, final=False), *[client_frame(CONTINUATION, final=False)] * 2),
    ),
    Reason.CONTROL_RATE: (
        {"control_rate_per_s": 1, "control_burst": 2},
        peer_sends(*[client_frame(PING)] * 3),
    ),
    Reason.MESSAGE_TIMEOUT: (
        {"message_timeout_ms": 1_000, **QUIET},
        peer_sends_and_waits(2_000, client_frame(TEXT, b"a", final=False)),
    ),
    Reason.MESSAGE_RATE: ({"message_rate_per_s": 2}, peer_sends(*[client_frame(TEXT, b"a")] * 3)),
    Reason.BYTE_RATE: ({"byte_rate_per_s": 10}, peer_sends(*[client_frame(TEXT, b"0123456")] * 2)),
    Reason.HEARTBEAT_TIMEOUT: (
        {"ping_interval_ms": 1_000, "pong_timeout_ms": 1_000},
        peer_sends_and_waits(5_000),
    ),
    Reason.IDLE_TIMEOUT: ({"idle_timeout_ms": 1_000, **QUIET}, peer_sends_and_waits(2_000)),
    Reason.TOKEN_EXPIRED: ({}, late),
    Reason.AUTH_TIMEOUT: ({}, late_to_authenticate),
    Reason.SLOW_CONSUMER: ({"outbox_frames": 1}, overflow),
    Reason.OUTBOX_AGE: ({"outbox_age_ms": 3_000, "write_timeout_ms": 60_000, **QUIET}, grow_old),
    Reason.PARTIAL_BYTES: ({}, limit_partial_bytes),
    Reason.SHED: ({}, run_out_of_memory),
    Reason.INVALID_DEFLATE: (
        {"variant_opcodes": (TEXT | event_kinds.DEFLATED,)},
        peer_sends(client_frame(TEXT | event_kinds.DEFLATED, b"\xff")),
    ),
    Reason.INTERNAL: ({"outbox_frames": 2}, break_the_encoder),
}

# Reasons without a close code that a test here could provoke: the shard sets them, or no peer can read them.
NOT_FOUND_BY_THE_REACTOR = {
    Reason.WRITE_STALL,  # a reset, because a Close could not be written either; tested below
    Reason.APPLICATION,  # the application's own code
    Reason.SHUTDOWN,  # set by the application too, as the following ones are by the shard
    Reason.INVALID_TOKEN,
    Reason.BAD_MESSAGES,
    Reason.UNSUPPORTED_DATA,
    Reason.DRAIN,
    Reason.KEY_AWAITED,
    Reason.KICKED,
    Reason.USER_CONNECTIONS,
    Reason.REPLACED,
    Reason.TOKEN_NOT_YET_VALID,
    Reason.OUT_OF_MEMORY,  # needs malloc to fail
}


def test_every_reason_with_a_close_code_has_a_test_or_an_exception() -> None:
    promised = {reason for reason, row in REASONS.items() if row.close_code}
    assert promised == set(CLOSED_WITH) | NOT_FOUND_BY_THE_REACTOR


@pytest.mark.parametrize("reason", CLOSED_WITH, ids=lambda reason: reason.name.lower())
def test_peer_reads_the_close_code_that_the_registry_has_for_the_reason(
    reason: Reason, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, drive = CLOSED_WITH[reason]
    unraisable: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda info: unraisable.append(info.exc_type))
    with rig(Settings(**changes), gap_encoder=raise_error) as bench:
        peer = bench.connect(send_buffer_bytes=1)
        drive(bench, peer)
        frames = peer.frames()
        for _ in range(TURNS):
            bench.turn()
            frames += peer.frames()
        peer.close()
        bench.turn()
        reported = [(kind, value) for kind, value in bench.of(peer) if kind not in (TEXT, BINARY)]
        counters = bench.reactor.counters()
    code = REASONS[reason].close_code
    assert frames[-1].opcode == CLOSE
    assert close_code(frames[-1]) == code
    assert reported == [
        (event_kinds.PEER_CLOSED if reason is Reason.PEER_CLOSED else event_kinds.FAILING, code),
        (event_kinds.CLOSED, reason),
    ]
    assert {name for name in counters if name.startswith("ended_") and counters[name]} == {
        f"ended_{reason.name.lower()}"
    }
    assert unraisable == ([ArithmeticError] if reason is Reason.INTERNAL else [])


def test_write_stall_resets_the_connection_without_a_close_frame_and_is_counted() -> None:
    with rig(Settings(write_timeout_ms=2_000, outbox_age_ms=60_000, ping_interval_ms=0)) as bench:
        peer = bench.connect(send_buffer_bytes=1)
        bench.reactor.send(peer.conn, bytes(100_000))
        bench.turn()
        bench.pass_ms(3_000)
        assert bench.of(peer) == [(event_kinds.CLOSED, Reason.WRITE_STALL)]
        assert bench.count("ended_write_stall") == 1
        assert all(frame.opcode != CLOSE for frame in peer.frames())


ANSWERED_WITH: dict[Reason, tuple[dict[str, int], Drive]] = {
    Reason.HEAD_TIMEOUT: ({"head_timeout_ms": 1_000}, peer_sends_and_waits(2_000, HEAD[:-2])),
    Reason.HEAD_TOO_LARGE: ({"head_limit_bytes": 64}, peer_sends(b"GET /", b"a" * 100)),
    Reason.UPGRADE_TIMEOUT: ({"upgrade_timeout_ms": 1_000}, peer_sends_and_waits(2_000, HEAD)),
}


@pytest.mark.parametrize("reason", ANSWERED_WITH, ids=lambda reason: reason.name.lower())
def test_peer_reads_the_http_status_that_the_registry_has_for_the_reason(reason: Reason) -> None:
    changes, drive = ANSWERED_WITH[reason]
    with rig(Settings(**changes)) as bench:  # type: ignore[arg-type]
        peer = bench.connect(upgraded=False)
        drive(bench, peer)
        answer = peer.receive()
        assert peer.ended
        peer.close()
        bench.turn()
        status = re.match(rb"HTTP/1\.1 (\d{3}) [ -~]+\r\n([ -~]+\r\n)*\r\n\Z", answer)
        assert status is not None
        assert int(status[1]) == REASONS[reason].http_status
        assert bench.count(f"ended_{reason.name.lower()}") == 1
        opened = reason is Reason.UPGRADE_TIMEOUT
        assert [kind for kind, _ in bench.of(peer)] == (
            [event_kinds.OPEN, event_kinds.CLOSED] if opened else []
        )
