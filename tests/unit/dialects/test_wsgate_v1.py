"""Check the native protocol: all commands and invalid fields in both forms; decoding never raises (S22)."""

import base64
import json
import struct
import sys
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import wsgate.dialects
from tests.support.sizes import BOUNDS, around, sizes_up_to
from wsgate.auth.permissions import is_channel_name
from wsgate.dialects import DIALECTS, BadCommand, Dialect, commands, is_channel, select
from wsgate.dialects.commands import ID_MAX, OPS
from wsgate.dialects.names import CHANNEL_LIMIT_BYTES
from wsgate.dialects.subprotocols import BEARER_PREFIX
from wsgate.payload import BINARY, JSON, TEXT, Payload
from wsgate.reasons import ERRORS

JSON_DIALECT, MSGPACK_DIALECT = DIALECTS
ABSENT = object()


def written(dialect: Dialect, message: Any) -> bytes:
    """Encode a message as a client of this dialect does."""
    if dialect is JSON_DIALECT:
        return json.dumps(message).encode()
    packed: bytes = msgpack.packb(message)
    return packed


def read(dialect: Dialect, frame: bytes) -> Any:
    return json.loads(frame) if dialect is JSON_DIALECT else msgpack.unpackb(frame)


both = pytest.mark.parametrize("dialect", DIALECTS, ids=[dialect.subprotocol for dialect in DIALECTS])


def test_dialects_package_exports_exactly_the_listed_names() -> None:
    assert wsgate.dialects.__all__ == [
        "DIALECTS",
        "BadCommand",
        "Command",
        "Dialect",
        "Selection",
        "commands",
        "is_channel",
        "select",
    ]


def test_variant_of_a_dialect_is_its_index_with_subprotocol_and_opcode() -> None:
    assert [dialect.variant for dialect in DIALECTS] == list(range(len(DIALECTS)))
    assert [(dialect.subprotocol, dialect.opcode) for dialect in DIALECTS] == [
        ("wsgate.v1.json", 1),
        ("wsgate.v1.msgpack", 2),
    ]


# --- decoding -----------------------------------------------------------------------------------------

FULL: list[tuple[dict[str, Any], Any]] = [
    (
        {"op": "auth", "token": "t", "id": 1, "from": {"@me": "Qz-5", "a": ""}},
        commands.Auth("t", 1, {"@me": "Qz-5", "a": ""}),
    ),
    ({"op": "auth", "token": "t"}, commands.Auth("t")),
    (
        {"op": "sub", "ch": "a", "id": 2, "from": "Qz-5", "token": "t"},
        commands.Subscribe("a", 2, "Qz-5", "t"),
    ),
    ({"op": "sub", "ch": "a"}, commands.Subscribe("a")),
    ({"op": "unsub", "ch": "a", "id": 3}, commands.Unsubscribe("a", 3)),
    (
        {"op": "history", "ch": "a", "limit": 20, "from": "Qz-5", "id": 4},
        commands.History("a", 20, "Qz-5", 4),
    ),
    ({"op": "presence", "ch": "a", "id": 5}, commands.Presence("a", 5)),
    ({"op": "presence_stats", "ch": "a", "id": 6}, commands.PresenceStats("a", 6)),
    ({"op": "refresh", "token": "t", "id": 7}, commands.Refresh("t", 7)),
    ({"op": "ping", "id": 8}, commands.Ping(8)),
    ({"op": "ping"}, commands.Ping()),
]


@both
@pytest.mark.parametrize(("message", "command"), FULL)
def test_each_command_is_decoded_in_both_forms(dialect: Dialect, message: Any, command: Any) -> None:
    assert dialect.decode(written(dialect, message)) == command
    # The order of keys and unknown keys change nothing.
    odd = {"__class__": "os.system", "x": [{}], **dict(reversed(message.items()))}
    assert dialect.decode(written(dialect, odd)) == command


@both
def test_data_of_pub_and_send_is_kept_byte_for_byte(dialect: Dialect) -> None:
    data = written(dialect, {"a": [1, "é"]})
    message = {"op": "pub", "ch": "a", "data": {"a": [1, "é"]}, "id": 1, "key": "k", "echo": False}
    publish = dialect.decode(written(dialect, message))
    assert isinstance(publish, commands.Publish)
    assert (publish.ch, publish.id, publish.key, publish.echo) == ("a", 1, "k", False)
    assert bytes(publish.data) == data
    send = dialect.decode(written(dialect, {"op": "send", "data": {"a": [1, "é"]}}))
    assert isinstance(send, commands.Send)
    assert (bytes(send.data), send.id) == (data, None)


