"""Publications that were received from the bus and not handed on yet: a bounded queue of raw bytes.

A subscriber that stops reading is cut off by its server (Redis: at 32 MiB of output, within 0.3 s of a burst).
So the bytes of publications are taken from the socket at all times and wait here, and what reads them is not
in a hurry. One queue serves all connections of a shard, so that publications which come by different servers
keep the order of their arrival.

Structure: a list of chunks, each a mapping of its own, so that memory goes back to the system as the queue
shrinks and nothing is copied as it grows. In a chunk stand records one behind the other:

    size of the name (4 bytes), size of the payload (4 bytes; -1: it was over the limit), name, payload

When a chunk more would exceed the limit, the oldest chunk is dropped, and the names of its channels are kept in
`take_lost` until somebody has notified their subscribers. All records that are left of a channel are younger
than those that were lost, so the notice belongs before the next one that is taken. Beyond LOST_MOST names one
mark stands for all.

Put and take are O(1); dropping is O(records dropped).
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcmp, memcpy
from posix.mman cimport MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap, munmap

__all__ = ["Backlog"]

cdef enum:
    PAGE = 4096
    CHUNK_MOST = 256 * 1024
    CHUNKS_LEAST = 16            # of a queue that is full: dropping one loses this part of it
    REST_BYTES = 64 * 1024       # a chunk that was used further is not kept when the queue is empty
    HEADER = 8                   # of a record
    LOST_MOST = 1024


cdef inline size_t pages(size_t size) noexcept:
    return (size + PAGE - 1) // PAGE * PAGE


cdef class Backlog:
    """One shard's queue; see backlog.pyi."""

    def __init__(self, size_t limit_bytes):
        self.limit = limit_bytes
        self.chunk_bytes = pages(min(<size_t>CHUNK_MOST, max(limit_bytes // CHUNKS_LEAST, <size_t>PAGE)))
        self.lost = set()

    def __dealloc__(self):
        while self.first != NULL:
            self.unlink_first()

    def __len__(self):
        return self.count

    @property
    def held_bytes(self):
        """Memory that is held."""
        return self.mapped + self.lost_bytes

    @property
    def dropped(self):
        """Publications dropped so far."""
        return self.dropped_count

    # --- in -----------------------------------------------------------------------------------------------

    def put(self, bytes name not None, bytes payload):
        """Append a publication; None: its payload was over the limit."""
        if payload is None:
            self.append(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name), NULL, -1)
        else:
            self.append(
                PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name), PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload)
            )

    cdef int append(self, const char *name, Py_ssize_t name_size, const char *data, Py_ssize_t size) except -1:
        """Copy a record behind the last. The sizes are those of a parser that has bounded them."""
        cdef size_t need = HEADER + name_size + max(size, 0)
        cdef int32_t sizes[2]
        cdef char *at
        if self.last == NULL or self.last.size - self.last.end < need:
            self.add_chunk(need)
        at = <char *>self.last + self.last.end
        sizes[0], sizes[1] = <int32_t>name_size, <int32_t>size
        memcpy(at, sizes, HEADER)
        memcpy(at + HEADER, name, name_size)
        if size > 0:
            memcpy(at + HEADER + name_size, data, size)
        self.last.end += need
        self.count += 1
        return 0

    cdef int add_chunk(self, size_t need) except -1:
        """A chunk that takes `need` bytes, behind the last. The oldest give way; one record always fits."""
        cdef size_t size = max(self.chunk_bytes, pages(sizeof(Chunk) + need))
        cdef Chunk *chunk
        while self.first != NULL and self.mapped + size > self.limit:
            self.drop_first()
        chunk = <Chunk *>mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if chunk == <Chunk *>MAP_FAILED:
            raise MemoryError
        chunk.next = NULL
        chunk.size = size
        chunk.start = chunk.end = sizeof(Chunk)
        if self.last == NULL:
            self.first = chunk
        else:
            self.last.next = chunk
        self.last = chunk
        self.mapped += size
        return 0

    cdef int drop_first(self) except -1:
        """Lose everything in the oldest chunk, and keep whose it was."""
        cdef Chunk *chunk = self.first
        cdef int32_t sizes[2]
        cdef const char *at
        cdef const char *before = NULL
        cdef int32_t before_size = 0
        while chunk.start < chunk.end:
            at = <const char *>chunk + chunk.start
            memcpy(sizes, at, HEADER)
            # A burst is mostly one channel's: its name is looked at once.
            if before == NULL or sizes[0] != before_size or memcmp(before, at + HEADER, before_size) != 0:
                before, before_size = at + HEADER, sizes[0]
                self.note_lost(before, before_size)
            chunk.start += HEADER + sizes[0] + max(sizes[1], 0)
            self.count -= 1
            self.dropped_count += 1
        self.unlink_first()
        return 0

    cdef int note_lost(self, const char *name, Py_ssize_t size) except -1:
        cdef bytes whole
        if self.everything:
            return 0
        whole = PyBytes_FromStringAndSize(name, size)
        if whole in self.lost:
            return 0
        if len(self.lost) >= LOST_MOST:
            self.everything = True
            self.lost.clear()
            self.lost_bytes = 0
            return 0
        self.lost.add(whole)
        self.lost_bytes += whole.__sizeof__()
        return 0

    cdef void unlink_first(self) noexcept:
        cdef Chunk *chunk = self.first
        self.first = chunk.next
        if self.first == NULL:
            self.last = NULL
        self.mapped -= chunk.size
        munmap(chunk, chunk.size)

    # --- out ----------------------------------------------------------------------------------------------

    def take(self):
        """The oldest publication, or None; see backlog.pyi."""
        cdef Chunk *chunk = self.first
        cdef int32_t sizes[2]
        cdef const char *at
        cdef bytes name, payload = None
        if self.count == 0:
            return None
        at = <const char *>chunk + chunk.start
        memcpy(sizes, at, HEADER)
        name = PyBytes_FromStringAndSize(at + HEADER, sizes[0])
        if sizes[1] >= 0:
            payload = PyBytes_FromStringAndSize(at + HEADER + sizes[0], sizes[1])
        chunk.start += HEADER + sizes[0] + max(sizes[1], 0)
        self.count -= 1
        if chunk.start == chunk.end:
            if chunk.next != NULL or chunk.end > REST_BYTES:
                self.unlink_first()
            else:
                chunk.start = chunk.end = sizeof(Chunk)
        return name, payload

    @property
    def has_lost(self):
        """Whether subscribers are still to be notified of publications that were dropped."""
        return self.everything or len(self.lost) != 0

    def take_lost(self):
        """One channel that lost publications, or None: every channel did; see backlog.pyi."""
        cdef bytes name
        if self.everything:
            self.everything = False
            return None
        name = self.lost.pop()
        self.lost_bytes -= name.__sizeof__()
        return name

    # --- waiting for what stands before -------------------------------------------------------------------

    def hold(self):
        """Something that came before what is here is not dealt with yet; see backlog.pyi."""
        self.holds += 1

    def release(self):
        """It is dealt with."""
        self.holds -= 1

    @property
    def is_held(self):
        """Whether nothing may be taken now."""
        return self.holds != 0
