"""The load engine against a server that does wrong by seed: it must report just what was done."""

import dataclasses
import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from loadtest.engine import (
    ConnectPlan,
    EchoPlan,
    Engine,
    EngineBusyError,
    EngineError,
    EngineLimitError,
    EngineSettings,
    Stats,
    stamp,
)
from loadtest.engine.results import ConnectResult
from tests.support.lossy_server import FAULTY_FRAMES, LossyServer

WAIT_S = 5.0


class Rig:
    """One server and one engine."""

    def __init__(self, server: LossyServer, engine: Engine) -> None:
        self.server = server
        self.engine = engine

    def connect(self, path: str, count: int = 1, **fields: object) -> ConnectResult:
        fields = {"count": count, "host": "127.0.0.1", "port": self.server.port, "path": path} | fields
        return self.engine.connect(ConnectPlan(**fields))  # type: ignore[arg-type]

    def opened(self, path: str, count: int = 1, **fields: object) -> None:
        result = self.connect(path, count, **fields)
        assert result["opened"] == result["requested"] == count, result

    def until(self, name: str, wanted: int) -> Stats:
        """Run the engine until a counter of its own or of the server reaches a value."""
        end = time.monotonic() + WAIT_S
        while True:
            stats = self.engine.stats()
            value = stats.get(name, self.server.seen[name])
            if value >= wanted:  # type: ignore[operator]
                return stats
            assert time.monotonic() < end, (name, value, wanted, stats, self.server.seen)
            self.engine.hold(0.01)


@pytest.fixture
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """Serve and connect with small settings; a test may pass its own by indirection."""
    settings = getattr(request, "param", EngineSettings(max_connections=600))
    with LossyServer(seed=1) as server:
        with Engine(settings) as engine:
            yield Rig(server, engine)
            assert server.seen["client faults"] == 0


def wait_for(claim: Callable[[], bool], engine: Engine) -> None:
    end = time.monotonic() + WAIT_S
    while not claim():
        assert time.monotonic() < end
        engine.hold(0.01)


def assert_clean(stats: Stats) -> None:
    names = ("gaps", "missing", "duplicates", "reordered", "misrouted", "gaps_forgotten", "pongs_dropped")
    for name in names:
        assert stats[name] == 0, (name, stats)  # type: ignore[literal-required]
    assert stats["protocol_errors"] == {} and stats["unexpected_disconnects"] == 0


def assert_inflicted(server: LossyServer, stats: Stats) -> None:
    assert server.inflicted.dropped and server.inflicted.duplicated and server.inflicted.reordered
    assert stats["missing"] == stats["gaps"] == server.inflicted.dropped
    assert stats["duplicates"] == server.inflicted.duplicated
    assert stats["reordered"] == server.inflicted.reordered


# Opening


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/bad/accept", {"bad_accept": 3}),
        ("/bad/no-accept", {"bad_accept": 3}),
        ("/bad/upgrade", {"bad_upgrade": 3}),
        ("/bad/extension", {"bad_extension": 3}),
        ("/bad/subprotocol", {"bad_subprotocol": 3}),
        ("/garbage", {"bad_head": 3}),
        ("/hang-up", {"eof": 3}),
    ],
)
def test_a_wrong_response_is_a_failure_by_name(rig: Rig, path: str, wanted: dict[str, int]) -> None:
    result = rig.connect(path, 3)
    assert (result["opened"], result["refused"], result["failed"]) == (0, {}, wanted)
    assert rig.engine.stats()["connects_failed"] == wanted


def test_refusals_are_counted_by_status(rig: Rig) -> None:
    for status, count in ((503, 3), (429, 2), (200, 1)):
        result = rig.connect(f"/status/{status}", count, is_refusal_reset=status == 429)
        assert (result["opened"], result["refused"], result["failed"]) == (0, {str(status): count}, {})
    stats = rig.engine.stats()
    assert stats["connects_refused"] == {"503": 3, "429": 2, "200": 1}
    assert stats["connect_latency"]["count"] == 0


def test_silence_ends_at_the_deadline(rig: Rig) -> None:
    assert rig.connect("/silent", 3, timeout_s=0.1)["failed"] == {"timeout": 3}


