"""What the shard asks of a dialect: one method for each thing that is said to a client."""

from typing import Protocol

from wsgate.dialects.commands import BadCommand, Command, Publish, Send
from wsgate.payload import Payload

__all__ = ["Dialect"]


class Dialect(Protocol):
    """One wire form. Stateless: one object serves every connection that speaks it.

    Attributes:
        subprotocol: Its name in the handshake.
        variant: Its place in `DIALECTS`; the reactor's number for publications of this form.
        opcode: Of its messages both ways: 1 text, 2 binary.
    """

    subprotocol: str
    variant: int
    opcode: int

    def decode(self, message: bytes) -> Command | BadCommand:
        """What a client said. Never raises, whatever the bytes are."""

    def payload(self, command: Publish | Send) -> Payload | None:
        """What a command publishes or sends; None when it has a value that JSON cannot hold."""

    def publication(
        self,
        ch: str,
        payload: Payload,
        user: str | None = None,
        position: str | None = None,
        timestamp_ms: int | None = None,
    ) -> bytes:
        """`msg`: one publication, as every subscriber of this form gets it."""

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
        """`welcome`: who the connection is now; `conn` is its public id."""

    def subscribed(self, ch: str, id: int | None = None, *, recovered: bool | None = None) -> bytes:
        """`subbed`: what is published from now on is delivered."""

    def unsubscribed(self, ch: str, id: int | None = None) -> bytes:
        """`unsubbed`."""

    def taken(self, ch: str, code: int, reason: str) -> bytes:
        """`unsubbed`, unasked: the connection holds this channel no more, and must not ask for it again."""

    def ok(self, id: int, *, expires_s: int | None = None) -> bytes:
        """`ok`: the command with this id was done."""

    def pong(self, id: int | None = None) -> bytes:
        """`pong`."""

    def gap(self, ch: str | None, *, reason: str, retry_ms: int) -> bytes:
        """`gap`: publications of this channel are missing; None: perhaps of every channel it holds."""

    def refresh(self, within_s: int) -> bytes:
        """`refresh`: a fresh token is wanted within this time."""

    def error(
        self,
        name: str,
        *,
        id: int | None = None,
        ch: str | None = None,
        retry_ms: int | None = None,
        detail: str = "",
    ) -> bytes:
        """`err`, by its name in `wsgate.reasons.ERRORS`; a detail is more text, also from a registry."""

    def bye(self, code: int, reason: str, *, reconnect: bool, retry_ms: int | None) -> bytes:
        """`bye`: a Close with this code follows."""
