"""The Python interface of the engine: it takes plans and returns results. The loop and the jobs do the work.

Python code runs only when a call starts or ends, and ten times a second to handle signals.
"""

import ipaddress
import re

from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memset

from loadtest.engine.connecting cimport build
from loadtest.engine.core cimport (
    FLAG_SLOW,
    NO_SLOT,
    PART_INDEX,
    PART_KEY,
    PART_LITERAL,
    PART_STAMP,
    PART_TOKEN,
    PHASE_IDLE,
    PHASE_DONE,
    PHASE_RUNNING,
    STATE_FREE,
    STATE_OPEN,
    WAKE_SLOT,
    conn_t,
    core_t,
    piece_t,
)
from loadtest.engine.digest cimport draw
from loadtest.engine.echoing cimport begin_echo
from loadtest.engine.ending cimport MODE_CLOSE, MODE_FIN, MODE_RESET
from loadtest.engine.frames cimport HEADER_MOST, OP_BINARY, OP_TEXT, encode_header, mask
from loadtest.engine.histogram cimport hist_free, hist_init
from loadtest.engine.linux cimport (
    AF_INET,
    EPOLL_CLOEXEC,
    EPOLL_CTL_ADD,
    EPOLL_CTL_DEL,
    EPOLLIN,
    PR_SET_TIMERSLACK,
    c_close,
    epoll_create1,
    epoll_ctl,
    epoll_event,
    htonl,
    htons,
    monotonic_ns,
    prctl,
)
from loadtest.engine.loop cimport RAN_WAKE, run_loop
from loadtest.engine.report cimport close_result, connect_result, echo_result, reset_counters, stats
from loadtest.engine.sending cimport write_bytes
from loadtest.engine.sequences cimport find_tracker, free_ledger, missing_between, tracker_t
from loadtest.engine.table cimport reset

from loadtest.engine.errors import EngineBusyError, EngineError, EngineLimitError
from loadtest.engine.plans import EngineSettings
from loadtest.engine.preparing import request_text, resolve

__all__ = ["Engine"]

_SLICE_NS = 100_000_000
_SCRATCH_BYTES = 65_536 + 64
_PLACEHOLDER = re.compile(rb"(\{key\}|\{index\}|\{token\}|\{stamp\})")
_MODES = {"close": MODE_CLOSE, "reset": MODE_RESET, "fin": MODE_FIN}


cdef class _Pieces:
    """A request or payload, split at its placeholders; keeps the literals in memory for the C code."""

    cdef piece_t* pieces
    cdef uint32_t count
    cdef list literals

    def __cinit__(self, template, kinds):
        parts = [part for part in _PLACEHOLDER.split(template) if part]
        self.literals = parts
        self.count = 0
        self.pieces = <piece_t*>calloc(len(parts) + 1, sizeof(piece_t))
        if self.pieces == NULL:
            raise MemoryError
        for part in parts:
            self.pieces[self.count].kind = kinds.get(part, PART_LITERAL)
            self.pieces[self.count].data = <const uint8_t*><char*>part
            self.pieces[self.count].size = len(part)
            self.count += 1

    def __dealloc__(self):
        free(self.pieces)

    cdef size_t most(self, size_t token_size):
        """Return the largest size that the joined pieces can have."""
        cdef size_t size = 0
        for i in range(self.count):
            # A key has 24 characters, an index at most 20.
            size += self.pieces[i].size if self.pieces[i].kind == PART_LITERAL else max(24, token_size)
        return size


