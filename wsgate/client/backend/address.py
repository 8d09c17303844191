"""From a bus URL to a redis-py client.

    redis://, rediss://, unix://                   one server, as redis-py reads them
    redis+sentinel://h1[:26379],h2,.../master      the primary that sentinels name; rediss+sentinel://
    redis+cluster://h1[:6379],h2,...               a cluster, found from any of its nodes; rediss+cluster://

Before the hosts may stand `user:password@`; behind `?` of the last two: `sentinel_username`,
`sentinel_password`, and for TLS `ssl_ca_certs`, `ssl_certfile`, `ssl_keyfile`.
"""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl, unquote

from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from wsgate.errors import SettingsError

__all__ = ["Client", "OpenedClient", "open_client"]

Client = Any
"""A `redis.asyncio.Redis` or `RedisCluster`: their types say of most commands that they may be awaitable."""

_FLEET: Final = re.compile(
    r"redis(?P<tls>s?)\+(?P<kind>sentinel|cluster)://(?:(?P<user>[^/?#]*)@)?(?P<hosts>[^@/?#]+)"
    r"(?:/(?P<master>[^/?#]*))?(?:\?(?P<query>[^#]*))?"
)
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^\[\]:,]+)(?::([0-9]{1,5}))?")
_PORTS: Final = {"sentinel": 26379, "cluster": 6379}
_TLS_OPTIONS: Final = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"}
_SENTINEL_S: Final = 2.0
"""How long one sentinel may take before the next is asked."""
_OPTIONS: Final = _TLS_OPTIONS | {"sentinel_username", "sentinel_password"}


@dataclass(frozen=True, slots=True)
class OpenedClient:
    """A client of ours, and how to close everything behind it."""

    client: Client
    close: Callable[[], Awaitable[None]]


def open_client(url: str) -> OpenedClient:
    """A client for a bus URL; it connects when it is first used.

    It never repeats a command by itself, because it cannot know which are harmless twice, and has no time
    limit for answers: whoever asks has one.

    Raises:
        SettingsError: It is no such URL; the message never holds it, for it may hold a password.
    """
    quiet: dict[str, Any] = {"retry": Retry(NoBackoff(), 0), "socket_timeout": None}
    if found := _FLEET.fullmatch(url):
        return _open_fleet(found, quiet)
    if not url.startswith(("redis://", "rediss://", "unix://")):
        raise SettingsError(
            "the bus's url: must be redis://, rediss://, unix://, redis+sentinel:// or +cluster://"
        )
    try:
        client = Redis.from_url(url, **quiet)
    except (ValueError, TypeError):
        raise SettingsError("the bus's url: this is not a URL such as redis://host:6379") from None
    return OpenedClient(client, client.aclose)


def _open_fleet(found: re.Match[str], quiet: dict[str, Any]) -> OpenedClient:
    hosts = _hosts(found["hosts"], _PORTS[found["kind"]])
    options = dict(parse_qsl(found["query"] or "", keep_blank_values=True))
    if not options.keys() <= _OPTIONS:
        raise SettingsError(f"the bus's url: no options but {', '.join(sorted(_OPTIONS))}")
    name, _, password = (found["user"] or "").partition(":")
    tls = {key: value for key, value in options.items() if key in _TLS_OPTIONS and value}
    secured: dict[str, Any] = {"ssl": True, **tls} if found["tls"] else {}
    common = {**quiet, **secured, "username": unquote(name) or None, "password": unquote(password) or None}
    if found["kind"] == "cluster":
        cluster = RedisCluster(startup_nodes=[ClusterNode(*host) for host in hosts], **common)
        return OpenedClient(cluster, cluster.aclose)
    if not found["master"]:
        raise SettingsError("the bus's url: sentinels need the primary's name: redis+sentinel://h1,h2/master")
    asking = {
        **secured,
        "username": options.get("sentinel_username") or None,
        "password": options.get("sentinel_password") or None,
        "retry": Retry(NoBackoff(), 0),
        "socket_timeout": _SENTINEL_S,
        "socket_connect_timeout": _SENTINEL_S,
    }
    sentinel = Sentinel(hosts, sentinel_kwargs=asking, **common)  # type: ignore[no-untyped-call]
    primary = sentinel.master_for(unquote(found["master"]))

    async def close() -> None:
        await primary.aclose()
        await sentinel.aclose()

    return OpenedClient(primary, close)


def _hosts(text: str, port: int) -> list[tuple[str, int]]:
    found = [_HOST.fullmatch(each) for each in text.split(",")]
    hosts = [(each[1].strip("[]"), int(each[2] or port)) for each in found if each]
    if len(hosts) < len(found) or not all(0 < each <= 65_535 for _, each in hosts):
        raise SettingsError("the bus's url: hosts are host[:port], with commas between them")
    return hosts
