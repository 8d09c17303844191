"""The backlog: a bounded queue of raw publications from the bus connections, until the shard delivers them.

A Redis server disconnects a subscriber that stops reading (at 32 MiB of output, within 0.3 s of a burst). So
the shard reads its bus sockets at all times and queues the publications here, and delivers them at its own
pace. One queue serves all bus connections of a shard, so that publications from different servers keep the
order of their arrival.

The queue is a linked list of chunks. Each chunk is a memory mapping of its own: a shrinking queue returns
memory to the system, and a growing queue copies nothing. A chunk holds records, one behind the other:

    size of the name (4 bytes), size of the payload (4 bytes; -1: it was over the limit), name, payload

When another chunk would exceed the limit, the oldest chunk is dropped. `take_lost` returns the names of the
channels in it, so that the shard can notify their subscribers of a gap. All queued records of such a channel
are younger than the lost ones, so the notice must be sent before the next record is taken. For more than
LOST_MOST names, one mark stands for all channels.

`put` and `take` are O(1); dropping a chunk is O(records in it).
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
    CHUNKS_LEAST = 16            # a full queue has about this many chunks or more; a drop loses one
    REST_BYTES = 64 * 1024       # when the queue is empty, a chunk that was filled beyond this is unmapped
    HEADER = 8                   # bytes of the two sizes before each record
    LOST_MOST = 1024             # channel names kept for `take_lost`; with more, one mark stands for all


cdef inline size_t pages(size_t size) noexcept:
    return (size + PAGE - 1) // PAGE * PAGE


cdef class Backlog:
    """The queue of one shard's publications, see backlog.pyi; the only owner of its chunks."""

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
        """The memory of the queue, in bytes."""
        return self.mapped + self.lost_bytes

    @property
    def dropped(self):
        """The number of publications dropped until now."""
        return self.dropped_count

    # --- in -----------------------------------------------------------------------------------------------

    def put(self, bytes name not None, bytes payload):
        """Append one publication to the backlog; a payload of None was over the payload limit."""
        if payload is None:
            self.append(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name), NULL, -1)
        else:
            self.append(
                PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name), PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload)
            )

    cdef int append(self, const char *name, Py_ssize_t name_size, const char *data, Py_ssize_t size) except -1:
        """Copy name and payload into a new record at the end of the queue.

        A size of -1 marks a payload that was over the limit. The caller must have bounded both sizes, so
        that they fit 32 bits.
        """
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
        """Map a new last chunk with room for `need` bytes; first drop old chunks if the limit requires it.

        A record that is larger than the limit gets a chunk of its own size once the queue is empty.
        """
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
        """Drop all records of the oldest chunk, count them, and keep the names of their channels."""
        cdef Chunk *chunk = self.first
        cdef int32_t sizes[2]
        cdef const char *at
        cdef const char *before = NULL
        cdef int32_t before_size = 0
        while chunk.start < chunk.end:
            at = <const char *>chunk + chunk.start
            memcpy(sizes, at, HEADER)
            # A burst is mostly publications of one channel: compare with the previous name before hashing it.
            if before == NULL or sizes[0] != before_size or memcmp(before, at + HEADER, before_size) != 0:
                before, before_size = at + HEADER, sizes[0]
                self.note_lost(before, before_size)
            chunk.start += HEADER + sizes[0] + max(sizes[1], 0)
            self.count -= 1
            self.dropped_count += 1
        self.unlink_first()
        return 0

    cdef int note_lost(self, const char *name, Py_ssize_t size) except -1:
        """Keep the name of a channel that lost a publication, or set the mark that stands for all."""
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
        """Remove and return the oldest publication, or None; see backlog.pyi."""
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
            # Reuse the last chunk, so that a queue which is often empty maps no memory for each publication.
            if chunk.next != NULL or chunk.end > REST_BYTES:
                self.unlink_first()
            else:
                chunk.start = chunk.end = sizeof(Chunk)
        return name, payload

    @property
    def has_lost(self):
        """Whether the subscribers of dropped publications still have to be notified of a gap."""
        return self.everything or len(self.lost) != 0

    def take_lost(self):
        """Return one channel that lost publications, or None for all channels; see backlog.pyi."""
        cdef bytes name
        if self.everything:
            self.everything = False
            return None
        name = self.lost.pop()
        self.lost_bytes -= name.__sizeof__()
        return name

    # --- blocked by earlier replies -----------------------------------------------------------------------

    def hold(self):
        """Block `take` until an earlier reply has been handled; see backlog.pyi."""
        self.holds += 1

    def release(self):
        """Undo one call of `hold`; see backlog.pyi."""
        self.holds -= 1

    @property
    def is_held(self):
        """Whether a connection holds the queue."""
        return self.holds != 0
