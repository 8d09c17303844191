"""Inflates compressed messages: permessage-deflate (RFC 7692) without context takeover.

Knows no connection. Every message is a stream of its own and is inflated at once when it is complete. An
inflater is made for it and freed before the next message, so that no window outlives a message. Output is
limited while it is made: nothing beyond the limit is produced, however small the message was.

The zlib module of the standard library does the work. Peak memory is the limit and less than 64 KiB: an
inflater of 40 KiB, one step of output, one slice of input.

Source: RFC 7692 section 7.2.2.
"""

from cpython.buffer cimport PyBUF_READ
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.memoryview cimport PyMemoryView_FromMemory
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_XDECREF
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy

import zlib

from wsgate.reactor.structs cimport INVALID_DEFLATE, MESSAGE_TOO_BIG

cdef extern from "Python.h":
    int _PyBytes_Resize(PyObject **data, Py_ssize_t size) except -1
    PyObject *new_bytes "PyBytes_FromStringAndSize"(const char *data, Py_ssize_t size) except NULL

cdef enum:
    STEP_BYTES = 8192            # of output in one call
    SLICE_BYTES = 4096           # of input in one call; zlib copies the part of it that is left over

# The four bytes that RFC 7692 section 7.2.1 removes, and an empty block marked as the last. zlib reads the
# empty block as such only behind a complete block, so that a message which ends inside a block is found.
cdef bytes TAIL = b"\x00\x00\xff\xff\x03\x00"

cdef object Error = zlib.error
cdef object new_inflater = zlib.decompressobj


cdef class Content:
    """Collects inflated output: one piece is kept as zlib made it, several are copied into one `bytes`."""

    cdef bytes first
    cdef PyObject *grown         # an owned reference
    cdef uint64_t length
    cdef uint64_t capacity       # of `grown`

    def __cinit__(self):
        self.first = b""

    def __dealloc__(self):
        Py_XDECREF(self.grown)

    cdef int add(self, bytes piece, uint64_t limit) except -1:
        """Append a piece of output; the room grows by half, and never beyond the limit."""
        cdef uint64_t size = <uint64_t>PyBytes_GET_SIZE(piece), total = self.length + size
        if self.length == 0:
            self.first = piece
        elif size:
            if self.grown == NULL:
                self.capacity = min(limit, max(total, self.length * 2))
                self.grown = new_bytes(NULL, <Py_ssize_t>self.capacity)
                memcpy(PyBytes_AS_STRING(<object>self.grown), PyBytes_AS_STRING(self.first), self.length)
                self.first = b""
            elif total > self.capacity:
                self.capacity = min(limit, max(total, self.capacity + (self.capacity >> 1)))
                _PyBytes_Resize(&self.grown, <Py_ssize_t>self.capacity)
            memcpy(PyBytes_AS_STRING(<object>self.grown) + self.length, PyBytes_AS_STRING(piece), size)
        self.length = total
        return 0

    cdef bytes take(self):
        """Return the whole content as `bytes`; call it once, at the end."""
        cdef bytes whole
        if self.grown == NULL:
            return self.first
        _PyBytes_Resize(&self.grown, <Py_ssize_t>self.length)
        whole = <bytes>self.grown
        Py_DECREF(whole)
        self.grown = NULL
        return whole


cdef uint64_t wire_limit(uint64_t limit) noexcept nogil:
    """Return how long a compressed message may be if its content may have `limit` bytes.

    Data that cannot be compressed grows by five bytes a block, and a sender that flushes often makes more
    blocks.
    """
    return limit + (limit >> 8) + 64


cdef bint feed(object inflater, object part, Content content, uint64_t limit) except -1:
    """Inflate some input into `content`; False if the content would exceed the limit."""
    cdef bytes made
    cdef uint64_t step
    while True:
        step = min(limit + 1 - content.length, <uint64_t>STEP_BYTES)
        made = inflater.decompress(part, step)
        if content.length + <uint64_t>PyBytes_GET_SIZE(made) > limit:
            return False
        content.add(made, limit)
        part = inflater.unconsumed_tail
        if not part and <uint64_t>PyBytes_GET_SIZE(made) < step:
            return True


cdef object inflate(const uint8_t *data, uint64_t size, uint64_t limit):
    """Inflate a whole compressed message; returns its content, or the reason for which there is none.

    Args:
        data: The message as it was received, unmasked.
        size: Its bytes.
        limit: The most bytes of content.

    Returns:
        `bytes`; or MESSAGE_TOO_BIG or INVALID_DEFLATE as an `int`.
    """
    cdef Content content = Content.__new__(Content)
    cdef object inflater = new_inflater(-15)
    cdef uint64_t place = 0, chunk
    try:
        while place < size and not inflater.eof:
            chunk = min(size - place, <uint64_t>SLICE_BYTES)
            part = PyMemoryView_FromMemory(<char *>data + place, <Py_ssize_t>chunk, PyBUF_READ)
            if not feed(inflater, part, content, limit):
                return <int>MESSAGE_TOO_BIG
            place += chunk
        if not inflater.eof:
            if not feed(inflater, TAIL, content, limit):
                return <int>MESSAGE_TOO_BIG
            if not inflater.eof or inflater.unused_data:
                return <int>INVALID_DEFLATE
        elif place < size or inflater.unused_data not in (b"", b"\x00"):
            return <int>INVALID_DEFLATE       # bytes behind the last block; 7.2.3.5 allows one padding byte
    except Error:
        return <int>INVALID_DEFLATE
    return content.take()
