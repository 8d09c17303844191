"""The registry of reasons for which a connection is refused or closed, and of the errors of commands.

Every refusal and every close has exactly one reason and is counted by the name of the reason. The compiled
reactor uses the same numbers (`wsgate/reactor/structs.pxd`; tests compare the last numbers of the lists, and
provoke each reason that the reactor finds by itself). Numbers stay
stable: append new ones, and never renumber.

`close_code` is the code of the Close frame (0: none is sent). A connection that is reset gets no Close,
always so for `write_stall`, and a peer that has sent Close gets its own code back. `http_status` is the
status that a peer receives before the upgrade (0: no HTTP response is sent).

Source: RFC 6455 section 7.4.1 for 1000-1015; protocols/codes for 4000-4999.
"""

from enum import IntEnum
from typing import Final, NamedTuple

__all__ = ["ERRORS", "REASONS", "ErrorEntry", "Reason", "ReasonEntry"]


class Reason(IntEnum):
    """The reasons for which a connection is refused or closed; a counter has the name in lower case."""

    NONE = 0
    # Refused by the gate before a byte of the head was read.
    REFUSED_DESCRIPTORS = 1
    REFUSED_CONNECTIONS = 2
    REFUSED_HANDSHAKES = 3
    REFUSED_RATE = 4
    REFUSED_PARTIAL_BYTES = 5
    # Refused over HTTP.
    HEAD_TIMEOUT = 6
    HEAD_TOO_LARGE = 7
    HEAD_REFUSED = 8
    UPGRADE_TIMEOUT = 9
    # Ended by the peer.
    PEER_CLOSED = 10
    PEER_GONE = 11
    PEER_RESET = 12
    # The peer broke RFC 6455 or a limit of it.
    PROTOCOL_ERROR = 13
    INVALID_UTF8 = 14
    MESSAGE_TOO_BIG = 15
    TOO_MANY_FRAGMENTS = 16
    CONTROL_RATE = 17
    MESSAGE_TIMEOUT = 18
    MESSAGE_RATE = 19
    BYTE_RATE = 20
    # Deadlines and slow consumers.
    HEARTBEAT_TIMEOUT = 21
    IDLE_TIMEOUT = 22
    TOKEN_EXPIRED = 23
    SLOW_CONSUMER = 24
    OUTBOX_AGE = 25
    WRITE_STALL = 26
    # Caused by wsgate or its caller.
    APPLICATION = 27
    PARTIAL_BYTES = 28
    OUT_OF_MEMORY = 29
    INTERNAL = 30
    SHUTDOWN = 31
    # Found by the dialect or the shard.
    AUTH_TIMEOUT = 32
    INVALID_TOKEN = 33
    BAD_MESSAGES = 34
    UNSUPPORTED_DATA = 35
    DRAIN = 36
    INVALID_DEFLATE = 37  # belongs to the group of RFC 6455; numbers are never changed
    REFUSED_MEMORY = 38  # belongs to the group of the gate
    SHED = 39
    KEY_AWAITED = 40
    KICKED = 41
    REFUSED_ADDRESS_CONNECTIONS = 42  # belongs to the group of the gate, as the next two
    REFUSED_ADDRESS_RATE = 43
    BAD_PROXY_HEADER = 44
    USER_CONNECTIONS = 45
    REPLACED = 46
    HEAD_DISPLACED = 47  # belongs to the group refused over HTTP
    TOKEN_NOT_YET_VALID = 48


class ReasonEntry(NamedTuple):
    """One row of the registry: a reason, the codes that the peer receives, and a description."""

    reason: Reason
    close_code: int
    http_status: int
    text: str


