"""Creates the reactor's state from settings, moves its clocks, and destroys it.

This module checks each setting against its range. Modules below it use the settings as plain numbers.
"""

from cpython.bytes cimport PyBytes_AS_STRING
from cpython.ref cimport Py_XDECREF
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, calloc
from libc.string cimport memcpy, memset

from wsgate.reactor.channels cimport channels_destroy, channels_start
from wsgate.reactor.closing cimport release
from wsgate.reactor.codec cimport OP_PING, RSV1
from wsgate.reactor.debts cimport debts_destroy
from wsgate.reactor.fanout cimport walks_drop
from wsgate.reactor.frames cimport frame_message, frame_raw, frame_release
from wsgate.reactor.gate cimport gate_answers_free, gate_close_drains
from wsgate.reactor.inflate cimport ZLIB_BYTES
from wsgate.reactor.memory cimport memory_empty_pool
from wsgate.reactor.pacing cimport pacing_pass_time
from wsgate.reactor.structs cimport (
    CHUNK_BITS, CHUNK_SLOTS, COUNTERS, CROWD_MS, Connection, Core, DRAINS_MAX, Frame, HEAD_GROUPS,
    KIND_DEFLATE, MOVING_MS, NONE, PAUSE_MS, REASONS, SHUTDOWN, STALLS_FORGIVEN, STALL_EVERY_MS, STALL_MS,
    STATE_FREE, STATE_GONE, TICK_MS, VARIANTS_MAX,
)
from wsgate.reactor.table cimport at, table_destroy
from wsgate.reactor.users cimport users_destroy
from wsgate.reactor.wheel cimport wheel_start

import os

from wsgate.errors import SettingsError

cdef extern from "<sys/epoll.h>" nogil:
    int epoll_create1(int flags)
    int EPOLL_CLOEXEC

cdef extern from "<unistd.h>" nogil:
    int close(int fd)


cdef uint32_t number(settings, str name, int64_t low, int64_t high) except? 0:
    """Return the setting `name`; raise SettingsError if it is not an integer from `low` to `high`."""
    value = getattr(settings, name)
    if not isinstance(value, int) or not low <= value <= high:
        raise SettingsError(f"{name} must be {low} to {high}, not {value!r}")
    return value


cdef int apply_settings(Core *core, settings) except -1:
    """Check limits, deadlines and variants and copy them into `Core`; raise SettingsError if one is bad."""
    cdef int64_t most = 1 << 31
    core.limits.head_limit_bytes = number(settings, "head_limit_bytes", 64, 1 << 20)
    core.limits.head_timeout_ms = number(settings, "head_timeout_ms", 1, most)
    core.limits.upgrade_timeout_ms = number(settings, "upgrade_timeout_ms", 1, most)
    core.limits.max_message_bytes = number(settings, "max_message_bytes", 1, 1 << 30)
    core.limits.max_fragments = number(settings, "max_fragments", 0, most)
    core.limits.message_timeout_ms = number(settings, "message_timeout_ms", 0, most)
    core.limits.control_rate_per_s = number(settings, "control_rate_per_s", 0, 8_000)
    core.limits.control_burst = number(settings, "control_burst", 1, 100_000)
    core.limits.message_rate_per_s = number(settings, "message_rate_per_s", 0, 1_000_000_000)
    core.limits.byte_rate_per_s = number(settings, "byte_rate_per_s", 0, most)
    core.limits.outbox_bytes = number(settings, "outbox_bytes", 1024, 1 << 30)
    core.limits.outbox_frames = number(settings, "outbox_frames", 1, 1 << 20)
    core.limits.blocked_grace_ms = number(settings, "blocked_grace_ms", 0, 60_000)
    core.limits.blocked_moving_ms = number(settings, "blocked_moving_ms", 0, 60_000)
    core.limits.outbox_age_ms = number(settings, "outbox_age_ms", 1, 30 * 60_000)
    core.limits.write_timeout_ms = number(settings, "write_timeout_ms", 1, most)
    core.limits.send_buffer_bytes = number(settings, "send_buffer_bytes", 0, 1 << 30)
    core.limits.ping_interval_ms = number(settings, "ping_interval_ms", 0, most)
    core.limits.pong_timeout_ms = number(settings, "pong_timeout_ms", 1, most)
    core.limits.idle_timeout_ms = number(settings, "idle_timeout_ms", 0, most)
    core.limits.linger_timeout_ms = number(settings, "linger_timeout_ms", 0, most)
    core.limits.linger_limit_bytes = number(settings, "linger_limit_bytes", 0, 1 << 19)
    core.limits.linger_limit_sockets = number(settings, "linger_limit_sockets", 0, most)
    core.limits.max_connections = number(settings, "max_connections", 1, 1 << 24)
    core.limits.walk_at_once = number(settings, "walk_at_once", 0, most)
    core.limits.max_subscriptions = number(settings, "max_subscriptions", 0, 1 << 20)
    core.pool.is_wanted = core.pool.enabled = settings.pool_enabled
    core.pool.idle_limit_bytes = number(settings, "pool_idle_limit_bytes", 0, 1 << 31)
    opcodes = settings.variant_opcodes
    if not 1 <= len(opcodes) <= VARIANTS_MAX or any(code & ~RSV1 not in (1, 2) for code in opcodes):
        raise SettingsError(
            f"variant_opcodes must be 1 to {VARIANTS_MAX} opcodes of 1 (text) or 2 (binary), deflated or not"
        )
    core.variants = <uint32_t>len(opcodes)
    for place, opcode in enumerate(opcodes):
        core.variant_opcodes[<int>place] = opcode & ~RSV1
        core.variant_deflated[<int>place] = opcode & RSV1 != 0
        if opcode & RSV1:
            core.held[<int>KIND_DEFLATE] = core.limits.max_message_bytes + ZLIB_BYTES
    return 0


