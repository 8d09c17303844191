"""Make wrong calls to the reactor: each is refused or harmless. Code that may crash runs in a child."""

import os
import socket
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.frames import CLOSE, TEXT, ServerFrame, client_close, client_frame
from tests.support.reactor_rig import Rig, rig
from tests.support.tcp_rig import HEAD, is_readable, open_descriptors, run_child
from wsgate.errors import WsgateError
from wsgate.reactor import Reactor, Settings, event_kinds
from wsgate.reasons import Reason

REFUSED: tuple[type[Exception], ...] = (WsgateError, ValueError, OverflowError, TypeError, AttributeError)


def output_of_child(code: str) -> str:
    """Run code in a child with checked memory and return its output; a crash fails the test."""
    child = run_child(code, debug_malloc=True)
    assert child.returncode == 0, child.stderr[-2000:]
    return child.stdout


PRELUDE = """
import socket
from tests.support.reactor_rig import rig
from tests.support.frames import *
from wsgate.reactor import Reactor, Settings
def pair(reactor):
    ours, theirs = socket.socketpair()
    return reactor.adopt(ours.detach(), now_ms=0, upgraded=True), theirs
"""


# --- children ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        "reactor.send(conn, None)",
        "reactor.send(conn, None, 2)",
        "reactor.upgrade(conn, None)",
        "reactor.refuse(conn, None)",
        "reactor.close(conn, 1000, None)",
        "reactor.subscribe(conn, None)",
        "reactor.unsubscribe(conn, None)",
        "reactor.subscribers(None)",
        "reactor.publish(None, [b'x'])",
        "reactor.publish(b'c', None)",
        "reactor.publish(b'c', ['text'])",
        "reactor.publish(b'c', [bytearray(b'x')])",
        "reactor.publish(b'c', [b'x'] * 9)",
        "reactor.send(conn, 'text')",
        "reactor.send(conn, bytearray(b'x'))",
        "reactor.set_gate(None, b'')",
        "reactor.set_gate(__import__('wsgate.reactor').reactor.GateLimits(), None)",
        "reactor.set_bye(1000, [1])",
        "reactor.set_bye(1000, [b'x'] * 9)",
        "reactor.poll(None)",
        "reactor.tick('1')",
        "reactor.__init__(now_ms=0)",
        "__import__('copy').copy(reactor)",
        "__import__('pickle').dumps(reactor)",
    ],
)
def test_call_with_a_wrong_type_raises_and_sends_no_byte(call: str) -> None:
    """The exception names the fault; nothing crashes, and no foreign memory goes to the peer."""
    with rig() as bench:
        peer = bench.connect()
        bench.reactor.subscribe(peer.conn, b"c")
        scope: dict[str, Any] = {"reactor": bench.reactor, "conn": peer.conn}
        with pytest.raises(REFUSED):
            eval(call, scope)
        bench.turn()
        assert peer.receive() == b""
        peer.send(client_frame(TEXT, b"alive"))
        bench.turn()
        assert bench.of(peer) == [(event_kinds.TEXT, b"alive")]


@pytest.mark.parametrize(
    "make",
    [
        "Reactor(now_ms=0, hash_key=b'short')",
        "Reactor(now_ms=0, hash_key='sixteen letters!')",
        "Reactor(now_ms='0')",
        "Reactor(now_ms=2**64)",
        "Reactor()",
        "Reactor(Settings(head_limit_bytes=1), now_ms=0)",
        "Reactor(Settings(variant_opcodes=()), now_ms=0)",
        "Reactor(Settings(head_timeout_response='text'), now_ms=0)",
        "Reactor('settings', now_ms=0)",
        "Reactor.__new__(Reactor).poll(0)",
        "Reactor.__new__(Reactor).send(1, b'x')",
    ],
)
def test_failed_constructor_closes_no_descriptor_of_the_process(make: str) -> None:
    """The constructor raises or was never called, and then the object is collected."""
    code = f"""{PRELUDE}
import os
taken = [os.dup(2) for _ in range(20)]
try: {make}
except Exception as fault: print("refused")
import gc; gc.collect()
for fd in [0, 1, 2, *taken]: os.fstat(fd)
"""
    assert output_of_child(code) == "refused\n"


