"""The C interface of the backlog: its fields, and the functions that the reader in push.pyx calls."""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t

ctypedef struct Chunk:           # the header of one memory mapping; the records follow
    Chunk *next
    size_t size                  # bytes of the mapping, this header included
    size_t start                 # offset of the oldest record from the beginning of the mapping
    size_t end                   # offset of the free space behind the newest record

cdef class Backlog:
    cdef Chunk *first
    cdef Chunk *last
    cdef size_t mapped, limit, chunk_bytes
    cdef int64_t count, dropped_count, holds
    cdef set lost
    cdef Py_ssize_t lost_bytes
    cdef bint everything

    cdef int append(self, const char *name, Py_ssize_t name_size, const char *data, Py_ssize_t size) except -1
    cdef int add_chunk(self, size_t need) except -1
    cdef int drop_first(self) except -1
    cdef int note_lost(self, const char *name, Py_ssize_t size) except -1
    cdef void unlink_first(self) noexcept
