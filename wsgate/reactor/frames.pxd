"""Declarations of encoded frames, which outboxes share and count references to."""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t

from wsgate.reactor.structs cimport Core, Frame

cdef Frame *frame_raw(Core *core, const uint8_t *data, uint32_t size) noexcept nogil
cdef Frame *frame_message(Core *core, uint8_t opcode, const uint8_t *payload, uint32_t size) noexcept nogil
cdef Frame *frame_publication(
    Core *core, uint8_t opcode, const uint8_t *payload, uint32_t size, uint32_t channel, int64_t position
) noexcept nogil
cdef Frame *frame_close(Core *core, uint16_t code, const uint8_t *text, uint32_t size) noexcept nogil
cdef void frame_release(Core *core, Frame *frame) noexcept nogil
