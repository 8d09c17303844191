"""Check publications on the bus: every vector of the contract, and that no published bytes raise (S24)."""

import json
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.sizes import BOUNDS, around, sizes_up_to
from wsgate.bus import Publication, decode_publication, encode_publication
from wsgate.dialects import DIALECTS
from wsgate.payload import BINARY, JSON, TEXT, Payload

BUS_FOLDER = Path(__file__).resolve().parents[3] / "protocols" / "bus" / "v1"
VECTORS: list[dict[str, Any]] = json.loads((BUS_FOLDER / "vectors.json").read_text())["publications"]
JSON_DIALECT, MSGPACK_DIALECT = DIALECTS
HEAD = b"\xc1\x01"


def seen(publication: Publication, dialect: Any) -> bytes:
    """Return the frame that subscribers of channel `c` receive."""
    frame: bytes = dialect.publication(
        "c", publication.payload, publication.user, publication.position, publication.timestamp_ms
    )
    return frame


def as_json(value: Any) -> Any:
    return {"bin": value.hex()} if isinstance(value, bytes) else value


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
def test_every_publication_vector_decodes_to_its_json_and_msgpack_frame(vector: dict[str, Any]) -> None:
    publication = decode_publication(bytes.fromhex(vector["bus"]))
    if vector["json"] is None:
        assert publication is None
        return
    assert publication is not None
    text = seen(publication, JSON_DIALECT).decode()
    assert text == vector["json"]
    fields = msgpack.unpackb(seen(publication, MSGPACK_DIALECT))
    assert as_json(fields.pop("data")) == vector["value"]
    shown = json.loads(text)
    assert {"data", "b64"} & shown.keys() and not {"data", "b64"} <= shown.keys()
    assert fields == {key: value for key, value in shown.items() if key not in ("data", "b64")}


def test_vectors_have_unique_names_and_bytes_and_over_20_dropped_ones() -> None:
    assert len({vector["name"] for vector in VECTORS}) == len(VECTORS)
    assert len({vector["bus"] for vector in VECTORS}) == len(VECTORS)
    assert sum(vector["json"] is None for vector in VECTORS) > 20


def test_envelope_keeps_the_encoding_of_a_payload_that_looks_like_json() -> None:
    for payload in (Payload(JSON, b"{}"), Payload(TEXT, b"{}"), Payload(BINARY, b"{}")):
        sent = Publication(payload, "42", "Qz-5", 1_700_000_000_123, 2**64 - 1)
        assert decode_publication(encode_publication(sent)) == sent


def test_envelope_omits_fields_without_a_value() -> None:
    wire = encode_publication(Publication(Payload(JSON, b"1")))
    assert wire == HEAD + msgpack.packb({"data": b"1"})


@given(
    st.sampled_from([JSON, TEXT, BINARY]),
    st.none() | st.text(),
    st.none() | st.text(),
    st.none() | st.integers(-(2**63), 2**63 - 1),
    st.integers(0, 2**64 - 1) | st.sampled_from([size for size in around(BOUNDS) if size < 2**64]),
    st.text(max_size=20) | st.sampled_from(["x" * size for size in sizes_up_to(1 << 17)]),
)
def test_decoding_an_encoded_publication_returns_the_same_publication(
    encoding: int, user: str | None, position: str | None, ts: int | None, exclude: int, text: str
) -> None:
    data = json.dumps(text).encode() if encoding == JSON else text.encode()
    sent = Publication(Payload(encoding, data), user, position, ts, exclude)
    assert decode_publication(encode_publication(sent)) == sent


ENVELOPES = st.dictionaries(
    st.sampled_from(["data", "encoding", "user", "ts", "exclude", "pos", "tags", "odd"]),
    st.none()
    | st.binary(max_size=8)
    | st.sampled_from([bytes(size) for size in sizes_up_to(1 << 17)])
    | st.sampled_from(["json", "text", "binary", ""])
    | st.integers(-5, 2**64 - 1)
    | st.floats()
    | st.dictionaries(st.text(max_size=2), st.text(max_size=2), max_size=2)
    | st.lists(st.integers(0, 3), max_size=2),
).map(lambda fields: HEAD + msgpack.packb(fields))


@given(st.binary(max_size=80) | st.binary(max_size=80).map(lambda tail: HEAD + tail) | ENVELOPES)
@example(b"")
@example(HEAD + b"\x91" * 100_000)
@example(HEAD + b"\x81\xa4data" + b"\x91" * 100_000)
@example(HEAD + b"\xdf\xff\xff\xff\xff" + b"\xa4data\xc4\x00" * 100_000)
@example(HEAD + b"\x81\xa4data\xc6\xff\xff\xff\xff")
@example(b"[" * 100_000)
@example(b"1" * 400)
@example(b"[" * 500 + b"9" * 30 + b"]" * 500)
@example(b"[" + b"-" + b"9" * 4_300 + b"]")
@example(b"9" * 1_000_000)
def test_s24_any_published_bytes_are_delivered_or_dropped_and_never_raise(data: bytes) -> None:
    publication = decode_publication(data)
    if not data.startswith(b"\xc1"):
        assert publication is not None  # raw bytes are always a publication
    if publication is None:
        return
    shown = json.loads(seen(publication, JSON_DIALECT), parse_int=str)
    assert shown["op"] == "msg"
    assert msgpack.unpackb(seen(publication, MSGPACK_DIALECT), strict_map_key=False)["op"] == "msg"


def test_deeply_nested_document_is_decoded_under_a_deeper_call_stack_too() -> None:
    def deeper(frames: int, wire: bytes) -> Publication | None:
        return deeper(frames - 1, wire) if frames else decode_publication(wire)

    for levels in (200, 500, 800, 860):
        payload = Payload(JSON, b"[" * levels + b"]" * levels)
        publication = deeper(40, encode_publication(Publication(payload)))
        assert publication is not None and publication.payload == payload
        for dialect in DIALECTS:
            assert seen(publication, dialect)
