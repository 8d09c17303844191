"""Encode and decode publications as the bytes that travel on the bus: a raw payload or an envelope. Pure.

An envelope is the byte 0xC1, a byte with the version, and a msgpack map. No JSON, UTF-8 or msgpack text
starts with 0xC1, so a payload of these forms is never taken for an envelope.

Source: protocols/bus/v1/spec.md, "Envelope".
"""

from typing import Final

import msgspec

from wsgate.payload import BINARY, JSON, TEXT, Payload, classify, is_json, is_text

__all__ = ["Publication", "decode_publication", "encode_publication"]

_MARK: Final = 0xC1
_VERSION: Final = 1
_HEAD: Final = bytes((_MARK, _VERSION))
_ENCODINGS: Final = {"json": JSON, "text": TEXT, "binary": BINARY}
_ENCODING_NAMES: Final = {number: name for name, number in _ENCODINGS.items()}


class _Envelope(msgspec.Struct, omit_defaults=True, gc=False):
    """The msgpack map of an envelope, behind mark and version; unknown keys are ignored."""

    data: bytes
    encoding: str = "json"
    user: str | None = None
    pos: str | None = None
    ts: int | None = None
    exclude: int = 0
    tags: dict[str, str] | None = None


class Publication(msgspec.Struct, gc=False):
    """One publication to a channel, decoded or to be encoded.

    Attributes:
        payload: The data for the subscribers, with its encoding.
        user: The user id of the client that published; None: a backend published.
        position: `<epoch>-<offset>`, or None on a channel without history.
        timestamp_ms: The time of publishing, in milliseconds of Unix time, or None.
        exclude: The public id of the publishing connection, if it must not receive its own publication; else
            0.
    """

    payload: Payload
    user: str | None = None
    position: str | None = None
    timestamp_ms: int | None = None
    exclude: int = 0


_decode = msgspec.msgpack.Decoder(_Envelope).decode
_encode = msgspec.msgpack.Encoder().encode


def decode_publication(data: bytes) -> Publication | None:
    """Decode the bytes of one publication; None when they are a broken envelope, which the caller must drop.

    Bytes without the mark 0xC1 are a raw payload. An envelope is broken when its version is unknown, when the
    rest is no msgpack map, when a key has the wrong type, or when `data` does not have the form that
    `encoding` claims. Bytes from the bus are checked like any other input.
    """
    if not data or data[0] != _MARK:
        return Publication(classify(data))
    if data[:2] != _HEAD:
        return None
    try:
        envelope = _decode(memoryview(data)[2:])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    payload = _payload(envelope)
    if payload is None or not 0 <= envelope.exclude < 1 << 64:
        return None
    return Publication(payload, envelope.user, envelope.pos, envelope.ts, envelope.exclude)


def _payload(envelope: _Envelope) -> Payload | None:
    """Check that the data of an envelope has the claimed encoding; None if it has not."""
    claimed = _ENCODINGS.get(envelope.encoding)
    if claimed == BINARY:
        return Payload(BINARY, envelope.data)
    if claimed == JSON and is_json(envelope.data, has_margin=False):
        return Payload(JSON, envelope.data)
    if claimed == TEXT and is_text(envelope.data):
        return Payload(TEXT, envelope.data)
    return None


def encode_publication(publication: Publication) -> bytes:
    """Encode a publication as an envelope: the mark, the version and the msgpack map."""
    return _HEAD + _encode(
        _Envelope(
            publication.payload.data,
            _ENCODING_NAMES[publication.payload.encoding],
            publication.user,
            publication.position,
            publication.timestamp_ms,
            publication.exclude,
        )
    )
