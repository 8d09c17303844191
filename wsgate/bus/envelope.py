"""What a publication looks like on the bus: raw payload, or envelope.

An envelope starts with 0xC1, which neither JSON, nor UTF-8, nor msgpack can start with, so that any
bytes at all are a valid raw publication. Then the version, then a msgpack map. Pure.

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
    """The map behind the head; keys a version does not know are ignored."""

    data: bytes
    encoding: str = "json"
    user: str | None = None
    pos: str | None = None
    ts: int | None = None
    exclude: int = 0
    tags: dict[str, str] | None = None


class Publication(msgspec.Struct, gc=False):
    """One item published to a channel.

    Attributes:
        payload: What subscribers get.
        user: Who published it, when a client did.
        position: `<epoch>-<offset>`, or None on a channel without history.
        timestamp_ms: When it was published, Unix time, or None.
        exclude: The public id of the connection that does not want its own publication back; 0: none.
    """

    payload: Payload
    user: str | None = None
    position: str | None = None
    timestamp_ms: int | None = None
    exclude: int = 0


_decode = msgspec.msgpack.Decoder(_Envelope).decode
_encode = msgspec.msgpack.Encoder().encode


def decode_publication(data: bytes) -> Publication | None:
    """What arrived for a channel; None for a broken envelope: dropped and counted, never guessed at.

    Broken is: an unknown version, no map, a key of the wrong type, `data` that is not what
    `encoding` says. What comes from the bus is not trusted: it is checked like any input.
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
    claimed = _ENCODINGS.get(envelope.encoding)
    if claimed == BINARY:
        return Payload(BINARY, envelope.data)
    if claimed == JSON and is_json(envelope.data, has_margin=False):
        return Payload(JSON, envelope.data)
    if claimed == TEXT and is_text(envelope.data):
        return Payload(TEXT, envelope.data)
    return None


def encode_publication(publication: Publication) -> bytes:
    """The envelope of a publication."""
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
