"""Check that a shard with reloaded settings equals one that was started with them, for every setting."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from wsgate.config import Config, load, sources
from wsgate.errors import SettingsError
from wsgate.node.options import Machine, renewable, shard_options
from wsgate.node.runtime import RunningGateway
from wsgate.reactor import GateLimits
from wsgate.shard.options import ShardOptions
from wsgate.shard.reload import Renewal
from wsgate.shard.shares import NodeLimits

RUNNING = RunningGateway(1, "n", 8000, "ws://h", 9000, "unix:///s", "wsgate", "")
BASE: dict[str, Any] = {
    "auth": {"hmac_secret": "correct horse battery staple, twice over", "issuer": "https://issuer.example"},
    "server": {"trusted_proxies": ["10.0.0.1"]},
    "channels": {"news": {}},
}
SHARDS = range(1, 6)
NUMBERS = (1, 2, 3, 5, 7, 11, 23, 64, 101, 1_000, 4_001)
TEXTS = {
    "allowed_origins": ["https://a.example"],
    "trusted_proxies": ["192.0.2.0/24", "2001:db8::/32"],
    "hmac_secret": "another secret, which is long enough as well",
    "audience": "somebody",
    "issuer": "https://other.example",
    "jwks_url": "https://issuer.example/keys.json",
    "host": "127.0.0.2",
    "path": "/other",
    "prefix": "other",
    "api_key": "a key that is long enough for anybody",
    "enabled": ["connected"],
}


def options_of(config: Config, shards: int) -> list[ShardOptions]:
    machine = Machine(shards, 20_000)
    return [shard_options(config, RUNNING, number, machine) for number in range(shards)]


def merged(path: tuple[str, ...], value: object) -> dict[str, Any]:
    rows: dict[str, Any] = {section: dict(settings) for section, settings in BASE.items()}
    rows["channels"] = {"news": {}}
    branch = rows
    for key in path[:-1]:
        branch = branch.setdefault("news" if key == "*" else key, {})
    branch[path[-1]] = value
    return rows


def values_of(name: str, setting: sources._Setting) -> Iterator[object]:
    """Values of one setting that may differ from its default."""
    if name in TEXTS:
        yield TEXTS[name]
    elif setting.kind == "bool":
        yield from (True, False)
    elif setting.kind == "choice":
        yield from setting.choices
    elif setting.kind in ("int", "size"):
        yield from (number for number in (*NUMBERS, setting.low, setting.high))
    elif setting.kind == "duration":
        yield from (f"{number}ms" for number in NUMBERS)


def changes() -> Iterator[tuple[tuple[str, ...], object, Config]]:
    """Every configuration that differs from the base in one setting and is right."""
    for path, setting in sources._schema().items():
        if path[:2] == ("auth", "keys") or setting.kind.endswith("_file"):
            continue
        for value in values_of(path[-1], setting):
            with contextlib.suppress(SettingsError):
                yield path, value, load(None, {}, merged(path, value))


def test_reloaded_options_of_every_shard_equal_those_of_a_fresh_start() -> None:
    base, acted = load(None, {}, BASE), set[str]()
    for path, value, config in changes():
        fresh, _ = renewable(base, config)
        for shards in SHARDS:
            try:
                wanted = options_of(fresh, shards)
            except SettingsError:  # fewer connections than shards, or too little memory
                continue
            started = options_of(base, shards)
            posted = Renewal.of(wanted[0]).to_bytes()
            found = [Renewal.from_bytes(posted).applied(options) for options in started]
            assert found == wanted, (path, value, shards)
            if found != started:
                acted.add(".".join(path))
    assert {"admission.max_connections", "admission.handshake_rate", "admission.partial_bytes"} <= acted
    assert len(acted) > 30, acted


@pytest.mark.parametrize("shards", SHARDS)
@pytest.mark.parametrize("connections", [5, 6, 7, 11, 100, 101, 10_000])
def test_connection_limits_of_all_shards_add_up_to_that_of_the_node(shards: int, connections: int) -> None:
    limits = NodeLimits(shards=shards, connections=connections, connections_of_shard=20_000)
    shares = [limits.gate(GateLimits(), number).connections for number in range(shards)]
    assert sum(shares) == connections and max(shares) - min(shares) <= 1


def test_connection_limit_of_a_shard_is_capped_by_its_descriptors() -> None:
    limits = NodeLimits(shards=2, connections=1_000, connections_of_shard=300)
    assert [limits.gate(GateLimits(), number).connections for number in range(2)] == [300, 300]
    without = NodeLimits(shards=2, connections_of_shard=300)
    assert [without.gate(GateLimits(), number).connections for number in range(2)] == [300, 300]


def test_unauthenticated_limit_equals_the_connection_limit_without_a_handshake_limit() -> None:
    limits = NodeLimits(shards=3, connections=4, connections_of_shard=300, handshakes_in_progress=0)
    assert [limits.unauthenticated_limit(number) for number in range(3)] == [2, 1, 1]
