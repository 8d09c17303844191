"""Encoded frames, which are made once and shared by all outboxes through reference counts.

A frame is encoded once, with its header. Server frames are not masked, so every receiver gets the same bytes,
and every outbox shares the frame. The maker of a frame owns one reference, and every outbox entry owns
another. Releasing the last one returns the block to the pool and, for a publication, no longer keeps its
channel.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from wsgate.reactor.channels cimport channel_release
from wsgate.reactor.codec cimport OP_CLOSE, codec_encode_header
from wsgate.reactor.memory cimport memory_give, memory_take
from wsgate.reactor.structs cimport Core, Frame, KIND_FRAME, NONE

cdef enum:
    HEAD = 24                    # bytes of the struct before `data`
    HEADER_ROOM = 10             # the longest header of a server frame
    FRAME_MAX = 0xFFFFEFE8       # wire bytes: the largest block is 0xFFFFF000 bytes


cdef Frame *new_frame(Core *core, uint32_t room) noexcept nogil:
    """Allocate an empty frame with room for `room` wire bytes and one reference; NULL without memory."""
    cdef Frame *frame
    if room > FRAME_MAX:
        return NULL
    frame = <Frame *>memory_take(core, <uint64_t>room + HEAD, KIND_FRAME)
    if frame != NULL:
        frame.references = 1
        frame.length = 0
        frame.size = room + HEAD
        frame.channel = NONE
        frame.position = 0
    return frame


cdef Frame *frame_raw(Core *core, const uint8_t *data, uint32_t size) noexcept nogil:
    """Make a frame of bytes that are sent unchanged, such as an HTTP response; NULL without memory."""
    cdef Frame *frame = new_frame(core, size)
    if frame != NULL:
        memcpy(frame.data, data, size)
        frame.length = size
    return frame


cdef Frame *frame_message(Core *core, uint8_t opcode, const uint8_t *payload, uint32_t size) noexcept nogil:
    """Encode a payload as one unfragmented WebSocket frame; NULL if it is too long or memory is short."""
    cdef uint8_t header[HEADER_ROOM]
    cdef uint32_t header_size = codec_encode_header(header, opcode, size)
    cdef Frame *frame
    if size > FRAME_MAX - HEADER_ROOM:
        return NULL
    frame = new_frame(core, size + header_size)
    if frame != NULL:
        memcpy(frame.data, header, header_size)
        if size:
            memcpy(frame.data + header_size, payload, size)
        frame.length = size + header_size
    return frame


cdef Frame *frame_publication(
    Core *core, uint8_t opcode, const uint8_t *payload, uint32_t size, uint32_t channel, int64_t position
) noexcept nogil:
    """Encode a publication as a frame that keeps its channel alive as long as it is queued anywhere.

    `position` is its place in the channel's stream, or 0. NULL as for `frame_message`.
    """
    cdef Frame *frame = frame_message(core, opcode, payload, size)
    if frame != NULL:
        frame.channel = channel
        frame.position = position
        core.channels.channels[channel].frames += 1
    return frame


cdef Frame *frame_close(Core *core, uint16_t code, const uint8_t *text, uint32_t size) noexcept nogil:
    """Make a Close frame with a code and a text; code 0 or 1005 makes an empty one.

    The text is cut after 123 bytes, because a control frame has at most 125 (RFC 6455 section 5.5).
    """
    cdef uint8_t payload[125]
    if code == 0 or code == 1005:
        return frame_message(core, OP_CLOSE, NULL, 0)
    if size > 123:
        size = 123
    payload[0] = <uint8_t>(code >> 8)
    payload[1] = <uint8_t>code
    if size:
        memcpy(payload + 2, text, size)
    return frame_message(core, OP_CLOSE, payload, size + 2)


cdef void frame_release(Core *core, Frame *frame) noexcept nogil:
    """Release one reference to a frame, and with the last one its memory and its channel."""
    cdef uint32_t channel
    frame.references -= 1
    if frame.references:
        return
    channel = frame.channel
    memory_give(core, frame, frame.size, KIND_FRAME)
    if channel != NONE:
        core.channels.channels[channel].frames -= 1
        channel_release(core, channel)
