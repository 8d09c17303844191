"""Run the load engine against a server with seeded faults: it must report exactly these faults."""

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


# Opening connections


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
def test_engine_counts_each_wrong_handshake_response_by_its_name(
    rig: Rig, path: str, wanted: dict[str, int]
) -> None:
    result = rig.connect(path, 3)
    assert (result["opened"], result["refused"], result["failed"]) == (0, {}, wanted)
    assert rig.engine.stats()["connects_failed"] == wanted


def test_engine_counts_refusals_by_http_status(rig: Rig) -> None:
    for status, count in ((503, 3), (429, 2), (200, 1)):
        result = rig.connect(f"/status/{status}", count, is_refusal_reset=status == 429)
        assert (result["opened"], result["refused"], result["failed"]) == (0, {str(status): count}, {})
    stats = rig.engine.stats()
    assert stats["connects_refused"] == {"503": 3, "429": 2, "200": 1}
    assert stats["connect_latency"]["count"] == 0


def test_engine_counts_a_silent_handshake_as_a_timeout(rig: Rig) -> None:
    assert rig.connect("/silent", 3, timeout_s=0.1)["failed"] == {"timeout": 3}


def test_engine_counts_a_closed_port_by_its_errno() -> None:
    with socket.socket() as closed, Engine(EngineSettings(max_connections=4)) as engine:
        closed.bind(("127.0.0.1", 0))
        result = engine.connect(ConnectPlan(count=4, host="127.0.0.1", port=closed.getsockname()[1]))
    assert result["failed"] == {"ECONNREFUSED": 4}


def test_engine_accepts_a_response_head_in_single_bytes_and_frames_behind_it(rig: Rig) -> None:
    rig.opened("/split-head", 2)
    rig.opened("/glued", 2)
    assert_clean(rig.until("messages", 6))


@pytest.mark.parametrize(
    "rig", [EngineSettings(max_connections=9, first_source="127.9.0.1", source_count=3)], indirect=True
)
def test_engine_rotates_source_addresses_and_limits_connections_to_its_table(rig: Rig) -> None:
    rig.opened("/hold", 9)
    assert rig.server.sources == {"127.9.0.1": 3, "127.9.0.2": 3, "127.9.0.3": 3}
    with pytest.raises(EngineLimitError, match="0 slots"):
        rig.connect("/hold")
    assert rig.connect("/hold", 2, is_overcommitted=True)["failed"] == {"no_slot": 2}
    rig.engine.close("reset", count=1)
    rig.opened("/hold")
    rig.engine.close("reset")
    # More refusals than slots are possible, because refused slots are used again.
    storm = rig.connect("/status/503", 40, window=9, is_overcommitted=True, is_refusal_reset=True)
    assert storm["refused"] == {"503": 40}


def test_engine_requests_have_headers_rotating_tokens_and_indexes(rig: Rig) -> None:
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


def test_engine_connects_of_an_open_loop_start_at_their_rate(rig: Rig) -> None:
    result = rig.connect("/hold", 40, rate_per_s=400)
    assert result["opened"] == 40 and result["elapsed_s"] >= 39 / 400
    stats = rig.engine.stats()
    assert stats["connect_latency"]["count"] == stats["connect_lag"]["count"] == 40


# Frames


@pytest.mark.parametrize("fault", sorted(FAULTY_FRAMES))
def test_engine_counts_a_faulty_frame_by_name_and_closes_with_1002(rig: Rig, fault: str) -> None:
    rig.opened(f"/fault/{fault}", 2)
    rig.until("close 1002", 2)
    stats = rig.engine.stats()
    assert stats["protocol_errors"] == {fault: 2}
    assert (stats["open"], stats["messages"], stats["unexpected_disconnects"]) == (0, 0, 0)