@both
def test_null_field_counts_as_missing_except_for_data(dialect: Dialect) -> None:
    nulls = {"id": None, "from": None, "token": None, "limit": None, "key": None, "echo": None}
    assert dialect.decode(written(dialect, {"op": "sub", "ch": "a", **nulls})) == commands.Subscribe("a")
    assert dialect.decode(written(dialect, {"op": "history", "ch": "a", **nulls})) == commands.History("a")
    auth = {"op": "auth", **nulls, "token": "t"}
    assert dialect.decode(written(dialect, auth)) == commands.Auth("t")
    publish = dialect.decode(written(dialect, {"op": "pub", "ch": "a", "data": None, **nulls}))
    assert isinstance(publish, commands.Publish)
    assert dialect.payload(publish) == Payload(JSON, b"null")
    assert publish.echo is not False


WRONG: dict[str, list[Any]] = {
    "op": [ABSENT, None, 5, True, ["ping"], {"ping": 1}],
    "id": [-1, 1.5, "1", True, [1], {}, ID_MAX + 1, 2**63, 2**64 - 1, -(2**63)],
    "ch": [ABSENT, None, 5, ["a"], {}, False],
    "token": [5, "", ["t"], {}, True],
    "from": [5, ["a"], True],
    "limit": [-1, 10_001, "20", 1.5, True],
    "key": [5, ["k"], True],
    "echo": ["false", 0, 1, []],
}
COMMANDS: list[dict[str, Any]] = [
    {"op": "auth", "token": "t", "id": 1},
    {"op": "sub", "ch": "a", "id": 1, "from": "Qz-5", "token": "t"},
    {"op": "unsub", "ch": "a", "id": 1},
    {"op": "pub", "ch": "a", "data": 1, "id": 1, "key": "k", "echo": True},
    {"op": "send", "data": 1, "id": 1},
    {"op": "history", "ch": "a", "limit": 1, "from": "Qz-5", "id": 1},
    {"op": "presence", "ch": "a", "id": 1},
    {"op": "presence_stats", "ch": "a", "id": 1},
    {"op": "refresh", "token": "t", "id": 1},
    {"op": "ping", "id": 1},
]
BAD: list[tuple[dict[str, Any], str]] = [
    ({key: value for key, value in {**good, field: wrong}.items() if value is not ABSENT}, field)
    for good in COMMANDS
    for field in good
    for wrong in WRONG.get(field, ())
]
BAD += [
    ({"op": "auth", "id": 1}, "token"),
    ({"op": "auth", "token": None, "id": 1}, "token"),
    ({"op": "refresh", "id": 1}, "token"),
    ({"op": "refresh", "token": None, "id": 1}, "token"),
    ({"op": "auth", "token": "t", "from": "Qz-5", "id": 1}, "from"),
    ({"op": "auth", "token": "t", "from": {"a": 5}, "id": 1}, "from"),
    ({"op": "auth", "token": "t", "from": {"a": None}, "id": 1}, "from"),
    ({"op": "sub", "ch": "a", "from": {"a": "Qz-5"}, "id": 1}, "from"),
    ({"op": "pub", "ch": "a", "id": 1}, "data"),
    ({"op": "send", "id": 1}, "data"),
]


def test_tables_of_invalid_fields_cover_every_command() -> None:
    assert {good["op"] for good in COMMANDS} == OPS
    for good in COMMANDS:
        for dialect in DIALECTS:
            assert not isinstance(dialect.decode(written(dialect, good)), BadCommand)


@both
@pytest.mark.parametrize(("message", "field"), BAD)
def test_invalid_field_is_a_bad_request_with_the_id_of_its_command(
    dialect: Dialect, message: Any, field: str
) -> None:
    found = dialect.decode(written(dialect, message))
    ch = message.get("ch") if isinstance(message.get("ch"), str) else None
    assert found == BadCommand(
        "bad_request", is_malformed=True, id=None if field == "id" else 1, ch=None if field == "ch" else ch
    )