@pytest.mark.parametrize(
    "action",
    [
        "self.reactor.shutdown()",
        "keep.append(pair(self.reactor))",
        "self.reactor.poll(0)",
        "self.reactor.send(conn, b'x'); self.reactor.abort(conn); self.reactor.flush(0)",
        "self.reactor.set_meta(conn, self)",
        "self.reactor.subscribe(conn, b'c')",
        "self.reactor.tick(10**9)",
    ],
)
def test_meta_object_that_calls_the_reactor_in_del_finds_it_shut_down(action: str) -> None:
    """`shutdown` drops the objects of the caller, and their `__del__` calls the reactor."""
    code = f"""{PRELUDE}
class Meta:
    def __init__(self, reactor): self.reactor = reactor
    def __del__(self):
        try:
            {action}
        except Exception as fault:
            print(type(fault).__name__)
keep = []
reactor = Reactor(now_ms=0)
conns = [pair(reactor) for _ in range(3)]
conn = conns[0][0]
for each, _ in conns: reactor.set_meta(each, Meta(reactor))
reactor.shutdown()
assert reactor.fileno() == -1
assert not any(reactor.bytes_held().values()), reactor.bytes_held()
"""
    assert set(output_of_child(code).split()) <= {"InternalError"}


def test_variants_sequence_with_a_wrong_length_is_refused_without_a_write_past_the_end() -> None:
    """The `__len__` of the sequence returns 1, but it yields 200 items."""
    code = f"""{PRELUDE}
class Liar(list):
    def __len__(self): return 1
with rig() as bench:
    peer = bench.connect()
    bench.reactor.subscribe(peer.conn, b"c")
    for call in (lambda: bench.reactor.publish(b"c", Liar([b"x"] * 200)),
                 lambda: bench.reactor.set_bye(4000, Liar([b"x"] * 200))):
        try: call()
        except (ValueError, IndexError): print("refused")
"""
    assert output_of_child(code) == "refused\nrefused\n"


def test_variants_that_unsubscribe_the_channel_while_they_are_read_reach_no_connection() -> None:
    """Iterating over the variants unsubscribes every connection in the middle of a publication."""
    code = f"""{PRELUDE}
class Trickster(list):
    def __iter__(self):
        yield b"first"
        for conn in conns: bench.reactor.unsubscribe(conn, b"c")
        for conn in conns: bench.reactor.subscribe(conn, b"other")
        yield b"second"
with rig(Settings(variant_opcodes=(1, 2))) as bench:
    peers = [bench.connect() for _ in range(3)]
    conns = [peer.conn for peer in peers]
    for conn in conns: bench.reactor.subscribe(conn, b"c")
    try:
        reached = bench.reactor.publish(b"c", Trickster([b"a", b"b"]))
    except Exception:
        reached = 0
    bench.turn()
    assert reached == 0, "no connection is subscribed any more"
    for peer in peers: peer.close()
    bench.turn()
    assert bench.count("now_channels") == 0
    assert bench.held()["frame"] <= 512
"""
    output_of_child(code)


@pytest.mark.parametrize("seed", range(6))
def test_random_bytes_and_calls_keep_every_promise_about_events_and_memory(seed: int) -> None:
    """The child runs with checked memory; all memory is returned at the end."""
    code = f"""
import sys
sys.unraisablehook = lambda unraisable: None
from tests.support.reactor_fuzz import Fuzz
Fuzz({seed}).run(4000)
print("sound")
"""
    assert output_of_child(code) == "sound\n"


def test_interpreter_exit_with_open_connections_and_cycles_does_not_crash() -> None:
    """The reactor is not shut down, and a meta object in a cycle calls it at the end."""
    output_of_child(f"""{PRELUDE}
class Meta:
    def __del__(self):
        try: self.reactor.poll(0)
        except Exception: pass
reactor = Reactor(now_ms=0, gap_encoder=lambda *_: b"")
conn, peer = pair(reactor)
meta = Meta(); meta.reactor = reactor; meta.me = meta
reactor.set_meta(conn, meta)
reactor.send(conn, b"x" * 500_000)
reactor.flush(0)
""")


