"""Check the form of events against the vectors for backends, and which events the appender gets."""

import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, cast
from zlib import crc32

import pytest

from wsgate.auth import NO_PERMISSIONS, Identity
from wsgate.bus import Appender
from wsgate.payload import BINARY, JSON, TEXT, Payload
from wsgate.reasons import Reason
from wsgate.shard.backend_events import EVENT_TYPES, Events
from wsgate.shard.options import NO_EVENTS, EventOptions
from wsgate.turns import FULL, Sender

VECTORS: Final[list[dict[str, Any]]] = json.loads(
    (Path(__file__).resolve().parents[3] / "protocols" / "backend" / "v1" / "vectors.json").read_text()
)["vectors"]
ENCODINGS: Final = {"json": JSON, "text": TEXT, "binary": BINARY}
CONN: Final = 7


class Kept:
    """An appender that only keeps its data."""

    def __init__(self) -> None:
        self.data: list[tuple[bytes, int]] = []
        self.is_full = False

    def append(self, data: bytes, *, commands: int = 1, stream: bytes = b"") -> bool:
        if not self.is_full:
            self.data.append((data, commands))
        return not self.is_full

    def offer(
        self, data: bytes, sender: Sender, done: Callable[[str], None], *, commands: int, stream: bytes
    ) -> str:
        return "" if self.append(data, commands=commands, stream=stream) else FULL


def commands_of(data: bytes) -> list[list[bytes]]:
    """Parse RESP arrays of bulk strings."""
    found = []
    while data:
        count, _, data = data.removeprefix(b"*").partition(b"\r\n")
        parts = []
        for _ in range(int(count)):
            size, _, data = data.removeprefix(b"$").partition(b"\r\n")
            parts.append(data[: int(size)])
            data = data[int(size) + 2 :]
        found.append(parts)
    return found


class EventsRig:
    """Events of one shard, all in memory."""

    def __init__(self, options: EventOptions, *, is_sharded: bool = False) -> None:
        self.kept = [Kept() for _ in range(options.partitions)]
        self.counts: Counter[str] = Counter()
        self.events = Events(
            options,
            "n",
            [b"wsgate:events:%d" % number for number in range(options.partitions)],
            cast(list[Appender], self.kept),
            lambda conn: 255,
            self._count,
            is_sharded=is_sharded,
        )

    def _count(self, name: str, amount: int) -> None:
        self.counts[name] += amount

    def emit(self, fields: dict[str, str]) -> None:
        """Cause the event that these fields describe."""
        member = self.events.member(Identity(fields.get("user", ""), NO_PERMISSIONS, 0), 1_000)
        match fields["type"]:
            case "connected":
                self.events.connected(CONN, member)
            case "disconnected":
                reason = Reason[fields["reason"].upper()]
                self.events.disconnected(CONN, reason, member, 1_000 + int(fields["duration_ms"]))
            case "subscribed":
                self.events.subscribed(CONN, member, fields["ch"].encode())
            case "unsubscribed":
                self.events.unsubscribed(CONN, member, fields["ch"].encode())
            case "message":
                payload = Payload(ENCODINGS[fields["encoding"]], bytes.fromhex(fields["data"]))
                sender = Sender(member.user, CONN)
                assert self.events.message(CONN, member, payload, sender, lambda outcome: None) == ""


@pytest.fixture(autouse=True)
def at_a_known_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 1_732_600_000_000 * 1_000_000)
    monkeypatch.setattr("secrets.token_hex", lambda size: "8f14e45fceea167a")


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
@pytest.mark.parametrize("is_sharded", [False, True])
def test_every_event_has_the_form_of_its_vector(vector: dict[str, Any], is_sharded: bool) -> None:
    options = EventOptions(enabled=frozenset(EVENT_TYPES), maxlen=9, pubsub=True)
    rig = EventsRig(options, is_sharded=is_sharded)
    rig.emit(vector["fields"])
    ((data, count),) = rig.kept[0].data
    append, publish = commands_of(data)
    assert count == 2
    assert append[:6] == [b"XADD", b"wsgate:events:0", b"MAXLEN", b"~", b"9", b"*"]
    fields = dict(zip(append[6::2], append[7::2], strict=True))
    shown = {name.decode(): value.decode() for name, value in fields.items() if name != b"data"}
    if b"data" in fields:
        shown["data"] = fields[b"data"].hex()
    assert shown == vector["fields"]
    assert publish[:2] == [b"SPUBLISH" if is_sharded else b"PUBLISH", b"wsgate:events:0"]
    assert json.loads(publish[2]) == vector["json"]


@pytest.mark.parametrize("enabled", EVENT_TYPES)
def test_only_enabled_event_types_are_appended(enabled: str) -> None:
    rig = EventsRig(EventOptions(enabled=frozenset({enabled})))
    for vector in VECTORS:
        if vector["fields"]["type"] != "message" or enabled == "message":
            rig.emit(vector["fields"])
    appends = [append for data, _ in rig.kept[0].data for append in commands_of(data)]
    types = {append[append.index(b"type") + 1] for append in appends}
    assert types == {enabled.encode()}
    assert rig.events.takes_messages is (enabled == "message")


def test_disabled_events_append_nothing_and_keep_the_member_object_small() -> None:
    rig = EventsRig(NO_EVENTS)
    identity = Identity("42", NO_PERMISSIONS, 5)
    assert rig.events.member(identity, 1) == identity.member()
    assert not (rig.events.is_on or rig.events.takes_messages or rig.events.tells_subscriptions)
    rig.events.connected(CONN, identity.member())
    rig.events.disconnected(CONN, Reason.DRAIN, identity.member(), 5)
    assert rig.kept[0].data == []


def test_connection_without_a_welcome_causes_no_event() -> None:
    rig = EventsRig(EventOptions(enabled=frozenset(EVENT_TYPES)))
    rig.events.disconnected(CONN, Reason.AUTH_TIMEOUT, None, 5)
    rig.events.subscribed(CONN, None, b"news")
    assert rig.kept[0].data == []


def test_partition_of_an_event_follows_its_user_and_event_ids_are_unique() -> None:
    rig = EventsRig(EventOptions(enabled=frozenset({"connected"}), partitions=4))
    for number in range(40):
        rig.emit({"type": "connected", "user": f"user-{number}"})
    ids = set()
    for place, kept in enumerate(rig.kept):
        for data, _ in kept.data:
            (append,) = commands_of(data)
            assert append[1] == b"wsgate:events:%d" % place
            assert crc32(append[append.index(b"user") + 1]) % 4 == place
            ids.add(append[append.index(b"id") + 1])
    assert len(ids) == 40


def test_full_appender_drops_and_counts_events_and_refuses_client_messages() -> None:
    rig = EventsRig(EventOptions(enabled=frozenset(EVENT_TYPES)))
    rig.kept[0].is_full = True
    member = rig.events.member(Identity("42", NO_PERMISSIONS, 0), 0)
    rig.events.connected(CONN, member)
    assert rig.counts == {"events_dropped": 1}
    sender = Sender("42", CONN)
    assert rig.events.message(CONN, member, Payload(JSON, b"1"), sender, lambda outcome: None) == FULL
    assert rig.counts == {"events_dropped": 1}, "the sender gets the outcome instead"
