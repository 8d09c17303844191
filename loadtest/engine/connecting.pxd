"""The connect job; see connecting.pyx."""

from libc.stdint cimport uint8_t, uint64_t

from loadtest.engine.core cimport conn_t, core_t, piece_t

cdef size_t build(
    const piece_t* pieces, size_t count, uint64_t key_seed, uint64_t index, const uint8_t* token, size_t
    token_size, uint8_t* out
) noexcept nogil
cdef ssize_t feed_head(
    core_t* core, conn_t* conn, const uint8_t* data, size_t size, uint64_t now
) noexcept nogil
cdef uint64_t tick_connect(core_t* core, uint64_t now) noexcept nogil
