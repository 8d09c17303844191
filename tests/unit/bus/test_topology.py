"""Check how servers are found: replies of sentinels and clusters are read within bounds or are errors."""

import asyncio
import random
from binascii import crc_hqx
from typing import Any, cast

import pytest

from tests.support.resp import NUMBERS, hostile_reply
from wsgate.bus import question
from wsgate.bus.question import Answer, Questioner
from wsgate.bus.topology import GOSSIP_S, NODES_MOST, SLOTS, NodeOrder, _map, _primary, node_in_moved, slot_of
from wsgate.errors import BackendError


class Writer:
    """A stream writer that ignores all bytes."""

    def write(self, data: bytes) -> None: ...

    async def drain(self) -> None: ...


def answer_to(wire: bytes, *, is_over: bool = True) -> Answer:
    """Return the reply that is read when a server sends these bytes."""

    async def main() -> Answer:
        reader = asyncio.StreamReader(limit=question.BUFFER_BYTES)
        reader.feed_data(wire)
        if is_over:
            reader.feed_eof()
        async with asyncio.timeout(5):
            return await Questioner(reader, cast(Any, Writer())).ask("CLUSTER", "SLOTS")

    return asyncio.run(main())


def test_nested_reply_with_every_resp_type_is_read() -> None:
    wire = b"*5\r\n$1\r\na\r\n:-7\r\n$-1\r\n*-1\r\n*2\r\n+OK\r\n*1\r\n$2\r\n\r\n\r\n"
    assert answer_to(wire, is_over=False) == [b"a", -7, None, None, [b"OK", [b"\r\n"]]]


@pytest.mark.parametrize(
    "wire",
    [
        *(
            b"*1000000000\r\n",
            b"*-2\r\n",
            b"$65537\r\n",
            b"$-2\r\n",
            b"$1\r\nabc",
            b":x\r\n",
            b":\r\n",
            b"?\r\n",
        ),
        *(
            b"*1\r\n" * 7 + b":1\r\n",
            b"+" + b"x" * 2_000 + b"\r\n",
            b"+" + b"x" * 70_000,
            b"",
            b"*2\r\n:1\r\n",
        ),
        b"*9\r\n$65536\r\n",
        b"*512\r\n" + (b"*1024\r\n" + b":1\r\n" * 1_024) * 512,
        b"*200\r\n" + (b"$65536\r\n" + b"x" * 65_536 + b"\r\n") * 200,
        *(b"*%d\r\n" % number for number in NUMBERS if not -1 <= number <= 0),
        *(b"$%d\r\n" % number for number in NUMBERS if number != -1),
        *(b":%d\r\n" % number for number in (1 << 64, -(1 << 64), 10**30)),
    ],
)
def test_reply_that_is_malformed_or_exceeds_a_bound_raises_backend_error_s26(wire: bytes) -> None:
    with pytest.raises(BackendError):
        answer_to(wire)


def test_error_reply_raises_backend_error_with_only_the_error_code() -> None:
    with pytest.raises(BackendError, match=r"^refused: NOAUTH$"):
        answer_to(b"-NOAUTH with args beginning with: 'secret'\r\n")


