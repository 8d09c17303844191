"""Check that schema, examples and codec of protocols/client/v1 agree about every message."""

import json
import sys
from pathlib import Path
from typing import Any

import jsonschema
import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgate.dialects import DIALECTS, BadCommand, is_channel
from wsgate.dialects.commands import ID_MAX, OPS
from wsgate.reasons import ERRORS, REASONS

FOLDER = Path(__file__).resolve().parents[3] / "protocols" / "client" / "v1"
SCHEMA: dict[str, Any] = json.loads((FOLDER / "schema.json").read_text())
MESSAGES: list[dict[str, Any]] = json.loads((FOLDER / "messages.json").read_text())["messages"]
JSON_DIALECT, MSGPACK_DIALECT = DIALECTS
NAMES = [message["name"] for message in MESSAGES]


def validator(definition: str) -> Any:
    return jsonschema.Draft202012Validator({**SCHEMA, "anyOf": [{"$ref": f"#/$defs/{definition}"}]})


CLIENT, SERVER = validator("client"), validator("server")


def with_bytes(value: Any) -> Any:
    """The value of an example: {"bin": hex} stands for bytes."""
    if isinstance(value, dict):
        if value.keys() == {"bin"}:
            return bytes.fromhex(value["bin"])
        return {key: with_bytes(each) for key, each in value.items()}
    return [with_bytes(each) for each in value] if isinstance(value, list) else value


def is_accepted(message: dict[str, Any]) -> list[BadCommand | None]:
    """Return the codec's error or None for each form of an example."""
    wires = [(JSON_DIALECT, message["json"].encode())] if "json" in message else []
    if "msgpack" in message:
        wires.append((MSGPACK_DIALECT, bytes.fromhex(message["msgpack"])))
    found = [dialect.decode(wire) for dialect, wire in wires]
    return [each if isinstance(each, BadCommand) else None for each in found]


def test_protocol_schema_is_a_valid_json_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("message", MESSAGES, ids=NAMES)
def test_json_and_msgpack_forms_of_an_example_have_the_same_value(message: dict[str, Any]) -> None:
    assert {"json", "msgpack"} & message.keys()
    if "value" not in message:
        return
    if "json" in message:
        assert json.loads(message["json"]) == message["value"]
    if "msgpack" in message:
        assert msgpack.unpackb(bytes.fromhex(message["msgpack"])) == with_bytes(message["value"])


@pytest.mark.parametrize("message", MESSAGES, ids=NAMES)
def test_schema_and_codec_accept_or_refuse_an_example_as_marked(message: dict[str, Any]) -> None:
    if "error" not in message:
        mine, others = (CLIENT, SERVER) if message["from"] == "client" else (SERVER, CLIENT)
        mine.validate(message["value"])
        assert not others.is_valid(message["value"])
        if message["from"] == "client":
            assert is_accepted(message) == [None] * len(is_accepted(message))
        return
    for bad in is_accepted(message):
        assert bad is not None
        assert (bad.error, bad.is_malformed) == (message["error"], message["error"] != "unknown_op")
    try:
        value = json.loads(message["json"])
    except (KeyError, ValueError):
        return
    assert not CLIENT.is_valid(value) or message["name"] in BEYOND_A_SCHEMA


# Faults that a parser hides: a schema sees values and no text.
BEYOND_A_SCHEMA = {"op twice", "id written with a fraction", "NaN", "half a surrogate pair"}


def test_every_message_and_field_of_the_schema_has_an_example() -> None:
    for side in ("client", "server"):
        ops = {name.partition(".")[2] for name in SCHEMA["$defs"] if name.startswith(side + ".")}
        shown = [each["value"] for each in MESSAGES if each["from"] == side and "value" in each]
        assert {value["op"] for value in shown} == ops
        for op in ops:
            properties = SCHEMA["$defs"][f"{side}.{op}"]["properties"]
            assert set(properties) <= {key for value in shown if value["op"] == op for key in value}, op
    assert {name.partition(".")[2] for name in SCHEMA["$defs"] if name.startswith("client.")} == OPS
    assert len(set(NAMES)) == len(NAMES)


def test_schema_has_the_errors_and_close_codes_of_the_registry() -> None:
    rows = [each["properties"] for each in SCHEMA["$defs"]["server.err"]["oneOf"]]
    found = {(row["code"]["const"], row["error"]["const"]) for row in rows}
    assert found == {(entry.code, entry.name) for entry in ERRORS.values()}
    for dialect in DIALECTS[:1]:
        for row in REASONS.values():
            if row.close_code >= 4000:
                comes = row.close_code < 4500
                bye = dialect.bye(row.close_code, "x", reconnect=comes, retry_ms=5 if comes else None)
                SERVER.validate(json.loads(bye))
                assert not SERVER.is_valid(json.loads(bye) | {"reconnect": not comes})


def test_schema_and_codec_accept_the_same_characters_in_channel_names() -> None:
    channel = validator("channel")
    planes = [*range(0xD800), *range(0xE000, 0x11000), *range(0x11000, sys.maxunicode, 257)]
    for sign in map(chr, planes[::3] + planes[:0x100] + [0x1680, 0x2028, 0x202F, 0x205F, 0x3000, 0xFEFF]):
        assert channel.is_valid(f"a{sign}") is is_channel(f"a{sign}"), hex(ord(sign))
    for name in ("", "@", "@me2", "@42", "x" * 201, "a b", "a\n"):
        assert not channel.is_valid(name)
        assert not is_channel(name)
    assert channel.is_valid("x" * 200)
    assert channel.is_valid("@me")


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.just("a"),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "op"]), inner, max_size=2)
    ),
    max_leaves=4,
).filter(lambda value: not (isinstance(value, float) and value.is_integer()))
FIELDS = {
    "op": st.sampled_from([*sorted(OPS), "nope"]),
    "id": st.integers(0, ID_MAX) | st.sampled_from([-1, ID_MAX + 1]),
    "ch": st.sampled_from(["a", "@me", "chat:42"]),
    "token": st.sampled_from(["t", ""]),
    "from": st.just("Qz-5") | st.dictionaries(st.sampled_from(["@me", "a"]), st.just("Qz-5") | VALUES),
    "limit": st.integers(-1, 10_001),
    "echo": st.booleans(),
    "key": st.just("k"),
    "data": VALUES,
}


@st.composite
def commands(draw: st.DrawFn) -> dict[str, Any]:
    """Draw mostly valid commands in which each field sometimes has any type."""
    names = draw(st.sets(st.sampled_from(sorted(FIELDS)), min_size=3)) | {"op"}
    return {name: draw(VALUES if draw(st.integers(0, 9)) == 0 else FIELDS[name]) for name in sorted(names)}


@given(commands())
def test_s22_codec_accepts_exactly_the_commands_that_the_schema_allows(message: dict[str, Any]) -> None:
    found = JSON_DIALECT.decode(json.dumps(message).encode())
    assert CLIENT.is_valid(message) is (not isinstance(found, BadCommand))
