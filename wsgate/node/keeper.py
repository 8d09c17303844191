"""The keeper: the parent process of a node, which owns its sockets, and forks and supervises its processes.

The keeper has one thread, no event loop, no HTTP and no Redis client. It owns the resources that must survive
the crash of a shard: the listeners, the statistics block, the channels for handovers, and the write end of a
pipe whose closing ends its children. Shards are forked without exec, so that they share the memory of the
imported modules.

Rules:
- Every child ends when the keeper ends: shards and the admin process at the end of file of the pipe, the
  private bus by a signal of the kernel. So no orphan keeps a port, also after kill -9.
- A child that has ended is started again with back-off. The successor of a shard gets the same listener, and
  the counters of the ended shard are kept, so that no counter decreases.
- The weights for new connections come from the statistics of the shards: 0 for a full, draining or silent
  shard.
- Only SIGTERM, SIGINT, the end of the terminal, or a start that cannot succeed ends the keeper. Forking,
  reaping and signals keep the node running; all other work is a duty that may fail (see wsgate.node.duties).
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
"""Connections of a shard that has been silent for this long are refused with 503."""
EXIT_GRACE_S: Final = 2.0
OWNER_BYTES: Final = 6
OWNERS_MOST: Final = 8
"""The most owner ids of a shard: its own, and those of predecessors whose liveness keys may still be on the
bus. A shard that has run for a second has deleted the keys of its predecessors."""
STARTS_MOST: Final = 5
"""A node that was never ready gives up when a shard has ended this often before it served: after a second."""
SEE_SIBLINGS_MS: Final = 300  # a little more than the tick of a shard, 250 ms
RESTORE_S: Final = 1.0
"""Time between two checks of the runtime directory."""
IGNORED: Final = (
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGVTALRM,
    signal.SIGPROF,
    signal.SIGIO,
    signal.SIGPWR,
)
"""Signals without a meaning for the gateway, whose default action would end it. Children ignore them too."""
BUS_HEAD_START_S: Final = 2.0
BUS_LOOK_S: Final = 0.01


class Keeper:
    """The keeper of one node.

    Args:
        plan: The sockets and options of everything to run.
        announce: Called once, when every shard is ready: it accepts connections and has the bus.
    """

    def __init__(self, plan: Plan, announce: Callable[[], None]) -> None:
        self._plan = plan
        self._announce = announce
        self._log = Log("keeper")
        self._block = StatisticsBlock.create(LAYOUT, len(plan.listeners))
        self._duties = Duties(self._block.keeper, self._log)
        self._boards = Boards()
        self._addresses = SharedAddresses(
            # The most there can ever be: a reloaded configuration may allow more connections than this one.
            shards=len(plan.listeners),
            connections=min(SLOTS_MOST, resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
        )
        # Kept open here, so that connections handed over to a crashed shard wait for its successor.
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
        self._has_bus_been_up = False  # whether the private bus has been reachable since its last start
        self._is_ready = False
        self._well_since_ms = 0  # when every shard was first found ready; 0: not yet
        self._unstarted = [0] * len(plan.listeners)  # for each shard: starts that ended before it served
        self._is_hopeless = False
        self._is_stopping = False
        self._shards = [Child(f"shard-{n}", partial(self._fork_shard, n)) for n in range(len(plan.listeners))]
        self._others = [Child("admin", self._fork_admin)]
        if plan.embedded_bus is not None:
            self._others.insert(0, Child("bus", self._fork_bus, plan.embedded_bus.log_tail))

    def run(self) -> int:
        """Run the node until SIGTERM, SIGINT or the end of the terminal; return the exit code."""
        self._listen_for_signals()
        name_process("wsgate")
        # The imported modules share their memory with every shard until a page is written. A garbage
        # collector that walks them would write to every page, and so copy it.
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
        """Wait for a signal, at most `within_s` seconds, and act on it."""
        if self._woken.poll(within_s * 1000):
            self._take_signals()

    def _start_bus(self) -> None:
        """Start the private bus and wait until it is reachable, so that no shard logs a failed connection."""
        if self._plan.embedded_bus is None:
            return
        self._others[0].start_when_due()
        end_s = time.monotonic() + BUS_HEAD_START_S
        while not (self._signals or self._has_bus_been_up or time.monotonic() > end_s):
            self._duties.run("bus_probe", self._look_at_bus)
            self._rest(BUS_LOOK_S)

    def _look_at_bus(self) -> None:
        """Check the private bus: note when it is reachable, and restart it when its socket was removed."""
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
        """Do one round of work: reap and start children, publish a beat, and run every duty."""
        run = self._duties.run
        self._reap()
        if time.monotonic() - self._restored_s >= RESTORE_S:  # before the bus, which needs the files
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
        """Return whether every shard is ready and has had time to see the others.

        After the last shard is ready, the shards need one more tick to read each other's statistics. Until
        then a full shard hands over no connection.
        """
        if why_not_ready(self._block, now_ms):
            self._well_since_ms = 0
        elif not self._well_since_ms:
            self._well_since_ms = now_ms
        return self._well_since_ms > 0 and (
            len(self._shards) == 1 or now_ms - self._well_since_ms >= SEE_SIBLINGS_MS
        )

    def _beat(self) -> int:
        """Publish that the keeper runs, in its statistics and to the service manager; return the time in ms.

        This also writes buffered log lines whose reader was slow.
        """
        flush_outputs()
        self._block.keeper["log_lines_dropped"] = dropped_lines()
        now_ms = time.monotonic_ns() // 1_000_000
        self._block.keeper["beat_ms"] = now_ms
        self._duties.run("notify", lambda: notify("WATCHDOG=1"))
        return now_ms

    def _restore_files(self) -> None:
        """Make the files of the runtime directory again that were removed, and log their names."""
        missing = self._plan.files.restore()
        if self._plan.embedded_bus is not None and self._plan.embedded_bus.prepare():
            missing.append("bus")
        if missing:
            self._log.warning("runtime_files_restored", files=" ".join(missing))

    def _reap(self) -> None:
        """Read the exit status of every child that has ended, keep its counters, and plan its next start."""
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
        """Count starts of a shard that ended before it served; give up if the node was never ready."""
        has_served = self._block.shard(number)["phase"] != PHASE_STARTING
        self._unstarted[number] = 0 if has_served else self._unstarted[number] + 1
        if self._unstarted[number] >= STARTS_MOST and not (self._is_ready or self._is_stopping):
            self._log.error("start_failed", shard=number, tries=self._unstarted[number])
            self._is_hopeless = True

    def _fork_shard(self, number: int) -> int:
        """Fork a shard, with a new owner id for its liveness key; return its pid."""
        options, listener = self._shard_options[number], self._plan.listeners[number]
        seen = self._boards.configuration.version  # read before the fork: the shard must read later versions
        self._owners[number].appendleft(secrets.token_hex(OWNER_BYTES))
        owners = tuple(self._owners[number])

        def work() -> int:
            self._give_up(listener)
            shared = Shared(self._block, self._boards, self._addresses, self._handovers, owners)
            return run_shard(options, listener.fileno(), shared, self._alive_read, seen)

        return fork_child(f"wsgate-shard-{number}", work)

    def _fork_admin(self) -> int:
        """Fork the admin process, and return its pid."""
        options, listener = self._admin_options, self._plan.admin_listener

        def work() -> None:
            self._give_up(listener)
            run_admin(options, self._block, listener, self._alive_read, self._boards.key_set)

        return fork_child("wsgate-admin", work)

    def _fork_bus(self) -> int:
        """Fork the process that becomes the private bus, and return its pid."""
        bus, keeper_pid = self._plan.embedded_bus, os.getpid()
        assert bus is not None
        return fork_child("wsgate-bus", lambda: bus.become(keeper_pid))

    def _give_up(self, keep: socket.socket) -> None:
        """In a child, close the descriptors of the keeper and the listeners of other children."""
        os.close(self._alive_write)
        self._wake_read.close()
        self._wake_write.close()
        os.close(self._plan.files.lock_fd)
        for listener in (*self._plan.listeners, self._plan.admin_listener):
            if listener is not keep:
                listener.close()

    # --- steering -------------------------------------------------------------------------------------

    def _steer(self, now_ms: int) -> None:
        """Set the weights for new connections by the room that each shard reports."""
        fresh = weights(places(self._block, now_ms))
        if len(fresh) > 1 and _differ(fresh, self._weights):
            self._weights = fresh
            try:
                steer(self._plan.listeners[0], fresh)
            except OSError as error:  # the kernel then distributes by hash: worse, but it works
                self._log.warning("connection_steering_failed", error=error.strerror)

    def _refuse_unserved(self, now_ms: int) -> None:
        """Refuse, with 503, connections that wait for a shard without a beat for `UNSERVED_MS`.

        They wait in the accept queue of the shard, or in its channel for handovers.
        """
        for number, child in enumerate(self._shards):
            if not child.started_s:
                continue
            # The silence starts with the last beat or the last start, whichever is later.
            is_new = now_ms - int(child.started_s * 1000) <= UNSERVED_MS
            if not is_new and not has_beaten(self._block.shard(number)["beat_ms"], now_ms, UNSERVED_MS):
                refused = refuse_waiting(self._plan.listeners[number])
                if self._handovers:
                    refused += refuse_handed(self._handovers[number][0])
                self._block.keeper.add("handshake_unserved", refused)

    # --- signals and the end --------------------------------------------------------------------------

    def _listen_for_signals(self) -> None:
        """Install the handlers of all signals, and register the socket that wakes the keeper."""
        signal.set_wakeup_fd(self._wake_write.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._on_signal)
        # nohup starts the gateway with SIGHUP ignored. A SIGHUP from an operator must still reload the
        # configuration, so the handler is always installed.
        signal.signal(signal.SIGHUP, self._on_signal)
        # A shell ignores SIGINT for a background job (`wsgate serve &` in a script), so that Ctrl-C ends
        # the script and not the job (POSIX, Shell Command Language, 2.11). The gateway respects that.
        if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)  # wakes the loop
        for number in IGNORED:
            signal.signal(number, signal.SIG_IGN)
        # poll and not select, which accepts no descriptor above 1,023.
        self._woken.register(self._wake_read, select.POLLIN)

    def _on_signal(self, number: int, frame: object) -> None:
        """Note a signal; the main loop acts on it, because this runs between any two instructions."""
        if number == signal.SIGHUP:
            self._is_hung_up = True
        else:
            self._signals.append(number)

    def _take_signals(self) -> None:
        """Act on a SIGHUP that has arrived.

        A SIGHUP reloads the configuration. It ends the gateway if the gateway's terminal has hung up, unless
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
        """Read the configuration again and post it for the shards; if it is not valid, log the reason."""
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
        """Drain the shards, then end the other processes; a second signal kills them at once."""
        # From the current options, because the shards have taken over a reloaded timeout too.
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
        """Remove the gateway's files from the runtime directory."""
        if self._plan.embedded_bus is not None:
            self._plan.embedded_bus.clean()
        self._plan.files.clean()

    def _end(self, children: list[Child], within_s: float) -> None:
        """Send SIGTERM to children and wait until all have ended; after `within_s` seconds send SIGKILL."""
        deadline_s = time.monotonic() + within_s
        for child in children:
            child.signal(signal.SIGTERM)
        # Close the keeper's copies of the listeners: the port is then free when the shards close theirs.
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
    """Make a handover channel for each shard, as (receiving end, sending end); none for a single shard."""
    if count < 2:
        return ()
    pairs = tuple(socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(count))
    for ours, _ in pairs:
        ours.setblocking(False)
    return pairs


def _has_terminal() -> bool:
    """Whether this process has a controlling terminal, which could hang up.

    When descriptors or memory are short, the terminal cannot be checked and counts as present.
    """
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError as error:
        return error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
    return True


def _differ(weights: list[int], before: list[int]) -> bool:
    """Whether weights differ enough for a new program: a change from or to 0, or by more than an eighth."""
    if len(weights) != len(before):
        return True
    return any(
        bool(new) != bool(old) or abs(new - old) > old // 8 for new, old in zip(weights, before, strict=True)
    )
