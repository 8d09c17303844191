"""Calls no sane caller makes: each must be refused or harmless. What may crash runs in a child."""

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


def survive(code: str) -> str:
    """What a child prints that runs this code with checked memory; its crash is our failure."""
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
def test_wrong_types_are_refused(call: str) -> None:
    """An exception that names the fault: no crash, and no byte of foreign memory on the wire."""
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
def test_a_reactor_that_could_not_be_made_leaves_the_process_as_it_was(make: str) -> None:
    """A constructor that fails, or was never called: no descriptor of anybody else is closed."""
    code = f"""{PRELUDE}
import os
taken = [os.dup(2) for _ in range(20)]
try: {make}
except Exception as fault: print("refused")
import gc; gc.collect()
for fd in [0, 1, 2, *taken]: os.fstat(fd)
"""
    assert survive(code) == "refused\n"


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
def test_a_meta_object_that_calls_back_at_shutdown(action: str) -> None:
    """`shutdown` drops the caller's objects; one whose `__del__` calls the reactor finds it shut down."""
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
    assert set(survive(code).split()) <= {"InternalError"}


def test_a_sequence_that_lies_about_its_length() -> None:
    """`variants` says 1 and holds 200: refused, not written past the end."""
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
    assert survive(code) == "refused\nrefused\n"


def test_variants_that_change_the_channel_while_they_are_read() -> None:
    """A generator-like sequence unsubscribes the last one in the middle of a publication."""
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
    assert reached == 0, "nobody is subscribed any more"
    for peer in peers: peer.close()
    bench.turn()
    assert bench.count("now_channels") == 0
    assert bench.held()["frame"] <= 512
"""
    survive(code)


@pytest.mark.parametrize("seed", range(6))
def test_fuzz(seed: int) -> None:
    """Random bytes and calls, checked memory: every promise about events kept, all given back."""
    code = f"""
import sys
sys.unraisablehook = lambda unraisable: None
from tests.support.reactor_fuzz import Fuzz
Fuzz({seed}).run(4000)
print("sound")
"""
    assert survive(code) == "sound\n"


def test_the_interpreter_ends_with_connections_open() -> None:
    """No shutdown, cycles, metas that call back: the end of the process is orderly."""
    survive(f"""{PRELUDE}
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
def test_made_up_handles(handle: int) -> None:
    """Refused by every call, and counted."""
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
def test_handles_that_do_not_fit(handle: int) -> None:
    """An exception, or as a stale one."""
    with rig() as bench, pytest.raises(OverflowError):
        bench.reactor.send(handle, b"x")


def test_a_slot_used_again_refuses_the_former_handle() -> None:
    """A thousand connections through one slot: no former handle reaches a successor."""
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
    """A descriptor that is no connected socket, of the caller."""
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
def test_adopting_what_is_no_connected_socket(name: str) -> None:
    """Refused with an OSError, and still the caller's; or taken, and found gone at once."""
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
def test_adopting_what_is_not_open(descriptor: int) -> None:
    """An OSError."""
    with rig() as bench, pytest.raises(OSError):
        bench.reactor.adopt(descriptor, now_ms=bench.now_ms, upgraded=True)


def test_adopting_one_socket_twice() -> None:
    """The second time is an error that says so, and the first goes on."""
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


def test_adopting_beyond_the_table() -> None:
    """No slot is an error; the descriptor is still the caller's."""
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
def test_adopting_with_a_variant_that_is_not_configured(variant: int) -> None:
    """Refused before the descriptor is taken."""
    with rig() as bench:
        ours, theirs = socket.socketpair()
        with ours, theirs, pytest.raises((ValueError, OverflowError)):
            bench.reactor.adopt(ours.fileno(), now_ms=bench.now_ms, upgraded=True, variant=variant)
        assert bench.count("now_connections") == 0


# --- calls at the wrong moment ----------------------------------------------------------------------


def test_upgrade_twice() -> None:
    """The second is refused, and nothing of it is sent."""
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


def test_an_empty_answer_does_not_spin() -> None:
    """`upgrade` with no bytes: nothing waits to be written, so `flush` says so."""
    with rig() as bench:
        peer = bench.connect(upgraded=False)
        peer.send(HEAD)
        bench.turn()
        bench.reactor.upgrade(peer.conn, b"")
        assert not any(bench.reactor.flush(bench.now_ms) for _ in range(5))
        bench.reactor.send(peer.conn, b"m")
        bench.turn()
        assert peer.frames() == [ServerFrame(TEXT, b"m")]


def test_sending_before_the_upgrade() -> None:
    """No frame may go before the 101: refused, as are subscriptions and Close."""
    with rig() as bench:
        peer = bench.connect(upgraded=False)
        for step in (b"", HEAD):
            peer.send(step)
            bench.turn()
            assert not bench.reactor.send(peer.conn, b"early")
            assert not bench.reactor.close(peer.conn, 1000)
            assert bench.reactor.subscribe(peer.conn, b"c") == 0
        assert peer.receive() == b""


def test_everything_after_shutdown() -> None:
    """Refused or empty; asked twice too; and no loop is told to come again."""
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


def test_a_gap_encoder_that_misbehaves() -> None:
    """It raises, returns nonsense, or calls back: that connection ends with 4050, the others go on."""

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


def test_a_meta_object_that_calls_back_when_its_connection_ends() -> None:
    """Dropped inside `poll`: its call is refused, and the events are all there."""
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


def test_replacing_a_meta_object_that_ends_its_own_connection() -> None:
    """The former object's `__del__` aborts the connection that is just given another one."""

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


def test_numbers_beyond_all_reason() -> None:
    """Deadlines, clocks and positions at the ends of their range: refused, or nothing happens to others."""
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


def test_time_that_runs_backwards_or_leaps() -> None:
    """An earlier time is taken for now; a leap of a century is a stall, once, and the process lives."""
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


def test_a_descriptor_held_elsewhere_does_not_make_us_spin() -> None:
    """A copy of the descriptor (a forked child's) keeps the socket alive after we closed ours: no wake-up."""
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


def test_many_closes_in_one_batch_leave_nothing() -> None:
    """Each way out at once, in one batch, for a hundred connections: all descriptors and bytes back."""
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