def test_a_closed_port_is_refused_by_errno() -> None:
    with socket.socket() as closed, Engine(EngineSettings(max_connections=4)) as engine:
        closed.bind(("127.0.0.1", 0))
        result = engine.connect(ConnectPlan(count=4, host="127.0.0.1", port=closed.getsockname()[1]))
    assert result["failed"] == {"ECONNREFUSED": 4}


def test_a_head_in_single_bytes_and_frames_glued_to_a_head(rig: Rig) -> None:
    rig.opened("/split-head", 2)
    rig.opened("/glued", 2)
    assert_clean(rig.until("messages", 6))


@pytest.mark.parametrize(
    "rig", [EngineSettings(max_connections=9, first_source="127.9.0.1", source_count=3)], indirect=True
)
def test_sources_rotate_and_the_table_has_an_end(rig: Rig) -> None:
    rig.opened("/hold", 9)
    assert rig.server.sources == {"127.9.0.1": 3, "127.9.0.2": 3, "127.9.0.3": 3}
    with pytest.raises(EngineLimitError, match="0 slots"):
        rig.connect("/hold")
    assert rig.connect("/hold", 2, is_overcommitted=True)["failed"] == {"no_slot": 2}
    rig.engine.close("reset", count=1)
    rig.opened("/hold")
    rig.engine.close("reset")
    # A storm of refusals may be larger than the table: refused slots are used again.
    storm = rig.connect("/status/503", 40, window=9, is_overcommitted=True, is_refusal_reset=True)
    assert storm["refused"] == {"503": 40}


def test_requests_carry_headers_tokens_and_indexes(rig: Rig) -> None:
    headers = (("Authorization", "Bearer {token}"), ("Sec-WebSocket-Protocol", "other, wsgate.v1"))
    rig.opened("/subprotocol", 3, headers=headers, tokens=("aa", "b"), first_index=7)
    rig.opened("/hold?n={index}", 1, first_index=2)
    seen = [(head.path, head.headers.get("Authorization")) for head in rig.server.heads]
    assert sorted(seen[:3], key=str) == [
        ("/subprotocol", "Bearer aa"),
        ("/subprotocol", "Bearer aa"),
        ("/subprotocol", "Bearer b"),
    ]
    assert seen[3] == ("/hold?n=2", None)
    keys = {head.headers["Sec-WebSocket-Key"] for head in rig.server.heads}
    assert len(keys) == 4


def test_an_open_loop_of_connects_starts_by_the_clock(rig: Rig) -> None:
    result = rig.connect("/hold", 40, rate_per_s=400)
    assert result["opened"] == 40 and result["elapsed_s"] >= 39 / 400
    stats = rig.engine.stats()
    assert stats["connect_latency"]["count"] == stats["connect_lag"]["count"] == 40


# Frames


@pytest.mark.parametrize("fault", sorted(FAULTY_FRAMES))
def test_a_faulty_frame_is_counted_by_name_and_ends_the_connection(rig: Rig, fault: str) -> None:
    rig.opened(f"/fault/{fault}", 2)
    rig.until("close 1002", 2)
    stats = rig.engine.stats()
    assert stats["protocol_errors"] == {fault: 2}
    assert (stats["open"], stats["messages"], stats["unexpected_disconnects"]) == (0, 0, 0)


@pytest.mark.parametrize("most", [1, 2, 7, 1_000])
@pytest.mark.parametrize("size", [48, 126, 700])
def test_an_honest_server_is_clean_however_the_bytes_are_cut(rig: Rig, most: int, size: int) -> None:
    count = 20 if most < 7 else 100
    rig.opened(f"/publish?count={count}&size={size}&most={most}&fragments=1&json=1&streams=2", 3)
    stats = rig.until("messages", 6 * count)
    assert_clean(stats)
    assert stats["stamped"] == stats["text_messages"] == stats["delivery_latency"]["count"] == 6 * count
    assert stats["message_bytes"] == 6 * count * (size + len('{"op":"msg","data":""}'))
    rig.until("pongs", stats["pings_answered"])
    assert rig.server.seen["pongs"] == rig.server.seen["pong b'mid'"] == stats["pings_answered"] > 0
    assert stats["memory_bytes"]["partials"] == stats["memory_bytes"]["holes"] == 0