@pytest.mark.parametrize("most", [1, 2, 7, 1_000])
@pytest.mark.parametrize("size", [48, 126, 700])
def test_engine_reports_no_fault_of_a_correct_server_however_its_bytes_are_cut(
    rig: Rig, most: int, size: int
) -> None:
    count = 20 if most < 7 else 100
    rig.opened(f"/publish?count={count}&size={size}&most={most}&fragments=1&json=1&streams=2", 3)
    stats = rig.until("messages", 6 * count)
    assert_clean(stats)
    assert stats["stamped"] == stats["text_messages"] == stats["delivery_latency"]["count"] == 6 * count
    assert stats["message_bytes"] == 6 * count * (size + len('{"op":"msg","data":""}'))
    rig.until("pongs", stats["pings_answered"])
    assert rig.server.seen["pongs"] == rig.server.seen["pong b'mid'"] == stats["pings_answered"] > 0
    assert stats["memory_bytes"]["partials"] == stats["memory_bytes"]["holes"] == 0


def test_engine_counts_messages_of_200_kb_completely(rig: Rig) -> None:
    rig.opened("/publish?count=3&size=200000")
    stats = rig.until("messages", 3)
    assert_clean(stats)
    assert (stats["message_bytes"], stats["stamped"]) == (600_000, 3)
    assert stats["memory_bytes"]["partials"] == 0


def test_engine_answers_every_ping_with_its_payload(rig: Rig) -> None:
    rig.opened("/ping?count=20&size=60", 2)
    rig.until("pongs", 40)
    assert rig.engine.stats()["pings_answered"] == 40
    wanted = {f"pong {b'%d' % n * 60!r}": 2 for n in range(20)}
    assert {name: count for name, count in rig.server.seen.items() if name.startswith("pong ")} == wanted


# Losses, duplicates, order and time


@pytest.mark.parametrize("seed", range(5))
def test_engine_reports_exactly_the_dropped_repeated_and_reordered_publications(rig: Rig, seed: int) -> None:
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
def test_engine_reports_exactly_the_dropped_repeated_and_reordered_echoes(rig: Rig, seed: int) -> None:
    rig.server.seed = 100 * seed
    rig.opened("/echo?faults=1&count=123&tail=3", 4)
    result = rig.engine.echo(EchoPlan(messages_per_connection=123, in_flight=200, drain_s=0.2))
    rig.engine.close()
    assert_inflicted(rig.server, rig.engine.stats())
    assert (result["sent"], result["unsent"]) == (4 * 123, 0)
    assert result["unanswered"] == rig.server.inflicted.dropped + 4 * 3


def test_engine_reports_no_fault_of_a_correct_echo_for_every_kind_of_plan(rig: Rig) -> None:
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
    # Only an open loop has a lag.
    assert stats["send_lag"]["count"] == 600


def test_engine_messages_are_wrapped_with_the_index_of_their_connection(rig: Rig) -> None:
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


def test_engine_matches_answers_without_a_stamp_to_the_oldest_message(rig: Rig) -> None:
    """A pause of 300 ms at 500/s delays 150 of 300 messages, as with stamped ones."""
    rig.opened("/echo?pause_at=75&pause_ms=300", 4)
    plan = EchoPlan(
        duration_s=0.6, rate_per_s=500, in_flight=0, is_text=True, message='{"op":"p"}', answer='{"op":"p'
    )
    result = rig.engine.echo(plan)
    assert result["sent"] == result["received"] == 300
    stats = rig.engine.stats()
    assert stats["echo_latency"]["count"] == 300
    assert stats["echo_latency"]["p99"] > 250_000_000 and stats["echo_latency"]["p90"] > 150_000_000
    # A second plan on the same connections starts with its own first message.
    assert rig.engine.echo(dataclasses.replace(plan, duration_s=0.1))["received"] == 50
    assert_clean(rig.engine.stats())


def test_engine_counts_a_message_with_another_beginning_as_no_answer(rig: Rig) -> None:
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
def test_engine_counts_messages_without_a_stamp_by_their_beginning(rig: Rig) -> None:
    rig.opened("/echo", 3)
    rig.engine.send(b'{"op":"welcome"}')
    rig.engine.send(b'{"op":"subbed"}', count=2)
    rig.engine.send(b'{"op":"w')
    rig.engine.send(b'{"op":"welcome","data":"' + stamp(1, 0, 0) + b'"}')
    stats = rig.until("messages", 11)
    assert stats["counted"] == {'{"op":"wel': 3, '{"op":"sub': 2, "never": 0}
    rig.engine.reset_stats()
    assert set(rig.engine.stats()["counted"].values()) == {0}


