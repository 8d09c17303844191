"""The interface of a dialect: decode the commands of clients, and encode each kind of message to clients."""

from typing import Protocol

from wsgate.dialects.commands import BadCommand, Command, Publish, Send
from wsgate.payload import Payload

__all__ = ["Dialect"]


class Dialect(Protocol):
    """One wire form of the protocol. It has no state, so one object serves all connections that use it.

    Attributes:
        subprotocol: The name of the dialect in the handshake.
        variant: The index in `DIALECTS`, and the reactor's number for publications of this form.
        opcode: The opcode of messages in both directions: 1 text, 2 binary.
    """

    subprotocol: str
    variant: int
    opcode: int

    def decode(self, message: bytes) -> Command | BadCommand:
        """Decode the message of a client into a command. Never raises, whatever the bytes are."""

    def payload(self, command: Publish | Send) -> Payload | None:
        """Convert the `data` of a command into a payload; None when JSON cannot represent its value."""

    def publication(
        self,
        ch: str,
        payload: Payload,
        user: str | None = None,
        position: str | None = None,
        timestamp_ms: int | None = None,
    ) -> bytes:
        """Encode a `msg`: one publication, with the same bytes for every subscriber of this dialect."""

    def welcome(
        self,
        conn: int,
        user: str | None,
        node: str,
        ping_s: int,
        expires_s: int | None,
        *,
        has_bus: bool,
        id: int | None = None,
    ) -> bytes:
        """Encode a `welcome`: the connection is authenticated.

        Args:
            conn: The public id of the connection.
            user: The user id; None: anonymous.
            node: The name of the node.
            ping_s: The interval of the gateway's pings, in seconds.
            expires_s: The seconds until the token expires; None: never.
            has_bus: Whether the bus is connected.
            id: The id of the command `auth`, if there was one.
        """

    def subscribed(self, ch: str, id: int | None = None, *, recovered: bool | None = None) -> bytes:
        """Encode a `subbed`: publications to this channel are delivered from now on."""

    def unsubscribed(self, ch: str, id: int | None = None) -> bytes:
        """Encode an `unsubbed`: the connection has unsubscribed from this channel."""

    def taken(self, ch: str, code: int, reason: str) -> bytes:
        """Encode an unrequested `unsubbed`: the gateway ended a subscription; do not subscribe again."""

    def ok(self, id: int, *, expires_s: int | None = None) -> bytes:
        """Encode an `ok`: the command with this id has succeeded."""

    def pong(self, id: int | None = None) -> bytes:
        """Encode a `pong`, the reply to the command `ping`."""

    def gap(self, ch: str | None, *, reason: str, retry_ms: int) -> bytes:
        """Encode a `gap`: publications of this channel are lost; None: perhaps those of every channel."""

    def refresh(self, within_s: int) -> bytes:
        """Encode a `refresh`: the client must send a new token within this time, in seconds."""

    def error(
        self,
        name: str,
        *,
        id: int | None = None,
        ch: str | None = None,
        retry_ms: int | None = None,
        detail: str = "",
    ) -> bytes:
        """Encode an `err`: a command has failed.

        Args:
            name: The error, a name in `wsgate.reasons.ERRORS`.
            id: The id of the command, if known.
            ch: The channel of the command, if known.
            retry_ms: When the client may try again, in milliseconds; None: the message has no such time.
            detail: Text after the error's own text. It is a text of wsgate, never of a peer.
        """

    def bye(self, code: int, reason: str, *, reconnect: bool, retry_ms: int | None) -> bytes:
        """Encode a `bye`, the last message of the gateway before a Close frame with this code."""
