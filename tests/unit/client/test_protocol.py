"""Check the codec of the client against the examples and the schema of the protocol, and its only error."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgate.client import BadMessage, Publication
from wsgate.client.protocol import (
    Answer,
    Bye,
    Dropped,
    Failed,
    RefreshAsked,
    Subscribed,
    Unsubscribed,
    Welcome,
    decode,
    encode,
)
from wsgate.client.quantities import LIFE_MOST_S, WAIT_MOST_S

FOLDER = Path(__file__).resolve().parents[3] / "protocols" / "client" / "v1"
SCHEMA: dict[str, Any] = json.loads((FOLDER / "schema.json").read_text())
EXAMPLES: list[dict[str, Any]] = [
    each
    for each in json.loads((FOLDER / "messages.json").read_text())["messages"]
    if each["from"] == "server" and "msgpack" in each
]
KINDS = {
    "msg": Publication,
    "welcome": Welcome,
    "subbed": Subscribed,
    "unsubbed": Unsubscribed,
    "ok": Answer,
    "pong": Answer,
    "err": Failed,
    "gap": Dropped,
    "bye": Bye,
    "refresh": RefreshAsked,
    "join": type(None),
    "leave": type(None),
}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda each: each["name"])
def test_every_example_of_the_protocol_is_decoded_to_its_fields(example: dict[str, Any]) -> None:
    value: dict[str, Any] = msgpack.unpackb(bytes.fromhex(example["msgpack"]))
    found = decode(bytes.fromhex(example["msgpack"]))
    assert type(found) is KINDS[value["op"]]
    names = {"ch": "channel", "pos": "position", "ts": "timestamp_ms", "from": "from_"}
    for key, expected in value.items():
        if found is not None and hasattr(found, names.get(key, key)):
            assert getattr(found, names.get(key, key)) == expected, key


def test_examples_cover_every_operation_that_the_client_decodes() -> None:
    shown = {each["value"]["op"] for each in EXAMPLES if "value" in each}
    assert shown >= KINDS.keys()


def test_unknown_operations_and_fields_are_ignored() -> None:
    assert decode(encode({"op": "later", "x": 1})) is None
    assert decode(encode({"op": "gap", "ch": "c", "later": [1]})) == Dropped("c")
    assert decode(encode({"op": "gap", "retry_ms": -5, "reason": "later"})) == Dropped(None, reason="later")


def test_null_field_counts_as_missing_except_for_data() -> None:
    sent = {"op": "msg", "ch": "c", "data": None, "user": None, "pos": None, "ts": None}
    assert decode(encode(sent)) == Publication("c", None)


@pytest.mark.parametrize("within_s", [30, 2.5])
def test_refresh_message_is_decoded_with_its_time(within_s: float) -> None:
    assert decode(encode({"op": "refresh", "within_s": within_s})) == RefreshAsked(within_s)


@pytest.mark.parametrize(
    "message",
    [
        [],
        {"ch": "c"},
        {"op": 1},
        {"op": "msg", "ch": "c"},
        {"op": "msg", "data": 1},
        {"op": "msg", "ch": 1, "data": 1},
        {"op": "msg", "ch": "c", "data": 1, "ts": "1"},
        {"op": "msg", "ch": "c", "data": 1, "pos": 5},
        {"op": "welcome", "conn": "x"},
        {"op": "welcome", "conn": "x", "ping_s": True},
        {"op": "subbed", "ch": "c", "recovered": 1},
        {"op": "ok", "id": "1"},
        {"op": "err", "id": 1, "code": "400", "error": "x"},
        {"op": "err", "id": 1, "code": 400},
        {"op": "bye", "reason": "x"},
        {"op": "refresh"},
        {"op": "refresh", "within_s": "30"},
    ],
    ids=repr,
)
def test_map_with_missing_or_wrong_fields_raises_bad_message(message: object) -> None:
    with pytest.raises(BadMessage):
        decode(msgpack.packb(message))


@pytest.mark.parametrize("frame", ["{}", b"", b"\xc1", b"\x81\xa2op", b"\x80\x80", b"\x81\x90\x01", None])
def test_frame_that_is_no_map_raises_bad_message(frame: object) -> None:
    with pytest.raises(BadMessage):
        decode(frame)


@given(st.binary(max_size=40))
def test_random_bytes_raise_only_a_temporary_bad_message(frame: bytes) -> None:
    try:
        decode(frame)
    except BadMessage as error:
        assert error.temporary


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.text(max_size=3)
    | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
FIELDS = ["ch", "id", "data", "pos", "user", "ts", "code", "error", "conn", "ping_s", "recovered", "within_s"]


@given(st.sampled_from(sorted(KINDS)), st.dictionaries(st.sampled_from(FIELDS), VALUES))
def test_random_fields_raise_only_bad_message(op: str, fields: dict[str, Any]) -> None:
    try:
        found = decode(encode({**fields, "op": op}))
    except BadMessage:
        return
    assert type(found) is KINDS[op]


@pytest.mark.parametrize(
    "command",
    [
        {"op": "sub", "ch": "chat:42", "id": 1, "from": "Qz-5", "token": "t"},
        {"op": "pub", "ch": "chat:42", "data": [1], "id": 2, "key": "k", "echo": False},
        {"op": "send", "data": None, "id": 3},
        {"op": "unsub", "ch": "chat:42", "id": 4},
        {"op": "refresh", "token": "t", "id": 5},
    ],
    ids=lambda each: each["op"],
)
def test_encoded_command_is_valid_by_the_schema(command: dict[str, Any]) -> None:
    schema = {**SCHEMA, "anyOf": [{"$ref": "#/$defs/client"}]}
    jsonschema.Draft202012Validator(schema).validate(msgpack.unpackb(encode(command)))


RETRY_MOST_MS = WAIT_MOST_S * 1000
SERVER_NUMBERS: dict[str, tuple[dict[str, Any], str, int]] = {
    "ping_s": ({"op": "welcome", "conn": "c"}, "ping_s", WAIT_MOST_S),
    "expires_s of a welcome": ({"op": "welcome", "conn": "c", "ping_s": 1}, "expires_s", LIFE_MOST_S),
    "expires_s of an answer": ({"op": "ok", "id": 1}, "expires_s", LIFE_MOST_S),
    "retry_ms of an error": (
        {"op": "err", "code": 503, "error": "unavailable"},
        "retry_ms",
        WAIT_MOST_S * 1000,
    ),
    "retry_ms of a bye": ({"op": "bye", "code": 4012, "reason": "drain"}, "retry_ms", RETRY_MOST_MS),
    "within_s": ({"op": "refresh"}, "within_s", WAIT_MOST_S),
}


@pytest.mark.parametrize("name", SERVER_NUMBERS)
def test_waiting_times_from_the_server_are_limited_to_their_bounds(name: str) -> None:
    message, field, most = SERVER_NUMBERS[name]
    for sent in (-(2**63), -1, 0, 1, most - 1, most, most + 1, 2**31, 2**32, 2**53, 2**64 - 1):
        read = decode(msgpack.packb({**message, field: sent}))
        assert getattr(read, field) == min(max(sent, 0), most), sent
