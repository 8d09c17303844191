"""Which servers make up the bus now: the primary that sentinels name, the slots of a cluster.

Asked anew for every attempt to connect, through redis-py, which is loaded only where it is needed: it
costs 9 MB a process. Nothing is kept but the nodes that answered, so that a cluster is found again when the
nodes of the configuration are gone.

Source: redis.io/docs, "Sentinel client spec" (ask each sentinel, then ask the server for its role) and
"Cluster specification", CLUSTER SLOTS.
"""

import asyncio
import contextlib
import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from wsgate.address import BusAddress, BusTls
from wsgate.errors import BackendError

__all__ = ["SLOTS", "ClusterMap", "Node", "find_primary", "read_cluster", "slot_of", "tls_context"]

SLOTS: Final = 16384
Node = tuple[str, int]
"""Host and port."""


def slot_of(name: bytes) -> int:
    """The slot of a key or sharded channel."""
    from redis.crc import key_slot

    slot: int = key_slot(name)
    return slot


@dataclass(frozen=True, slots=True)
class ClusterMap:
    """Who serves which slot; a slot that nobody serves is not in it.

    Attributes:
        owners: The primary of each slot, None where there is none.
        nodes: Every node that was named, replicas too: where to ask next time.
    """

    owners: tuple[Node | None, ...]
    nodes: tuple[Node, ...]

    @property
    def primaries(self) -> set[Node]:
        """The servers that have slots."""
        return {node for node in self.owners if node is not None}


async def find_primary(address: BusAddress, timeout_s: float) -> BusAddress:
    """The server that is the primary of a sentinel address now.

    Args:
        address: Of kind sentinel.
        timeout_s: For each sentinel, and for the server's own word.

    Raises:
        BackendError: No sentinel names one, or the one they name says that it is none.
    """
    from redis.asyncio.sentinel import Sentinel
    from redis.exceptions import RedisError

    make: Any = Sentinel  # it has no types
    asking = _limits(timeout_s) | address.redis_options(of_sentinels=True)
    sentinel = make(list(address.hosts), sentinel_kwargs=asking)
    try:
        host, port = await sentinel.discover_master(address.master)
        found = address.server(host, port)
        # A sentinel that was away does not know better; the server does.
        async with _client(found, timeout_s) as client:
            role = await client.execute_command("ROLE")
    except (RedisError, OSError, TimeoutError) as error:
        raise BackendError(f"no primary {address.master!r}: {_named(error)}", temporary=True) from None
    finally:
        for each in sentinel.sentinels:
            with contextlib.suppress(RedisError, OSError):
                await each.aclose()
    if _text(role[0]) != "master":
        raise BackendError(f"{found} is no primary any more", temporary=True)
    return found


async def read_cluster(address: BusAddress, known: tuple[Node, ...], timeout_s: float) -> ClusterMap:
    """The cluster as the first node that answers knows it.

    Args:
        address: Of kind cluster.
        known: Nodes seen before, asked first.
        timeout_s: For each node.

    Raises:
        BackendError: None of them answers.
    """
    from redis.exceptions import RedisError

    why = ""
    for host, port in dict.fromkeys((*known, *address.hosts)):
        try:
            async with (
                asyncio.timeout(2 * timeout_s),
                _client(address.server(host, port), timeout_s) as client,
            ):
                client.response_callbacks.pop("CLUSTER SLOTS", None)  # as the server says it
                rows = await client.execute_command("CLUSTER SLOTS")
            return _map(rows, host)
        except (RedisError, OSError, TimeoutError) as error:
            why = _named(error)
    raise BackendError(f"no node of the cluster answers: {why}", temporary=True)


def _map(rows: Any, asked: str) -> ClusterMap:
    owners: list[Node | None] = [None] * SLOTS
    nodes: dict[Node, None] = {}
    for first, last, *servers in rows:
        # A node that does not know its own address leaves it out: it is where we asked.
        named = [(_text(server[0] or b"") or asked, int(server[1])) for server in servers]
        nodes.update(dict.fromkeys(named))
        owners[first : last + 1] = [named[0]] * (last - first + 1)
    return ClusterMap(tuple(owners), tuple(nodes))


def _client(address: BusAddress, timeout_s: float) -> Any:
    """A client for a question or two."""
    from redis.asyncio import Redis

    options = _limits(timeout_s) | address.redis_options()
    return Redis(host=address.host, port=address.port, single_connection_client=True, **options)


def _limits(timeout_s: float) -> dict[str, Any]:
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    return {
        "socket_connect_timeout": timeout_s,
        "socket_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 0),  # whoever asks comes again by itself
    }


def _text(value: bytes | str) -> str:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else value


def _named(error: Exception) -> str:
    """Its kind, and no more: a server's words may repeat what it was told."""
    return type(error).__name__


def tls_context(address: BusAddress) -> Any:
    """An `ssl.SSLContext` for an address, None where there is no TLS: TLS 1.2 or later, verified.

    Raises:
        BackendError: A file cannot be read or is not what it should be.
    """
    if address.tls is None:
        return None
    try:
        files = filter(None, (address.tls.ca_file, address.tls.certificate_file, address.tls.key_file))
        return _context(address.tls, tuple(os.stat(file).st_mtime_ns for file in files))
    except OSError as error:  # what is wrong with a certificate is one too
        raise BackendError(f"TLS files of the bus: {error}", temporary=True) from error


@lru_cache(maxsize=4)
def _context(tls: BusTls, changed_ns: tuple[int, ...]) -> Any:
    """Made once for each state of the files: the system's authorities take 10 ms to load."""
    import ssl

    context = ssl.create_default_context(cafile=tls.ca_file or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if tls.certificate_file:
        context.load_cert_chain(tls.certificate_file, tls.key_file or None)
    return context