@both
@pytest.mark.parametrize("message", [None, 5, "ping", [], ["ping"], [{"op": "ping"}], {}, {"ping": 1}, True])
def test_message_that_is_no_object_or_has_no_op_is_malformed(dialect: Dialect, message: Any) -> None:
    assert dialect.decode(written(dialect, message)) == BadCommand("bad_request", is_malformed=True)


@both
@pytest.mark.parametrize(
    "op", ["", "PING", "ping ", "subscribe", "no\x00such", "ö", "__class__", "x" * 10_000]
)
def test_unknown_op_is_not_malformed_with_any_fields(dialect: Dialect, op: str) -> None:
    unknown = BadCommand("unknown_op", is_malformed=False, id=0, ch="a")
    assert dialect.decode(written(dialect, {"op": op, "id": 0, "ch": "a", "data": {}})) == unknown
    odd = {"op": op, "id": "x", "ch": 5, "token": []}
    assert dialect.decode(written(dialect, odd)) == BadCommand("unknown_op", is_malformed=False)


@both
@pytest.mark.parametrize("id", [id for id in around((*BOUNDS, ID_MAX)) if id <= ID_MAX])
def test_ids_from_0_to_2_53_are_repeated_unchanged_in_replies(dialect: Dialect, id: int) -> None:
    assert dialect.decode(written(dialect, {"op": "ping", "id": id})) == commands.Ping(id)
    for frame in (
        dialect.ok(id),
        dialect.ok(id, expires_s=0),
        dialect.pong(id),
        dialect.subscribed("a", id),
        dialect.unsubscribed("a", id),
        dialect.error("bad_request", id=id),
        dialect.welcome(1, None, "n", 25, None, has_bus=True, id=id),
    ):
        assert read(dialect, frame)["id"] == id


RAW_BAD = [
    "",
    " ",
    "ping",
    "{",
    "{'op':'ping'}",
    '{"op":"ping"',
    '{"op":"ping"}}',
    '{"op":"ping"}{"op":"ping"}',
    '{"op":"ping","x":01}',
    '{"op":"ping","x":NaN}',
    '{"op":"ping","x":"\\q"}',
    '{"op":"ping",}',
    '\ufeff{"op":"ping"}',
    '{"op":"\\ud800"}',
    '{"op":"sub","ch":"\\ud800"}',
    '{"op":"pub","ch":"a","data":"\\udc00"}',
    '{"op":"ping","id":1e999}',
    '{"op":"ping","id":1.0}',
    '{"op":"ping","id":' + "9" * 1_000_000 + "}",
    '{"op":"ping","op":"sub","ch":"a"}',
    "[" * 100_000,
    '{"a":' * 100_000,
    '{"op":"ping","x":' + "[" * 100_000 + "]" * 100_000 + "}",
    '{"op":"pub","ch":"a","data":' + "[" * 100_000 + "]" * 100_000 + "}",
]


@pytest.mark.parametrize("text", RAW_BAD, ids=range(len(RAW_BAD)))
def test_s22_text_that_is_no_command_is_malformed(text: str) -> None:
    found = JSON_DIALECT.decode(text.encode())
    assert isinstance(found, BadCommand)
    assert (found.error, found.is_malformed) == ("bad_request", True)


RAW_BAD_MSGPACK = [
    b"",
    b"\xc1",
    b"{}",
    b"\x81",
    msgpack.packb({"op": "ping"})[:-1],
    msgpack.packb({"op": "ping"}) + b"\xc0",
    msgpack.packb({b"op": "ping"}),
    msgpack.packb({"op": b"ping"}),
    msgpack.packb({"op": "sub", "ch": b"a"}),
    msgpack.packb({"op": "ping", "id": 1.0}),
    msgpack.packb({"op": "ping", "id": msgpack.Timestamp(1)}),
    msgpack.packb({1: 2, "op": "ping"}),
    msgpack.packb(["op", "ping"]),
    b"\x82\xa2op\xa3sub\xa2ch\xa1\xff",
    b"\x81\xa2op\xa1\xff",
    b"\xdf\xff\xff\xff\xff" + b"\xa2op\xa4ping" * 10,
    b"\xdd\xff\xff\xff\xff",
    b"\x81\xa2op\xdb\xff\xff\xff\xff",
    b"\x91" * 100_000,
    b"\x82\xa2op\xa4ping\xa1x" + b"\x91" * 100_000 + b"\xc0",
]