_ROWS: Final = (
    ReasonEntry(Reason.NONE, 0, 0, "not ended"),
    ReasonEntry(Reason.REFUSED_DESCRIPTORS, 0, 503, "the process has no free file descriptor"),
    ReasonEntry(Reason.REFUSED_CONNECTIONS, 0, 503, "the connection limit is reached"),
    ReasonEntry(Reason.REFUSED_HANDSHAKES, 0, 503, "too many handshakes are in progress"),
    ReasonEntry(Reason.REFUSED_RATE, 0, 503, "new connections per second are over the limit"),
    ReasonEntry(Reason.REFUSED_PARTIAL_BYTES, 0, 503, "the unfinished input of all peers is over its limit"),
    ReasonEntry(Reason.HEAD_TIMEOUT, 0, 408, "the request head was not complete before its deadline"),
    ReasonEntry(Reason.HEAD_TOO_LARGE, 0, 431, "the request head is larger than the limit"),
    ReasonEntry(Reason.HEAD_REFUSED, 0, 400, "the handshake was refused by the application"),
    ReasonEntry(Reason.UPGRADE_TIMEOUT, 0, 503, "the application did not decide in time"),
    ReasonEntry(Reason.PEER_CLOSED, 1000, 0, "the peer sent Close"),
    ReasonEntry(Reason.PEER_GONE, 0, 0, "the peer ended the stream without Close"),
    ReasonEntry(Reason.PEER_RESET, 0, 0, "the peer or the network reset the connection"),
    ReasonEntry(Reason.PROTOCOL_ERROR, 1002, 0, "the peer broke RFC 6455"),
    ReasonEntry(Reason.INVALID_UTF8, 1007, 0, "a text message or a close text is not valid UTF-8"),
    ReasonEntry(Reason.MESSAGE_TOO_BIG, 1009, 0, "a message is larger than the limit"),
    ReasonEntry(Reason.TOO_MANY_FRAGMENTS, 1008, 0, "a message has more fragments than the limit"),
    ReasonEntry(Reason.CONTROL_RATE, 1008, 0, "control frames per second are over the limit"),
    ReasonEntry(Reason.MESSAGE_TIMEOUT, 1008, 0, "a message was not complete before its deadline"),
    ReasonEntry(Reason.MESSAGE_RATE, 4029, 0, "messages per second are over the limit"),
    ReasonEntry(Reason.BYTE_RATE, 4029, 0, "message bytes per second are over the limit"),
    ReasonEntry(Reason.HEARTBEAT_TIMEOUT, 4008, 0, "no byte came within the pong deadline"),
    ReasonEntry(Reason.IDLE_TIMEOUT, 4003, 0, "no message came within the idle limit"),
    ReasonEntry(Reason.TOKEN_EXPIRED, 4001, 0, "the token or a deadline of the application has expired"),
    ReasonEntry(Reason.SLOW_CONSUMER, 4010, 0, "the outbox is over its limit for bytes or frames"),
    ReasonEntry(Reason.OUTBOX_AGE, 4010, 0, "the oldest entry of the outbox is over the age limit"),
    ReasonEntry(
        Reason.WRITE_STALL,
        4010,
        0,
        "the socket took no byte within the write deadline; it is reset, so the peer sees 1006",
    ),
    ReasonEntry(Reason.APPLICATION, 1000, 0, "the application closed the connection"),
    ReasonEntry(Reason.PARTIAL_BYTES, 1013, 0, "the unfinished input of all peers is over its limit"),
    ReasonEntry(Reason.OUT_OF_MEMORY, 1011, 0, "the process could not allocate memory"),
    ReasonEntry(Reason.INTERNAL, 4050, 0, "an internal fault of wsgate"),
    ReasonEntry(Reason.SHUTDOWN, 4012, 0, "the process is ending"),
    ReasonEntry(Reason.AUTH_TIMEOUT, 4002, 0, "no token came within the deadline for the first token"),
    ReasonEntry(Reason.INVALID_TOKEN, 4501, 0, "the token is not valid here"),
    ReasonEntry(Reason.BAD_MESSAGES, 4500, 0, "three malformed messages in a row"),
    ReasonEntry(Reason.UNSUPPORTED_DATA, 1003, 0, "a text message in a binary dialect, or the reverse"),
    ReasonEntry(Reason.DRAIN, 4012, 0, "the shard is draining: connect again to reach another shard"),
    ReasonEntry(Reason.INVALID_DEFLATE, 1002, 0, "a compressed message cannot be inflated"),
    ReasonEntry(Reason.REFUSED_MEMORY, 0, 503, "the memory budget is nearly used up"),
    ReasonEntry(Reason.SHED, 4013, 0, "the memory budget is used up, so connections are closed"),
    ReasonEntry(Reason.KEY_AWAITED, 4001, 0, "the key of the token is not known yet: connect again"),
    ReasonEntry(Reason.KICKED, 4520, 0, "a backend closed the connection permanently"),
    ReasonEntry(
        Reason.REFUSED_ADDRESS_CONNECTIONS, 0, 429, "this address has as many connections as are allowed"
    ),
    ReasonEntry(Reason.REFUSED_ADDRESS_RATE, 0, 429, "this address opens connections too fast"),
    ReasonEntry(Reason.BAD_PROXY_HEADER, 0, 0, "a trusted proxy sent no valid PROXY header"),
    ReasonEntry(Reason.USER_CONNECTIONS, 4029, 0, "this user has as many connections as are allowed"),
    ReasonEntry(Reason.REPLACED, 4509, 0, "a newer connection of the same user replaced this one"),
    ReasonEntry(
        Reason.HEAD_DISPLACED,
        0,
        408,
        "the request head was incomplete when a newer handshake needed its place",
    ),
    ReasonEntry(Reason.TOKEN_NOT_YET_VALID, 4005, 0, "the token is not valid yet: connect again when it is"),
)

REASONS: Final[dict[Reason, ReasonEntry]] = {row.reason: row for row in _ROWS}


class ErrorEntry(NamedTuple):
    """One error with which the shard can reply to a command of a client; the connection stays open."""

    code: int
    name: str
    text: str


_ERROR_ROWS: Final = (
    ErrorEntry(400, "bad_request", "the command, a name or the payload is not valid"),
    ErrorEntry(401, "unauthorized", "the token is missing, expired or not valid"),
    ErrorEntry(403, "permission_denied", "neither the channel nor the token allows this"),
    ErrorEntry(404, "unknown_channel", "no such namespace"),
    ErrorEntry(404, "unknown_op", "no such command"),
    ErrorEntry(409, "already_subscribed", "this connection is subscribed already"),
    ErrorEntry(413, "too_large", "the payload is larger than the channel allows"),
    ErrorEntry(429, "rate_limited", "too many of these at once: slow down"),
    ErrorEntry(501, "not_available", "this gateway does not have it yet"),
    ErrorEntry(503, "unavailable", "the bus does not answer now: try again"),
)

ERRORS: Final[dict[str, ErrorEntry]] = {row.name: row for row in _ERROR_ROWS}
"""Every error of the native protocol by its name, with its code, which is an HTTP status."""
