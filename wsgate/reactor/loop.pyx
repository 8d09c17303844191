"""The `Reactor` class, through which Python code calls the compiled reactor, and the passes of its poll loop.

Owns the epoll set and the state of the reactor. It is the only file of this directory, besides addresses.pyx,
testing.pyx and audit.pyx, that Python code calls. It translates handles to connections, `bytes` to pointers
and counters to dictionaries; the work of a call is done in the file that is named after it. The interface
with types and promises is loop.pyi.

A pass is one call of `poll`. First epoll_wait adds the connections that are ready to the attention queue.
Then every connection that was on the queue gets one turn, in order, until the budget of the pass is used. So
a peer that sends without pause has one turn in each round, and a turn is shorter when more connections wait.
The first turn of a connection that was just accepted precedes the others. A connection that has lately
cost more than its share has its turn after all others: see debts.pyx.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize, PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_XDECREF, Py_INCREF
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from wsgate.reactor.addresses cimport (
    SharedAddresses, address_claim, address_is_trusted, address_origin,
)
from wsgate.reactor.channels cimport (
    channel_find, channel_name, channel_open, channel_release, channel_subscribe, channel_take_vacated,
    channel_unsubscribe, is_subscribed,
)
from wsgate.reactor.closing cimport begin_close, bye_for, end_with, orphans_tick, release
from wsgate.reactor.codec cimport OP_BINARY, OP_TEXT, RSV1
from wsgate.reactor.debts cimport (
    debts_begin, debts_charge, debts_charge_turn, debts_decay, debts_is_costly, debts_measured, debts_of,
    debts_raise, debts_row,
)
from wsgate.reactor.deadlines cimport (
    application_at, deadlines_arm, deadlines_rearm, deadlines_resume, deadlines_run,
)
from wsgate.reactor.delivery cimport deliver
from wsgate.reactor.fanout cimport fan_out
from wsgate.reactor.frames cimport frame_message, frame_publication, frame_raw, frame_release
from wsgate.reactor.gate cimport gate_accept_handover, gate_answers_free, gate_mute, gate_open, gate_tick
from wsgate.reactor.reader cimport take_turn, turn_failed
from wsgate.reactor.notices cimport NOTICE_FORMS_MAX, notices_step
from wsgate.reactor.memory cimport memory_booked, memory_is_exact
from wsgate.reactor.pacing cimport pacing_must_wait
from wsgate.reactor.clocks cimport clock_ns
from wsgate.reactor.socket_io cimport EPOLLIN, TAG_LISTENER, socket_address, socket_interest, socket_peer, socket_watch
from wsgate.reactor.shedding cimport shedding_tick
from wsgate.reactor.public_ids cimport permute_id
from wsgate.reactor.state cimport advance, apply_settings, response_frame, state_blank, state_destroy, state_start
from wsgate.reactor.structs cimport (
    APPLICATION, ASK_INDEBTED_MS, ASK_MS, Answer, BLOCKED, Bye, CHUNK_SLOTS, CLASS_REPLY, CLASS_RESPONSE,
    COUNTERS, Channel, Connection, ControlSlot, Core, DEBT_MOST_NS, DRAINS_MAX, Debt, EVENT_BINARY,
    EVENT_CLOSED, EVENT_FAILING, EVENT_OPEN, EVENT_PEER_CLOSED, EVENT_TEXT, Entry, FRAMES_IN, Frame, Gate,
    HEAD_REFUSED, INTERNAL, IS_FORGIVEN, IS_WALL_TIME, KINDS, Limits, MESSAGE_NS, NONE, OPENED, OUTBOX_AGE,
    OUT_OF_MEMORY, Outbox, PACE_BEHIND, PACE_MOVING, PACE_READER, PASS_BYTES, PASS_MESSAGES, PASS_NS,
    PASS_OPENS, PAUSED_APP, PAUSED_OUTBOX, POLICY_CLOSE, POLICY_DROP_OLDEST, POLICY_LATEST_ONLY, QUANTUM_NS,
    RESERVE_PASSES, STATE_FREE, POLLS, PUBLICATIONS, Pass, REASONS, SHED, SLOW_CONSUMER, STALE, STATES,
    STATE_DECIDING, STATE_FAILING, STATE_HEAD, STATE_OPEN, TICK_MS, TOKEN_NOT_YET_VALID, TRUSTED_MAX,
    TURN_MESSAGES, TURN_MESSAGES_LEAST, UPGRADES, UserLink, VARIANTS_MAX, WALKS_MAX, WANT_OUT,
)
from wsgate.reactor.table cimport (
    at, attention_pop, attention_pop_older, attention_push, enter, find, handle_of, heads_remove, indebted_pop,
    indebted_push, note_pause, table_free,
)
from wsgate.reactor.users cimport link_of, user_enter, user_first, user_hash, user_leave
from wsgate.reactor.poller cimport wait_once
from wsgate.reactor.wheel cimport wheel_disarm, wheel_is_due, wheel_turn
from wsgate.reactor.writer cimport flush_slice

import os
import sys
import traceback

from wsgate.errors import InternalError, SettingsError
from wsgate.reactor.metric_names import COUNTER_NAMES, KIND_NAMES, REASON_NAMES, STATE_NAMES
from wsgate.reactor.settings import GateLimits, Settings

__all__ = ["ENUMERATIONS", "Reactor"]

cdef extern from "<malloc.h>" nogil:
    int malloc_trim(size_t pad)

cdef enum:
    REFUSAL_LIMIT_BYTES = 4096   # one send call; even the smallest send buffer takes this whole
    # addresses.pyx counts the connections of an address in 24 bits.
    ADDRESS_CONNECTIONS_MAX = (1 << 24) - 2
    NAME_LIMIT_BYTES = 1024      # of a channel's name; the limit of the dialect is lower

# Made once, because even an idle shard reads its counters four times a second.
cdef tuple ENDED_NAMES = tuple(["ended_" + name for name in REASON_NAMES])
cdef tuple NOW_NAMES = tuple(["now_" + name for name in STATE_NAMES])

# Numbers and sizes as they were compiled. Tests compare them with reasons.py and event_kinds.py.
ENUMERATIONS = {
    "states": STATES, "kinds": KINDS, "reasons": REASONS, "counters": COUNTERS,
    "text": EVENT_TEXT, "binary": EVENT_BINARY, "open": EVENT_OPEN, "failing": EVENT_FAILING,
    "deflated": RSV1, "peer_closed": EVENT_PEER_CLOSED, "closed": EVENT_CLOSED, "policy_close": POLICY_CLOSE,
    "policy_drop_oldest": POLICY_DROP_OLDEST, "policy_latest_only": POLICY_LATEST_ONLY,
    "connection_bytes": sizeof(Connection), "entry_bytes": sizeof(Entry),
    "control_slot_bytes": sizeof(ControlSlot), "outbox_bytes": sizeof(Outbox),
    "reason_last": TOKEN_NOT_YET_VALID, "user_link_bytes": sizeof(UserLink),
    "has_exact_blocks": memory_is_exact(),
}


cdef class Reactor:
    """The compiled reactor, which owns all client sockets of one shard; the interface is loop.pyi."""

    # --- making and ending a reactor ----------------------------------------------------------------

    def __cinit__(self):
        self.core = <Core *>malloc(sizeof(Core))
        if self.core == NULL:
            raise MemoryError
        state_blank(self.core)

    def __init__(
        self, settings=None, *, now_ms, gap_encoder=None, hash_key=None,
        SharedAddresses addresses=None, uint32_t shard=0,
    ):
        cdef Core *core = self.core
        cdef bytes key = os.urandom(16) if hash_key is None else hash_key
        if core.epoll >= 0:
            raise InternalError("Reactor.__init__ was called a second time")
        if len(key) != 16:
            raise SettingsError("hash_key must be 16 bytes")
        self.gap_encoder = gap_encoder
        core.gap_encoder = NULL if gap_encoder is None else <void *>gap_encoder
        state_start(core, Settings() if settings is None else settings, now_ms, key)
        self.addresses = addresses            # keeps the shared memory mapped
        if addresses is not None:
            core.addresses = addresses.of_shard(shard)
        self.set_gate(GateLimits(handshakes_in_progress=0), b"")

    def __dealloc__(self):
        if self.core != NULL:
            state_destroy(self.core)
            free(self.core)
            self.core = NULL

    def shutdown(self):
        """Close every socket at once and release all memory; the counters can still be read afterwards."""
        self.own()
        # The objects go last: a finalizer may call anything, so nothing may be half destroyed then.
        metas = state_destroy(self.core)
        del metas

    cdef Core *own(self) except NULL:
        """Return the state for a call from outside.

        Raises:
            InternalError: The reactor is shut down, or one of its own calls is running (a callback called
                it).
        """
        if self.core.epoll < 0:
            raise InternalError("the reactor is shut down")
        if self.core.busy:
            raise InternalError("the reactor was called from inside one of its own calls")
        return self.core

    # --- the loop -----------------------------------------------------------------------------------

    def fileno(self):
        """Return the epoll descriptor, readable when `poll` has work to do; -1 after shutdown."""
        return self.core.epoll

    @property
    def more(self):
        """Whether `poll` should be called again without waiting, because a connection or a timer is due."""
        return self.core.attention.count != 0 or self.core.indebted.count != 0 or wheel_is_due(self.core)

    @property
    def is_full(self):
        """Whether the caller should hold back publications until outboxes have emptied; see loop.pyi."""
        return pacing_must_wait(self.core) or self.core.walk_count >= WALKS_MAX

    def poll(self, int64_t now_ms, uint32_t messages=PASS_MESSAGES):
        """Read from ready connections within the budget of one pass and return events in order.

        See loop.pyi.
        """
        cdef Core *core = self.own()
        cdef list events = []
        cdef Pass used
        cdef int turns
        core.counters[<int>POLLS] += 1
        core.busy = 1
        try:
            advance(core, now_ms)
            memset(&used, 0, sizeof(used))
            used.messages_limit = max(<uint32_t>1, min(messages, <uint32_t>PASS_MESSAGES))
            used.until_ns = clock_ns() + PASS_NS
            if wheel_is_due(core):
                deadlines_run(core, used.until_ns)
            # Call epoll_wait once in each round of the queue, because a second call mostly reports
            # connections that are on the queue already. But when many connections send, a round takes
            # seconds, and the listener, writers that may continue and every connection that is not on the
            # queue would wait for its end. So call it after some milliseconds in any case.
            if core.turns_to_wait == 0 or core.now_ms - core.asked_ms >= (
                ASK_MS if core.debts == NULL else ASK_INDEBTED_MS
            ):
                wait_once(core)
                core.asked_ms = core.now_ms
                if core.turns_to_wait == 0:
                    core.turns_to_wait = core.attention.count + core.indebted.count
            debts_begin(core)
            turns = serve_attention(core, &used, events)
            if core.indebted.count:
                serve_indebted(core, &used, events, turns == 0)
        finally:
            core.busy = 0
        return events

    def charge(self, uint64_t conn, int64_t cost_ns):
        """Charge a connection for the time that the caller took to handle one of its messages.

        See loop.pyi.
        """
        cdef Core *core = self.own()
        cdef uint32_t slot = 0
        if cost_ns > 0 and find(core, conn, &slot) != NULL:
            debts_charge(core, slot, debts_measured(core, cost_ns), 1)

    def flush(self, int64_t now_ms):
        """Write from the outboxes for at most 2 ms; True if more waits to be written. See loop.pyi."""
        cdef Core *core = self.own()
        cdef bint more
        core.busy = 1
        advance(core, now_ms)
        more = flush_slice(core)
        core.busy = 0
        return more

    def tick(self, int64_t now_ms, wall_ms=None):
        """Turn the timer wheel, act on due deadlines and run the periodic checks; see loop.pyi."""
        cdef Core *core = self.own()
        cdef int64_t offset_ms
        if wall_ms is not None:
            offset_ms = <int64_t>wall_ms - now_ms
            # Both clocks are rounded to milliseconds and drift, so a small difference is not a step of the
            # wall clock. A difference that falls moves expiries away and needs no new timers.
            if offset_ms - core.wall_offset_ms >= TICK_MS:
                core.rearm_slot = 0           # the wall clock stepped forward: expiries are nearer now
                core.wall_offset_ms = offset_ms
            elif offset_ms < core.wall_offset_ms:
                core.wall_offset_ms = offset_ms
        core.busy = 1
        advance(core, now_ms)
        core.last_tick_ms = core.now_ms
        if core.rearm_slot != NONE:
            deadlines_rearm(core)
        wheel_turn(core)
        gate_tick(core)
        orphans_tick(core)
        deadlines_run(core, clock_ns() + PASS_NS)
        shedding_tick(core)
        core.busy = 0

    # --- accepting and refusing connections ---------------------------------------------------------

    def listen(self, int listener_fd):
        """Accept connections from a listening socket that the caller continues to own; see loop.pyi."""
        cdef Core *core = self.own()
        if core.listener >= 0:
            raise InternalError("the reactor has a listener already: call stop_listening first")
        if socket_watch(core, listener_fd, TAG_LISTENER, EPOLLIN) < 0:
            raise OSError(errno, os.strerror(errno))
        core.listener = listener_fd
        core.listener_muted = 0

    def stop_listening(self):
        """Accept no more connections; those that are open stay open."""
        cdef Core *core = self.own()
        gate_mute(core, True)
        core.listener = -1

    def renew(self, settings):
        """Replace the limits and deadlines of all connections while they stay open; see loop.pyi."""
        cdef Core *core = self.own()
        cdef Limits before = core.limits
        cdef int place
        cdef list opcodes = []
        for place in range(<int>core.variants):
            opcodes.append(publication_opcode(core, place))
        if opcodes != list(settings.variant_opcodes):
            raise SettingsError("variant_opcodes must stay as they were when the reactor was made")
        try:
            apply_settings(core, settings)
        except SettingsError:
            core.limits = before
            raise
        if core.is_short:
            core.pool.enabled = 0

    def set_gate(self, limits, bytes refusal not None, bytes too_many not None=b""):
        """Replace the limits for accepting and the HTTP responses for refused peers; see loop.pyi."""
        cdef Core *core = self.core
        cdef Gate fresh = core.gate
        cdef uint32_t index
        too_many = too_many or refusal
        if core.busy:
            raise InternalError("the reactor was called from inside one of its own calls")
        if not 0 <= limits.refusal_drains <= DRAINS_MAX:
            raise SettingsError(f"refusal_drains must be 0 to {DRAINS_MAX}")
        if max(len(refusal), len(too_many)) > REFUSAL_LIMIT_BYTES:
            raise SettingsError(
                f"the response for refused peers must have at most {REFUSAL_LIMIT_BYTES} bytes"
            )
        if len(limits.trusted_networks) > TRUSTED_MAX:
            raise SettingsError(f"trusted_networks must have at most {TRUSTED_MAX} entries")
        fresh.descriptors = limits.descriptors
        fresh.connections = limits.connections
        fresh.handshakes = limits.handshakes_in_progress
        fresh.handshake_rate_per_s = limits.handshake_rate_per_s
        fresh.partial_bytes = limits.partial_bytes
        fresh.memory_bytes = limits.memory_bytes
        fresh.connection_bytes = limits.connection_bytes
        fresh.drains = limits.refusal_drains
        fresh.drain_bytes = limits.refusal_drain_bytes
        fresh.drain_ms = limits.refusal_drain_ms
        fresh.per_address_connections = limits.per_address_connections
        fresh.per_address_rate_per_s = limits.per_address_rate_per_s
        if fresh.per_address_connections > ADDRESS_CONNECTIONS_MAX or fresh.per_address_rate_per_s > 1_000_000:
            raise SettingsError(
                "per_address_connections must be at most 16777214, and per_address_rate_per_s at most 1000000"
            )
        if (fresh.per_address_connections or fresh.per_address_rate_per_s) and core.addresses.counts == NULL:
            raise SettingsError(
                "limits for an address need the shared memory that the constructor takes as addresses"
            )
        fresh.trusted_count = <uint32_t>len(limits.trusted_networks)
        fresh.reads_proxy_header = bool(limits.reads_proxy_header)
        for index, (network, bits) in enumerate(limits.trusted_networks):
            if len(network) != 16 or not 0 <= bits <= 128:
                raise SettingsError(
                    "each of trusted_networks must be 16 bytes and a prefix length of 0 to 128"
                )
            memcpy(fresh.trusted[index].address, <const uint8_t *><bytes>network, 16)
            fresh.trusted[index].bits = bits
        fresh.refusal = answer_of(refusal)
        try:
            fresh.too_many = answer_of(too_many)
        except MemoryError:
            free(fresh.refusal.data)
            raise
        gate_answers_free(core)
        if fresh.per_address_connections and not core.gate.per_address_connections:
            core.uncounted_slot = 0
        core.gate = fresh

    def book(self, uint64_t outside_bytes, *, bint refuses_newcomers=False):
        """Charge memory that the caller holds elsewhere, and set whether new connections are refused.

        See loop.pyi.
        """
        self.core.outside_bytes = outside_bytes
        self.core.refuses_newcomers = refuses_newcomers

    def trim(self):
        """Return the free pages of the heap to the system, without the GIL; see loop.pyi."""
        self.own()
        with nogil:
            malloc_trim(0)

    def set_handover(self, int fd, *, int next_fd=-1, uint8_t handovers=1):
        """Set the sockets to the siblings that take connections for which there is no room here.

        See loop.pyi.
        """
        cdef Core *core = self.own()
        core.relief, core.relief_next, core.max_handovers = fd, next_fd, handovers

    def accept_handover(self, int fd, *, int64_t now_ms, uint8_t handovers=1):
        """Take over a socket that a sibling accepted: accept it, hand it to the next sibling, or refuse it."""
        cdef Core *core = self.own()
        advance(core, now_ms)
        gate_accept_handover(core, fd, handovers)

    def is_from_proxy(self, uint64_t conn):
        """Whether a connection's peer lies in one of the networks of trusted proxies."""
        cdef uint32_t slot = 0
        cdef uint8_t address[16]
        cdef Core *core = self.own()
        cdef Connection *c = self.find(conn, &slot)
        return c != NULL and socket_address(c, address) and address_is_trusted(core, address)

    def origin(self, uint64_t conn):
        """Return a number that is equal for all connections from one address; see loop.pyi."""
        cdef uint32_t slot = 0
        cdef uint8_t address[16]
        cdef Core *core = self.own()
        cdef Connection *c = self.find(conn, &slot)
        return address_origin(core, slot, address) if c != NULL and socket_address(c, address) else 0

    def claim_address(self, uint64_t conn, bytes address not None):
        """Count a connection for the client address that its proxy has named; see loop.pyi."""
        cdef uint32_t slot = 0
        cdef Core *core = self.own()
        if self.find(conn, &slot) == NULL:
            return 0
        if len(address) != 16:
            raise ValueError("address must have 16 bytes; an IPv4 address is mapped into IPv6")
        return address_claim(core, slot, <const uint8_t *>PyBytes_AS_STRING(address))

    def adopt(self, int fd, *, int64_t now_ms, bint upgraded=False, int variant=0):
        """Take over a connected socket that the reactor did not accept, and return its handle.

        See loop.pyi.
        """
        cdef Core *core = self.own()
        cdef uint32_t slot = 0
        cdef Connection *c
        self.check_variant(variant)
        os.set_blocking(fd, False)
        advance(core, now_ms)
        if gate_open(core, fd, &slot, 0) < 0:
            raise MemoryError("no slot is free: max_connections is reached, or memory is short")
        c = at(core, slot)
        if socket_interest(core, slot, True, False) < 0:
            wheel_disarm(core, slot)
            heads_remove(core, slot)
            c.fd = -1
            table_free(core, slot)            # the caller keeps the descriptor, so it is not closed
            raise OSError(errno, os.strerror(errno))
        if upgraded:
            c.flags |= OPENED
            c.variant = <uint8_t>variant
            open_connection(core, slot)
        return handle_of(c, slot)

    def upgrade(self, uint64_t conn, bytes response not None, *, int variant=0):
        """Accept a handshake with a 101 response, after which frames are exchanged; see loop.pyi."""
        cdef Core *core = self.own()
        cdef uint32_t slot = 0
        cdef Connection *c = self.find(conn, &slot)
        cdef Frame *frame
        self.check_variant(variant)
        if c == NULL or c.state != STATE_DECIDING:
            return False
        frame = frame_raw(core, <const uint8_t *>PyBytes_AS_STRING(response), <uint32_t>len(response))
        if frame == NULL:
            raise MemoryError
        c.variant = <uint8_t>variant
        core.counters[<int>UPGRADES] += 1
        open_connection(core, slot)
        if frame.length and c.state == STATE_OPEN:
            deliver(core, slot, frame, CLASS_RESPONSE, NONE, True)
        frame_release(core, frame)
        return c.state == STATE_OPEN

    def refuse(self, uint64_t conn, bytes response not None, *, int reason=HEAD_REFUSED):
        """Reject a handshake with an HTTP response and end the connection; see loop.pyi."""
        cdef Core *core = self.own()
        cdef uint32_t slot = 0
        cdef Connection *c = self.find(conn, &slot)
        check_reason(reason)
        if c == NULL or c.state != STATE_DECIDING:
            return False
        end_with(core, slot, response_frame(core, response), reason)
        return True

    def answer_page(self, uint64_t conn, *, int reason=APPLICATION):
        """Answer a request head with the one page of the settings and end the connection; see loop.pyi."""
        cdef Core *core = self.own()
        cdef uint32_t slot = 0
        cdef Connection *c = self.find(conn, &slot)
        check_reason(reason)
        if c == NULL or c.state != STATE_DECIDING:
            return False
        if core.page != NULL:
            core.page.references += 1
        end_with(core, slot, core.page, reason)
        return True

    # --- ids for the outside --------------------------------------------------------------------------

    def public_id(self, uint64_t conn):
        """Return the 64-bit id under which a connection may be named outside of this process.

        See loop.pyi.
        """
        self.own()
        return permute_id(self.core.channels.key, conn, True)

    def find_public(self, uint64_t public_id):
        """Return the handle that a public id stands for, or 0 if no connection has it now."""
        cdef uint32_t slot = 0
        cdef uint64_t conn = permute_id(self.own().channels.key, public_id, False)
        return 0 if find(self.core, conn, &slot) == NULL else conn

    # --- one connection -----------------------------------------------------------------------------

    cdef Connection *find(self, uint64_t conn, uint32_t *slot):
        """Return the connection of a handle and its slot; NULL for a stale handle, which is counted."""
        cdef Connection *c = find(self.core, conn, slot)
        if c == NULL:
            self.core.counters[<int>STALE] += 1
        return c

    cdef int check_variant(self, int variant) except -1:
        """Raise ValueError unless the settings configure this variant."""
        if not 0 <= variant < <int>self.core.variants:
            raise ValueError(f"variant {variant} is not one of the {self.core.variants} configured variants")
        return 0

    def send(self, uint64_t conn, bytes payload not None, int opcode=OP_TEXT):
        """Queue one message for a connection.

        False if it has ended, is closing, or was closed by this message.
        """
        cdef Core *core = self.own()
        cdef uint32_t slot = 0
        cdef Connection *c = self.find(conn, &slot)
        cdef Frame *frame
        cdef int queued
        if opcode & ~RSV1 not in (OP_TEXT, OP_BINARY):
            raise ValueError("opcode must be 1 (text) or 2 (binary), with or without DEFLATED")
        if c == NULL or not takes_replies(c):
            return False
        if opcode & RSV1 and not self.core.variant_deflated[c.variant]:
            raise ValueError("this connection has not agreed to permessage-deflate")
        frame = frame_message(
            core, <uint8_t>opcode,
            <const uint8_t *>PyBytes_AS_STRING(payload), <uint32_t>PyBytes_GET_SIZE(payload)
        )
        if frame == NULL:
            raise MemoryError
        queued = deliver(core, slot, frame, CLASS_REPLY, NONE, True)
        frame_release(core, frame)
        return queued != 0

    def close(self, uint64_t conn, int code, bytes text not None=b"", *, int reason=APPLICATION):
        """Send a Close frame behind everything in the outbox and end; False if the connection is not open."""
        cdef Core *core = self.own()
        cdef uint32_t slot = 0
        cdef Connection *c = self.find(conn, &slot)
        check_code(code)
        if len(text) > 123:
            raise ValueError("the text of a Close must have at most 123 bytes")
        check_reason(reason)
        if c == NULL or c.state != STATE_OPEN:
            return False
        begin_close(
            core, slot, <uint16_t>code, <const uint8_t *>PyBytes_AS_STRING(text), <uint32_t>len(text), reason
        )
        return True

    def abort(self, uint64_t conn, *, int reason=APPLICATION):
        """Reset a connection at once without a Close frame; False for a stale handle."""
        cdef Core *core = self.own()
        cdef uint32_t slot = 0
        check_reason(reason)
        if self.find(conn, &slot) == NULL:
            return False
        release(core, slot, reason, True)
        return True

    def pause_reading(self, uint64_t conn):
        """Stop reading from a connection; a turn that is running may still deliver what it has received."""
        cdef uint32_t slot = 0
        cdef Core *core = self.own()
        cdef Connection *c = self.find(conn, &slot)
        if c == NULL:
            return False
        if not c.flags & (PAUSED_APP | PAUSED_OUTBOX):
            note_pause(core, c)
        c.flags |= PAUSED_APP
        return True

    def resume_reading(self, uint64_t conn):
        """Read from a paused connection again, and restart the peer's deadlines."""
        cdef Core *core = self.own()
        cdef uint32_t slot = 0
        cdef Connection *c = self.find(conn, &slot)
        if c == NULL:
            return False
        if not c.flags & PAUSED_APP:
            return True                       # nothing to resume, so the peer's deadlines must not start anew
        c.flags &= ~PAUSED_APP
        if c.state == STATE_OPEN and not c.flags & PAUSED_OUTBOX:
            socket_interest(core, slot, True, (c.flags & WANT_OUT) != 0)
            deadlines_resume(core, slot)
            attention_push(core, slot)
        return True

    def variant(self, uint64_t conn):
        """Return the form of publications that a connection takes, an index; -1 for a stale handle."""
        cdef uint32_t slot = 0
        cdef Connection *c = self.find(conn, &slot)
        return -1 if c == NULL else c.variant

    def connections(self, uint32_t start, uint32_t limit):
        """List the handles of open connections from one slot on, a part at a time; see loop.pyi."""
        cdef Core *core = self.own()
        cdef list handles = []
        cdef uint32_t slot = start, slots = core.chunk_count * CHUNK_SLOTS
        while slot < slots and limit:
            if at(core, slot).state == STATE_OPEN:
                handles.append(handle_of(at(core, slot), slot))
                limit -= 1
            slot += 1
        return handles, slot if slot < slots else 0

    def set_meta(self, uint64_t conn, meta):
        """Attach one object of the caller's to a connection and release the former one.

        None only releases.
        """
        cdef uint32_t slot = 0
        self.own()
        cdef Connection *c = self.find(conn, &slot)
        cdef PyObject *old
        if c == NULL:
            return False
        old = c.meta
        c.meta = NULL
        if meta is not None:
            Py_INCREF(meta)
            c.meta = <PyObject *>meta
        Py_XDECREF(old)
        return True

    def meta(self, uint64_t conn):
        """Return the object that the caller has attached to a connection, or None."""
        cdef uint32_t slot = 0
        cdef Connection *c = self.find(conn, &slot)
        if c == NULL or c.meta == NULL:
            return None
        return <object>c.meta

    def set_deadline(self, uint64_t conn, int64_t at_ms, int close_code, *, bint is_forgiven=False):
        """Set a time of the monotonic clock at which a connection is closed; 0 clears it. See loop.pyi."""
        cdef Core *core = self.own()
        cdef uint32_t slot = 0
        cdef Connection *c = self.find(conn, &slot)
        if c == NULL:
            return False
        if at_ms and close_code:
            check_code(close_code)
        c.application_ms = at_ms
        c.application_code = <uint16_t>close_code
        if at_ms and is_forgiven:
            c.application_ms = at_ms - core.forgiven_ms
            c.application_code |= IS_FORGIVEN
        deadlines_arm(core, slot)
        return True

    def set_expiry(self, uint64_t conn, int64_t wall_ms, int close_code, *, bint only_sooner=False):
        """Set a time of the wall clock at which a connection is closed; see loop.pyi."""
        cdef Core *core = self.own()
        cdef uint32_t slot = 0
        cdef Connection *c = self.find(conn, &slot)
        if c == NULL:
            return False
        check_code(close_code)
        if wall_ms <= 0:
            raise ValueError("wall_ms must be a time of the wall clock above 0, in milliseconds since 1970")
        if only_sooner and c.application_ms and (
            application_at(core, c) <= wall_ms - core.wall_offset_ms - core.forgiven_ms
        ):
            return True
        c.application_ms = wall_ms
        c.application_code = <uint16_t>close_code | IS_WALL_TIME
        deadlines_arm(core, slot)
        return True

    # --- the index by user ---------------------------------------------------------------------------

    def set_user(self, uint64_t conn, bytes user not None, *, int64_t issued_s=0):
        """Enter a connection in the index by user, or remove it with an empty user; see loop.pyi."""
        cdef Core *core = self.own()
        cdef uint32_t slot = 0
        if self.find(conn, &slot) == NULL:
            return False
        if not user:
            user_leave(core, slot)
        elif user_enter(core, slot, hash_of(core, user)) < 0:
            raise MemoryError
        link_of(core, slot).issued_s = <uint32_t>min(max(issued_s, 0), <int64_t>0xFFFFFFFF)
        return True

    def user_connections(self, bytes user not None, *, int64_t issued_before_s=0):
        """Return the handles of all connections of one user, in every state but closed; see loop.pyi."""
        cdef Core *core = self.own()
        cdef list handles = []
        cdef uint32_t slot = user_first(core, hash_of(core, user))
        while slot != NONE:
            if issued_before_s == 0 or <int64_t>link_of(core, slot).issued_s < issued_before_s:
                handles.append(handle_of(at(core, slot), slot))
            slot = link_of(core, slot).next
        return handles

    def peer(self, uint64_t conn):
        """Return the address of a connection's peer as text, `host:port`; empty if there is none."""
        cdef uint32_t slot = 0
        self.own()
        cdef Connection *c = self.find(conn, &slot)
        if c == NULL:
            return ""
        return socket_peer(c)

    def inspect(self, uint64_t conn):
        """Return the state, flags and queue sizes of one connection; None for a stale handle.

        For tests and operators.
        """
        cdef uint32_t slot = 0
        cdef Connection *c = self.find(conn, &slot)
        if c == NULL:
            return None
        return {
            "state": c.state, "flags": c.flags, "fd": c.fd, "reason": c.reason, "variant": c.variant,
            "blocked": (c.flags & BLOCKED) != 0,
            "paused": (c.flags & (PAUSED_APP | PAUSED_OUTBOX)) != 0,
            "outbox_bytes": 0 if c.outbox == NULL else c.outbox.bytes,
            "outbox_frames": 0 if c.outbox == NULL else c.outbox.count,
            "head_written": 0 if c.outbox == NULL else c.outbox.head_written,
            "owed_bytes": 0 if c.outbox == NULL else c.outbox.owed,
            "in_grace": c.outbox != NULL and c.outbox.grace_ms != 0,
            "pongs": 0 if c.outbox == NULL or c.outbox.control == NULL else c.outbox.control.count,
            "partial_bytes": 0 if c.input == NULL else c.input.message.length,
            "partial_capacity": 0 if c.input == NULL else c.input.message.capacity,
            "backlog_bytes": 0 if c.input == NULL else c.input.backlog.length - c.input.backlog_taken,
            "subscriptions": c.subscription_count,
            "debt_ns": debts_of(self.core, slot),
        }

    # --- channels -----------------------------------------------------------------------------------

    def subscribe(
        self, uint64_t conn, bytes channel not None, *, int policy=POLICY_CLOSE, bint is_counted=True,
    ):
        """Subscribe a connection to a channel; returns the subscribers, or 0, -1 or -2 as loop.pyi says."""
        cdef Core *core = self.own()
        cdef uint32_t slot = 0, index
        cdef int outcome
        cdef Connection *c = self.find(conn, &slot)
        if not 0 <= policy <= POLICY_LATEST_ONLY:
            raise ValueError("policy must be one of the POLICY_ numbers of event_kinds")
        if not 0 < len(channel) <= NAME_LIMIT_BYTES:
            raise ValueError(f"a channel name must have 1 to {NAME_LIMIT_BYTES} bytes")
        if c == NULL or c.state != STATE_OPEN:
            return 0
        if is_counted and core.limits.max_subscriptions and counted_subscriptions(core, c) >= core.limits.max_subscriptions:
            index = channel_find(core, <const uint8_t *>PyBytes_AS_STRING(channel), <uint32_t>len(channel))
            return -1 if is_subscribed(core, c, index) else -2
        index = channel_open(
            core, <const uint8_t *>PyBytes_AS_STRING(channel), <uint32_t>len(channel), policy
        )
        if index == NONE:
            raise MemoryError
        if not is_counted:
            core.channels.channels[index].is_uncounted = 1
        outcome = channel_subscribe(core, slot, index)
        if outcome < 0:
            channel_release(core, index)
            raise MemoryError
        return core.channels.channels[index].count if outcome else -1

    def unsubscribe(self, uint64_t conn, bytes channel not None):
        """Unsubscribe a connection from a channel.

        Returns the subscribers left, or -1 if it had not subscribed.
        """
        cdef Core *core = self.own()
        cdef uint32_t slot = 0, index
        cdef Connection *c = self.find(conn, &slot)
        if c == NULL:
            return -1
        index = channel_find(core, <const uint8_t *>PyBytes_AS_STRING(channel), <uint32_t>len(channel))
        if index == NONE or channel_unsubscribe(core, slot, index) == 0:
            return -1
        return self.subscribers(channel)

    def subscriptions(self, uint64_t conn):
        """Return the names of the channels that a connection is subscribed to, in no order."""
        cdef Core *core = self.own()
        cdef uint32_t slot = 0, cell
        cdef Connection *c = self.find(conn, &slot)
        cdef list names = []
        if c == NULL or c.subscriptions == NULL:
            return names
        for cell in range(<uint32_t>1 << c.subscription_bits):
            if c.subscriptions[cell].channel != NONE:
                names.append(name_of(core, c.subscriptions[cell].channel))
        return names

    def is_subscribed(self, uint64_t conn, bytes channel not None):
        """Whether one connection is subscribed to one channel."""
        cdef Core *core = self.own()
        cdef uint32_t slot = 0
        cdef Connection *c = self.find(conn, &slot)
        return c != NULL and is_subscribed(
            core, c, channel_find(core, <const uint8_t *>PyBytes_AS_STRING(channel), <uint32_t>len(channel))
        )

    def subscribers(self, bytes channel not None):
        """Return the number of a channel's subscribers in this reactor."""
        cdef uint32_t index = channel_find(
            self.own(), <const uint8_t *>PyBytes_AS_STRING(channel), <uint32_t>len(channel)
        )
        return 0 if index == NONE else self.core.channels.channels[index].count

    def is_vacated(self, bytes channel not None):
        """Whether a channel is empty and its name waits to be taken by `take_vacated`."""
        cdef uint32_t index = channel_find(
            self.own(), <const uint8_t *>PyBytes_AS_STRING(channel), <uint32_t>len(channel)
        )
        if index == NONE or self.core.channels.channels[index].count:
            return False
        return bool(self.core.channels.channels[index].is_vacated)

    def channel_names(self):
        """Return the number of channels and the bytes of all their names."""
        return self.core.channels.count, self.core.channels.name_bytes

    def subscribed(self, bytes channel not None):
        """Return the handles of the connections that are subscribed to a channel, in no order."""
        cdef Core *core = self.own()
        cdef Channel *found
        cdef const uint32_t *slots
        cdef uint32_t index, place
        cdef list handles = []
        index = channel_find(core, <const uint8_t *>PyBytes_AS_STRING(channel), <uint32_t>len(channel))
        if index != NONE:
            found = &core.channels.channels[index]
            slots = found.slots.many if found.capacity else found.slots.few
            for place in range(found.count):
                handles.append(handle_of(at(core, slots[place]), slots[place]))
        return handles

    def variants(self, bytes channel not None):
        """Return the variants that have subscribed to a channel, one bit each; 0 if it has no subscriber."""
        cdef uint32_t index = channel_find(
            self.own(), <const uint8_t *>PyBytes_AS_STRING(channel), <uint32_t>len(channel)
        )
        if index == NONE or self.core.channels.channels[index].count == 0:
            return 0
        return self.core.channels.channels[index].variants

    def channels(self, uint32_t start, uint32_t limit):
        """List the names of channels with subscribers, from one place in the directory on; see loop.pyi."""
        cdef Core *core = self.own()
        cdef list names = []
        cdef uint32_t index = start
        while index < core.channels.made and limit:
            if core.channels.channels[index].is_used and core.channels.channels[index].count:
                names.append(name_of(core, index))
                limit -= 1
            index += 1
        return names, index if index < core.channels.made else 0

    def take_vacated(self, uint32_t limit):
        """Take the names of channels that have lost their last subscriber since the last call.

        See loop.pyi.
        """
        cdef Core *core = self.own()
        cdef list names = []
        cdef uint32_t index
        while limit:
            index = channel_take_vacated(core)
            if index == NONE:
                break
            names.append(name_of(core, index))
            channel_release(core, index)
            limit -= 1
        return names

    def publish(self, bytes channel not None, variants, *, int64_t position=0, uint64_t exclude=0):
        """Queue one publication for every subscriber of a channel and return for how many; see loop.pyi."""
        cdef Core *core = self.own()
        cdef Frame *frames[VARIANTS_MAX]
        cdef uint32_t index
        cdef int variant = 0
        cdef int64_t reached
        memset(frames, 0, sizeof(frames))
        payloads = tuple(variants)
        if len(payloads) > <int>core.variants:
            raise ValueError(f"pass at most {core.variants} variants, as many as are configured")
        index = channel_find(core, <const uint8_t *>PyBytes_AS_STRING(channel), <uint32_t>len(channel))
        if index == NONE or core.channels.channels[index].count == 0:
            return 0
        core.counters[<int>PUBLICATIONS] += 1
        try:
            for payload in payloads:
                if type(payload) is int:
                    frames[variant] = shared_frame(frames, variant, payload)
                elif payload is not None:
                    frames[variant] = frame_publication(
                        core, publication_opcode(core, variant),
                        <const uint8_t *>PyBytes_AS_STRING(<bytes?>payload),
                        <uint32_t>PyBytes_GET_SIZE(payload), index, position,
                    )
                    if frames[variant] == NULL:
                        raise MemoryError
                variant += 1
            reached = fan_out(core, index, frames, exclude)
        finally:
            for variant in range(VARIANTS_MAX):
                if frames[variant] != NULL:
                    frame_release(core, frames[variant])
        return reached

    def mark_lost(self, bytes channel not None, uint32_t round):
        """Mark a channel as having lost publications in one round of notices.

        False if it has no subscriber.
        """
        cdef uint32_t index = channel_find(
            self.own(), <const uint8_t *>PyBytes_AS_STRING(channel), <uint32_t>len(channel)
        )
        if index == NONE or self.core.channels.channels[index].count == 0:
            return False
        self.core.channels.channels[index].lost_round = round
        return True

    def send_notices(
        self, uint32_t start, uint32_t most, forms not None, *, uint32_t round=0, bytes channel=None,
    ):
        """Queue a notice of loss for the connections in the next slots of the table; see loop.pyi."""
        cdef Core *core = self.own()
        cdef Frame *frames[NOTICE_FORMS_MAX * VARIANTS_MAX]
        cdef uint32_t index = NONE, count = 0, place
        cdef uint64_t notified = 0
        if not 0 < len(forms) <= NOTICE_FORMS_MAX:
            raise ValueError(f"forms must have 1 to {NOTICE_FORMS_MAX} messages")
        memset(frames, 0, sizeof(frames))
        if channel is not None:
            index = channel_find(core, <const uint8_t *>PyBytes_AS_STRING(channel), <uint32_t>len(channel))
            if index == NONE or core.channels.channels[index].count == 0:
                return None, 0
        try:
            for payloads in forms:
                frame_variants(core, payloads, index, &frames[count * VARIANTS_MAX])
                count += 1
            place = notices_step(core, start, most, frames, count, round, index, &notified)
        finally:
            for count in range(<uint32_t>(NOTICE_FORMS_MAX * VARIANTS_MAX)):
                if frames[count] != NULL:
                    frame_release(core, frames[count])
        return None if place == NONE else place, notified

    def set_bye(self, int close_code, variants, *, int reason=0, int rank=0):
        """Set the message that precedes a Close which the reactor sends by itself; see loop.pyi."""
        cdef Core *core = self.own()
        cdef Bye *bye
        payloads = tuple(variants)
        if len(payloads) > <int>core.variants:
            raise ValueError(f"pass at most {core.variants} variants, as many as are configured")
        check_code(close_code)
        if reason:
            check_reason(reason)
        if not 0 <= rank <= 255:
            raise ValueError("rank must be 0 to 255")
        bye = bye_for(core, <uint16_t>close_code, reason, rank)
        if bye == NULL:
            raise MemoryError
        for variant, payload in enumerate(payloads):
            if bye.frames[<int>variant] != NULL:
                frame_release(core, bye.frames[<int>variant])
                bye.frames[<int>variant] = NULL
            if payload is not None:
                bye.frames[<int>variant] = frame_message(
                    core, core.variant_opcodes[<int>variant],
                    <const uint8_t *>PyBytes_AS_STRING(<bytes?>payload), <uint32_t>PyBytes_GET_SIZE(payload),
                )

    # --- statistics ---------------------------------------------------------------------------------

    def counters(self):
        """Return all counters since the start, and the gauges that begin with `now_`; see loop.pyi."""
        cdef Core *core = self.core
        cdef int index
        numbers = {name: core.counters[index] for index, name in enumerate(COUNTER_NAMES)}
        for index in range(1, <int>REASONS):
            numbers[ENDED_NAMES[index]] = core.ended[index]
        for index in range(1, <int>STATES):
            numbers[NOW_NAMES[index]] = core.states[index]
        numbers["now_connections"] = core.connections
        numbers["now_blocked"] = core.blocked
        numbers["now_pacing"] = (
            core.paced[<int>PACE_READER] + core.paced[<int>PACE_BEHIND] + core.paced[<int>PACE_MOVING]
        )
        numbers["now_draining"] = core.drain_count
        numbers["now_channels"] = core.channels.count
        numbers["now_walks"] = core.walk_count
        numbers["now_short"] = core.is_short or core.refuses_newcomers
        numbers["now_shedding"] = core.is_shedding
        return numbers

    def bytes_held(self):
        """Return the bytes charged to each account, whose sum the memory budget limits; see loop.pyi."""
        cdef Core *core = self.core
        held = {name: core.held[index] for index, name in enumerate(KIND_NAMES)}
        held["pool"] = core.pool.idle_bytes
        held["outside"] = core.outside_bytes
        held["kernel_queued"] = core.queued_bytes
        held["kernel_orphans"] = core.orphan_bytes
        held["connections"] = <uint64_t>core.connections * core.gate.connection_bytes
        return held


