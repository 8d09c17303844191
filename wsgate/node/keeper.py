"""The keeper: owns the resources that must outlive a crash, forks the processes that do the work, reaps them.

Single thread, no event loop, no HTTP, no Redis client. It owns the listeners, the statistics block, the
write end of a pipe by which its children see that it lives, and nothing else. Shards are forked, not started
anew, so that they share the memory of the modules that the keeper imported.

Rules:
- Every child ends when the keeper does: shards and admin by the pipe's end of file, the private bus by
  the kernel. Nothing is orphaned and no port stays taken, also after kill -9.
- A dead child is started again with back-off; a dead shard's successor gets the same listener, and its
  counters are folded, so that nothing goes backwards.
- Weights are set from what shards publish: 0 for one that is full, draining or silent.
- Nothing but SIGTERM, SIGINT and the end of the terminal ends the keeper. Forking, reaping and signals keep
  the node alive; everything else is a duty that may fail (see wsgate.node.duties).
"""

import contextlib
import errno
import gc
import os
import resource
import secrets
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

from wsgate.admin import run_admin
from wsgate.admission import weights
from wsgate.errors import WsgateError
from wsgate.log import Log
from wsgate.node.build import Plan
from wsgate.node.children import Child, fork_child, name_process
from wsgate.node.duties import Duties
from wsgate.node.kernel_watch import Watch
from wsgate.node.listeners import refuse_handed, refuse_waiting, steer
from wsgate.node.notify import notify
from wsgate.output import dropped_lines, flush_outputs
from wsgate.reactor import SharedAddresses
from wsgate.shard.capacity import places
from wsgate.shard.options import Boards, Shared
from wsgate.shard.process import run_shard
from wsgate.shard.reload import Renewal
from wsgate.shard.statistics_layout import LAYOUT
from wsgate.statistics import (
    PHASE_DRAINING,
    PHASE_READY,
    PHASE_STARTING,
    StatisticsBlock,
    has_beaten,
    why_not_ready,
)

__all__ = ["Keeper"]

TICK_S: Final = 0.25
SLOTS_MOST: Final = 1 << 24
UNSERVED_MS: Final = 5_000
"""A queue nobody has served for so long is answered with 503."""
EXIT_GRACE_S: Final = 2.0
OWNER_BYTES: Final = 6
OWNERS_MOST: Final = 8
"""A shard and its predecessors whose liveness keys on the bus may still exist. A shard that runs for a second
has deleted the keys of its predecessors."""
STARTS_MOST: Final = 5
"""Starts of a shard that end before it serves, until a node that was never ready gives up: after a second."""
SEE_SIBLINGS_MS: Final = 300  # a tick of a shard, 250 ms, and some
RESTORE_S: Final = 1.0
"""Between two looks at the runtime directory."""
IGNORED: Final = (
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGVTALRM,
    signal.SIGPROF,
    signal.SIGIO,
    signal.SIGPWR,
)
"""Signals that mean nothing to us and whose default action ends a process. Children ignore them too."""
BUS_HEAD_START_S: Final = 2.0
BUS_LOOK_S: Final = 0.01