# --- handles ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "handle", [0, 1, 0xFFFFFFFF, 2**32, 2**32 + 1023, 2**32 + 1024, 2**63, 2**64 - 1, 2**64 - 2]
)
def test_every_call_with_an_invented_handle_is_refused_and_counted_as_stale(handle: int) -> None:
    """The handles are of free slots, of former connections, or outside of the table."""
    with rig() as bench:
        bench.connect()  # has the handle 2**32
        if handle == 2**32:
            bench.reactor.abort(handle)
        reactor = bench.reactor
        calls: list[Callable[[], object]] = [
            lambda: reactor.send(handle, b"x"),
            lambda: reactor.upgrade(handle, b"x"),
            lambda: reactor.refuse(handle, b"x"),
            lambda: reactor.close(handle, 1000),
            lambda: reactor.abort(handle),
            lambda: reactor.pause_reading(handle),
            lambda: reactor.resume_reading(handle),
            lambda: reactor.subscribe(handle, b"c"),
            lambda: reactor.set_meta(handle, 1),
            lambda: reactor.set_deadline(handle, 1, 4000),
            lambda: reactor.meta(handle),
            lambda: reactor.peer(handle),
            lambda: reactor.inspect(handle),
            lambda: reactor.subscriptions(handle),
        ]
        before = bench.count("stale")
        assert not any(call() for call in calls)
        assert reactor.unsubscribe(handle, b"c") == -1
        assert bench.count("stale") == before + len(calls) + 1


@pytest.mark.parametrize("handle", [-1, 2**64, 10**30])
def test_handle_outside_of_64_bits_raises_overflow_error(handle: int) -> None:
    """A handle is an unsigned number of 64 bits."""
    with rig() as bench, pytest.raises(OverflowError):
        bench.reactor.send(handle, b"x")


def test_former_handle_of_a_reused_slot_never_reaches_its_successor() -> None:
    """A thousand connections use one slot, one after the other."""
    with rig() as bench:
        former: list[int] = []
        for _ in range(1000):
            peer = bench.connect()
            assert peer.conn not in former[-50:]
            for handle in former[-5:]:
                assert not bench.reactor.send(handle, b"for another")
            bench.reactor.abort(peer.conn)
            bench.turn()
            peer.close()
            former.append(peer.conn)
        assert bench.held()["outbox"] == 0
        assert len({handle & 0xFFFFFFFF for handle in former}) <= 2


# --- sockets ----------------------------------------------------------------------------------------


def odd_descriptor(name: str) -> int:
    """Open a descriptor that is not a connected socket; the caller owns it."""
    if name == "pipe":
        read_end, write_end = os.pipe()
        os.close(write_end)
        return read_end
    if name == "file":
        return os.open(tempfile.gettempdir(), os.O_TMPFILE | os.O_RDWR)
    if name == "null":
        return os.open("/dev/null", os.O_RDWR)
    return socket.socket().detach()


@pytest.mark.parametrize("name", ["pipe", "file", "null", "unconnected"])
def test_adopting_a_file_or_unconnected_socket_raises_or_closes_the_connection_at_once(name: str) -> None:
    """After an OSError the descriptor still belongs to the caller."""
    descriptor = odd_descriptor(name)
    with rig() as bench:
        try:
            conn = bench.reactor.adopt(descriptor, now_ms=bench.now_ms, upgraded=True)
        except Exception as fault:
            os.close(descriptor)  # it must still be open
            assert isinstance(fault, OSError)
            assert bench.count("now_connections") == 0
            return
        bench.turn()
        assert (event_kinds.CLOSED, conn) in [event[:2] for event in bench.events]
        assert bench.count("now_connections") == 0
        with pytest.raises(OSError):
            os.fstat(descriptor)