# --- helpers ----------------------------------------------------------------------------------------

cdef inline bytes name_of(Core *core, uint32_t index):
    """Return the name of a channel as a new `bytes` object."""
    cdef Channel *channel = &core.channels.channels[index]
    return PyBytes_FromStringAndSize(<char *>channel_name(channel), channel.name_length)


cdef report_fault(error):
    """Write an exception that ended one connection's turn to standard error, with its traceback."""
    print("wsgate: an exception in the reactor ended one connection's turn:", file=sys.stderr)
    traceback.print_exception(error)


cdef int give_turn(Core *core, uint32_t slot, Debt *row, Pass *used, list events) except -1:
    """Run one turn of a connection and charge what it cost.

    `row` is the connection's row in the table of debts, or NULL. An exception ends this connection only.
    """
    cdef uint32_t messages = used.messages
    cdef uint64_t frames = core.counters[<int>FRAMES_IN]
    cdef int64_t inflate_ns = used.inflate_ns
    used.message_ns = core.unknown_ns if row == NULL else row.message_ns
    # Messages of this connection are known to be costly: take only as many as fit into one quantum.
    if used.message_ns > MESSAGE_NS:
        used.turn_messages = min(used.turn_messages, max(<uint32_t>1, QUANTUM_NS // used.message_ns))
    core.turns_to_wait -= core.turns_to_wait != 0
    try:
        take_turn(core, slot, used, events)
    except MemoryError:
        turn_failed(core, slot, OUT_OF_MEMORY)
    except Exception as error:
        turn_failed(core, slot, INTERNAL)
        report_fault(error)
    if used.messages != messages:
        # The expected cost of a message falls with each turn that had messages; `debts_charge` raises it.
        if row == NULL:
            core.unknown_ns -= core.unknown_ns >> 4
        else:
            debts_decay(row)
    if at(core, slot).state == STATE_OPEN:
        debts_charge_turn(
            core, slot, core.counters[<int>FRAMES_IN] - frames, used.messages - messages,
            used.inflate_ns - inflate_ns
        )
    return 0


cdef inline bint is_over(Pass *used, bint asks_clock) noexcept nogil:
    """Whether a pass has used up one of its budgets; the clock is read only with `asks_clock`."""
    return (
        used.messages >= used.messages_limit or used.bytes >= PASS_BYTES or used.expected_ns >= PASS_NS
        or (asks_clock and clock_ns() >= used.until_ns)
    )


cdef int serve_attention(Core *core, Pass *used, list events) except -1:
    """Give a turn to each connection on the attention queue; costly ones move to `indebted` instead.

    Newcomers are first, but at most PASS_OPENS of them are opened before the others have their turns. If they
    leave the others too little of the pass, or no open for an older head, the others are first in the next one.

    When connections in debt have waited for RESERVE_PASSES passes, one message of this pass is kept for them.

    Returns:
        The number of turns that were given.
    """
    cdef uint32_t limit = used.messages_limit, waiting = core.attention.count
    cdef uint32_t most = min(
        <uint32_t>TURN_MESSAGES,
        max(<uint32_t>TURN_MESSAGES_LEAST, limit // max(waiting + core.indebted.count, <uint32_t>1)),
    )
    cdef bint has_older = waiting != core.newcomers, is_older_first = core.is_older_first
    cdef int given = 0, given_to_newcomers = 0
    used.turn_messages = most
    if core.indebted.count and core.passes_without >= RESERVE_PASSES:
        if limit == 1:
            return 0
        used.messages_limit = limit - 1
    if is_older_first:
        given = serve_older(core, used, events, most)
    if given == 0 or not is_over(used, True):
        given_to_newcomers = serve_newcomers(core, used, events, most)
    if not is_older_first and (given_to_newcomers == 0 or not is_over(used, True)):
        given = serve_older(core, used, events, most)
    core.is_older_first = has_older and given_to_newcomers != 0 and (
        given < given_to_newcomers or used.has_waiting_heads
    )
    used.messages_limit = limit
    used.turn_messages = most
    return given + given_to_newcomers


cdef int serve_newcomers(Core *core, Pass *used, list events, uint32_t most) except -1:
    """Give turns to newcomers until the pass is over or has opened PASS_OPENS of them; return how many."""
    cdef uint32_t slot, turns = core.newcomers
    cdef int given = 0
    while turns and used.opens < PASS_OPENS:
        turns -= 1
        slot = attention_pop(core)
        used.turn_messages = most
        give_turn(core, slot, debts_row(core, slot), used, events)
        given += 1
        if is_over(used, turns & 7 == 0):
            break
    return given


cdef int serve_older(Core *core, Pass *used, list events, uint32_t most) except -1:
    """Give turns to the connections behind the newcomers until the pass is over; return how many."""
    cdef uint32_t slot, turns = core.attention.count - core.newcomers
    cdef int given = 0
    cdef Debt *row
    while turns:
        turns -= 1
        slot = attention_pop_older(core)
        if at(core, slot).state == STATE_HEAD and used.opens >= PASS_OPENS:
            used.has_waiting_heads = True
            attention_push(core, slot)
            continue
        # Only the messages of a costly connection may wait. Its end may not, because that releases memory.
        row = debts_row(core, slot)
        if row != NULL and at(core, slot).state == STATE_OPEN and debts_is_costly(core, row):
            indebted_push(core, slot)
            continue
        used.turn_messages = most
        give_turn(core, slot, row, used, events)
        given += 1
        if is_over(used, turns & 7 == 0):
            break
    return given


cdef int serve_indebted(Core *core, Pass *used, list events, bint is_first) except -1:
    """Give turns to the costly connections that do not owe too much, while the budget of the pass lasts.

    If the pass is over already, one of them gets a turn of one message once RESERVE_PASSES passes have served
    none. If no other connection had a turn (`is_first`), one of them gets a turn in any case, so that every
    pass makes progress, however slow the machine is.
    """
    cdef Pass reserve
    core.passes_without += 1
    if is_first or not is_over(used, True):
        serve_reached(core, used, events)
    elif core.passes_without > RESERVE_PASSES:
        memset(&reserve, 0, sizeof(reserve))
        reserve.messages_limit = reserve.turn_messages = 1
        serve_reached(core, &reserve, events)     # its `until_ns` is 0, so it is over after one turn
    return 0


cdef int serve_reached(Core *core, Pass *used, list events) except -1:
    """Go through the queue of connections in debt once and serve those that owe two quanta at most.

    If all owe more, raise the level, so that one can be served, and go through the queue a second time.
    """
    cdef uint32_t slot, looks = core.indebted.count, most = used.turn_messages
    cdef int64_t debt, least = DEBT_MOST_NS
    cdef bint has_served = False
    cdef Debt *row
    while looks:
        looks -= 1
        slot = indebted_pop(core)
        row = debts_row(core, slot)
        debt = debts_of(core, slot) if at(core, slot).state == STATE_OPEN else 0
        if debt <= 2 * QUANTUM_NS:
            has_served = True
            core.passes_without = 0
            used.turn_messages = most
            give_turn(core, slot, row, used, events)
            if is_over(used, True):
                return 0
        else:
            least = min(least, debt)
            indebted_push(core, slot)
        if looks == 0 and not has_served and core.indebted.count:
            debts_raise(core, least)
            looks = core.indebted.count
            has_served = True                 # the second round serves at least one, and there is no third
    return 0


cdef uint32_t hash_of(Core *core, bytes user):
    """Return the hash under which a user is in the index by user."""
    return user_hash(core, <const uint8_t *>PyBytes_AS_STRING(user), <uint64_t>PyBytes_GET_SIZE(user))


cdef uint32_t counted_subscriptions(Core *core, Connection *c) noexcept nogil:
    """Count a connection's subscriptions that count against its limit; reads its table only at the limit."""
    cdef uint32_t cell, uncounted = 0
    if c.subscription_count < core.limits.max_subscriptions:
        return c.subscription_count
    for cell in range(<uint32_t>1 << c.subscription_bits):
        if c.subscriptions[cell].channel != NONE:
            uncounted += core.channels.channels[c.subscriptions[cell].channel].is_uncounted
    return c.subscription_count - uncounted


cdef inline uint8_t publication_opcode(Core *core, int variant) noexcept nogil:
    """Return the first header byte's opcode for publications of a variant, with RSV1 if it is deflated."""
    return core.variant_opcodes[variant] | (RSV1 if core.variant_deflated[variant] else 0)


cdef Frame *shared_frame(Frame **frames, int variant, int other) except NULL:
    """Return the frame of an earlier variant with one reference more; ValueError if there is none."""
    if not 0 <= other < variant or frames[other] == NULL:
        raise ValueError(f"variant {variant} cannot share the frame of {other}: no earlier variant has it")
    frames[other].references += 1
    return frames[other]


cdef int frame_variants(Core *core, payloads, uint32_t channel, Frame **frames) except -1:
    """Encode one message as a frame for every variant, never compressed.

    With a `channel` the frames are publications of that channel, which they keep alive; with NONE they are
    plain messages. A payload that is a number shares the frame of an earlier variant.
    """
    cdef int variant = 0
    cdef const uint8_t *data
    cdef uint32_t size
    if len(payloads) > <int>core.variants:
        raise ValueError(f"pass at most {core.variants} variants, as many as are configured")
    for payload in payloads:
        if type(payload) is int:
            frames[variant] = shared_frame(frames, variant, payload)
        elif payload is not None:
            data = <const uint8_t *>PyBytes_AS_STRING(<bytes?>payload)
            size = <uint32_t>PyBytes_GET_SIZE(payload)
            if channel == NONE:
                frames[variant] = frame_message(core, core.variant_opcodes[variant], data, size)
            else:
                frames[variant] = frame_publication(
                    core, core.variant_opcodes[variant], data, size, channel, 0
                )
            if frames[variant] == NULL:
                raise MemoryError
        variant += 1
    return 0


cdef Answer answer_of(bytes text) except *:
    """Copy an HTTP response for refused peers into memory that the gate owns."""
    cdef Answer answer
    answer.length = <uint32_t>len(text)
    answer.data = <uint8_t *>malloc(len(text) + 1)
    if answer.data == NULL:
        raise MemoryError
    memcpy(answer.data, PyBytes_AS_STRING(text), len(text))
    return answer


cdef int check_reason(int reason) except -1:
    """Raise ValueError unless this is the number of a reason."""
    if not 0 < reason < REASONS:
        raise ValueError(f"{reason} is not the number of a reason")
    return 0


cdef int check_code(int code) except -1:
    """Raise ValueError unless a server may send this close code (RFC 6455 section 7.4).

    1005 stands for no code.
    """
    if not (code == 1005 or 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999):
        raise ValueError(f"a server may not send the close code {code}")
    return 0


cdef inline bint takes_replies(Connection *c) noexcept nogil:
    """Whether messages may still be queued: the connection is open, or is failing with an intact outbox.

    A failing connection still receives the replies to what its peer sent before the fault.
    """
    return c.state == STATE_OPEN or (
        c.state == STATE_FAILING and c.reason not in (SLOW_CONSUMER, OUTBOX_AGE, OUT_OF_MEMORY, SHED)
    )


cdef void open_connection(Core *core, uint32_t slot) noexcept nogil:
    """Enter the state OPEN: the heartbeat starts now, and bytes that came behind the head are read next."""
    cdef Connection *c = at(core, slot)
    if c.state == STATE_HEAD:
        heads_remove(core, slot)
    enter(core, c, STATE_OPEN)
    c.deadline_ms = 0
    c.message_ms = <uint32_t>core.clock_ms
    c.seen_ms = <uint32_t>core.clock_ms
    wheel_disarm(core, slot)
    deadlines_arm(core, slot)
    if socket_interest(core, slot, True, (c.flags & WANT_OUT) != 0) < 0:
        release(core, slot, OUT_OF_MEMORY, True)
    elif c.input != NULL:
        attention_push(core, slot)