class Keeper:
    """One node's keeper.

    Args:
        plan: What to run, ready to be started.
        announce: Called once, when every shard accepts and has the bus.
    """

    def __init__(self, plan: Plan, announce: Callable[[], None]) -> None:
        self._plan = plan
        self._announce = announce
        self._log = Log("keeper")
        self._block = StatisticsBlock.create(LAYOUT, len(plan.listeners))
        self._duties = Duties(self._block.keeper, self._log)
        self._boards = Boards()
        self._addresses = SharedAddresses(
            # As many as there can ever be: a renewed configuration may allow more than this one.
            shards=len(plan.listeners),
            connections=min(SLOTS_MOST, resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
        )
        # Held here for a successor: what was handed to a shard that died waits for it.
        self._handovers = _handovers(len(plan.listeners))
        self._owners: list[deque[str]] = [deque(maxlen=OWNERS_MOST) for _ in plan.listeners]
        self._shard_options, self._admin_options = plan.shards, plan.admin
        # Under nohup the gateway must survive the end of its terminal, so it counts as having none.
        self._ends_with_terminal = _has_terminal() and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
        self._alive_read, self._alive_write = os.pipe()
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._woken = select.poll()
        self._signals: list[int] = []
        self._is_hung_up = False
        self._weights: list[int] = []
        self._watch = Watch(self._block, plan.embedded_bus.memory_bytes if plan.embedded_bus else 0)
        self._restored_s = 0.0
        self._has_bus_been_up = False  # since its last start
        self._is_ready = False
        self._well_since_ms = 0  # when every shard was first found ready; 0: not yet
        self._unstarted = [0] * len(plan.listeners)  # starts of each shard that ended before it served
        self._is_hopeless = False
        self._is_stopping = False
        self._shards = [Child(f"shard-{n}", partial(self._fork_shard, n)) for n in range(len(plan.listeners))]
        self._others = [Child("admin", self._fork_admin)]
        if plan.embedded_bus is not None:
            self._others.insert(0, Child("bus", self._fork_bus, plan.embedded_bus.log_tail))

    def run(self) -> int:
        """Serve until SIGTERM, SIGINT or the end of the terminal; the exit code."""
        self._listen_for_signals()
        name_process("wsgate")
        # What was imported is shared with every shard as long as nobody writes to it: a collector that
        # walks it would copy it page by page.
        gc.collect()
        gc.freeze()
        self._block.keeper["pid"] = os.getpid()
        self._block.keeper["phase"] = PHASE_READY
        self._start_bus()
        while not self._signals and not self._is_hopeless:
            self._duties.run("tend", self._tend)
            self._rest()
        code = self._stop()
        return 1 if self._is_hopeless else code

    def _rest(self, within_s: float = TICK_S) -> None:
        """Wait for a signal, at most so long, and take it."""
        if self._woken.poll(within_s * 1000):
            self._take_signals()

    def _start_bus(self) -> None:
        """Before the shards, and with a head start: none of them finds it away and has to say so."""
        if self._plan.embedded_bus is None:
            return
        self._others[0].start_when_due()
        end_s = time.monotonic() + BUS_HEAD_START_S
        while not (self._signals or self._has_bus_been_up or time.monotonic() > end_s):
            self._duties.run("bus_probe", self._look_at_bus)
            self._rest(BUS_LOOK_S)

    def _look_at_bus(self) -> None:
        """Remember that the private bus has been up; start it anew once its socket has been removed."""
        bus, child = self._plan.embedded_bus, self._others[0]
        if bus is None or not child.pid:
            self._has_bus_been_up = False
        elif not self._has_bus_been_up:
            self._has_bus_been_up = bus.is_up()
        elif not bus.socket_path.exists():
            # The bus runs, but no client can reach it. Its data is lost, as in every restart of it.
            self._log.warning("bus_socket_removed", socket=str(bus.socket_path), action="bus_restarted")
            self._has_bus_been_up = False
            child.renew()

    # --- children -------------------------------------------------------------------------------------

    def _tend(self) -> None:
        """One round: reap, start, beat, and do every duty."""
        run = self._duties.run
        self._reap()
        if time.monotonic() - self._restored_s >= RESTORE_S:  # before a bus is started that needs it
            self._restored_s = time.monotonic()
            run("runtime_directory", self._restore_files)
            run("bus_probe", self._look_at_bus)
        for child in (*self._others, *self._shards):
            child.start_when_due()
        now_ms = self._beat()
        run("fold", self._block.mend)
        run("steer", lambda: self._steer(now_ms))
        run("unserved", lambda: self._refuse_unserved(now_ms))
        bus = 0 if self._plan.embedded_bus is None else self._others[0].pid
        run("watch", lambda: self._watch.look(now_ms, bus))
        self._block.keeper["restarts"] = sum(child.restarts for child in (*self._others, *self._shards))
        if not self._is_ready and self._is_first_ready(now_ms):
            self._is_ready = True
            run("notify", lambda: notify("READY=1"))
            run("announce", self._announce)

    def _is_first_ready(self, now_ms: int) -> bool:
        """Whether the node may be called ready.

        Shards need one more tick to see each other. Until then a full shard hands over no connection.
        """
        if why_not_ready(self._block, now_ms):
            self._well_since_ms = 0
        elif not self._well_since_ms:
            self._well_since_ms = now_ms
        return self._well_since_ms > 0 and (
            len(self._shards) == 1 or now_ms - self._well_since_ms >= SEE_SIBLINGS_MS
        )

    def _beat(self) -> int:
        """Publish that the keeper lives, to its children and the service manager; returns the time in ms.

        Lines that wait for their reader are written on the same occasion.
        """
        flush_outputs()
        self._block.keeper["log_lines_dropped"] = dropped_lines()
        now_ms = time.monotonic_ns() // 1_000_000
        self._block.keeper["beat_ms"] = now_ms
        self._duties.run("notify", lambda: notify("WATCHDOG=1"))
        return now_ms

    def _restore_files(self) -> None:
        """Make again what somebody has removed from the runtime directory."""
        missing = self._plan.files.restore()
        if self._plan.embedded_bus is not None and self._plan.embedded_bus.prepare():
            missing.append("bus")
        if missing:
            self._log.warning("runtime_files_restored", files=" ".join(missing))

    def _reap(self) -> None:
        """Take the exit status of every child that has ended, and plan its next start."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            for number, child in enumerate((*self._shards, *self._others)):
                if child.pid == pid:
                    child.ended(os.waitstatus_to_exitcode(status), is_asked=self._is_stopping)
                    if number < len(self._shards):
                        self._note_start(number)
                        self._duties.run("fold", partial(self._block.retire, number))
                        self._duties.run("fold", partial(self._addresses.retire, number))

    def _note_start(self, number: int) -> None:
        """Give up a start that cannot succeed: the node was never ready, and a shard never serves."""
        has_served = self._block.shard(number)["phase"] != PHASE_STARTING
        self._unstarted[number] = 0 if has_served else self._unstarted[number] + 1
        if self._unstarted[number] >= STARTS_MOST and not (self._is_ready or self._is_stopping):
            self._log.error("start_failed", shard=number, tries=self._unstarted[number])
            self._is_hopeless = True

    def _fork_shard(self, number: int) -> int:
        options, listener = self._shard_options[number], self._plan.listeners[number]
        seen = self._boards.configuration.version  # before the fork: what is posted later it has to read
        self._owners[number].appendleft(secrets.token_hex(OWNER_BYTES))
        owners = tuple(self._owners[number])

        def work() -> int:
            self._give_up(listener)
            shared = Shared(self._block, self._boards, self._addresses, self._handovers, owners)
            return run_shard(options, listener.fileno(), shared, self._alive_read, seen)

        return fork_child(f"wsgate-shard-{number}", work)

    def _fork_admin(self) -> int:
        options, listener = self._admin_options, self._plan.admin_listener

        def work() -> None:
            self._give_up(listener)
            run_admin(options, self._block, listener, self._alive_read, self._boards.key_set)

        return fork_child("wsgate-admin", work)

    def _fork_bus(self) -> int:
        bus, keeper_pid = self._plan.embedded_bus, os.getpid()
        assert bus is not None
        return fork_child("wsgate-bus", lambda: bus.become(keeper_pid))

    def _give_up(self, keep: socket.socket) -> None:
        """In a child: close what is the keeper's, and what is other children's."""
        os.close(self._alive_write)
        self._wake_read.close()
        self._wake_write.close()
        os.close(self._plan.files.lock_fd)
        for listener in (*self._plan.listeners, self._plan.admin_listener):
            if listener is not keep:
                listener.close()

    # --- steering -------------------------------------------------------------------------------------

    def _steer(self, now_ms: int) -> None:
        """Deal new connections by the room that each shard offers."""
        fresh = weights(places(self._block, now_ms))
        if len(fresh) > 1 and _differ(fresh, self._weights):
            self._weights = fresh
            try:
                steer(self._plan.listeners[0], fresh)
            except OSError as error:  # a kernel without it deals by hash: worse, and no reason to end
                self._log.warning("connection_steering_failed", error=error.strerror)

    def _refuse_unserved(self, now_ms: int) -> None:
        """Answer 503 to connections that wait for a shard which has been silent for long.

        They wait in its accept queue, or in its channel where siblings have handed them over.
        """
        for number, child in enumerate(self._shards):
            if not child.started_s:
                continue
            # Counted from the last sign of life: its last beat or its last start.
            is_new = now_ms - int(child.started_s * 1000) <= UNSERVED_MS
            if not is_new and not has_beaten(self._block.shard(number)["beat_ms"], now_ms, UNSERVED_MS):
                refused = refuse_waiting(self._plan.listeners[number])
                if self._handovers:
                    refused += refuse_handed(self._handovers[number][0])
                self._block.keeper.add("handshake_unserved", refused)

    # --- signals and the end --------------------------------------------------------------------------

    def _listen_for_signals(self) -> None:
        signal.set_wakeup_fd(self._wake_write.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._on_signal)
        # nohup starts the gateway with SIGHUP ignored. A SIGHUP that an operator sends must renew the
        # configuration all the same, so the handler is installed without regard to that.
        signal.signal(signal.SIGHUP, self._on_signal)
        # A shell ignores SIGINT for a background job (`wsgate serve &` in a script), so that Ctrl-C ends
        # the script and not the job (POSIX, Shell Command Language, 2.11). The gateway respects that.
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)  # wakes the loop
        for number in IGNORED:
            signal.signal(number, signal.SIG_IGN)
        # Not select: it takes no descriptor above 1,023.
        self._woken.register(self._wake_read, select.POLLIN)

    def _on_signal(self, number: int, frame: object) -> None:
        """Between any two steps: only remember it."""
        if number == signal.SIGHUP:
            self._is_hung_up = True
        else:
            self._signals.append(number)

    def _take_signals(self) -> None:
        """Act on a SIGHUP that has arrived.

        A SIGHUP renews the configuration. It ends the gateway if the gateway's terminal has hung up, unless
        SIGHUP was ignored at the start.
        """
        with contextlib.suppress(OSError):
            self._wake_read.recv(4096)
        if not self._is_hung_up:
            return
        self._is_hung_up = False
        if self._ends_with_terminal and not _has_terminal():
            self._signals.append(signal.SIGHUP)
        elif not self._is_stopping:
            started_us = time.monotonic_ns() // 1000
            self._duties.run("notify", lambda: notify(f"RELOADING=1\nMONOTONIC_USEC={started_us}"))
            self._duties.run("reload", self._renew)
            self._duties.run("notify", lambda: notify("READY=1"))

    def _renew(self) -> None:
        """Read the configuration again and post it for the shards; what is wrong with it changes nothing."""
        try:
            renewed = self._plan.reread()
            self._boards.configuration.post(Renewal.of(renewed.shards[0]).to_bytes())
        except WsgateError as error:
            self._log.error("config_reload_failed", why=str(error))
        else:
            self._shard_options = renewed.shards
            if renewed.admin != self._admin_options:
                self._admin_options = renewed.admin
                self._others[-1].renew()
            self._log.info("config_reloaded", needs_restart=" ".join(renewed.ignored) or "nothing")

    def _stop(self) -> int:
        """Drain the shards, then end the rest; a second signal ends it at once."""
        # Of the settings in effect: the shards have taken over a reloaded timeout too.
        drain_timeout_s = self._shard_options[0].drain_timeout_ms / 1000
        self._log.info("draining", timeout_s=drain_timeout_s)
        self._duties.run("notify", lambda: notify("STOPPING=1"))
        self._is_stopping = True
        self._block.keeper["phase"] = PHASE_DRAINING
        self._signals.clear()
        self._end(self._shards, drain_timeout_s + EXIT_GRACE_S)
        self._end(self._others, EXIT_GRACE_S)
        self._duties.run("clean", self._clean)
        return 0

    def _clean(self) -> None:
        """Remove what the gateway has left in the runtime directory."""
        if self._plan.embedded_bus is not None:
            self._plan.embedded_bus.clean()
        self._plan.files.clean()

    def _end(self, children: list[Child], within_s: float) -> None:
        deadline_s = time.monotonic() + within_s
        for child in children:
            child.signal(signal.SIGTERM)
        # Their listeners are theirs alone now: when they close them the port is free.
        for listener in self._plan.listeners:
            with contextlib.suppress(OSError):
                listener.close()
        while any(child.pid for child in children):
            self._reap()
            self._beat()
            if self._signals or time.monotonic() > deadline_s:
                for child in children:
                    child.signal(signal.SIGKILL)
            if any(child.pid for child in children):
                self._rest()


def _handovers(count: int) -> tuple[tuple[socket.socket, socket.socket], ...]:
    """For each shard both ends of where siblings hand it connections; none where there are no siblings."""
    if count < 2:
        return ()
    pairs = tuple(socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(count))
    for ours, _ in pairs:
        ours.setblocking(False)
    return pairs


def _has_terminal() -> bool:
    """Whether there is a terminal that could hang up.

    When descriptors or memory are short, the terminal cannot be checked and counts as present.
    """
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError as error:
        return error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
    return True


def _differ(weights: list[int], before: list[int]) -> bool:
    """Whether somebody came or went, or a share moved by an eighth: else the kernel's program stands."""
    if len(weights) != len(before):
        return True
    return any(
        bool(new) != bool(old) or abs(new - old) > old // 8 for new, old in zip(weights, before, strict=True)
    )
