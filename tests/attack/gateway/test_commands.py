"""Send commands that no client should send: each is answered, and three malformed ones in a row close."""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import msgpack
import pytest

from tests.support.attack_rig import (
    besieged,
    configured_gateway,
    fresh_counters,
    make_token,
)
from tests.support.frames import BINARY, CLOSE, TEXT, client_frame
from tests.support.gateway import Gateway
from tests.support.raw_client import RawClient

pytestmark = pytest.mark.slow

MSGPACK: Final = ("Sec-WebSocket-Protocol", "wsgate.v1.msgpack")
SEED: Final = 20260101


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with configured_gateway(tmp_path_factory.mktemp("commands")) as running:
        yield running
        assert fresh_counters(running)['wsgate_closes_total{reason="internal"}'] == 0


@pytest.fixture
def client(gateway: Gateway) -> Iterator[RawClient]:
    with RawClient.welcomed(gateway, make_token("teller")) as made:
        yield made


DEEP: Final = 20_000
DIGITS: Final = 50_000

# Each of these messages is answered by an error and leaves the connection open.
BAD_JSON: Final = [
    b"",
    b" ",
    b"null",
    b"true",
    b"7",
    b'"op"',
    b"[]",
    b'[{"op":"ping"}]',
    b"{}",
    b"{",
    b'{"op"}',
    b'{"op":"ping"',
    b'{"op":"ping"}}',
    b'{"op":"ping"} {"op":"ping"}',
    b"{'op':'ping'}",
    b'{"op":ping}',
    b'{"op":null}',
    b'{"op":["ping"]}',
    b'{"op":{"op":"ping"}}',
    b'{"op":1}',
    b'{"op":"\\ud800"}',
    b'{"op":"PING"}',
    b'{"op":"sub","op":"ping"}',
    b'{"op":"__class__"}',
    b'{"op":"Ping"}',
    b'{"op":"","id":1e999}',
    b'{"op":"ping","id":-1}',
    b'{"op":"ping","id":1.5}',
    b'{"op":"ping","id":"1"}',
    b'{"op":"ping","id":true}',
    b'{"op":"ping","id":[1]}',
    b'{"op":"ping","id":9007199254740992}',
    b'{"op":"ping","id":18446744073709551616}',
    b'{"op":"ping","id":' + b"9" * DIGITS + b"}",
    b'{"op":"ping","id":-' + b"9" * DIGITS + b"}",
    b'{"op":"ping","id":1e' + b"9" * 400 + b"}",
    b'{"op":"ping","id":NaN}',
    b'{"op":"ping","id":Infinity}',
    b'{"op":"pub","ch":"open:1","data":' + b"[" * DEEP + b"}",
    b'{"op":"pub","ch":"open:1","data":' + b"[" * DEEP + b"]" * DEEP + b"}",
    b'{"op":"pub","ch":"open:1","data":' + b'{"a":' * 8000 + b"1" + b"}" * 8000 + b"}",
    b'{"op":"ping","deep":' + b"[" * DEEP + b"]" * DEEP + b"}",
    b"[" * DEEP,
    b'{"a":' * 8000,
    b'{"op":"pub","ch":"open:1","data":"\\ud800"}',
    b'{"op":"pub","ch":"open:1","data":{"\\udfff":1}}',
    b'{"op":"pub","ch":"open:1","data":"\x01"}',
    b'{"op":"pub","ch":"open:1"}',
    b'{"op":"pub","ch":["open:1"],"data":1}',
    b'{"op":"pub","ch":null,"data":1}',
    b'{"op":"pub","ch":"open:1","data":1,"echo":"yes"}',
    b'{"op":"pub","ch":"open:1","data":1,"key":1}',
    b'{"op":"pub","ch":"@teller","data":1}',
    b'{"op":"pub","ch":"@me","data":1}',
    b'{"op":"pub","ch":"","data":1}',
    b'{"op":"pub","ch":"\\u0000","data":1}',
    b'{"op":"pub","ch":"open:\\ud800","data":1}',
    b'{"op":"sub","ch":"open:\\ud800\\ud800"}',
    b'{"op":"sub","ch":"open:1\\r\\nSUBSCRIBE x"}',
    b'{"op":"sub","ch":"open:{1}"}',
    b'{"op":"sub","ch":"open:1","from":1}',
    b'{"op":"sub","ch":"open:1","token":1}',
    b'{"op":"sub","ch":"open:1","token":""}',
    b'{"op":"sub","ch":"open:1","token":"\\ud800"}',
    b'{"op":"sub","ch":' + b"1" * DIGITS + b"}",
    b'{"op":"unsub","ch":"\\ud800"}',
    b'{"op":"history","ch":"open:1","limit":-1}',
    b'{"op":"history","ch":"open:1","limit":1e9}',
    b'{"op":"history","ch":"open:1","from":{}}',
    b'{"op":"presence","ch":7}',
    b'{"op":"presence","ch":"\\udc00"}',
    b'{"op":"send"}',
    b'{"op":"refresh"}',
    b'{"op":"refresh","token":"\\ud800\\udc00\\ud800"}',
    b'{"op":"refresh","token":[]}',
    b'{"op":"auth","token":"x"}',
    b'{"op":"auth","token":"x","from":{"a":1}}',
    b'{"op":"auth","token":"x","from":[]}',
    b'{"__class__":"x","__init__":{},"op":"__init__"}',
    b'{"__proto__":{"op":"ping"}}',
    b'{"constructor":1,"op":"toString"}',
]