@pytest.mark.parametrize("descriptor", [-1, 999_999, -(2**31)])
def test_adopting_a_descriptor_that_is_not_open_raises_os_error(descriptor: int) -> None:
    """The numbers are negative or belong to no open file."""
    with rig() as bench, pytest.raises(OSError):
        bench.reactor.adopt(descriptor, now_ms=bench.now_ms, upgraded=True)


def test_second_adoption_of_a_socket_raises_and_the_first_connection_continues() -> None:
    """The error is an OSError."""
    with rig() as bench:
        peer = bench.connect()
        state = bench.reactor.inspect(peer.conn)
        assert state is not None
        with pytest.raises(OSError):
            bench.reactor.adopt(state["fd"], now_ms=bench.now_ms, upgraded=True)
        peer.send(client_frame(TEXT, b"alive"))
        bench.turn()
        assert bench.messages(peer) == [b"alive"]
        assert bench.count("now_connections") == 1


def test_adopting_without_a_free_slot_raises_and_leaves_the_socket_with_the_caller() -> None:
    """The table has one slot, and it is in use."""
    with rig(Settings(max_connections=1)) as bench:
        bench.connect()
        ours, theirs = socket.socketpair()
        with pytest.raises(MemoryError):
            bench.reactor.adopt(ours.fileno(), now_ms=bench.now_ms, upgraded=True)
        ours.send(b"still mine")
        assert theirs.recv(20) == b"still mine"
        ours.close()
        theirs.close()


@pytest.mark.parametrize("variant", [-1, 1, 8, 255, 256, 2**31])
def test_adopting_with_an_unknown_variant_raises_before_the_descriptor_is_taken(variant: int) -> None:
    """The reactor has one variant, with the number 0."""
    with rig() as bench:
        ours, theirs = socket.socketpair()
        with ours, theirs, pytest.raises((ValueError, OverflowError)):
            bench.reactor.adopt(ours.fileno(), now_ms=bench.now_ms, upgraded=True, variant=variant)
        assert bench.count("now_connections") == 0


# --- calls at the wrong moment ----------------------------------------------------------------------


def test_second_upgrade_is_refused_and_sends_nothing() -> None:
    """An upgrade before the request head, and a refusal after the upgrade, are refused too."""
    with rig() as bench:
        peer = bench.connect(upgraded=False)
        assert not bench.reactor.upgrade(peer.conn, b"too early")
        peer.send(HEAD)
        bench.turn()
        assert bench.reactor.upgrade(peer.conn, b"101")
        assert not bench.reactor.upgrade(peer.conn, b"again")
        assert not bench.reactor.refuse(peer.conn, b"no")
        bench.turn()
        assert peer.receive() == b"101"


def test_upgrade_with_an_empty_answer_leaves_nothing_to_flush() -> None:
    """`flush` reports that nothing waits to be written."""
    with rig() as bench:
        peer = bench.connect(upgraded=False)
        peer.send(HEAD)
        bench.turn()
        bench.reactor.upgrade(peer.conn, b"")
        assert not any(bench.reactor.flush(bench.now_ms) for _ in range(5))
        bench.reactor.send(peer.conn, b"m")
        bench.turn()
        assert peer.frames() == [ServerFrame(TEXT, b"m")]


def test_send_close_and_subscribe_before_the_upgrade_are_refused() -> None:
    """No frame may go to the peer before the 101."""
    with rig() as bench:
        peer = bench.connect(upgraded=False)
        for step in (b"", HEAD):
            peer.send(step)
            bench.turn()
            assert not bench.reactor.send(peer.conn, b"early")
            assert not bench.reactor.close(peer.conn, 1000)
            assert bench.reactor.subscribe(peer.conn, b"c") == 0
        assert peer.receive() == b""


