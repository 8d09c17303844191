"""The two dialects of protocol version 1: one object for each message, as JSON text or as msgpack.

Both have the same keys and differ only in the encoding of values. `_Wire` builds the fields of all messages
but publications. A publication in JSON is assembled from bytes, because its `data` is relayed unchanged.

Source: protocols/client/v1/spec.md.
"""

import base64
import math
from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec import Raw

from wsgate.dialects.commands import ID_MAX, OPS, BadCommand, Command, Publish, Send
from wsgate.payload import BINARY, JSON, TEXT, Payload, is_json
from wsgate.reasons import ERRORS

__all__ = ["JsonDialect", "MsgpackDialect"]

_TEXT_FRAME: Final = 1  # RFC 6455 section 5.2
_BINARY_FRAME: Final = 2

_from_json = msgspec.json.Decoder().decode
_to_json = msgspec.json.Encoder().encode
_from_msgpack = msgspec.msgpack.Decoder().decode
_to_msgpack = msgspec.msgpack.Encoder().encode

_FAULTS: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError)
"""The exceptions of decoding bytes from a peer. All of them mean that the bytes are not valid."""

Fields = dict[str, Any]


class _Probe(msgspec.Struct, gc=False):
    """The fields read from a message that is no valid command; each may have any value."""

    op: Raw = Raw()
    id: Raw = Raw()
    ch: Raw = Raw()


class _Wire:
    """The part of both dialects that does not depend on the encoding.

    Args:
        variant: The index in `DIALECTS`.
        write: Encodes the fields of a message.
        read: Decodes a command, or raises one of `_FAULTS`.
        probe: Decodes the fields of a message that is no command.
        value: Decodes one raw value.
    """

    subprotocol: str
    opcode: int

    def __init__(
        self,
        variant: int,
        write: Callable[[Fields], bytes],
        read: Callable[[bytes], Command],
        probe: Callable[[bytes], _Probe],
        value: Callable[[Raw], Any],
    ) -> None:
        self.variant = variant
        self._write = write
        self._read = read
        self._probe = probe
        self._value = value
        self._pong = write({"op": "pong"})  # encoded once, because it is the most frequent reply

    # --- from clients ---------------------------------------------------------------------------------

    def decode(self, message: bytes) -> Command | BadCommand:
        """Decode the message of a client into a command. Never raises, whatever the bytes are."""
        try:
            return self._read(message)
        except _FAULTS:
            return self._explain(message)

    def _explain(self, message: bytes) -> BadCommand:
        """Find out why a message is no command. Only for messages already refused, so it may be slow."""
        try:
            probe = self._probe(message)
        except _FAULTS:
            return BadCommand("bad_request", is_malformed=True)
        op, id, ch = (self._lenient(raw) for raw in (probe.op, probe.id, probe.ch))
        is_unknown = isinstance(op, str) and op not in OPS
        return BadCommand(
            "unknown_op" if is_unknown else "bad_request",
            is_malformed=not is_unknown,
            id=id if type(id) is int and 0 <= id <= ID_MAX else None,
            ch=ch if isinstance(ch, str) else None,
        )

    def _lenient(self, raw: Raw) -> Any:
        """Decode a raw value; None when it is absent or not valid."""
        try:
            return self._value(raw)
        except _FAULTS:
            return None

    # --- to clients -----------------------------------------------------------------------------------

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
        """Encode a `welcome`: the connection is authenticated. See `Dialect.welcome`."""
        fields: Fields = {"op": "welcome", "conn": f"{conn:016x}"}
        _put(fields, id=id, user=user)
        fields |= {"node": node, "ping_s": ping_s}
        _put(fields, expires_s=expires_s, bus=None if has_bus else False)
        return self._write(fields)

    def subscribed(self, ch: str, id: int | None = None, *, recovered: bool | None = None) -> bytes:
        """Encode a `subbed`: publications to this channel are delivered from now on."""
        return self._write(_put({"op": "subbed", "ch": ch}, id=id, recovered=recovered))

    def unsubscribed(self, ch: str, id: int | None = None) -> bytes:
        """Encode an `unsubbed`: the connection has unsubscribed from this channel."""
        return self._write(_put({"op": "unsubbed", "ch": ch}, id=id))

    def taken(self, ch: str, code: int, reason: str) -> bytes:
        """Encode an unrequested `unsubbed`: the gateway ended a subscription; do not subscribe again."""
        fields: Fields = {"op": "unsubbed", "ch": ch, "code": code, "reason": reason, "resubscribe": False}
        return self._write(fields)

    def ok(self, id: int, *, expires_s: int | None = None) -> bytes:
        """Encode an `ok`: the command with this id has succeeded."""
        return self._write(_put({"op": "ok", "id": id}, expires_s=expires_s))

    def pong(self, id: int | None = None) -> bytes:
        """Encode a `pong`, the reply to the command `ping`."""
        return self._pong if id is None else self._write({"op": "pong", "id": id})

    def gap(self, ch: str | None, *, reason: str, retry_ms: int) -> bytes:
        """Encode a `gap`: publications of this channel are lost; None: perhaps those of every channel."""
        return self._write(_put({"op": "gap"}, ch=ch) | {"reason": reason, "retry_ms": retry_ms})

    def refresh(self, within_s: int) -> bytes:
        """Encode a `refresh`: the client must send a new token within this time, in seconds."""
        return self._write({"op": "refresh", "within_s": within_s})

    def error(
        self,
        name: str,
        *,
        id: int | None = None,
        ch: str | None = None,
        retry_ms: int | None = None,
        detail: str = "",
    ) -> bytes:
        """Encode an `err`: a command has failed. See `Dialect.error`."""
        row = ERRORS[name]
        fields: Fields = _put({"op": "err"}, id=id, ch=ch)
        fields |= {
            "code": row.code,
            "error": name,
            "message": f"{row.text}: {detail}" if detail else row.text,
        }
        return self._write(_put(fields, retry_ms=retry_ms))

    def bye(self, code: int, reason: str, *, reconnect: bool, retry_ms: int | None) -> bytes:
        """Encode a `bye`, the last message of the gateway before a Close frame with this code."""
        fields: Fields = {"op": "bye", "code": code, "reason": reason, "reconnect": reconnect}
        return self._write(_put(fields, retry_ms=retry_ms))