def test_long_messages_are_counted_whole(rig: Rig) -> None:
    rig.opened("/publish?count=3&size=200000")
    stats = rig.until("messages", 3)
    assert_clean(stats)
    assert (stats["message_bytes"], stats["stamped"]) == (600_000, 3)
    assert stats["memory_bytes"]["partials"] == 0


def test_every_ping_is_answered_with_its_payload(rig: Rig) -> None:
    rig.opened("/ping?count=20&size=60", 2)
    rig.until("pongs", 40)
    assert rig.engine.stats()["pings_answered"] == 40
    wanted = {f"pong {b'%d' % n * 60!r}": 2 for n in range(20)}
    assert {name: count for name, count in rig.server.seen.items() if name.startswith("pong ")} == wanted


# Loss, doubles, order, time


@pytest.mark.parametrize("seed", range(5))
def test_faults_of_a_publication_are_reported_exactly(rig: Rig, seed: int) -> None:
    rig.server.seed = 100 * seed
    rig.opened("/publish?count=150&faults=1&streams=3&most=900", 4)
    rig.until("published", 4)
    sent = 4 * 3 * 150 - rig.server.inflicted.dropped + rig.server.inflicted.duplicated
    stats = rig.until("messages", sent)
    assert_inflicted(rig.server, stats)
    assert stats["messages"] == stats["stamped"] == sent
    lost = [rig.engine.reconcile(stream, first=0, last=149)["missing"] for stream in range(3)]
    assert sum(lost) == rig.server.inflicted.dropped


@pytest.mark.parametrize("seed", range(3))
def test_faults_of_an_echo_are_reported_exactly(rig: Rig, seed: int) -> None:
    rig.server.seed = 100 * seed
    rig.opened("/echo?faults=1&count=123&tail=3", 4)
    result = rig.engine.echo(EchoPlan(messages_per_connection=123, in_flight=200, drain_s=0.2))
    rig.engine.close()
    assert_inflicted(rig.server, rig.engine.stats())
    assert (result["sent"], result["unsent"]) == (4 * 123, 0)
    assert result["unanswered"] == rig.server.inflicted.dropped + 4 * 3


def test_an_honest_echo_is_clean_and_complete(rig: Rig) -> None:
    rig.opened("/echo", 50)
    plans = (
        EchoPlan(messages_per_connection=20, in_flight=4, is_text=True),
        EchoPlan(messages_per_connection=4, payload_bytes=70_000, connections=5),
        EchoPlan(messages_per_connection=10, rate_per_s=5_000, in_flight=0),
        EchoPlan(duration_s=0.1, rate_per_s=1_000, in_flight=1),
    )
    for plan, sent in zip(plans, (1_000, 20, 500, 100), strict=True):
        result = rig.engine.echo(plan)
        assert (result["sent"], result["received"], result["unsent"]) == (sent, sent, 0)
    stats = rig.engine.stats()
    assert_clean(stats)
    assert stats["echo_latency"]["count"] == stats["echoes_received"] == stats["echoes_sent"] == 1_620
    # Only an open loop can lag behind itself.
    assert stats["send_lag"]["count"] == 600


def test_a_message_is_wrapped_and_carries_its_index(rig: Rig) -> None:
    rig.opened("/hold", 3, first_index=9)
    message = '{"op":"pub","ch":"own:{index}","data":"{stamp}"}'
    plan = EchoPlan(messages_per_connection=2, in_flight=2, is_text=True, message=message, drain_s=0.05)
    assert rig.engine.echo(plan)["sent"] == 6
    wait_for(lambda: len(rig.server.texts) == 6, rig.engine)
    assert sorted(json.loads(text)["ch"] for text in rig.server.texts) == [
        f"own:{index}" for index in (10, 10, 11, 11, 9, 9)
    ]
    assert all(len(json.loads(text)["data"]) == 128 for text in rig.server.texts)
    rig.engine.close("reset")
    rig.opened("/echo", 3)
    plan = dataclasses.replace(plan, messages_per_connection=300, in_flight=70, drain_s=2.0)
    result = rig.engine.echo(plan)
    assert (result["sent"], result["received"]) == (900, 900)
    assert_clean(rig.engine.stats())