def test_every_call_after_shutdown_raises_or_returns_nothing() -> None:
    """The second `shutdown` raises too, and `more` is false."""
    bench = Rig()
    peer = bench.connect()
    bench.reactor.send(peer.conn, bytes(1_000))
    reactor = bench.reactor
    reactor.shutdown()
    peer.close()
    assert reactor.fileno() == -1
    assert reactor.more is False
    assert not any(reactor.bytes_held().values())
    assert reactor.meta(peer.conn) is None
    assert reactor.inspect(peer.conn) is None
    assert reactor.counters()["now_connections"] == 0
    calls: list[Callable[[], object]] = [
        reactor.shutdown,
        lambda: reactor.poll(bench.now_ms),
        lambda: reactor.flush(bench.now_ms),
        lambda: reactor.tick(bench.now_ms),
        lambda: reactor.send(peer.conn, b"x"),
        lambda: reactor.publish(b"c", [b"x"]),
        lambda: reactor.subscribe(peer.conn, b"c"),
        lambda: reactor.adopt(0, now_ms=0),
    ]
    for call in calls:
        with pytest.raises(WsgateError):
            call()


def test_failed_gap_encoder_closes_only_its_own_connection_with_4050() -> None:
    """The encoder raises, returns nonsense, or calls the reactor."""

    def encoder(variant: int, channel: bytes, first: int, last: int) -> Any:
        calls.append((variant, channel, first, last))
        kind = channel.decode()
        if kind == "raises":
            raise RuntimeError("planted")
        if kind == "none":
            return None
        if kind == "text":
            return "text"
        if kind == "back":
            for call in (
                lambda: bench.reactor.poll(bench.now_ms),
                lambda: bench.reactor.flush(bench.now_ms),
                lambda: bench.reactor.send(peers[kind].conn, b"x"),
                lambda: bench.reactor.abort(peers[kind].conn),
                lambda: bench.reactor.shutdown(),
            ):
                with pytest.raises(WsgateError):
                    call()
        return b"gap"

    calls: list[tuple[int, bytes, int, int]] = []
    unraisable: list[object] = []
    hook, sys.unraisablehook = sys.unraisablehook, unraisable.append
    try:
        with rig(Settings(outbox_frames=4), gap_encoder=encoder) as bench:
            peers = {}
            for kind in ("raises", "none", "text", "back", "good"):
                peer = peers[kind] = bench.connect(send_buffer_bytes=4096)
                bench.reactor.subscribe(peer.conn, kind.encode(), policy=event_kinds.POLICY_DROP_OLDEST)
                for position in range(1, 30):
                    bench.reactor.publish(kind.encode(), [bytes(4000)], position=position)
                    bench.turn()
            frames: dict[str, list[ServerFrame]] = {kind: [] for kind in peers}
            for _ in range(50):
                for kind, peer in peers.items():
                    frames[kind] += peer.frames()
                bench.turn()
            for kind in ("raises", "none", "text"):
                assert (event_kinds.FAILING, 4050) in bench.of(peers[kind]), kind
                assert frames[kind][-1] == ServerFrame(CLOSE, b"\x0f\xd2")
            for kind in ("back", "good"):
                assert not bench.of(peers[kind])
                assert ServerFrame(TEXT, b"gap") in frames[kind]
            assert len(calls) >= 5
            assert len(unraisable) == 3
    finally:
        sys.unraisablehook = hook


def test_meta_object_that_calls_the_reactor_when_its_connection_ends_loses_no_event() -> None:
    """The object is dropped inside `poll`, so its calls are refused."""
    refused: list[Exception] = []

    class Meta:
        def __init__(self, bench: Rig, conn: int) -> None:
            self.bench, self.conn = bench, conn

        def __del__(self) -> None:
            for call in (
                lambda: self.bench.reactor.poll(self.bench.now_ms),
                lambda: self.bench.reactor.shutdown(),
                lambda: self.bench.reactor.send(self.conn, b"x"),
            ):
                try:
                    call()
                except WsgateError as fault:
                    refused.append(fault)

    with rig() as bench:
        crowd = [bench.connect() for _ in range(10)]
        for peer in crowd:
            assert bench.reactor.set_meta(peer.conn, Meta(bench, peer.conn))
            peer.close()
        bench.turn()
        assert sum(event[0] == event_kinds.CLOSED for event in bench.events) == 10
        assert len(refused) == 30
        assert bench.count("now_connections") == 0


