"""Clients that fill the node's own bus with messages nobody takes: it keeps to its part of the memory."""

from collections import Counter
from collections.abc import Iterator
from typing import Final

import pytest
import redis

from tests.support.attack_rig import scrape
from tests.support.gateway import Gateway, running_gateway, wait_until
from tests.support.raw_client import LIMIT_S, RawClient, request

pytestmark = pytest.mark.slow

MIB: Final = 1 << 20
BUDGET: Final = 128 * MIB
BUS_BYTES: Final = BUDGET // 8
MESSAGE: Final = "x" * 60_000
COUNT: Final = 900  # 54 MB
TRIMMED: Final = 'wsgate_events_total{outcome="trimmed"}'


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    environ = {
        "WSGATE_EVENTS__ENABLED": "message",
        "WSGATE_ADMISSION__MEMORY_BUDGET": f"{BUDGET}B",
        # One connection fills the bus here; by default these would slow it down first.
        "WSGATE_LIMITS__PUBLISH_BYTE_RATE": "0B",
        "WSGATE_LIMITS__NODE_PUBLISH_BYTE_RATE": "0B",
    }
    with running_gateway(environ=environ) as running:
        yield running


def test_it_is_told_what_it_may_hold_and_what_is_new_outlives_what_is_old(gateway: Gateway) -> None:
    said: Counter[str] = Counter()
    with (
        redis.Redis.from_url(gateway.bus_url) as bus,
        RawClient(gateway) as speaker,
        RawClient(gateway) as other,
    ):
        # A half is for what waits for the shard, and a half of the rest for names.
        assert bus.config_get("maxmemory")["maxmemory"] == str(BUS_BYTES // 2)
        for client in (speaker, other):
            assert client.ask(request()).status == 101
            client.hear()
        other.say(op="sub", ch="room", id=1)
        other.hear_answer(1)
        for number in range(COUNT):
            speaker.say(op="send", data=f"{number} {MESSAGE}", id=number)
            answer = speaker.hear_answer(number)
            said[answer.get("error", "ok")] += 1
            if number % 100 == 0:
                assert bus.info("memory")["used_memory"] < BUS_BYTES + 4 * MIB
                speaker.say(op="pub", ch="room", data=number, id=COUNT)
                assert speaker.hear_answer(COUNT)["op"] == "ok"
                heard = other.hear()
                assert heard.get("data") == number, f"who is live goes on: {heard}"
        # Who was told OK while it was full had room made for it; nobody heard anything but that or 503.
        assert set(said) <= {"ok", "unavailable"}
        assert said["ok"] > COUNT * 9 // 10, said
        [(_, last)] = bus.xrevrange("wsgate:events:0", count=1)
        assert last[b"data"].startswith(b'"%d ' % (COUNT - 1))
        kept = bus.xlen("wsgate:events:0")
        wait_until("it is counted", lambda: scrape(gateway)[TRIMMED] >= said["ok"] - kept, LIMIT_S)
        assert scrape(gateway)[TRIMMED] > 0
