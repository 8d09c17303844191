"""Checks the lists of a reactor: the part of an audit that follows links from connection to connection."""

from libc.stdint cimport uint32_t

from wsgate.reactor.structs cimport Connection, Core, List, UserLink


cdef class ListAudit:
    cdef Core *core
    cdef list faults
    cdef uint32_t used               # slots from the first up to the last that was ever used

    cdef begin(self, Core *core)
    cdef bint is_blank(self, Connection *c)
    cdef expect(self, str account, object says, object found)
    cdef Connection *at(self, uint32_t slot)
    cdef UserLink *link(self, uint32_t slot)
    cdef uint32_t slots(self)
    cdef look_at_list(self, str name, List *queue, int flag, bint is_double, List *other=*)
    cdef look_at_heads(self)
    cdef look_at_lists(self)
    cdef look_at_newcomers(self)
    cdef look_at_wheel(self)
