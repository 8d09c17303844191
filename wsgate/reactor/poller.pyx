"""Polls epoll and hands each report to the module that handles it.

A report is about the listener, a refused socket that is being drained, or a connection. A connection is only
put on the attention queue here, and is read in its turn.
"""

from libc.stdint cimport uint32_t, uint64_t

from wsgate.reactor.closing cimport release
from wsgate.reactor.gate cimport gate_accept, gate_drain
from wsgate.reactor.socket_io cimport (
    EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, TAG_DRAIN, TAG_LISTENER, epoll_event, socket_interest,
)
from wsgate.reactor.structs cimport (
    Connection, Core, PAUSED_APP, PAUSED_OUTBOX, PEER_RESET, STATE_OPEN, WANT_IN, WANT_OUT,
)
from wsgate.reactor.table cimport attention_push, find
from wsgate.reactor.writer cimport unblock

cdef extern from "<sys/epoll.h>" nogil:
    int epoll_wait(int epoll, epoll_event *events, int count, int timeout_ms)

cdef enum:
    EVENTS_PER_WAIT = 512
    BATCHES_PER_WAIT = 3         # each takes 0.1 ms when it is full


cdef void ready(Core *core, uint64_t tag, uint32_t reported) noexcept nogil:
    """Handle one report of epoll: accept, drain, queue for reading, resume writing or release."""
    cdef uint32_t slot = <uint32_t>tag
    cdef Connection *c
    if slot == TAG_LISTENER:
        gate_accept(core)
        return
    if slot >= TAG_DRAIN:
        gate_drain(core, slot - TAG_DRAIN)
        return
    c = find(core, tag, &slot)
    if c == NULL:
        return                                # the connection was closed earlier in this batch
    if reported & EPOLLOUT:
        unblock(core, slot)
    if not reported & (EPOLLIN | EPOLLERR | EPOLLHUP):
        return
    if c.flags & WANT_IN and not (c.state == STATE_OPEN and c.flags & (PAUSED_APP | PAUSED_OUTBOX)):
        attention_push(core, slot)
    elif reported & (EPOLLERR | EPOLLHUP):
        release(core, slot, PEER_RESET, False)      # we do not read, and the peer is gone
    else:
        socket_interest(core, slot, False, (c.flags & WANT_OUT) != 0)


cdef void wait_once(Core *core) noexcept nogil:
    """Poll epoll without waiting, up to three batches of 512 reports, and handle the reports.

    A full batch reports only a part of the ready sockets. Sockets that can be written to again wait in the
    same order: behind 7,000 busy connections only the fourteenth batch would report one. So several batches
    are fetched. If the last one is full too, the listener is tried directly, which is one cheap system call.
    """
    cdef epoll_event events[EVENTS_PER_WAIT]
    cdef int batch, count, index
    for batch in range(BATCHES_PER_WAIT):
        count = epoll_wait(core.epoll, events, EVENTS_PER_WAIT, 0)
        for index in range(count):
            ready(core, events[index].data.u64, events[index].events)
        if count < EVENTS_PER_WAIT:
            return
    if core.listener >= 0 and not core.listener_muted:
        gate_accept(core)
