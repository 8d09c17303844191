"""The stamp that identifies a message: its stream, its sequence number, and the time when it was due."""

__all__ = ["ECHO_STREAM_BIT", "STAMP_BYTES", "STAMP_MAGIC", "parse_stamp", "stamp"]

__pyx_capi__: dict[str, object]  # what the other modules link to

STAMP_MAGIC: bytes
STAMP_BYTES: int
ECHO_STREAM_BIT: int

def stamp(stream: int, sequence: int, intended_ns: int, size: int = 48) -> bytes:
    """Make a stamped payload of ASCII characters, which is valid in a text frame and inside a JSON string.

    Args:
        stream: 0 to 2**31-1 (the upper half belongs to echo).
        sequence: The position in the stream, 0 to 2**63-1, one more for each message.
        intended_ns: When the message was due, by time.monotonic_ns().
        size: The size of the payload, >= 48; the rest is dots.

    Raises:
        ValueError: A value is outside its range.
    """

def parse_stamp(payload: bytes) -> tuple[int, int, int] | None:
    """Return (stream, sequence, intended_ns) of the first stamp in a payload; None without one."""