ODD_JSON: Final = [
    (b'{"op":"ping","id":1,"id":6}', {"op": "pong", "id": 6}),  # the last of two equal fields counts
    (b'{"op":"ping","id":7,"n":1e999}', {"op": "pong", "id": 7}),  # unknown fields are ignored
    (b'{"op":"ping","id":8,"n":' + b"9" * DIGITS + b"}", {"op": "pong", "id": 8}),
    (b'{"op":"ping","id":0}', {"op": "pong", "id": 0}),
    (b'{"op":"ping","id":9007199254740991}', {"op": "pong", "id": 2**53 - 1}),
    (b'{"op":"ping","id":9,"__class__":{"__init__":1}}', {"op": "pong", "id": 9}),
    (b' {"op" : "ping" , "id" : 10 } ', {"op": "pong", "id": 10}),
    (b'{"\\u006fp":"p\\u0069ng","id":11}', {"op": "pong", "id": 11}),
]


def packed(**fields: Any) -> bytes:
    return bytes(msgpack.packb(fields))


BAD_MSGPACK: Final = [
    b"",
    b"\xc1",
    b"\xc0",
    b"\x80",
    b"\x90",
    b"\x81",
    b"\xdf\xff\xff\xff\xff",
    b"\xdd\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xc9\xff\xff\xff\xff\x01",
    b"\x91" * DEEP,
    b"\x81\xa1a" * 8000,
    b'{"op":"ping"}',
    packed(op="ping") + packed(op="ping"),
    packed(op=b"ping"),
    packed(op=None),
    packed(op="ping", id=-1),
    packed(op="ping", id=2**63),
    packed(op="ping", id=1.0e300),
    packed(op="ping", id=float("nan")),
    packed(op="ping", id=b"1"),
    packed(op="pub", ch="open:1"),
    packed(op="pub", ch="open:1", data=float("nan")),
    packed(op="pub", ch="open:1", data=float("inf")),
    packed(op="pub", ch="open:1", data=msgpack.ExtType(5, b"x")),
    packed(op="pub", ch="open:1", data=msgpack.Timestamp(1)),
    packed(op="pub", ch="open:1", data={1: 2}),
    packed(op="pub", ch="open:1", data={b"a": 2}),
    packed(op="pub", ch="open:1", data={"a": {None: 2}}),
    packed(op="pub", ch=b"open:1", data=1),
    b"\x83\xa2op\xa3pub\xa2ch\xa6open:1\xa4data" + b"\x91" * DEEP + b"\xc0",
    b"\x83\xa2op\xa3pub\xa2ch\xa6open:1\xa4data\xa2\xff\xfe",  # a str that is not UTF-8
    b"\x82\xa2op\xa3sub\xa2ch\xa3\xed\xa0\x80",  # half a surrogate pair
    b"\x82\xa2op\xa4ping\x81\x01\x02\x03",  # a map as a key
    b"\x82\xa2op\xa4ping\x91\x01\x02",  # a list as a key
]