@pytest.mark.parametrize("seed", range(5))
def test_generated_hostile_replies_are_read_or_raise_backend_error(seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(200):
        try:
            found = answer_to(hostile_reply(dice))
        except BackendError:
            continue
        _judge(found)


def _judge(answer: Answer) -> None:
    """Check that any reply yields a valid map or primary, or none, and raises nothing else."""
    try:
        found = _map(answer, "asked")
        assert len(found.owners) == SLOTS
        assert len(found.nodes) <= NODES_MOST
        assert all(host and 0 < port <= 65_535 for host, port in found.nodes)
        assert found.primaries <= set(found.nodes)
    except BackendError:
        pass
    primary = _primary(answer, "main")
    assert primary is None or (primary[0] and 0 < primary[1] <= 65_535)


ROW: list[Answer] = [0, 16383, [b"10.0.0.1", 7001, b"id", []], [b"10.0.0.2", 7002, b"id"]]
MASTER: list[Answer] = [b"name", b"main", b"ip", b"10.0.0.1", b"port", b"7001", b"flags", b"master"]
WORDS: list[Answer] = [
    b"",
    b"?",
    b"\xff",
    b"x" * 300,
    b"a b",
    b"a\x00b",
    b"99999",
    b"0",
    b"-1",
    b"\xb2",
    b"1e3",
]
TREES: list[Answer] = [None, [], [[]], [None], [b"10.0.0.1"], [None, None], [b"h", b"7001"], [b"h", 0]]
ODD: list[Answer] = [*WORDS, *TREES, [b"?", 7001], *NUMBERS]


def test_slot_map_and_primary_are_read_from_valid_replies() -> None:
    assert _map([ROW], "asked").nodes == (("10.0.0.1", 7001), ("10.0.0.2", 7002))
    assert _map([[0, 5, [b"", 7001]], [6, 6, [None, 7002]]], "asked").owners[5:7] == (
        ("asked", 7001),
        ("asked", 7002),
    )
    assert _map([[0, 5, [b"?", 7001], [b"h", 7002]], [6, 6, [b"h", 7002]]], "asked").owners[0] is None
    assert _primary([None, [b"odd"], MASTER], "main") == ("10.0.0.1", 7001)
    assert _primary([MASTER], "other") is None
    assert _primary([[*MASTER[:-1], b"master,s_down"]], "main") is None


@pytest.mark.parametrize("odd", ODD)
def test_odd_value_at_each_place_of_a_reply_raises_only_backend_error(odd: Answer) -> None:
    _judge(odd)
    for place in range(len(ROW) + 1):
        _judge([[*ROW[:place], odd, *ROW[place + 1 :]]])
        _judge([ROW[:place], ROW])
    for place in range(3):
        server = [b"10.0.0.1", 7001, b"id"]
        server[place : place + 1] = [cast(Any, odd)]
        _judge([[0, 5, cast(Answer, server)]])
    for place in range(len(MASTER) + 1):
        _judge([[*MASTER[:place], odd, *MASTER[place + 1 :]], odd])


def test_slot_map_with_too_many_nodes_raises_backend_error() -> None:
    rows: Answer = [[slot, slot, [b"10.0.0.1", 1 + slot]] for slot in range(NODES_MOST + 1)]
    with pytest.raises(BackendError, match="too many"):
        _map(rows, "asked")


def test_slot_map_without_any_owner_raises_backend_error() -> None:
    replies: list[Answer] = [[], [[0, 16383, [b"?", 7001]]]]
    for rows in replies:
        with pytest.raises(BackendError, match="no owner"):
            _map(rows, "asked")


def test_order_begins_behind_the_last_source_and_ends_with_nodes_that_failed() -> None:
    nodes = [("h", port) for port in range(1, 5)]
    order = NodeOrder()
    assert sorted(order.sort(nodes, 0.0)) == nodes
    order.on_replied(nodes[1], 0.0, has_changed=False)
    assert order.sort(nodes, 0.0) == [nodes[2], nodes[3], nodes[0], nodes[1]]
    order.on_failed(nodes[2])
    order.on_replied(nodes[3], 0.0, has_changed=False)
    assert order.sort(nodes, 0.0) == [nodes[0], nodes[1], nodes[3], nodes[2]]
    assert order.sort(nodes[:2], 0.0) in (nodes[:2], nodes[1::-1]), "the doubted node is not in the map"


def test_node_that_reported_a_change_is_asked_again_until_the_other_nodes_know_of_it() -> None:
    nodes = [("h", port) for port in range(1, 4)]
    order = NodeOrder()
    order.on_replied(nodes[1], 10.0, has_changed=True)
    assert order.sort(nodes, 10.0 + GOSSIP_S - 0.1) == [nodes[1], nodes[2], nodes[0]]
    order.on_replied(nodes[1], 10.1, has_changed=False)
    assert order.sort(nodes, 10.0 + GOSSIP_S) == [nodes[2], nodes[0], nodes[1]]
    order.on_replied(nodes[1], 20.0, has_changed=True)
    order.on_contradicted(nodes[0])
    assert order.sort(nodes, 20.0) == [nodes[0], nodes[2], nodes[1]], "the change was wrong"


def test_node_that_moved_names_is_asked_first_and_the_source_of_the_map_last() -> None:
    nodes = [("h", port) for port in range(1, 5)]
    order = NodeOrder()
    order.on_replied(nodes[1], 0.0, has_changed=False)
    order.on_contradicted(nodes[3])
    assert order.sort(nodes, 0.0) == [nodes[3], nodes[2], nodes[0], nodes[1]]
    order.on_contradicted(("unknown", 1))
    assert order.sort(nodes, 0.0) == [nodes[2], nodes[3], nodes[0], nodes[1]]
    order.on_replied(nodes[2], 0.0, has_changed=False)
    order.on_contradicted(None)
    assert order.sort(nodes, 0.0) == [nodes[3], nodes[0], nodes[1], nodes[2]]


@pytest.mark.parametrize(
    ("text", "node"),
    [
        (b"MOVED 3999 10.0.0.1:7001", ("10.0.0.1", 7001)),
        (b"MOVED 3999 :7001", ("asked", 7001)),
        (b"MOVED 3999 fe80::1:7001", ("fe80::1", 7001)),
        (b"MOVED 3999 ?:7001", None),
        (b"MOVED 3999 h:70000", None),
        (b"MOVED 3999 h", None),
        (b"MOVED 3999", None),
        (b"MOVED 3999 h:1 x", None),
        (b"CLUSTERDOWN The cluster", None),
    ],
)
def test_node_in_moved_is_read_or_none(text: bytes, node: tuple[str, int] | None) -> None:
    assert node_in_moved(text, "asked") == node


@pytest.mark.parametrize(
    ("name", "slot"),
    [
        (b"123456789", 0x31C3),
        (b"{user1000}.following", slot_of(b"user1000")),
        (b"foo{}{bar}", crc_hqx(b"foo{}{bar}", 0) % SLOTS),
        (b"foo{{bar}}zap", slot_of(b"{bar")),
        (b"foo{bar}{zap}", slot_of(b"bar")),
        (b"{bar", crc_hqx(b"{bar", 0) % SLOTS),
        (b"", 0),
    ],
)
def test_slot_of_a_name_follows_the_cluster_specification(name: bytes, slot: int) -> None:
    assert slot_of(name) == slot
