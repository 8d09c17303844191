"""Check the encoding of payloads: one decision for all bytes, and no bytes raise an error."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import wsgate.payload
from wsgate.payload import BINARY, JSON, TEXT, Payload, classify, is_json, is_text

DOCUMENTS = [
    b"null",
    b"true",
    b"0",
    b"-0",
    b"1e5",
    b"1E+5",
    b"0.25",
    b'""',
    b'"a"',
    b"[]",
    b"{}",
    b' [1 , {"a" : null}]\r\n\t',
    b'{"a":1,"a":2}',
    b'"\\u0000\\ud83d\\ude00\\/"',
    '"é😀"'.encode(),
    b"1e999",
    b"-1e-999",
    b"9" * 10_000,
    b'{"__class__":"os.system","__proto__":{}}',
]
TEXTS = [
    b"",
    b" ",
    b"hello",
    b"NaN",
    b"Infinity",
    b"nul",
    b"TRUE",
    b"01",
    b"+1",
    b"1.",
    b".5",
    b"1e",
    b"0x10",
    b"'a'",
    b'"a',
    b'"\n"',
    b'"\x00"',
    b'"\\q"',
    b'"\\u12"',
    b'"\\ud800"',
    b'"\\udc00\\ud800"',
    b"[1,]",
    b"[1 2]",
    b'{"a"}',
    b'{"a":1,}',
    b"{1:2}",
    b"{} {}",
    b"// a\n1",
    b"\xef\xbb\xbf{}",
    b"\x0b1",
    b"\xc2\xa01",
    b"\x00",
]
BINARIES = [
    b"\xff",
    b"\x80",
    b"\xc0\xaf",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
    b"\xc3",
    b'"\xff"',
    b"[\xfe]",
]


def test_payload_module_exports_exactly_the_listed_names() -> None:
    assert wsgate.payload.__all__ == ["BINARY", "JSON", "TEXT", "Payload", "classify", "is_json", "is_text"]


@pytest.mark.parametrize("data", DOCUMENTS)
def test_valid_json_document_is_classified_as_json_unchanged(data: bytes) -> None:
    assert classify(data) == Payload(JSON, data)
    assert is_json(data)
    assert is_json(data, has_margin=False)


@pytest.mark.parametrize("data", TEXTS)
def test_utf_8_that_is_no_json_is_classified_as_text(data: bytes) -> None:
    assert classify(data) == Payload(TEXT, data)
    assert not is_json(data, has_margin=False)


@pytest.mark.parametrize("data", BINARIES)
def test_bytes_that_are_not_utf_8_are_classified_as_binary(data: bytes) -> None:
    assert classify(data) == Payload(BINARY, data)
    assert not is_text(data)


def strict(data: bytes) -> bool:
    """Return whether another parser, made as strict as RFC 8259 and RFC 3629, accepts the bytes."""

    def refuse(name: str) -> Any:
        raise ValueError(name)

    try:
        text = data.decode()
        if text.startswith("\ufeff"):
            return False
        value = json.loads(text, parse_constant=refuse, parse_int=str)
        # Half a surrogate pair is valid by the grammar of RFC 8259 (section 8.2), but is no text.
        json.dumps(value, ensure_ascii=False).encode()
    except ValueError:
        return False
    return True


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


@st.composite
def nearly_json(draw: st.DrawFn) -> bytes:
    """Draw a document with some of its bytes changed, left out or repeated."""
    data = bytearray(json.dumps(draw(VALUES), ensure_ascii=draw(st.booleans())).encode())
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(data) - 1))
        data[place : place + draw(st.integers(0, 2))] = draw(st.binary(max_size=2) | st.sampled_from(SIGNS))
        if not data:
            break
    return bytes(data)


SIGNS = [b"[", b"]", b"{", b"}", b",", b":", b'"', b"\\", b"\\u", b"-", b"0", b".", b"e", b"\x7f", b"\xff"]


@given(nearly_json() | st.binary(max_size=40))
@example(b'"\x7f"')
def test_is_json_agrees_with_a_strict_reference_parser(data: bytes) -> None:
    assert is_json(data) is is_json(data, has_margin=False) is strict(data)


@given(st.binary(max_size=60) | nearly_json())
def test_classifying_never_raises_and_never_changes_a_byte(data: bytes) -> None:
    encoding, kept = classify(data)
    assert kept == data
    assert encoding in (JSON, TEXT, BINARY)


@pytest.mark.parametrize("open_, close", [(b"[", b"]"), (b'{"a":', b"}")])
def test_s22_json_nested_500_deep_is_json_and_100000_deep_is_text(open_: bytes, close: bytes) -> None:
    def nested(levels: int) -> bytes:
        return open_ * levels + b"1" + close * levels

    assert classify(nested(500)).encoding == JSON
    assert classify(nested(100_000)).encoding == TEXT
    assert classify(open_ * 100_000).encoding == TEXT
    assert classify(nested(500)[:-1]).encoding == TEXT


def test_many_brackets_side_by_side_do_not_count_as_nesting() -> None:
    assert is_json(b"[" + b",".join([b'{"a":[]}'] * 2_000) + b"]")
    # A document must not close brackets that it has not opened.
    assert not is_json(b"1" + b",[]" * 300)
    assert not is_json(b"1]" + b",[]" * 300 + b",[1")


def test_json_nested_to_the_limit_is_read_from_a_deeper_call_stack_too() -> None:
    def deeper(frames: int, data: bytes) -> bool:
        return deeper(frames - 1, data) if frames else is_json(data, has_margin=False)

    accepted = max(levels for levels in range(400, 1_000) if is_json(b"[" * levels + b"]" * levels))
    assert deeper(60, b"[" * accepted + b"]" * accepted)


def test_s22_number_of_a_million_digits_is_json() -> None:
    assert classify(b"[-" + b"9" * 1_000_000 + b"]").encoding == JSON