def assert_answered_and_open(client: RawClient, message: bytes, number: int) -> None:
    """Assert that the message has one error, and that a ping after it has its pong."""
    client.say_raw(message)
    client.say(op="ping", id=number)
    said = client.hear()
    assert said["op"] == "err", (message[:60], said)
    assert set(said) <= {"op", "id", "ch", "code", "error", "message", "retry_ms"}
    assert client.hear() == {"op": "pong", "id": number}, message[:60]


@pytest.mark.parametrize(("headers", "messages"), [((), BAD_JSON), ((MSGPACK,), BAD_MSGPACK)])
def test_s22_message_that_is_no_command_is_an_error_and_the_connection_stays_open(
    gateway: Gateway, headers: Sequence[tuple[str, str]], messages: list[bytes]
) -> None:
    with besieged(gateway), RawClient.welcomed(gateway, make_token("teller"), *headers) as client:
        for number, message in enumerate(messages):
            assert_answered_and_open(client, message, number)
        heard = bytes(client.heard)
    assert b"Traceback" not in heard and b"msgspec" not in heard and b"wsgate/" not in heard


def test_s22_unusual_but_valid_json_commands_are_executed(client: RawClient) -> None:
    for message, answer in ODD_JSON:
        client.say_raw(message)
        assert client.hear() == answer


@pytest.mark.parametrize("headers", [(), (MSGPACK,)])
def test_s22_only_three_malformed_messages_in_a_row_close_with_4500(
    gateway: Gateway, headers: Sequence[tuple[str, str]]
) -> None:
    with RawClient.welcomed(gateway, make_token("teller"), *headers) as client:
        for _ in range(3):  # an unknown command ends each row before its third message
            client.say_raw(b"\xc1" if headers else b"{")
            client.say_raw(b"\xc1" if headers else b"{")
            client.say(op="a later version's")
            assert [client.hear()["error"] for _ in range(3)] == ["bad_request"] * 2 + ["unknown_op"]
        for _ in range(3):
            client.say_raw(b"\xc1" if headers else b"{")
        closed = client.ending()
    assert [said["op"] for said in closed.messages] == ["err", "err", "err", "bye"]
    assert (closed.code, closed.bye["reason"], closed.bye["reconnect"]) == (4500, "bad_messages", False)


def test_s22_command_behind_the_third_malformed_message_is_not_executed(gateway: Gateway) -> None:
    with RawClient.welcomed(gateway, make_token("hearer")) as hearer:
        hearer.say(op="sub", ch="open:behind", id=1)
        hearer.hear_answer(1)
        with RawClient.welcomed(gateway, make_token("teller")) as client:
            bad = client_frame(TEXT, b"{") * 3
            late = client_frame(TEXT, b'{"op":"pub","ch":"open:behind","data":"late"}')
            client.sock.sendall(bad + late)
            assert client.ending().code == 4500
        hearer.say(op="pub", ch="open:behind", data="first", id=2)
        heard = [hearer.hear(), hearer.hear()]
    assert [said["data"] for said in heard if said["op"] == "msg"] == ["first"]


@pytest.mark.parametrize(("headers", "opcode"), [((), BINARY), ((MSGPACK,), TEXT)])
def test_s22_frame_with_the_opcode_of_the_other_dialect_closes_with_1003(
    gateway: Gateway, headers: Sequence[tuple[str, str]], opcode: int
) -> None:
    with RawClient.welcomed(gateway, make_token("teller"), *headers) as client:
        client.say_raw(b'{"op":"ping"}', opcode)
        client.say(op="ping")
        assert client.ending() == (1003, [])