def test_an_answer_without_a_stamp_belongs_to_the_oldest_message(rig: Rig) -> None:
    """A pause of 300 ms at 500/s delays 150 of 300, as of stamped ones."""
    rig.opened("/echo?pause_at=75&pause_ms=300", 4)
    plan = EchoPlan(
        duration_s=0.6, rate_per_s=500, in_flight=0, is_text=True, message='{"op":"p"}', answer='{"op":"p'
    )
    result = rig.engine.echo(plan)
    assert result["sent"] == result["received"] == 300
    stats = rig.engine.stats()
    assert stats["echo_latency"]["count"] == 300
    assert stats["echo_latency"]["p99"] > 250_000_000 and stats["echo_latency"]["p90"] > 150_000_000
    # A second plan on the same connections begins with its own first message.
    assert rig.engine.echo(dataclasses.replace(plan, duration_s=0.1))["received"] == 50
    assert_clean(rig.engine.stats())


def test_what_begins_otherwise_is_no_answer(rig: Rig) -> None:
    rig.opened("/echo", 2)
    plan = EchoPlan(
        messages_per_connection=5,
        rate_per_s=1_000,
        in_flight=0,
        is_text=True,
        message='{"op":"ping"}',
        answer='{"op":"pong"}',
        drain_s=0.1,
    )
    result = rig.engine.echo(plan)
    assert (result["sent"], result["received"], result["unanswered"]) == (10, 0, 10)


@pytest.mark.parametrize(
    "rig", [EngineSettings(max_connections=9, counted=('{"op":"wel', '{"op":"sub', "never"))], indirect=True
)
def test_messages_without_a_stamp_are_counted_by_how_they_begin(rig: Rig) -> None:
    rig.opened("/echo", 3)
    rig.engine.send(b'{"op":"welcome"}')
    rig.engine.send(b'{"op":"subbed"}', count=2)
    rig.engine.send(b'{"op":"w')
    rig.engine.send(b'{"op":"welcome","data":"' + stamp(1, 0, 0) + b'"}')
    stats = rig.until("messages", 11)
    assert stats["counted"] == {'{"op":"wel': 3, '{"op":"sub': 2, "never": 0}
    rig.engine.reset_stats()
    assert set(rig.engine.stats()["counted"].values()) == {0}


def test_answers_of_another_connection_are_misrouted(rig: Rig) -> None:
    rig.opened("/misroute", 2)
    result = rig.engine.echo(EchoPlan(messages_per_connection=5, in_flight=5, drain_s=0.1))
    assert (result["received"], result["unanswered"]) == (0, 10)
    assert rig.engine.stats()["misrouted"] == 10


@pytest.mark.parametrize("in_flight", [0, 1])
def test_latency_counts_from_the_intended_time(rig: Rig, in_flight: int) -> None:
    """A pause of 300 ms at 500/s delays 150 of 300 messages; a closed loop would see it in 4."""
    rig.opened("/echo?pause_at=75&pause_ms=300", 4)
    result = rig.engine.echo(EchoPlan(duration_s=0.6, rate_per_s=500, in_flight=in_flight))
    assert result["sent"] == result["received"] == 300
    latency = rig.engine.stats()["echo_latency"]
    assert latency["p99"] > 250_000_000
    # The delayed ones are spread evenly from 300 ms down: a third of all waited 100 ms or more.
    assert latency["p90"] > 150_000_000


def test_a_closed_loop_shows_a_pause_once_per_connection(rig: Rig) -> None:
    rig.opened("/echo?pause_at=75&pause_ms=300", 4)
    rig.engine.echo(EchoPlan(duration_s=0.5))
    latency = rig.engine.stats(with_counts=True)["echo_latency"]
    # 200 ms lie in bucket 18,933.
    slow = sum(count for bucket, count in latency["counts"].items() if int(bucket) > 18_933)
    assert latency["max"] > 250_000_000 and 1 <= slow <= 4


