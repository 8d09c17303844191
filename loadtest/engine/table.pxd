"""Connection slots, their buffers, and the end of connections; see table.pyx."""

from libc.stdint cimport uint32_t, uint64_t

from loadtest.engine.core cimport block_t, conn_t, core_t, failure_t, partial_t, state_t

cdef conn_t* take_slot(core_t* core) noexcept nogil
cdef void free_batch(core_t* core) noexcept nogil
cdef uint32_t slot_of(core_t* core, conn_t* conn) noexcept nogil
cdef void set_state(core_t* core, conn_t* conn, state_t state) noexcept nogil
cdef partial_t* borrow_partial(core_t* core, conn_t* conn) noexcept nogil
cdef void return_partial(core_t* core, conn_t* conn) noexcept nogil
cdef int append_block(core_t* core, block_t** at, const void* data, size_t size) noexcept nogil
cdef void free_block(core_t* core, block_t** at) noexcept nogil
cdef void end(core_t* core, conn_t* conn) noexcept nogil
cdef void reset(core_t* core, conn_t* conn) noexcept nogil
cdef void fail_connect(core_t* core, conn_t* conn, failure_t failure, int error) noexcept nogil
cdef void lose(core_t* core, conn_t* conn, int error) noexcept nogil
