"""Check publications of a backend: the gateway reads the same payload, with an envelope only where needed."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgate.bus import decode_publication
from wsgate.client.backend.payload import encode_publication
from wsgate.payload import BINARY, JSON, TEXT, classify

CONN = "9f2c000000000001"


@pytest.mark.parametrize(
    ("data", "wire"),
    [
        ({"a": 1, "b": [True, None]}, b'{"a":1,"b":[true,null]}'),
        ([1.5, "é"], '[1.5,"é"]'.encode()),
        ("hello", b'"hello"'),
        (None, b"null"),
        (7, b"7"),
        (b"hello", b"hello"),
        (bytearray(b"\xff\x00"), b"\xff\x00"),
        (memoryview(b"{}"), b"{}"),
        (b"", b""),
    ],
)
def test_payload_without_user_or_exclude_is_published_without_an_envelope(data: Any, wire: bytes) -> None:
    assert encode_publication(data) == wire


@pytest.mark.parametrize(
    ("data", "encoding", "payload"),
    [
        ({"a": 1}, JSON, b'{"a":1}'),
        ("{}", JSON, b'"{}"'),
        (b"{}", JSON, b"{}"),
        (b"hello", TEXT, b"hello"),
        (b'"\\ud800"', TEXT, b'"\\ud800"'),
        (b'"\\uD83D\\uDE00"', JSON, b'"\\uD83D\\uDE00"'),
        (b"NaN", TEXT, b"NaN"),
        (b"1e999", JSON, b"1e999"),
        (b"1" * 5_000, JSON, b"1" * 5_000),
        (b"\xef\xbb\xbf{}", TEXT, b"\xef\xbb\xbf{}"),
        (b"[" * 500 + b"]" * 500, JSON, b"[" * 500 + b"]" * 500),
        (b"[" * 5_000 + b"]" * 5_000, TEXT, b"[" * 5_000 + b"]" * 5_000),
        (b"\xff", BINARY, b"\xff"),
        (b"", TEXT, b""),
    ],
    ids=lambda each: repr(each)[:20],
)
def test_payload_with_user_and_exclude_is_read_from_its_envelope(
    data: Any, encoding: int, payload: bytes
) -> None:
    found = decode_publication(encode_publication(data, user="7", exclude=CONN))
    assert found is not None
    assert (found.payload.encoding, found.payload.data) == (encoding, payload)
    assert (found.user, found.exclude) == ("7", int(CONN, 16))


def test_bytes_that_begin_like_an_envelope_are_wrapped_in_one() -> None:
    for data in (b"\xc1", b"\xc1\x01\x80", encode_publication(1, user="7")):
        found = decode_publication(encode_publication(data))
        assert found is not None
        assert (found.payload.encoding, found.payload.data, found.user) == (BINARY, data, None)


def test_excluded_connection_is_given_as_hexadecimal_text_or_number() -> None:
    for exclude in (CONN, int(CONN, 16), "f" * 16, 0):
        found = decode_publication(encode_publication(1, exclude=exclude))
        assert found is not None
        assert found.exclude == (int(exclude, 16) if isinstance(exclude, str) else exclude)
    for wrong in ("", "x", "1" * 17, -1, 2**64):
        with pytest.raises(ValueError):
            encode_publication(1, exclude=wrong)


@pytest.mark.parametrize("data", [object(), {1, 2}, float("nan"), float("inf"), "\ud800", {"a": b"bytes"}])
def test_value_that_json_cannot_represent_raises_before_publishing(data: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        encode_publication(data)


@given(
    st.binary(max_size=30)
    | st.text(max_size=10).map(str.encode)
    | st.text(alphabet='[]{}",:\\ud8Dcab019.eE+-NaIty ', max_size=14).map(str.encode)
)
def test_bytes_have_the_same_encoding_with_and_without_an_envelope(data: bytes) -> None:
    wrapped = decode_publication(encode_publication(data, user="7"))
    assert wrapped is not None
    assert wrapped.payload == classify(data)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda each: st.lists(each), max_leaves=5
    )
)
def test_json_value_is_unchanged_after_encoding_and_decoding(value: Any) -> None:
    for more in ({}, {"user": "7"}):
        found = decode_publication(encode_publication(value, **more))
        assert found is not None
        assert found.payload.encoding == JSON
        assert json.loads(found.payload.data) == value