def test_joining_late_is_no_loss_unless_the_start_is_known(rig: Rig) -> None:
    rig.opened("/publish?count=10&first=5", 2)
    assert_clean(rig.until("messages", 20))
    whole = rig.engine.reconcile(0, first=5, last=14)
    assert whole == {"connections": 2, "complete": 2, "incomplete": 0, "silent": 0, "missing": 0}
    more = rig.engine.reconcile(0, first=0, last=16)
    assert (more["incomplete"], more["missing"]) == (2, 2 * (5 + 2))
    assert rig.engine.reconcile(9, first=0, last=9)["silent"] == 2
    known = Engine(EngineSettings(max_connections=2, first_sequence=0))
    with known:
        known.connect(
            ConnectPlan(count=1, host="127.0.0.1", port=rig.server.port, path="/publish?count=10&first=5")
        )
        known.hold(WAIT_S, until_messages=10)
        assert (known.stats()["gaps"], known.stats()["missing"]) == (1, 5)


# Readers that do not read, sockets that do not take


def test_slow_readers_never_read(rig: Rig) -> None:
    rig.opened("/flood?bytes=20000000", 4, slow_share=0.5, receive_buffer_bytes=8_192)
    rig.until("flooded", 2)
    stuck, before = [1], [0]
    while stuck != before:
        rig.engine.hold(0.1)
        stuck, before = sorted(rig.server.written)[:2], stuck
    assert 0 < min(stuck) <= max(stuck) < 20_000_000
    # Of the two at most what came in one segment with the response head.
    stats = rig.engine.stats()
    assert stats["slow"] == 2 and 40_000 <= stats["messages"] <= 40_000 + 2 * 16
    rig.engine.close("reset")


def test_timed_slow_readers_read_at_their_rate(rig: Rig) -> None:
    rig.opened("/flood?bytes=20000000", 2, slow_share=1, slow_bytes_per_s=20_000, receive_buffer_bytes=8_192)
    rig.engine.hold(0.25)
    rig.engine.reset_stats()
    rig.engine.hold(0.5)
    # Five sweeps of 2,000 bytes each, one more or less at the edges; a second is the most that is ever made
    # up for.
    assert 2 * 2_000 <= rig.engine.stats()["bytes_received"] <= 2 * 20_000
    rig.engine.close("reset")


def test_what_a_socket_does_not_take_is_sent_later_and_whole(rig: Rig) -> None:
    rig.opened("/deaf")
    sent = 0
    while rig.engine.stats()["memory_bytes"]["blocks"] == 0 and sent < 1_000:
        sent += rig.engine.send(b"x" * 60_000)
    for _ in range(20):
        sent += rig.engine.send(b"x" * 60_000)
    stats = rig.engine.stats()
    assert stats["memory_bytes"]["blocks"] > 19 * 60_000
    rig.server.release.set()
    end = time.monotonic() + WAIT_S
    while rig.server.seen["messages"] < sent:
        assert time.monotonic() < end
        rig.engine.hold(0.01)
    assert rig.engine.stats()["memory_bytes"]["blocks"] == 0


def test_send_goes_to_some_with_their_index(rig: Rig) -> None:
    rig.opened("/hold", 5, first_index=10)
    assert rig.engine.send(b'{"op":"sub","id":{index}}', first=1, count=3) == 3
    end = time.monotonic() + WAIT_S
    while len(rig.server.texts) < 3:
        assert time.monotonic() < end
        rig.engine.hold(0.01)
    assert sorted(rig.server.texts) == [f'{{"op":"sub","id":{n}}}' for n in (11, 12, 13)]


# Ending


def test_closes_of_the_server_are_answered_and_counted_by_code(rig: Rig) -> None:
    for code in (1000, 1005, 4010):
        rig.opened(f"/close/{code}", 2)
    stats = rig.until("ended_clean", 6)
    assert stats["closes_received"] == {"1000": 2, "1005": 2, "4010": 2}
    assert rig.server.seen["answer 88 8"] == 4 and rig.server.seen["answer 88 6"] == 2
    assert (stats["closes_sent"], stats["unexpected_disconnects"], stats["open"]) == (6, 0, 0)


def test_ends_without_a_close_are_unexpected(rig: Rig) -> None:
    rig.opened("/eof", 2)
    rig.opened("/abort", 2)
    stats = rig.until("unexpected_disconnects", 4)
    assert stats["disconnects"] == {"eof": 2, "ECONNRESET": 2} or stats["disconnects"] == {"eof": 4}


