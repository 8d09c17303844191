"""Helpers for tests and measurements: connections without own descriptors, and access to internals.

The gateway never imports this module. `open_slots` makes more connections than a process can have
descriptors: the connections share a few sinks. A sink is a descriptor that accepts all data sent to it.
Everything except the socket is the shipped code: slots, timers, outboxes, fan-out, writes. Connections that
share a sink are not in the epoll set, because epoll accepts a descriptor only once, so nothing is ever read
from them.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from array import array

from wsgate.reactor.fanout cimport walks_step
from wsgate.reactor.gate cimport gate_open
from wsgate.reactor.loop cimport Reactor, open_connection
from wsgate.reactor.proxy cimport proxy_header
from wsgate.reactor.state cimport advance
from wsgate.reactor.structs cimport CHUNK_SLOTS, Connection, Core, OPENED, PING_SENT, STATE_OPEN, WANT_IN, WATCHED
from wsgate.reactor.table cimport at, handle_of

from wsgate.reactor.audit import audit

__all__ = ["audit", "hear_all", "let_go", "open_slots", "read_proxy_header", "step_walks", "trust_charges"]


def open_slots(Reactor reactor not None, fds, uint32_t count, *, long long now_ms, int variant=0):
    """Create `count` connections in state OPEN that share a few descriptors; see testing.pyi."""
    cdef Core *core = reactor.own()
    cdef uint32_t slot = 0, index
    cdef Connection *c
    cdef list sinks = list(fds)
    handles = array("Q")
    reactor.check_variant(variant)
    advance(core, now_ms)
    for index in range(count):
        if gate_open(core, <int32_t>sinks[index % len(sinks)], &slot, 0) < 0:
            raise MemoryError("no slot for another connection")
        c = at(core, slot)
        c.flags |= OPENED | WATCHED | WANT_IN
        c.variant = variant
        open_connection(core, slot)
        handles.append(handle_of(c, slot))
    return handles


def hear_all(Reactor reactor not None):
    """Mark every open connection as if a byte had just come; return their number. See testing.pyi."""
    cdef Core *core = reactor.own()
    cdef uint32_t slot, heard = 0
    cdef Connection *c
    for slot in range(core.chunk_count * CHUNK_SLOTS):
        c = at(core, slot)
        if c.state == STATE_OPEN:
            c.seen_ms = <uint32_t>core.clock_ms
            c.flags &= ~PING_SENT
            heard += 1
    return heard


def read_proxy_header(bytes data not None):
    """Parse the PROXY header at the beginning of `data`; see testing.pyi."""
    cdef uint8_t address[16]
    cdef bint is_named = False
    cdef uint64_t length = <uint64_t>len(data)
    # Use a block of exactly this size: a bytes object has a zero byte behind its end, which would hide from
    # AddressSanitizer that one byte too many is read.
    cdef uint8_t *block = <uint8_t *>malloc(length)
    cdef int64_t size
    if block == NULL and length:
        raise MemoryError
    memcpy(block, <const uint8_t *>data, length)
    size = proxy_header(block, length, address, &is_named)
    free(block)
    return size, (<char *>address)[:16] if size > 0 and is_named else None


def trust_charges(Reactor reactor not None):
    """Apply every charge without checking it, and do not charge for inflating; see testing.pyi."""
    reactor.own().is_exact = 1


def step_walks(Reactor reactor not None, uint32_t most):
    """Queue up to `most` entries of the oldest publication under way; return False if there is none."""
    cdef Core *core = reactor.own()
    if core.walks == NULL:
        return False
    walks_step(core, most)
    return True


def let_go(Reactor reactor not None, handles):
    """Remove the sinks from connections of `open_slots`, so that closing one closes no descriptor."""
    cdef Core *core = reactor.own()
    cdef uint32_t slot = 0
    cdef uint64_t handle
    cdef Connection *c
    for handle in handles:
        c = reactor.find(handle, &slot)
        if c != NULL:
            c.fd = -1
            c.flags &= ~(WATCHED | WANT_IN)