def test_engine_counts_answers_to_another_connection_as_misrouted(rig: Rig) -> None:
    rig.opened("/misroute", 2)
    result = rig.engine.echo(EchoPlan(messages_per_connection=5, in_flight=5, drain_s=0.1))
    assert (result["received"], result["unanswered"]) == (0, 10)
    assert rig.engine.stats()["misrouted"] == 10


@pytest.mark.parametrize("in_flight", [0, 1])
def test_engine_latency_of_an_open_loop_counts_from_the_intended_time(rig: Rig, in_flight: int) -> None:
    """A pause of 300 ms at 500/s delays 150 of 300 messages; a closed loop would see it in 4."""
    rig.opened("/echo?pause_at=75&pause_ms=300", 4)
    result = rig.engine.echo(EchoPlan(duration_s=0.6, rate_per_s=500, in_flight=in_flight))
    assert result["sent"] == result["received"] == 300
    latency = rig.engine.stats()["echo_latency"]
    assert latency["p99"] > 250_000_000
    # The delays are spread evenly from 300 ms to 0: a third of all messages waited 100 ms or more.
    assert latency["p90"] > 150_000_000


def test_engine_latency_of_a_closed_loop_shows_a_pause_once_per_connection(rig: Rig) -> None:
    rig.opened("/echo?pause_at=75&pause_ms=300", 4)
    rig.engine.echo(EchoPlan(duration_s=0.5))
    latency = rig.engine.stats(with_counts=True)["echo_latency"]
    # 200 ms are in bucket 18,933.
    slow = sum(count for bucket, count in latency["counts"].items() if int(bucket) > 18_933)
    assert latency["max"] > 250_000_000 and 1 <= slow <= 4


def test_engine_counts_missing_first_publications_only_if_the_first_number_is_known(rig: Rig) -> None:
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


# Readers that do not read, and full sockets


def test_engine_slow_readers_read_nothing_while_the_others_read_all(rig: Rig) -> None:
    rig.opened("/flood?bytes=20000000", 4, slow_share=0.5, receive_buffer_bytes=8_192)
    rig.until("flooded", 2)
    stuck, before = [1], [0]
    while stuck != before:
        rig.engine.hold(0.1)
        stuck, before = sorted(rig.server.written)[:2], stuck
    assert 0 < min(stuck) <= max(stuck) < 20_000_000
    # The slow readers have at most the data that came in one segment with the response head.
    stats = rig.engine.stats()
    assert stats["slow"] == 2 and 40_000 <= stats["messages"] <= 40_000 + 2 * 16
    rig.engine.close("reset")


def test_engine_slow_readers_with_a_rate_read_at_that_rate(rig: Rig) -> None:
    rig.opened("/flood?bytes=20000000", 2, slow_share=1, slow_bytes_per_s=20_000, receive_buffer_bytes=8_192)
    rig.engine.hold(0.25)
    rig.engine.reset_stats()
    rig.engine.hold(0.5)
    # Five sweeps of 2,000 bytes each, one more or less at the edges; a delay of at most one second is made
    # up for.
    assert 2 * 2_000 <= rig.engine.stats()["bytes_received"] <= 2 * 20_000
    rig.engine.close("reset")


def test_engine_sends_messages_completely_after_a_full_socket_drains(rig: Rig) -> None:
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


def test_engine_send_reaches_a_range_of_connections_with_their_indexes(rig: Rig) -> None:
    rig.opened("/hold", 5, first_index=10)
    assert rig.engine.send(b'{"op":"sub","id":{index}}', first=1, count=3) == 3
    end = time.monotonic() + WAIT_S
    while len(rig.server.texts) < 3:
        assert time.monotonic() < end
        rig.engine.hold(0.01)
    assert sorted(rig.server.texts) == [f'{{"op":"sub","id":{n}}}' for n in (11, 12, 13)]


# Ending connections


def test_engine_answers_closes_of_the_server_and_counts_them_by_code(rig: Rig) -> None:
    for code in (1000, 1005, 4010):
        rig.opened(f"/close/{code}", 2)
    stats = rig.until("ended_clean", 6)
    assert stats["closes_received"] == {"1000": 2, "1005": 2, "4010": 2}
    assert rig.server.seen["answer 88 8"] == 4 and rig.server.seen["answer 88 6"] == 2
    assert (stats["closes_sent"], stats["unexpected_disconnects"], stats["open"]) == (6, 0, 0)


