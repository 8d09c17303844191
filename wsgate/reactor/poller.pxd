"""What epoll reports, sorted."""

from wsgate.reactor.structs cimport Core

cdef void wait_once(Core *core) noexcept nogil