@pytest.mark.parametrize("wire", RAW_BAD_MSGPACK, ids=range(len(RAW_BAD_MSGPACK)))
def test_s22_bytes_that_are_no_command_are_malformed(wire: bytes) -> None:
    found = MSGPACK_DIALECT.decode(wire)
    assert isinstance(found, BadCommand)
    assert (found.error, found.is_malformed) == ("bad_request", True)


def test_s22_last_value_of_a_repeated_key_counts_and_each_is_checked() -> None:
    assert JSON_DIALECT.decode(b'{"op":"sub","ch":"a","ch":"b"}') == commands.Subscribe("b")
    assert JSON_DIALECT.decode(b'{"op":"ping","id":1,"id":2}') == commands.Ping(2)
    assert isinstance(JSON_DIALECT.decode(b'{"op":"sub","ch":5,"ch":"a"}'), BadCommand)
    wire = b"\x83\xa2op\xa3sub\xa2ch\xa1a\xa2ch\xa1b"
    assert MSGPACK_DIALECT.decode(wire) == commands.Subscribe("b")


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["a", "@me", "chat:42", "__class__", "\ud800", 0, -1, ID_MAX, ID_MAX + 1]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
GRAMMAR = st.builds(
    lambda good, changes: {**good, **changes},
    st.sampled_from([*COMMANDS, {"op": "nope", "id": 1}, {}]),
    st.dictionaries(st.sampled_from([*WRONG, "data", "__class__", "x"]), ANYTHING, max_size=4),
)


def assert_is_verdict(dialect: Dialect, wire: bytes) -> None:
    found = dialect.decode(wire)
    if isinstance(found, BadCommand):
        assert found.error in ("bad_request", "unknown_op")
        assert found.is_malformed is (found.error == "bad_request")
        assert found.id is None or 0 <= found.id <= ID_MAX
        dialect.error(found.error, id=found.id)
        return
    assert type(found) in commands.Command.__args__
    assert found.id is None or 0 <= found.id <= ID_MAX
    if isinstance(found, commands.Publish):
        payload = dialect.payload(found)
        if payload is not None:
            for each in DIALECTS:
                assert read(each, each.publication("a", payload))["op"] == "msg"


@given(GRAMMAR)
def test_s22_decoding_randomly_changed_commands_raises_no_error(message: dict[str, Any]) -> None:
    assert_is_verdict(JSON_DIALECT, json.dumps(message).encode())
    try:
        packed = msgpack.packb(message)
    except UnicodeEncodeError:  # half a surrogate pair, which this writer refuses
        packed = msgpack.packb(message, unicode_errors="surrogatepass")
    assert_is_verdict(MSGPACK_DIALECT, packed)


@given(st.binary(max_size=200), st.integers(0, 200), st.sampled_from(COMMANDS))
@example(b"\xff", 0, COMMANDS[0])
def test_s22_decoding_random_bytes_raises_no_error(noise: bytes, place: int, good: dict[str, Any]) -> None:
    for dialect in DIALECTS:
        assert_is_verdict(dialect, noise)
        wire = written(dialect, good)
        assert_is_verdict(dialect, wire[:place] + noise + wire[place:])
        assert_is_verdict(dialect, wire[:place])


# --- payloads -----------------------------------------------------------------------------------------


def payload_of(dialect: Dialect, data: bytes) -> Payload | None:
    """Return the payload that `pub` with these bytes as its data publishes."""
    return dialect.payload(commands.Publish("a", msgspec.Raw(data)))


@pytest.mark.parametrize("data", [b"null", b' {"a" : 1.50}', b'"x"', b"1e999", b"9" * 5_000])
def test_json_data_is_relayed_byte_for_byte(data: bytes) -> None:
    assert payload_of(JSON_DIALECT, data) == Payload(JSON, data)


