"""Payloads: what bytes are, decided once and the same everywhere; nothing a stranger sends raises."""

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


def test_the_room_offers_these_names() -> None:
    assert wsgate.payload.__all__ == ["BINARY", "JSON", "TEXT", "Payload", "classify", "is_json", "is_text"]


@pytest.mark.parametrize("data", DOCUMENTS)
def test_a_document_is_json_and_stays_as_it_is(data: bytes) -> None:
    assert classify(data) == Payload(JSON, data)
    assert is_json(data)
    assert is_json(data, has_margin=False)


@pytest.mark.parametrize("data", TEXTS)
def test_what_no_json_parser_takes_is_text(data: bytes) -> None:
    assert classify(data) == Payload(TEXT, data)
    assert not is_json(data, has_margin=False)


@pytest.mark.parametrize("data", BINARIES)
def test_what_is_not_utf_8_is_binary(data: bytes) -> None:
    assert classify(data) == Payload(BINARY, data)
    assert not is_text(data)


def strict(data: bytes) -> bool:
    """What another parser thinks, made as strict as RFC 8259 and RFC 3629 are."""

    def refuse(name: str) -> Any:
        raise ValueError(name)

    try:
        text = data.decode()
        if text.startswith("\ufeff"):
            return False
        value = json.loads(text, parse_constant=refuse, parse_int=str)
        # Half a surrogate pair is grammar to RFC 8259 (section 8.2), and no text to anybody.
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
    """A document with some of its bytes changed, left out or said twice."""
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
def test_json_is_what_another_parser_says_it_is(data: bytes) -> None:
    assert is_json(data) is is_json(data, has_margin=False) is strict(data)


@given(st.binary(max_size=60) | nearly_json())
def test_classifying_never_raises_and_never_changes_a_byte(data: bytes) -> None:
    encoding, kept = classify(data)
    assert kept == data
    assert encoding in (JSON, TEXT, BINARY)


@pytest.mark.parametrize("open_, close", [(b"[", b"]"), (b'{"a":', b"}")])
def test_s22_nesting_is_read_as_far_as_parsers_go_and_is_text_beyond(open_: bytes, close: bytes) -> None:
    def nested(levels: int) -> bytes:
        return open_ * levels + b"1" + close * levels

    assert classify(nested(500)).encoding == JSON
    assert classify(nested(100_000)).encoding == TEXT
    assert classify(open_ * 100_000).encoding == TEXT
    assert classify(nested(500)[:-1]).encoding == TEXT


def test_many_brackets_side_by_side_are_no_nesting() -> None:
    assert is_json(b"[" + b",".join([b'{"a":[]}'] * 2_000) + b"]")
    # What closes the brackets of somebody else is no document, however it is looked at.
    assert not is_json(b"1" + b",[]" * 300)
    assert not is_json(b"1]" + b",[]" * 300 + b",[1")


def test_what_one_process_accepts_is_read_from_a_deeper_stack_elsewhere() -> None:
    def deeper(frames: int, data: bytes) -> bool:
        return deeper(frames - 1, data) if frames else is_json(data, has_margin=False)

    accepted = max(levels for levels in range(400, 1_000) if is_json(b"[" * levels + b"]" * levels))
    assert deeper(60, b"[" * accepted + b"]" * accepted)


def test_s22_a_number_of_a_million_digits_is_a_document_nobody_computes() -> None:
    assert classify(b"[-" + b"9" * 1_000_000 + b"]").encoding == JSON