def test_engine_counts_ends_without_a_close_as_unexpected(rig: Rig) -> None:
    rig.opened("/eof", 2)
    rig.opened("/abort", 2)
    stats = rig.until("unexpected_disconnects", 4)
    assert stats["disconnects"] == {"eof": 2, "ECONNRESET": 2} or stats["disconnects"] == {"eof": 4}


@pytest.mark.parametrize(("mode", "seen"), [("close", "close 1000"), ("reset", "reset"), ("fin", "eof")])
def test_engine_closes_connections_with_a_close_a_reset_or_a_fin(rig: Rig, mode: str, seen: str) -> None:
    rig.opened("/hold", 4, slow_share=0.5)
    assert rig.engine.close(mode, count=1) == {"closed": 1, "timed_out": 0, "remaining": 3}  # type: ignore[arg-type]
    assert rig.engine.close(mode) == {"closed": 3, "timed_out": 0, "remaining": 0}  # type: ignore[arg-type]
    rig.until(seen, 4)
    stats = rig.engine.stats()
    assert (stats["open"], stats["slow"], stats["unexpected_disconnects"]) == (0, 0, 0)


def test_engine_close_without_an_answer_ends_at_its_deadline(rig: Rig) -> None:
    rig.opened("/deaf", 2)
    assert rig.engine.close(timeout_s=0.1) == {"closed": 0, "timed_out": 2, "remaining": 0}
    assert rig.engine.stats()["close_timeouts"] == 2


def test_engine_counts_echoes_of_connections_that_end_as_unanswered_or_unsent(rig: Rig) -> None:
    rig.opened("/deaf", 3)
    rig.engine.begin_echo(EchoPlan(messages_per_connection=5, in_flight=2, drain_s=WAIT_S))
    rig.engine.close("reset")
    result = rig.engine.take_echo()
    while result is None:
        rig.engine.step(0.1)
        result = rig.engine.take_echo()
    assert (result["connections"], result["sent"] + result["unsent"], result["received"]) == (3, 15, 0)
    assert result["unanswered"] == result["sent"]


def test_engine_returns_its_memory_after_connections_have_ended(rig: Rig) -> None:
    for mode in ("close", "reset", "fin"):
        rig.opened("/publish?count=20&faults=1&most=50", 100, first_index=3)
        rig.engine.hold(0.02)
        rig.connect("/status/503", 50)
        rig.engine.close(mode)
    stats = rig.engine.stats()
    memory = stats["memory_bytes"]
    assert (stats["open"], stats["connecting"], stats["closing"]) == (0, 0, 0)
    assert memory["trackers"] == memory["holes"] == memory["partials"] == memory["blocks"] == 0
    # Slots are reused, and a slot with a tracked stream stays below 200 bytes.
    assert stats["slots_used_most"] <= 150
    assert memory["table"] / stats["slots_used_most"] + 40 < 200


# The interface


def test_engine_refuses_a_second_job_of_a_kind_and_every_call_after_shut(rig: Rig) -> None:
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


def test_signal_handler_runs_during_a_long_hold_of_the_engine(rig: Rig) -> None:
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


def test_other_threads_run_during_a_hold_of_the_engine(rig: Rig) -> None:
    held = threading.Thread(target=rig.engine.hold, args=(0.2,))
    held.start()
    turns = 0
    while held.is_alive():
        turns += 1
    held.join()
    assert turns > 100


def test_engine_reset_stats_clears_counters_and_keeps_connections(rig: Rig) -> None:
    rig.opened("/echo", 3)
    rig.engine.echo(EchoPlan(messages_per_connection=2))
    rig.engine.reset_stats()
    stats = rig.engine.stats()
    assert (stats["open"], stats["connects_opened"], stats["messages"]) == (3, 0, 0)
    assert stats["echo_latency"]["count"] == stats["connect_latency"]["count"] == 0 == stats["cpu_s"]
    rig.engine.echo(EchoPlan(messages_per_connection=2))
    assert_clean(rig.engine.stats())