cdef class Engine:
    """Tens of thousands of WebSocket connections, driven by one thread on its own epoll set."""

    cdef core_t* core
    cdef object _settings
    cdef _Pieces _request
    cdef _Pieces _echo
    cdef bytes _answer
    cdef list _counted
    cdef bytes _tokens
    cdef bytes _subprotocols

    def __cinit__(self, settings=None):
        """Allocate nothing, so that a failed __init__ frees nothing twice."""
        self.core = NULL

    def __init__(self, settings=None):
        """Raise the soft descriptor limit to the hard one, and prepare the table."""
        if self.core != NULL:
            raise EngineError("already initialised")
        self._settings = resolve(settings or EngineSettings())
        self._prepare()
        self._count_beginnings()

    cdef int _prepare(self) except -1:
        cdef core_t* core = <core_t*>calloc(1, sizeof(core_t))
        if core == NULL:
            raise MemoryError
        self.core = core
        core.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
        core.slots = self._settings.max_connections
        core.read_bytes = self._settings.read_bytes
        core.scratch_bytes = _SCRATCH_BYTES
        core.table = <conn_t*>calloc(core.slots, sizeof(conn_t))
        core.read_buffer = <uint8_t*>malloc(core.read_bytes)
        core.scratch = <uint8_t*>malloc(core.scratch_bytes)
        if core.epoll_fd < 0 or core.table == NULL or core.read_buffer == NULL or core.scratch == NULL:
            raise MemoryError("no memory or descriptor for the engine")
        for hist in (0, 1, 2, 3, 4):
            if hist_init((&core.connect_latency) + <int>hist) < 0:
                raise MemoryError
        core.free_head = NO_SLOT
        core.free_taken_head = NO_SLOT
        core.stamp_window = self._settings.stamp_window_bytes
        core.first_source = int(ipaddress.IPv4Address(self._settings.first_source))
        core.source_count = self._settings.source_count
        core.close_timeout_ns = <uint64_t>(self._settings.close_timeout_s * 1e9)
        core.start_ns = monotonic_ns()
        core.swept_ns = core.start_ns
        # A slot needs 20 bits. The other bits distinguish the echo streams of several engines, so that a
        # mix-up is detected.
        core.stream_nonce = <uint32_t>(draw(&core.random) & 0x7FF) << 20
        if self._settings.first_sequence is not None:
            core.ledger.first_sequence = self._settings.first_sequence
            core.ledger.is_first_known = True
        return 0

    cdef int _count_beginnings(self) except -1:
        """Point the core to the texts that are counted; the list keeps them in memory."""
        self._counted = [text.encode() for text in self._settings.counted]
        for i, text in enumerate(self._counted):
            self.core.counted[<size_t>i].data = <const uint8_t*><char*>text
            self.core.counted[<size_t>i].size = len(text)
        self.core.counted_count = len(self._counted)
        return 0

    def __dealloc__(self):
        """Reset connections and free memory, unless `shut` has done so."""
        self._free()

    cdef void _free(self) noexcept:
        cdef core_t* core = self.core
        cdef uint32_t slot
        if core == NULL:
            return
        self.core = NULL
        for slot in range(core.fresh):
            if core.table[slot].state != STATE_FREE:
                reset(core, &core.table[slot])
        while core.free_partials != NULL:
            partial = core.free_partials
            core.free_partials = partial.next
            free(partial)
        free_ledger(&core.ledger)
        hist_free(&core.connect_latency)
        hist_free(&core.connect_lag)
        hist_free(&core.echo_latency)
        hist_free(&core.delivery_latency)
        hist_free(&core.send_lag)
        free(core.echo.members)
        free(core.connect.token_ends)
        free(core.table)
        free(core.read_buffer)
        free(core.scratch)
        if core.epoll_fd >= 0:
            c_close(core.epoll_fd)
        free(core)

    cdef core_t* _alive(self) except NULL:
        if self.core == NULL:
            raise EngineError("the engine is shut")
        return self.core

    cdef int _run(self, uint64_t until_ns, uint64_t until_messages) except -1:
        """Run the loop for at most a slice of 100 ms, then let signal handlers run."""
        cdef core_t* core = self._alive()
        cdef int result
        until_ns = min(until_ns, monotonic_ns() + _SLICE_NS)
        # The default timer slack of 50 us would be the largest part of an open loop's lag. It belongs to the
        # thread, so it is set each time.
        prctl(PR_SET_TIMERSLACK, 1_000)
        with nogil:
            result = run_loop(core, until_ns, until_messages)
        PyErr_CheckSignals()
        return result

    @property
    def settings(self):
        """The settings that the engine uses."""
        return self._settings

    def connect(self, plan):
        """Run the loop until every connection of the plan is open, refused or failed."""
        self.begin_connect(plan)
        while self._alive().connect.phase != PHASE_DONE:
            self._run(<uint64_t>-1, 0)
        return self.take_connect()

    def begin_connect(self, plan):
        """Start a connect job without running the loop."""
        cdef core_t* core = self._alive()
        if core.connect.phase != PHASE_IDLE:
            raise EngineBusyError("a connect is under way")
        if plan.count > core.slots - core.used and not plan.is_overcommitted:
            left = core.slots - core.used
            raise EngineLimitError(f"{plan.count} more connections, but {left} slots are left")
        host = ipaddress.IPv4Address(plan.host)
        tokens = [token.encode() for token in plan.tokens]
        kinds = {b"{key}": PART_KEY, b"{index}": PART_INDEX, b"{token}": PART_TOKEN}
        request = _Pieces(request_text(plan), kinds)
        if request.most(max(map(len, tokens), default=0)) > core.scratch_bytes:
            raise ValueError("the request may exceed 65,536 bytes")
        memset(&core.connect, 0, sizeof(core.connect))
        self._keep(plan, request, tokens)
        core.connect.count = plan.count
        core.connect.window = plan.window
        core.connect.interval_ns = 1e9 / plan.rate_per_s if plan.rate_per_s else 0.0
        core.connect.timeout_ns = <uint64_t>(plan.timeout_s * 1e9)
        core.connect.server.sin_family = AF_INET
        core.connect.server.sin_port = htons(plan.port)
        core.connect.server.sin_addr.s_addr = htonl(int(host))
        core.connect.is_loopback = host.is_loopback
        core.connect.receive_buffer = plan.receive_buffer_bytes
        core.connect.slow_share = plan.slow_share
        core.connect.slow_bytes_per_s = plan.slow_bytes_per_s
        core.connect.is_refusal_reset = plan.is_refusal_reset
        core.connect.first_index = plan.first_index
        core.connect.start_ns = monotonic_ns()
        core.connect.phase = PHASE_RUNNING

    cdef int _keep(self, plan, _Pieces request, list tokens) except -1:
        """Keep the bytes to which the job points until it is taken."""
        cdef core_t* core = self.core
        cdef uint64_t end = 0
        if tokens:
            core.connect.token_ends = <uint64_t*>malloc(len(tokens) * sizeof(uint64_t))
            if core.connect.token_ends == NULL:
                raise MemoryError
            for i, token in enumerate(tokens):
                end += <uint64_t>len(token)
                core.connect.token_ends[<size_t>i] = end
            core.connect.token_count = len(tokens)
            self._tokens = b"".join(tokens)
            core.connect.tokens = <const uint8_t*><char*>self._tokens
        offered = [value for name, value in plan.headers if name.lower() == "sec-websocket-protocol"]
        if offered:
            self._subprotocols = ",".join(offered).encode()
            core.connect.subprotocols = <const uint8_t*><char*>self._subprotocols
            core.connect.subprotocols_size = len(self._subprotocols)
        self._request = request
        core.connect.pieces = request.pieces
        core.connect.piece_count = request.count
        return 0

    def take_connect(self):
        """Return the result of the connect job once, when it has ended; None before."""
        cdef core_t* core = self._alive()
        if core.connect.phase != PHASE_DONE:
            return None
        result = connect_result(core)
        core.connect.phase = PHASE_IDLE
        free(core.connect.token_ends)
        core.connect.token_ends = NULL
        core.connect.token_count = 0
        self._request = None
        self._tokens = None
        self._subprotocols = None
        return result

    def echo(self, plan):
        """Run the loop until the plan's messages are sent and answered, or the drain has ended."""
        self.begin_echo(plan)
        while self._alive().echo.phase != PHASE_DONE:
            self._run(<uint64_t>-1, 0)
        return self.take_echo()

    def begin_echo(self, plan):
        """Start an echo job without running the loop."""
        cdef core_t* core = self._alive()
        cdef _Pieces message = _Pieces(plan.message.encode(), {b"{stamp}": PART_STAMP, b"{index}": PART_INDEX})
        # One more byte for the terminator that snprintf writes after an index.
        cdef size_t size = message.most(plan.payload_bytes) + HEADER_MOST + 1
        cdef uint8_t* scratch
        if core.echo.phase != PHASE_IDLE:
            raise EngineBusyError("an echo is under way")
        if size > core.scratch_bytes:
            scratch = <uint8_t*>realloc(core.scratch, size)
            if scratch == NULL:
                raise MemoryError
            core.scratch = scratch
            core.scratch_bytes = size
        memset(&core.echo, 0, sizeof(core.echo))
        core.echo.per_connection = plan.messages_per_connection or <uint64_t>-1
        core.echo.in_flight = plan.in_flight or <uint64_t>-1
        core.echo.interval_ns = 1e9 / plan.rate_per_s if plan.rate_per_s else 0.0
        core.echo.drain_ns = <uint64_t>(plan.drain_s * 1e9)
        core.echo.payload_bytes = plan.payload_bytes
        core.echo.opcode = OP_TEXT if plan.is_text else OP_BINARY
        self._echo = message
        core.echo.pieces = message.pieces
        core.echo.piece_count = message.count
        core.echo.most = size
        self._answer = plan.answer.encode()
        core.echo.answer = <const uint8_t*><char*>self._answer
        core.echo.answer_size = len(self._answer)
        if begin_echo(core, plan.connections, plan.duration_s) < 0:
            raise MemoryError

    def take_echo(self):
        """Return the result of the echo job once, when it has ended; None before."""
        cdef core_t* core = self._alive()
        if core.echo.phase != PHASE_DONE:
            return None
        core.echo.phase = PHASE_IDLE
        return echo_result(core)

    def hold(self, duration_s, *, until_messages=0):
        """Run the loop without a job: answer pings, read and count messages."""
        cdef core_t* core = self._alive()
        cdef uint64_t until_ns = monotonic_ns() + <uint64_t>(max(duration_s, 0.0) * 1e9)
        while True:
            self._run(until_ns, until_messages)
            if monotonic_ns() >= until_ns or 0 < <uint64_t>until_messages <= core.counters.messages:
                return core.counters.messages

    def step(self, timeout_s, *, wake_fd=-1):
        """Run the loop until the timeout, until a job ends, or until `wake_fd` is readable."""
        cdef core_t* core = self._alive()
        cdef uint64_t until_ns = monotonic_ns() + <uint64_t>(max(timeout_s, 0.0) * 1e9)
        cdef epoll_event event
        cdef int fd = wake_fd
        cdef int result = 0
        event.events = EPOLLIN
        event.data.u64 = 0
        event.data.u32 = WAKE_SLOT
        # Registered during the call only: a readable descriptor that is not read would make every other loop
        # spin.
        if fd >= 0 and epoll_ctl(core.epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0:
            # epoll refuses a plain file, which is always readable.
            return True
        try:
            while result == 0 and monotonic_ns() < until_ns:
                result = self._run(until_ns, 0)
        finally:
            if fd >= 0:
                epoll_ctl(core.epoll_fd, EPOLL_CTL_DEL, fd, &event)
        return result & RAN_WAKE != 0

    def send(self, payload, *, first=0, count=0, is_text=True):
        """Send one message on each of some open connections, at once."""
        cdef core_t* core = self._alive()
        cdef _Pieces pieces = _Pieces(payload, {b"{index}": PART_INDEX})
        cdef uint64_t skip = first
        cdef uint64_t left = count or core.slots
        cdef uint64_t sent = 0
        cdef uint8_t header[HEADER_MOST]
        cdef uint8_t opcode = OP_TEXT if is_text else OP_BINARY
        cdef uint32_t slot, key
        cdef size_t size, head
        cdef conn_t* conn
        if pieces.most(0) + HEADER_MOST > core.scratch_bytes:
            raise ValueError("the payload may exceed 65,536 bytes")
        for slot in range(core.fresh):
            conn = &core.table[slot]
            if conn.state != STATE_OPEN or left == 0:
                continue
            if skip > 0:
                skip -= 1
                continue
            left -= 1
            size = build(pieces.pieces, pieces.count, 0, conn.index, NULL, 0, core.scratch + HEADER_MOST)
            key = <uint32_t>draw(&core.random)
            mask(core.scratch + HEADER_MOST, size, key)
            # The header stands directly before the payload, whose place is fixed before its size is known.
            head = encode_header(header, opcode, size, key)
            encode_header(core.scratch + HEADER_MOST - head, opcode, size, key)
            if write_bytes(core, conn, core.scratch + HEADER_MOST - head, head + size) == 0:
                core.counters.messages_sent += 1
                sent += 1
        return sent

    def close(self, mode="close", *, count=0, timeout_s=5.0):
        """End connections, and run the loop until they have ended."""
        self.begin_close(mode, count=count, timeout_s=timeout_s)
        while self._alive().closing.phase != PHASE_DONE:
            self._run(<uint64_t>-1, 0)
        return self.take_close()

    def begin_close(self, mode="close", *, count=0, timeout_s=5.0):
        """Start a close job without running the loop."""
        cdef core_t* core = self._alive()
        if mode not in _MODES:
            raise ValueError("mode must be close, reset or fin")
        if core.closing.phase != PHASE_IDLE:
            raise EngineBusyError("a close is under way")
        memset(&core.closing, 0, sizeof(core.closing))
        core.closing.mode = _MODES[mode]
        core.closing.left = count or core.slots
        core.closing.deadline_ns = monotonic_ns() + <uint64_t>(timeout_s * 1e9)
        core.closing.phase = PHASE_RUNNING

    def take_close(self):
        """Return the result of the close job once, when it has ended; None before."""
        cdef core_t* core = self._alive()
        if core.closing.phase != PHASE_DONE:
            return None
        core.closing.phase = PHASE_IDLE
        return close_result(core)

    def reconcile(self, stream, *, first, last):
        """Compare the messages of a stream that each open reader has received with the published ones."""
        cdef core_t* core = self._alive()
        cdef uint64_t low = first
        cdef uint64_t high = last
        cdef uint64_t lost, missing = 0, readers = 0, complete = 0, silent = 0
        cdef uint32_t slot
        cdef tracker_t* tracker
        if not 0 <= first <= last:
            raise ValueError("first must not be above last")
        for slot in range(core.fresh):
            if core.table[slot].state != STATE_OPEN or core.table[slot].flags & FLAG_SLOW:
                continue
            tracker = find_tracker(core.table[slot].trackers, stream)
            lost = high - low + 1 if tracker == NULL else missing_between(tracker, low, high)
            readers += 1
            complete += lost == 0
            silent += lost == high - low + 1
            missing += lost
        return {
            "connections": readers,
            "complete": complete,
            "incomplete": readers - complete,
            "silent": silent,
            "missing": missing,
        }

    def stats(self, *, with_counts=False):
        """Return all gauges, counters and histograms."""
        cdef core_t* core = self._alive()
        result = stats(core, with_counts)
        names = self._settings.counted
        result["counted"] = {name: core.counters.counted[<size_t>i] for i, name in enumerate(names)}
        return result

    def reset_stats(self):
        """Set the counters and histograms to zero."""
        reset_counters(self._alive())

    def shut(self):
        """Reset every connection and free all memory."""
        self._free()

    def __enter__(self):
        """Return the engine itself on entry."""
        return self

    def __exit__(self, *exc_info):
        """Call `shut`, which resets every connection."""
        self.shut()
