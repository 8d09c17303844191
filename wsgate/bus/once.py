"""Send one command to the bus through redis-py, for code that runs without an event loop."""

import time
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode
from redis.exceptions import RedisClusterException
from redis.retry import Retry
from redis.sentinel import Sentinel

from wsgate.bus.script import NODE_CLAIM, NODE_LEASE_MS
from wsgate.bus_address import BusAddress
from wsgate.errors import BackendError

__all__ = ["claim_once", "publish_once", "round_trip_once"]


_PINGS: Final = 5
_FAULTS: Final = (
    redis.RedisError,
    RedisClusterException,  # does not derive from RedisError
    # What redis-py raises when a server answers in a form that redis-py does not expect.
    *(
        OSError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        AssertionError,
        RecursionError,
        MemoryError,
    ),
)


def publish_once(address: BusAddress, name: bytes, data: bytes, timeout_s: float) -> int:
    """Publish once, with PUBLISH or on a cluster with SPUBLISH, and return the number of receivers.

    Args:
        address: The address of the bus.
        name: The whole pub/sub name.
        data: An envelope or a raw payload.
        timeout_s: Time for connecting, and again for the reply, in seconds.

    Returns:
        The number of bus connections that receive the publication.

    Raises:
        BackendError: The publication failed, or there was no reply and it may have been delivered.
    """
    try:
        with _client(address, _limits(timeout_s)) as bus:
            heard: object = bus.spublish(name, data) if address.is_cluster else bus.publish(name, data)
            if not isinstance(heard, int):
                raise BackendError(f"the bus at {address}: no valid reply to PUBLISH", temporary=True)
            return heard
    except _FAULTS as error:
        raise BackendError(f"the bus at {address}: {error}", temporary=True) from error


def claim_once(address: BusAddress, key: bytes, holder: str, dead: str, timeout_s: float) -> tuple[str, int]:
    """Claim the lease of a node's name on the bus.

    Args:
        address: The address of the bus.
        key: The key of the lease.
        holder: The value that identifies this node.
        dead: A former holder whose process has ended; its lease is replaced. Empty: none is known.
        timeout_s: Time for connecting, and again for the reply, in seconds.

    Returns:
        The other holder of the lease, and for how many milliseconds its lease still runs. The holder is an
        empty text when the claim succeeded.

    Raises:
        BackendError: The bus does not reply, or refuses the command.
    """
    arguments = (holder, str(NODE_LEASE_MS), dead)
    try:
        with _client(address, _limits(timeout_s)) as bus:
            answer: bytes = bus.eval(NODE_CLAIM.text, 1, key, *arguments)
    except _FAULTS as error:
        raise BackendError(f"the bus at {address}: {error}", temporary=True) from error
    left_ms, _, held = answer.decode("utf-8", "replace").partition(" ")
    return held, int(left_ms or 0)


def round_trip_once(address: BusAddress, timeout_s: float) -> float:
    """Measure the round trip to the bus: the fastest of five PINGs after a first one has connected.

    Args:
        address: The address of the bus.
        timeout_s: Time for connecting, and again for each reply, in seconds.

    Returns:
        The time of the fastest PING, in seconds.

    Raises:
        BackendError: The bus does not reply.
    """
    try:
        with _client(address, _limits(timeout_s)) as bus:
            bus.ping()
            took_s = []
            for _ in range(_PINGS):
                began_s = time.perf_counter()
                bus.ping()
                took_s.append(time.perf_counter() - began_s)
            return min(took_s)
    except _FAULTS as error:
        raise BackendError(f"the bus at {address}: {error}", temporary=True) from error


def _limits(timeout_s: float) -> dict[str, Any]:
    """Return the options of redis-py for the time limits, without retries."""
    return {
        "socket_connect_timeout": timeout_s,
        "socket_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 0),  # the caller decides: a failed publication may have been delivered
    }


def _client(address: BusAddress, limits: dict[str, Any]) -> Any:
    """Make a redis-py client for an address of any kind."""
    options = limits | address.redis_options()
    if address.is_cluster:
        make_node: Any = ClusterNode  # redis-py declares no types for it
        nodes = [make_node(host, port) for host, port in address.hosts]
        return redis.RedisCluster(startup_nodes=nodes, **options)
    if address.kind:
        asking = limits | address.redis_options(of_sentinels=True)
        make: Any = Sentinel  # redis-py declares no types for it
        return make(list(address.hosts), sentinel_kwargs=asking, **options).master_for(address.master)
    if address.path:
        return redis.Redis(unix_socket_path=address.path, **options)
    return redis.Redis(host=address.host, port=address.port, **options)