@pytest.mark.parametrize("data", [b'"\\ud800"', b'"\xff"', b'{"\\udfff":1}', b"[" * 100_000 + b"]" * 100_000])
def test_json_data_with_surrogates_invalid_utf8_or_deep_nesting_is_refused(data: bytes) -> None:
    assert payload_of(JSON_DIALECT, data) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, b"null"),
        (True, b"true"),
        (2**64 - 1, b"18446744073709551615"),
        (-(2**63), b"-9223372036854775808"),
        (1.5, b"1.5"),
        ("é\x00", '"é\\u0000"'.encode()),
        ([], b"[]"),
        ({"a": {"b": [1, "x"]}}, b'{"a":{"b":[1,"x"]}}'),
        ({"a": b"\xff\x00"}, b'{"a":"/wA="}'),
        ([b""], b'[""]'),
    ],
)
def test_msgpack_data_becomes_json_and_bin_within_becomes_base64(value: Any, expected: bytes) -> None:
    assert payload_of(MSGPACK_DIALECT, msgpack.packb(value)) == Payload(JSON, expected)


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b'{"a":1}'])
def test_msgpack_data_that_is_one_bin_stays_binary(data: bytes) -> None:
    assert payload_of(MSGPACK_DIALECT, msgpack.packb(data)) == Payload(BINARY, data)


NO_JSON: list[Any] = [
    float("nan"),
    float("inf"),
    -float("inf"),
    msgpack.ExtType(5, b"x"),
    msgpack.Timestamp(1_700_000_000),
]


@pytest.mark.parametrize("value", [*NO_JSON, {1: 2}, {None: 1}, {b"a": 1}, {True: 1}, {1.5: 1}])
def test_msgpack_value_that_json_cannot_represent_is_refused_at_any_depth(value: Any) -> None:
    for data in (value, [value], {"a": value}, {"a": [1, {"b": value}]}):
        assert payload_of(MSGPACK_DIALECT, msgpack.packb(data)) is None


@pytest.mark.parametrize(
    "data",
    [
        b"\xa3\xed\xa0\x80",  # half a surrogate pair as bytes
        b"\xa1\xff",
        b"\x81\xa1\xff\x01",
        b"\x81\x91\x01\x01",  # a list as a key
        b"\xca\x7f\xc0\x00\x00",  # NaN in 32 bits
        b"\x91" * 100_000 + b"\xc0",
        b"\xc1",
        b"",
    ],
)
def test_malformed_msgpack_data_is_refused(data: bytes) -> None:
    assert payload_of(MSGPACK_DIALECT, data) is None


def value_to(dialect: Dialect, payload: Payload) -> Any:
    return read(dialect, dialect.publication("a", payload))


PUBLICATIONS = [
    (Payload(JSON, b'{"a":[1,2.5,null]}'), {"data": {"a": [1, 2.5, None]}}, {"a": [1, 2.5, None]}),
    (Payload(TEXT, b'{"a":1}'), {"data": '{"a":1}'}, '{"a":1}'),
    (Payload(TEXT, '"\\é\n\x00'.encode()), {"data": '"\\é\n\x00'}, '"\\é\n\x00'),
    (Payload(BINARY, b"\xff\x00"), {"b64": "/wA="}, b"\xff\x00"),
    (Payload(BINARY, b""), {"b64": ""}, b""),
]


@pytest.mark.parametrize(("payload", "to_json", "to_msgpack"), PUBLICATIONS)
def test_publication_of_each_encoding_has_its_form_in_each_dialect(
    payload: Payload, to_json: Any, to_msgpack: Any
) -> None:
    assert value_to(JSON_DIALECT, payload) == {"op": "msg", "ch": "a", **to_json}
    assert value_to(MSGPACK_DIALECT, payload) == {"op": "msg", "ch": "a", "data": to_msgpack}
    rest = {"pos": "Qz-5", "user": "4\n2", "ts": 1_700_000_000_123}
    for dialect in DIALECTS:
        frame = read(dialect, dialect.publication("@me", payload, "4\n2", "Qz-5", 1_700_000_000_123))
        assert {key: frame[key] for key in rest} == rest
        assert frame["ch"] == "@me"


def test_json_publication_contains_the_document_byte_for_byte() -> None:
    document = b' { "a" : 1.50 , "a":"\\u00e9" }'
    assert JSON_DIALECT.publication("a", Payload(JSON, document)) == (
        b'{"op":"msg","ch":"a","data":' + document + b"}"
    )


