"""Run every conversation of protocols/client/v1 against real gateways with an independent library.

It covers S20 (a token that expires, and refresh), S22 (malformed messages of clients) and P9 (the closes of
the dialect) end to end.
"""

import contextlib
import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import pytest
from redis import Redis

from tests.support.conversation_runner import Dialogue, fits, to_toml
from tests.support.gateway import Gateway, running_gateway
from wsgate.dialects import commands
from wsgate.reasons import ERRORS

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).resolve().parents[2] / "protocols" / "client" / "v1"
BOOK: dict[str, Any] = json.loads((FOLDER / "conversations.json").read_text())
CONVERSATIONS: list[dict[str, Any]] = BOOK["conversations"]
SCHEMA = json.loads((FOLDER / "schema.json").read_text())
SERVER = jsonschema.Draft202012Validator({**SCHEMA, "anyOf": [{"$ref": "#/$defs/server"}]})
CASES = [(each, form) for each in CONVERSATIONS for form in each.get("forms", ("json", "msgpack"))]

Find = Callable[[str], Gateway]


@pytest.fixture(scope="module")
def find(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Find]:
    """Return a function that starts the gateway of a name in the file, at most once."""
    folder = tmp_path_factory.mktemp("conversations")
    with contextlib.ExitStack() as stack:
        running: dict[str, Gateway] = {}

        def found(name: str) -> Gateway:
            if name not in running:
                config = copy.deepcopy(BOOK["config"])
                for section, settings in BOOK["gateways"][name].items():
                    config.setdefault(section, {}).update(settings)
                file = folder / f"{len(running)}.toml"
                file.write_text(to_toml(config))
                has_bus = "bus" not in config
                running[name] = stack.enter_context(
                    running_gateway("--config", str(file), is_dev=False, wait=has_bus)
                )
            return running[name]

        yield found


@pytest.fixture(scope="module")
def bus(find: Find) -> Iterator[Callable[[str], Redis]]:
    """Return a function that connects to the bus of a gateway as its backends do."""
    with contextlib.ExitStack() as stack:
        open_: dict[str, Redis] = {}

        def found(name: str) -> Redis:
            if name not in open_:
                path = urlsplit(find(name).bus_url).path
                open_[name] = stack.enter_context(contextlib.closing(Redis(unix_socket_path=path)))
            return open_[name]

        yield found


@pytest.mark.parametrize(
    ("conversation", "form"), CASES, ids=[f"{each['name']}-{form}" for each, form in CASES]
)
def test_conversation_of_the_protocol_runs_as_written_with_a_real_gateway(
    find: Find, bus: Callable[[str], Redis], conversation: dict[str, Any], form: str
) -> None:
    name = conversation.get("gateway", "closed")
    dialogue = Dialogue(BOOK, conversation, form, f"127.0.0.1:{find(name).port}", bus(name))
    dialogue.hold()
    for message in dialogue.heard:
        SERVER.validate(message)


def test_gateways_logged_no_error_and_restarted_no_shard_in_the_conversations(find: Find) -> None:
    for name in BOOK["gateways"]:
        gateway = find(name)
        assert gateway.process.poll() is None
        assert not [line for line in gateway.lines if " error " in line]
        assert len(gateway.children()["wsgate-shard-0"]) == 1


# --- the file itself ----------------------------------------------------------------------------------


def steps(kind: str) -> list[Any]:
    return [step[kind] for each in CONVERSATIONS for step in each["steps"] if kind in step]


def expected_messages() -> list[dict[str, Any]]:
    return [*steps("get"), *(each for group in steps("get_in_any_order") for each in group)]


def test_conversations_have_unique_names_and_every_gateway_is_used() -> None:
    assert len({each["name"] for each in CONVERSATIONS}) == len(CONVERSATIONS)
    assert {each.get("gateway", "closed") for each in CONVERSATIONS} == set(BOOK["gateways"])


def test_conversations_contain_every_error_operation_status_and_close_code() -> None:
    said = expected_messages()
    assert {each["error"] for each in said if each["op"] == "err"} == set(ERRORS)
    closes = {each["code"] for each in steps("close")}
    assert closes == {1003, 1009, 4001, 4002, 4005, 4500, 4501}
    assert {each["code"] for each in said if each["op"] == "bye"} == {code for code in closes if code >= 4000}
    assert set(steps("status")) == {400, 401, 403, 404, 503}
    sent = [*steps("send"), *(each for group in steps("send_together") for each in group)]
    assert {each.get("op") for each in sent} >= commands.OPS
    assert {each["op"] for each in said} == {
        "welcome",
        "subbed",
        "unsubbed",
        "ok",
        "pong",
        "msg",
        "gap",
        "err",
        "bye",
    }


def test_conversations_use_every_token_of_the_file() -> None:
    text = json.dumps(CONVERSATIONS)
    assert [name for name in BOOK["tokens"] if f"<token {name}>" not in text] == []


@pytest.mark.parametrize(
    ("expected", "found", "verdict"),
    [
        ({"op": "ok", "id": 1}, {"op": "ok", "id": 1}, True),
        ({"op": "ok", "id": "*"}, {"op": "ok", "id": 1}, True),
        ({"op": "ok", "id": 1}, {"op": "ok", "id": 2}, False),
        ({"op": "ok", "id": 1}, {"op": "ok"}, False),
        ({"op": "ok"}, {"op": "ok", "id": 1}, False),
        ({"op": "ok", "id": "*"}, {"op": "ok"}, False),
        ({"data": 1}, {"data": True}, False),
        ({"data": 1}, {"data": 1.0}, False),
        ({"data": [1, "*"]}, {"data": [1, 2]}, True),
        ({"data": [1]}, {"data": [1, 2]}, False),
        ({"data": {"bin": "ff"}}, {"data": b"\xff"}, True),
        ({"data": {"bin": "ff"}}, {"data": b"\xfe"}, False),
        ({"data": None}, {"data": None}, True),
    ],
)
def test_comparison_of_messages_notices_every_kind_of_difference(
    expected: Any, found: Any, verdict: bool
) -> None:
    assert fits(expected, found) is verdict


PLANTED: list[dict[str, Any]] = [
    {"steps": [{"get": {"op": "welcome"}}]},
    {"steps": [{"status": 401}]},
    {"steps": [{"opened": "wsgate.v1.other"}]},
    {
        "steps": [
            {
                "get": {
                    "op": "welcome",
                    "conn": "*",
                    "node": "*",
                    "ping_s": 25,
                    "user": "ann",
                    "expires_s": "*",
                }
            }
        ]
    },
    {"steps": [{"close": {"code": 4001}}]},
    {"steps": [{"status": 404}], "clients": {"a": {"path": "/ws", "subprotocols": ["no"]}}},
]


@pytest.mark.parametrize("planted", PLANTED, ids=range(len(PLANTED)))
def test_conversation_with_a_planted_fault_fails(
    find: Find, bus: Callable[[str], Redis], planted: dict[str, Any]
) -> None:
    wrong = {"clients": {"a": {"authorization": "Bearer <token ann>"}}, **planted}
    dialogue = Dialogue(BOOK, wrong, "json", f"127.0.0.1:{find('closed').port}", bus("closed"))
    with pytest.raises(AssertionError):
        dialogue.hold()