@pytest.mark.parametrize("tail", [client_frame(CLOSE, b"\x03\xe8"), b"\xff\xff", b""])
def test_message_behind_one_that_closes_is_not_run_whatever_follows_in_the_same_read(
    gateway: Gateway, client: RawClient, tail: bytes
) -> None:
    with RawClient.welcomed(gateway, make_token("hearer")) as hearer:
        hearer.say(op="sub", ch="open:behind-close", id=1)
        assert hearer.hear_answer(1)["op"] == "subbed"
        behind = b'{"op":"pub","ch":"open:behind-close","data":"late"}'
        client.sock.sendall(client_frame(BINARY, b"{}") + client_frame(TEXT, behind) + tail)
        client.ending()
        hearer.say(op="pub", ch="open:behind-close", data="first", id=2)
        heard = [hearer.hear(), hearer.hear()]
    assert [said["data"] for said in heard if said["op"] == "msg"] == ["first"]


def test_s22_text_message_that_is_not_utf8_closes_with_1007(client: RawClient) -> None:
    client.say_raw(b'{"op":"pub","ch":"open:1","data":"\xff"}')
    assert client.ending() == (1007, [])


GRAMMAR: Final = [
    {"op": "ping", "id": 1},
    {"op": "sub", "ch": "open:fuzz", "id": 2, "from": "Qz-5"},
    {"op": "unsub", "ch": "open:fuzz", "id": 3},
    {"op": "pub", "ch": "open:fuzz", "data": {"a": [1, "b", None]}, "id": 4, "echo": False, "key": "k"},
    {"op": "send", "data": 1, "id": 5},
    {"op": "history", "ch": "open:fuzz", "limit": 20, "from": "Qz-5", "id": 6},
    {"op": "presence", "ch": "open:fuzz", "id": 7},
    {"op": "presence_stats", "ch": "open:fuzz", "id": 8},
    {"op": "refresh", "token": "a.b.c", "id": 9},
]
ODD: Final[list[Any]] = [
    None,
    True,
    -1,
    2**53,
    2**70,
    1e300,
    "",
    "@me",
    "@",
    "{}",
    "\x00",
    "é" * 101,
    [],
    {},
    [[]],
]


def mutated(chance: random.Random) -> dict[str, Any]:
    """Return a command with one or two fields replaced, removed or added."""
    fields: dict[str, Any] = dict(chance.choice(GRAMMAR))
    for _ in range(chance.randint(1, 2)):
        name = chance.choice([*fields, "op", "id", "ch", "__class__"])
        if chance.random() < 0.2:
            fields.pop(name, None)
        else:
            fields[name] = chance.choice(ODD)
    return fields


def cut(chance: random.Random, message: bytes) -> bytes:
    """Return the message, in half of the cases with a byte changed, removed or added."""
    if chance.random() < 0.5 or not message:
        return message
    place = chance.randrange(len(message))
    return (
        message[:place]
        + bytes(chance.choices(range(0x20, 0x7F), k=chance.randint(0, 2)))
        + message[place + 1 :]
    )


@pytest.mark.parametrize("headers", [(), (MSGPACK,)])
def test_s22_two_thousand_mutated_commands_leave_the_connection_open(
    gateway: Gateway, headers: Sequence[tuple[str, str]]
) -> None:
    """A ping follows each command; its pong proves that the gateway still answers."""
    chance = random.Random(SEED)
    pack: Callable[[Any], Any] = msgpack.packb if headers else (lambda fields: json.dumps(fields).encode())
    with besieged(gateway), RawClient.welcomed(gateway, make_token("fuzz"), *headers) as client:
        for number in range(20):
            for _ in range(100):
                fields = mutated(chance)
                if headers and 2**70 in [value for value in fields.values() if type(value) is int]:
                    continue  # MessagePack has no number of this size
                client.say_raw(cut(chance, bytes(pack(fields))))
                client.say(op="ping", id=1000 + number)
            client.say(op="ping", id=2000 + number)
            client.hear_answer(2000 + number)
