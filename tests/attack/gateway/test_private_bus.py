"""Fill the private bus of a node with messages that no backend takes: its memory stays bounded."""

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
        # One connection fills the bus here; the default limits would slow it down first.
        "WSGATE_LIMITS__PUBLISH_BYTE_RATE": "0B",
        "WSGATE_LIMITS__NODE_PUBLISH_BYTE_RATE": "0B",
    }
    with running_gateway(environ=environ) as running:
        yield running


def test_full_private_bus_trims_the_oldest_events_and_keeps_its_memory_limit(gateway: Gateway) -> None:
    said: Counter[str] = Counter()
    with (
        redis.Redis.from_url(gateway.bus_url) as bus,
        RawClient(gateway) as speaker,
        RawClient(gateway) as other,
    ):
        # One half is for output that waits for the shard, and half of the rest is for names.
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
                assert heard.get("data") == number, f"the subscriber did not receive the publication: {heard}"
        # Each message was answered with ok, after older ones were trimmed, or with unavailable.
        assert set(said) <= {"ok", "unavailable"}
        assert said["ok"] > COUNT * 9 // 10, said
        [(_, last)] = bus.xrevrange("wsgate:events:0", count=1)
        assert last[b"data"].startswith(b'"%d ' % (COUNT - 1))
        kept = bus.xlen("wsgate:events:0")
        wait_until(
            "the trimmed events are counted", lambda: scrape(gateway)[TRIMMED] >= said["ok"] - kept, LIMIT_S
        )
        assert scrape(gateway)[TRIMMED] > 0