@pytest.mark.parametrize(("mode", "seen"), [("close", "close 1000"), ("reset", "reset"), ("fin", "eof")])
def test_the_ways_to_close(rig: Rig, mode: str, seen: str) -> None:
    rig.opened("/hold", 4, slow_share=0.5)
    assert rig.engine.close(mode, count=1) == {"closed": 1, "timed_out": 0, "remaining": 3}  # type: ignore[arg-type]
    assert rig.engine.close(mode) == {"closed": 3, "timed_out": 0, "remaining": 0}  # type: ignore[arg-type]
    rig.until(seen, 4)
    stats = rig.engine.stats()
    assert (stats["open"], stats["slow"], stats["unexpected_disconnects"]) == (0, 0, 0)


def test_a_close_nobody_answers_ends_at_its_deadline(rig: Rig) -> None:
    rig.opened("/deaf", 2)
    assert rig.engine.close(timeout_s=0.1) == {"closed": 0, "timed_out": 2, "remaining": 0}
    assert rig.engine.stats()["close_timeouts"] == 2


def test_what_ends_during_an_echo_is_accounted_for(rig: Rig) -> None:
    rig.opened("/deaf", 3)
    rig.engine.begin_echo(EchoPlan(messages_per_connection=5, in_flight=2, drain_s=WAIT_S))
    rig.engine.close("reset")
    result = rig.engine.take_echo()
    while result is None:
        rig.engine.step(0.1)
        result = rig.engine.take_echo()
    assert (result["connections"], result["sent"] + result["unsent"], result["received"]) == (3, 15, 0)
    assert result["unanswered"] == result["sent"]


def test_nothing_is_left_when_connections_came_and_went(rig: Rig) -> None:
    for mode in ("close", "reset", "fin"):
        rig.opened("/publish?count=20&faults=1&most=50", 100, first_index=3)
        rig.engine.hold(0.02)
        rig.connect("/status/503", 50)
        rig.engine.close(mode)
    stats = rig.engine.stats()
    memory = stats["memory_bytes"]
    assert (stats["open"], stats["connecting"], stats["closing"]) == (0, 0, 0)
    assert memory["trackers"] == memory["holes"] == memory["partials"] == memory["blocks"] == 0
    # Slots are reused, and one with a tracked stream stays below the promised 200 bytes.
    assert stats["slots_used_most"] <= 150
    assert memory["table"] / stats["slots_used_most"] + 40 < 200


# The face


def test_one_job_of_a_kind_at_a_time(rig: Rig) -> None:
    plan = ConnectPlan(count=1, host="127.0.0.1", port=rig.server.port, path="/hold")
    rig.engine.begin_connect(plan)
    assert rig.engine.take_connect() is None
    with pytest.raises(EngineBusyError):
        rig.engine.begin_connect(plan)
    while (result := rig.engine.take_connect()) is None:
        rig.engine.step(WAIT_S)
    assert result["opened"] == 1 and rig.engine.take_connect() is None
    rig.engine.shut()
    with pytest.raises(EngineError, match="shut"):
        rig.engine.stats()


def test_a_signal_gets_through_a_long_hold(rig: Rig) -> None:
    class Alarm(Exception):
        pass

    def ring(*_: object) -> None:
        raise Alarm

    before = signal.signal(signal.SIGALRM, ring)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(Alarm):
            rig.engine.hold(WAIT_S)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_the_loop_lets_other_threads_run(rig: Rig) -> None:
    held = threading.Thread(target=rig.engine.hold, args=(0.2,))
    held.start()
    turns = 0
    while held.is_alive():
        turns += 1
    held.join()
    assert turns > 100


def test_reset_stats_zeroes_counters_and_keeps_connections(rig: Rig) -> None:
    rig.opened("/echo", 3)
    rig.engine.echo(EchoPlan(messages_per_connection=2))
    rig.engine.reset_stats()
    stats = rig.engine.stats()
    assert (stats["open"], stats["connects_opened"], stats["messages"]) == (3, 0, 0)
    assert stats["echo_latency"]["count"] == stats["connect_latency"]["count"] == 0 == stats["cpu_s"]
    rig.engine.echo(EchoPlan(messages_per_connection=2))
    assert_clean(rig.engine.stats())
