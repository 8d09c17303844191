"""The numbers that stand in events and calls of the reactor: event kinds, opcodes and policies.

They are plain integers and not enums: the caller compares one for each message, and comparing an `IntEnum`
member costs more than the rest of the dispatch. `wsgate/reactor/structs.pxd` has the same numbers for the
compiled modules; a test compares the two.
"""

from typing import Final

__all__ = [
    "BINARY",
    "CLOSED",
    "DEFLATED",
    "FAILING",
    "OPEN",
    "PEER_CLOSED",
    "POLICY_CLOSE",
    "POLICY_DROP_OLDEST",
    "POLICY_LATEST_ONLY",
    "TEXT",
    "Event",
]

# Opcodes and event kinds share 1 and 2, so that an echo needs no translation.
TEXT: Final = 1  # value: bytes, valid UTF-8
BINARY: Final = 2  # value: bytes
OPEN: Final = 3  # value: bytes, the whole request head with its empty line
FAILING: Final = 4  # value: int, the close code that follows at the next flush
PEER_CLOSED: Final = 5  # value: int, the code the peer sent, 1005 when it sent none
CLOSED: Final = 6  # value: int, a wsgate.reasons.Reason; the last event of a connection

# Added to the opcode of a variant whose clients have agreed to permessage-deflate (RFC 7692): RSV1.
DEFLATED: Final = 0x40

# Which publications of a channel a full outbox drops.
POLICY_CLOSE: Final = 0  # none: the connection is closed with 4010
POLICY_DROP_OLDEST: Final = 1  # the oldest that are not written yet; one `gap` replaces them
POLICY_LATEST_ONLY: Final = 2  # as above, but never the newest of the channel

Event = tuple[int, int, bytes | int]
"""`(kind, conn, value)`; `conn` is the handle, value as listed above."""
