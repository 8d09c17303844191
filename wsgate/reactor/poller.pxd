"""Polls epoll and hands each report to the module that handles it."""

from wsgate.reactor.structs cimport Core

cdef void wait_once(Core *core) noexcept nogil
