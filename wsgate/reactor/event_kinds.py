"""The numbers an event and a call of the reactor carry.

Plain integers, not enums: an event is handled per message, and comparing an `IntEnum` member costs
more than the rest of the dispatch. `wsgate/reactor/structs.pxd` holds the same numbers for the
compiled side; a test holds the two together.
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
CLOSED: Final = 6  # value: int, a wsgate.reasons.Reason; always the last of a connection

# Added to the opcode of a variant whose clients agreed to permessage-deflate (RFC 7692): RSV1.
DEFLATED: Final = 0x40

# What a full outbox does with publications of a channel.
POLICY_CLOSE: Final = 0  # nothing is dropped: the connection is closed with 4010
POLICY_DROP_OLDEST: Final = 1  # the oldest unsent ones give way to one `gap`
POLICY_LATEST_ONLY: Final = 2  # as above, but the newest of the channel is never dropped

Event = tuple[int, int, bytes | int]
"""`(kind, conn, value)`; `conn` is the handle, value as listed above."""