def test_replaced_meta_object_that_aborts_its_connection_in_del_closes_it() -> None:
    """The connection has just received another object."""

    class Meta:
        def __init__(self, reactor: Reactor, conn: int) -> None:
            self.reactor, self.conn = reactor, conn

        def __del__(self) -> None:
            self.reactor.abort(self.conn)

    with rig() as bench:
        peer = bench.connect()
        bench.reactor.set_meta(peer.conn, Meta(bench.reactor, peer.conn))
        bench.reactor.set_meta(peer.conn, "successor")
        bench.turn()
        assert bench.of(peer) == [(event_kinds.CLOSED, Reason.APPLICATION)]


def test_deadlines_and_positions_at_the_ends_of_their_range_are_refused_or_exact() -> None:
    """No such number changes another connection or makes the timers run without end."""
    with rig() as bench:
        peers = [bench.connect() for _ in range(6)]
        for peer, at_ms in zip(peers, (2**63 - 1, -(2**62), -1, 2**62, 2**63 - 250, 2**40), strict=True):
            bench.reactor.set_deadline(peer.conn, at_ms, 4000)
        for number in (2**63, -(2**63) - 1, 10**30):
            with pytest.raises(OverflowError):
                bench.reactor.set_deadline(peers[0].conn, number, 4000)
        bench.pass_ms(1_000)
        assert [bool(bench.of(peer)) for peer in peers] == [False, True, True, False, False, False]
        timers = bench.count("timers")
        bench.pass_ms(10_000)
        assert bench.count("timers") - timers <= 100
        bench.reactor.subscribe(peers[0].conn, b"c", policy=event_kinds.POLICY_DROP_OLDEST)
        for position in (2**63 - 1, 0, 1):
            assert bench.reactor.publish(b"c", [b"x"], position=position) == 1


def test_clock_that_runs_backwards_or_jumps_a_century_closes_no_connection() -> None:
    """An earlier time counts as the present one, and the jump counts as one stall."""
    with rig() as bench:
        peer = bench.connect()
        for now_ms in (0, -1, -(2**63), bench.now_ms - 1):
            bench.reactor.tick(now_ms)
            bench.reactor.poll(now_ms)
            bench.reactor.flush(now_ms)
        assert not bench.of(peer)
        bench.now_ms += 100 * 365 * 86_400_000
        bench.reactor.tick(bench.now_ms)
        bench.turn()
        assert bench.count("stalls_forgiven") == 1
        assert not bench.of(peer)
        peer.send(client_frame(TEXT, b"alive"))
        bench.turn()
        assert bench.messages(peer) == [b"alive"]


def test_copy_of_a_closed_descriptor_does_not_wake_the_reactor() -> None:
    """A copy, as in a forked child, keeps the socket open after the reactor has closed its own."""
    with rig() as bench:
        peer = bench.connect()
        state = bench.reactor.inspect(peer.conn)
        assert state is not None
        copy = os.dup(state["fd"])
        try:
            bench.reactor.abort(peer.conn)
            bench.turn()
            peer.send(b"into the void")
            assert not is_readable(bench)
        finally:
            os.close(copy)


def test_hundred_connections_that_end_in_every_way_in_one_batch_return_all_memory() -> None:
    """All descriptors are closed as well, and each connection has exactly one `CLOSED`."""
    before = open_descriptors()
    with rig(Settings(linger_limit_sockets=10)) as bench:
        crowd = [bench.connect(upgraded=index % 5 != 0) for index in range(100)]
        held = bench.held()
        for index, peer in enumerate(crowd):
            peer.send(
                [HEAD, client_close(), b"\xff\xff", client_frame(TEXT, b"x"), client_close(None)][index % 5]
            )
        for event in bench.step():
            kind, conn, _ = event
            if conn & 1:
                bench.reactor.close(conn, 1000)
            else:
                bench.reactor.abort(conn)
            if kind == event_kinds.OPEN:
                bench.reactor.refuse(conn, b"no")
        for peer in crowd:
            peer.close()
        bench.pass_ms(12_000)
        assert bench.count("now_connections") == 0
        assert bench.held() == held
        assert all(sum(e[:2] == (event_kinds.CLOSED, p.conn) for e in bench.events) == 1 for p in crowd)
    assert open_descriptors() <= before
