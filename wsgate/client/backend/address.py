"""Creates a redis-py client from a bus URL. The URLs are those of the gateway: see `wsgate.bus_address`."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from wsgate.bus_address import BusAddress, parse_address

__all__ = ["Client", "OpenedClient", "open_client"]

Client = Any
"""A `redis.asyncio.Redis` or `RedisCluster`. Any, because their types declare most results as perhaps
awaitable."""

_SENTINEL_S: Final = 2.0
"""Seconds that one sentinel may take to answer before the next one is tried."""


@dataclass(frozen=True, slots=True)
class OpenedClient:
    """A redis-py client that was created here, and the function that closes all its connections."""

    client: Client
    close: Callable[[], Awaitable[None]]


def open_client(url: str) -> OpenedClient:
    """Create a redis-py client for a bus URL; it connects at its first command.

    The client never repeats a command by itself, because it cannot know which commands may be repeated. It
    has no time limit for replies: `Bus` sets one for each command.

    Raises:
        SettingsError: The URL is not valid. The message does not hold it, because it may hold a password.
    """
    address = parse_address(url)
    once: dict[str, Any] = {"retry": Retry(NoBackoff(), 0)}
    options = once | {"socket_timeout": None} | address.redis_options()
    if address.kind and not address.is_cluster:
        return _open_primary(address, once, options)
    client: Client
    if address.is_cluster:
        client = RedisCluster(startup_nodes=[ClusterNode(*host) for host in address.hosts], **options)
    elif address.path:
        client = Redis(unix_socket_path=address.path, **options)
    else:
        client = Redis(host=address.host, port=address.port, **options)
    return OpenedClient(client, client.aclose)


def _open_primary(address: BusAddress, once: dict[str, Any], options: dict[str, Any]) -> OpenedClient:
    asking = once | address.redis_options(of_sentinels=True)
    asking |= {"socket_timeout": _SENTINEL_S, "socket_connect_timeout": _SENTINEL_S}
    make: Any = Sentinel  # redis-py gives Sentinel no types
    sentinel = make(list(address.hosts), sentinel_kwargs=asking, **options)
    primary = sentinel.master_for(address.master)

    async def close() -> None:
        await primary.aclose()
        await sentinel.aclose()

    return OpenedClient(primary, close)