cdef Frame *response_frame(Core *core, bytes response) except? NULL:
    """Return the bytes of an HTTP response as a frame to queue; NULL for an empty response."""
    cdef Frame *frame
    if not response:
        return NULL
    frame = frame_raw(core, <const uint8_t *>PyBytes_AS_STRING(response), <uint32_t>len(response))
    if frame == NULL:
        raise MemoryError
    return frame


cdef void state_blank(Core *core) noexcept nogil:
    """Reset a `Core` to the state in which it owns nothing: its lists are empty, and it has no descriptor."""
    cdef int index
    memset(core, 0, sizeof(Core))
    core.epoll = core.listener = core.relief = core.relief_next = -1
    core.free_slot = core.rearm_slot = NONE
    for index in range(HEAD_GROUPS):
        core.heads[index].list.head = core.heads[index].list.tail = NONE
    core.channels.free = NONE
    core.attention.head = core.attention.tail = NONE
    core.indebted.head = core.indebted.tail = NONE
    core.failed.head = core.failed.tail = NONE
    core.urgent.head = core.urgent.tail = NONE
    core.bulk.head = core.bulk.tail = NONE
    for index in range(DRAINS_MAX):
        core.drains[index].fd = -1


cdef int state_start(Core *core, settings, int64_t now_ms, bytes key) except -1:
    """Initialise a blank `Core`: check settings, set clocks, allocate tables, create the epoll set."""
    if now_ms < 0:
        raise SettingsError("now_ms must be 0 or more")
    core.now_ms = core.clock_ms = core.last_tick_ms = core.level_ms = now_ms
    core.last_stall_ms = now_ms - STALL_EVERY_MS
    core.crowd_us = <int64_t>1000 * CROWD_MS
    core.moving_us = <int64_t>1000 * MOVING_MS
    apply_settings(core, settings)
    channels_start(core, <const uint8_t *>PyBytes_AS_STRING(key))
    core.channels.report_vacated = settings.report_vacated
    core.report_meta = bool(settings.report_meta)
    wheel_start(core)
    core.chunk_limit = (core.limits.max_connections + CHUNK_SLOTS - 1) // CHUNK_SLOTS
    core.chunks = <Connection **>calloc(core.chunk_limit, sizeof(Connection *))
    core.ping = frame_message(core, OP_PING, b"", 0)
    if core.chunks == NULL or core.ping == NULL:
        raise MemoryError
    core.page = response_frame(core, settings.page_response)
    core.head_timeout = response_frame(core, settings.head_timeout_response)
    core.head_too_large = response_frame(core, settings.head_too_large_response)
    core.upgrade_timeout = response_frame(core, settings.upgrade_timeout_response)
    core.epoll = epoll_create1(EPOLL_CLOEXEC)
    if core.epoll < 0:
        raise OSError(errno, os.strerror(errno))
    return 0