@pytest.mark.parametrize(
    ("document", "value"),
    [
        (b"18446744073709551615", 2**64 - 1),
        (b"18446744073709551616", 2.0**64),
        (b"-9223372036854775809", -(2.0**63)),
        (b'{"a":[36893488147419103232],"b":1}', {"a": [2.0**65], "b": 1}),
        (b"1e999", "1e999"),
        (b"[-1e999]", "[-1e999]"),
        (b"1" + b"0" * 309, "1" + "0" * 309),
        (b"[" + b"7" * 5_000 + b"]", "[" + "7" * 5_000 + "]"),
    ],
)
def test_msgpack_clients_get_numbers_beyond_64_bits_as_double_or_text(document: bytes, value: Any) -> None:
    assert value_to(MSGPACK_DIALECT, Payload(JSON, document))["data"] == value


def test_s22_a_deep_document_with_a_large_integer_is_still_a_publication() -> None:
    for levels in (10, 490, 860):
        document = b"[" * levels + b"9" * 30 + b"]" * levels
        for dialect in DIALECTS:
            assert dialect.publication("a", Payload(JSON, document))


# --- encoding -----------------------------------------------------------------------------------------


@both
def test_encoded_messages_have_the_same_fields_in_both_dialects(dialect: Dialect) -> None:
    frames: list[tuple[bytes, dict[str, Any]]] = [
        (
            dialect.welcome(0x9F2C, "42", "node", 25, 3600, has_bus=True),
            {
                "op": "welcome",
                "conn": "0000000000009f2c",
                "user": "42",
                "node": "node",
                "ping_s": 25,
                "expires_s": 3600,
            },
        ),
        (
            dialect.welcome(2**64 - 1, None, "node", 0, None, has_bus=False, id=0),
            {"op": "welcome", "conn": "f" * 16, "id": 0, "node": "node", "ping_s": 0, "bus": False},
        ),
        (dialect.subscribed("a"), {"op": "subbed", "ch": "a"}),
        (
            dialect.subscribed("a", 1, recovered=False),
            {"op": "subbed", "ch": "a", "id": 1, "recovered": False},
        ),
        (dialect.unsubscribed("a"), {"op": "unsubbed", "ch": "a"}),
        (dialect.ok(1), {"op": "ok", "id": 1}),
        (dialect.ok(1, expires_s=0), {"op": "ok", "id": 1, "expires_s": 0}),
        (dialect.pong(), {"op": "pong"}),
        (
            dialect.gap("a", reason="slow", retry_ms=0),
            {"op": "gap", "ch": "a", "reason": "slow", "retry_ms": 0},
        ),
        (dialect.gap(None, reason="bus", retry_ms=9), {"op": "gap", "reason": "bus", "retry_ms": 9}),
        (
            dialect.bye(4012, "drain", reconnect=True, retry_ms=0),
            {"op": "bye", "code": 4012, "reason": "drain", "reconnect": True, "retry_ms": 0},
        ),
        (
            dialect.bye(4501, "invalid_token", reconnect=False, retry_ms=None),
            {"op": "bye", "code": 4501, "reason": "invalid_token", "reconnect": False},
        ),
    ]
    for frame, message in frames:
        assert read(dialect, frame) == message


@both
@pytest.mark.parametrize("name", ERRORS)
def test_error_message_has_code_name_and_text_of_the_registry(dialect: Dialect, name: str) -> None:
    row = ERRORS[name]
    expected = {"op": "err", "code": row.code, "error": name, "message": row.text}
    assert read(dialect, dialect.error(name)) == expected
    full = read(dialect, dialect.error(name, id=0, ch="a", retry_ms=2_000))
    assert full == {**expected, "id": 0, "ch": "a", "retry_ms": 2_000}


# --- names and subprotocols ---------------------------------------------------------------------------