def _put(fields: Fields, **optional: Any) -> Fields:
    """Add the optional fields that are not None, and return the same dictionary."""
    for name, value in optional.items():
        if value is not None:
            fields[name] = value
    return fields


class JsonDialect(_Wire):
    """The dialect `wsgate.v1.json`: JSON in text frames, which a person can read and type."""

    subprotocol = "wsgate.v1.json"
    opcode = _TEXT_FRAME

    def __init__(self, *, variant: int) -> None:
        """Set up the JSON encoder and decoders; `variant` is the index in `DIALECTS`."""
        super().__init__(
            variant,
            write=_to_json,
            read=msgspec.json.Decoder(Command).decode,
            probe=msgspec.json.Decoder(_Probe).decode,
            value=lambda raw: _from_json(raw),
        )

    def payload(self, command: Publish | Send) -> Payload | None:
        """Return the unchanged `data` of a command; None where JSON parsers would decode it differently."""
        data = bytes(command.data)
        return Payload(JSON, data) if is_json(data) else None

    def publication(
        self,
        ch: str,
        payload: Payload,
        user: str | None = None,
        position: str | None = None,
        timestamp_ms: int | None = None,
    ) -> bytes:
        """Encode a `msg` in JSON: `data` as it was published, as a string, or in base64 as `b64`."""
        if payload.encoding == JSON:
            data = b'"data":' + payload.data
        elif payload.encoding == TEXT:
            data = b'"data":' + _to_json(payload.data.decode())
        else:
            data = b'"b64":"' + base64.b64encode(payload.data) + b'"'
        parts = [b'{"op":"msg","ch":', _to_json(ch), b",", data]
        if position is not None:
            parts += (b',"pos":', _to_json(position))
        if user is not None:
            parts += (b',"user":', _to_json(user))
        if timestamp_ms is not None:
            parts.append(b',"ts":%d' % timestamp_ms)
        parts.append(b"}")
        return b"".join(parts)


class MsgpackDialect(_Wire):
    """The dialect `wsgate.v1.msgpack`: msgpack in binary frames, in which `data` may also be binary."""

    subprotocol = "wsgate.v1.msgpack"
    opcode = _BINARY_FRAME

    def __init__(self, *, variant: int) -> None:
        """Set up the msgpack encoder and decoders; `variant` is the index in `DIALECTS`."""
        super().__init__(
            variant,
            write=_to_msgpack,
            read=msgspec.msgpack.Decoder(Command).decode,
            probe=msgspec.msgpack.Decoder(_Probe).decode,
            value=lambda raw: _from_msgpack(raw),
        )

    def payload(self, command: Publish | Send) -> Payload | None:
        """Convert `data` to JSON, or keep it if it is one binary value; None if JSON cannot represent it."""
        try:
            value = _from_msgpack(command.data)
            if isinstance(value, bytes):
                return Payload(BINARY, value)
            data = _to_json(_storable(value))
        except (*_FAULTS, TypeError):
            return None
        return Payload(JSON, data) if is_json(data) else None

    def publication(
        self,
        ch: str,
        payload: Payload,
        user: str | None = None,
        position: str | None = None,
        timestamp_ms: int | None = None,
    ) -> bytes:
        """Encode a `msg` in msgpack; JSON that msgpack cannot represent is sent as its text."""
        fields: Fields = {"op": "msg", "ch": ch, "data": _value_of(payload)}
        _put(fields, pos=position, user=user, ts=timestamp_ms)
        try:
            return self._write_any(fields)
        except (OverflowError, RecursionError):  # a number too large for a double, or too deep nesting
            fields["data"] = payload.data.decode()
            return _to_msgpack(fields)

    def _write_any(self, fields: Fields) -> bytes:
        """Encode fields, with integers beyond 64 bits in `data` as doubles."""
        try:
            return _to_msgpack(fields)
        except OverflowError:
            return _to_msgpack(fields | {"data": _in_64_bits(fields["data"])})


def _value_of(payload: Payload) -> Any:
    """Return the value of a payload for msgpack: bytes, the decoded JSON, or a text."""
    if payload.encoding == BINARY:
        return payload.data
    if payload.encoding == JSON:
        try:
            return _from_json(payload.data)
        except (msgspec.MsgspecError, RecursionError):  # a number too large for a double, or too deep nesting
            pass
    return payload.data.decode()


def _storable(value: Any) -> Any:
    """Return a value that JSON can represent, or raise TypeError. Binary parts are written as base64."""
    if value is None or isinstance(value, str | bool | int | bytes):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
    elif isinstance(value, list):
        for item in value:
            _storable(item)
        return value
    elif isinstance(value, dict):
        for key, item in value.items():
            if type(key) is not str:
                raise TypeError("a key that is no string")
            _storable(item)
        return value
    raise TypeError("a value JSON cannot hold")


def _in_64_bits(value: Any) -> Any:
    """Convert integers beyond 64 bits to doubles, as the JSON parsers of most languages do."""
    if isinstance(value, list):
        return [_in_64_bits(item) for item in value]
    if isinstance(value, dict):
        return {key: _in_64_bits(item) for key, item in value.items()}
    if type(value) is int and not -(2**63) <= value < 2**64:
        return float(value)
    return value