cdef void advance(Core *core, int64_t now_ms) noexcept nogil:
    """Move the clocks to `now_ms`, and forgive a stall of our own process at most once a minute.

    A stall is a late tick with no other call in the meantime, because a loop that polls is not stalled. A
    stall that is forgiven stops `clock_ms`, the clock of the deadlines that apply to a peer.
    """
    cdef int64_t late
    if now_ms <= core.now_ms:
        return
    if now_ms - core.now_ms > PAUSE_MS:
        core.pause_ms = now_ms - core.now_ms
        core.pause_until_ms = now_ms + PAUSE_MS
    late = now_ms - max(core.now_ms, core.last_tick_ms + TICK_MS)
    if late > STALL_MS:
        if now_ms - core.last_stall_ms >= STALL_EVERY_MS:
            core.last_stall_ms = now_ms
            core.forgiven_ms += late // TICK_MS * TICK_MS    # whole steps keep the wheel in phase
            core.counters[<int>STALLS_FORGIVEN] += 1
            core.rearm_slot = 0               # expiries do not move, so they are nearer on this clock
    # A pause of our process is not charged to the connections for which publications wait.
    pacing_pass_time(core, min(now_ms - core.now_ms, <int64_t>TICK_MS))
    core.now_ms = now_ms
    core.clock_ms = now_ms - core.forgiven_ms


cdef inline void drop(Core *core, Frame **frame) noexcept nogil:
    """Release the frame in a pointer, if there is one, and set the pointer to NULL."""
    if frame[0] != NULL:
        frame_release(core, frame[0])
        frame[0] = NULL


cdef list state_destroy(Core *core):
    """Close every socket, free all memory, and leave a blank `Core` that keeps only its counters.

    Returns the meta objects of the connections. The caller releases them afterwards, because their finalizers
    can call anything, also a reactor that must not be half destroyed.
    """
    cdef uint32_t slot, index
    cdef list metas = []
    cdef uint64_t counters[COUNTERS]
    cdef uint64_t ended[REASONS]
    if core.epoll >= 0:
        close(core.epoll)
    core.epoll = -1                           # from now on every call of the caller is refused
    if core.chunks != NULL:
        for slot in range(core.chunk_count << CHUNK_BITS):
            if at(core, slot).state not in (STATE_FREE, STATE_GONE):
                release(core, slot, SHUTDOWN, False)
            if at(core, slot).meta != NULL:
                metas.append(<object>at(core, slot).meta)
                Py_XDECREF(at(core, slot).meta)
                at(core, slot).meta = NULL
    walks_drop(core)
    gate_close_drains(core)
    for index in range(core.bye_count):
        for slot in range(<uint32_t>VARIANTS_MAX):
            drop(core, &core.byes[index].frames[slot])
    drop(core, &core.ping)
    drop(core, &core.page)
    drop(core, &core.head_timeout)
    drop(core, &core.head_too_large)
    drop(core, &core.upgrade_timeout)
    free(core.byes)
    gate_answers_free(core)
    debts_destroy(core)
    if core.chunks != NULL:
        table_destroy(core)
        channels_destroy(core)
        users_destroy(core)
        memory_empty_pool(core)
        free(core.chunks)
    memcpy(counters, core.counters, sizeof(counters))
    memcpy(ended, core.ended, sizeof(ended))
    state_blank(core)
    memcpy(core.counters, counters, sizeof(counters))
    memcpy(core.ended, ended, sizeof(ended))
    return metas