NAMES = [
    "a",
    "chat:42",
    ":",
    "a:b:c",
    "ä",
    "日本",
    "*",
    "a*",
    "a@b",
    "a/b",
    "#",
    "é" * 100,
    "😀" * 50,
    *("x" * size for size in sizes_up_to(CHANNEL_LIMIT_BYTES, least=2)),
]
NO_NAMES = ["", "@", "@me", "@42", " ", "a b", "a\tb", "a\n", "\x00", "a\x7f", "a\x85", "a\xa0b", "a\u2028"]
NO_NAMES += [
    "a\u3000",
    "{a}",
    "a{",
    "a}",
    "\ud800",
    "a\udfff",
    "é" * 101,
    "😀" * 51,
    *("x" * size for size in sizes_up_to(1_000_000, least=CHANNEL_LIMIT_BYTES + 1)),
    "x" * (CHANNEL_LIMIT_BYTES + 1),
]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: f"{len(name)}-{name[:9]!a}")
def test_valid_channel_name_is_accepted_in_commands_and_tokens(name: str) -> None:
    assert is_channel(name)
    assert is_channel_name(name)


@pytest.mark.parametrize("name", NO_NAMES, ids=lambda name: f"{len(name)}-{name[:9]!a}")
def test_invalid_channel_name_is_refused_in_commands_and_tokens(name: str) -> None:
    assert not is_channel(name)
    assert not is_channel_name(name)


def test_channel_name_is_checked_against_a_given_byte_limit() -> None:
    assert is_channel("abc", 3)
    assert not is_channel("abcd", 3)
    assert not is_channel("éé", 3)
    assert CHANNEL_LIMIT_BYTES == 200


def test_commands_and_tokens_accept_the_same_characters_in_channel_names() -> None:
    for sign in map(chr, range(sys.maxunicode + 1)):
        name = f"a{sign}"
        expected = not (0xD800 <= ord(sign) <= 0xDFFF or sign.isspace() or sign in "{}")
        expected = expected and not (ord(sign) < 0x20 or 0x7F <= ord(sign) < 0xA0)
        assert is_channel(name) is is_channel_name(name) is expected, hex(ord(sign))


SELECTIONS: list[tuple[list[str], tuple[Dialect, str | None, str | None] | None]] = [
    ([], (JSON_DIALECT, None, None)),
    (["wsgate.v1.json"], (JSON_DIALECT, "wsgate.v1.json", None)),
    (["wsgate.v1.msgpack"], (MSGPACK_DIALECT, "wsgate.v1.msgpack", None)),
    (["wsgate.v1.msgpack", "wsgate.v1.json"], (MSGPACK_DIALECT, "wsgate.v1.msgpack", None)),
    (["wsgate.v1.json", "wsgate.v1.msgpack"], (JSON_DIALECT, "wsgate.v1.json", None)),
    (["graphql-ws", "wsgate.v1.msgpack"], (MSGPACK_DIALECT, "wsgate.v1.msgpack", None)),
    (["wsgate.bearer.t", "wsgate.v1.json"], (JSON_DIALECT, "wsgate.v1.json", "t")),
    (["wsgate.v1.msgpack", "wsgate.bearer.a.b.c"], (MSGPACK_DIALECT, "wsgate.v1.msgpack", "a.b.c")),
    (["wsgate.v1.json", "wsgate.bearer.t", "wsgate.bearer.u"], (JSON_DIALECT, "wsgate.v1.json", "t")),
    (["wsgate.v1.json", "wsgate.bearer."], (JSON_DIALECT, "wsgate.v1.json", "")),
    (["wsgate.bearer.t"], None),
    (["wsgate.v2.json"], None),
    (["WSGATE.V1.JSON"], None),
    (["wsgate.v1"], None),
    ([""], None),
    (["graphql-ws", "wsgate.bearer.t"], None),
]


@pytest.mark.parametrize(("offered", "expected"), SELECTIONS)
def test_first_known_subprotocol_is_selected_with_the_first_bearer_token(
    offered: list[str], expected: Any
) -> None:
    found = select(offered)
    assert found == expected
    assert found is None or BEARER_PREFIX not in (found.subprotocol or "")


@given(st.binary(max_size=40))
def test_binary_reaches_json_clients_as_canonical_base64(data: bytes) -> None:
    assert base64.b64decode(value_to(JSON_DIALECT, Payload(BINARY, data))["b64"], validate=True) == data


@given(st.floats(width=32) | st.floats())
def test_every_finite_float_survives_from_msgpack_to_msgpack(number: float) -> None:
    payload = payload_of(MSGPACK_DIALECT, b"\xcb" + struct.pack(">d", number))
    if payload is None:
        assert number != number or number in (float("inf"), -float("inf"))
    else:
        assert value_to(MSGPACK_DIALECT, payload)["data"] == number
