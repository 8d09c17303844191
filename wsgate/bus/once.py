"""One publish, or one question, of a program that has nothing else to say, through redis-py."""

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
    RedisClusterException,  # none of the former in redis-py
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
    """PUBLISH, or SPUBLISH where the bus is a cluster; how many connections heard it.

    Args:
        address: Where the bus is.
        name: The whole name on it.
        data: An envelope or a raw payload.
        timeout_s: For connecting, and for the answer.

    Raises:
        BackendError: It could not be published, or there was no answer: it may have been heard.
    """
    try:
        with _client(address, _limits(timeout_s)) as bus:
            heard: object = bus.spublish(name, data) if address.is_cluster else bus.publish(name, data)
            if not isinstance(heard, int):
                raise BackendError(f"the bus at {address}: no answer to PUBLISH", temporary=True)
            return heard
    except _FAULTS as error:
        raise BackendError(f"the bus at {address}: {error}", temporary=True) from error


def claim_once(address: BusAddress, key: bytes, holder: str, dead: str, timeout_s: float) -> tuple[str, int]:
    """Claim the lease of a node's name.

    Args:
        address: Where the bus is.
        key: The name of the lease.
        holder: Who claims it.
        dead: A holder that is known to be dead; its lease counts for nothing. Empty: none is known.
        timeout_s: For connecting, and for the answer.

    Returns:
        Who else holds it and for how many milliseconds still; an empty text when the claim succeeded.

    Raises:
        BackendError: The bus does not answer, or does not allow it.
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
    """Seconds to the bus and back: the fastest of several PINGs, over a connection that is there already.

    Args:
        address: Where the bus is.
        timeout_s: For connecting, and for each answer.

    Raises:
        BackendError: It does not answer.
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
    return {
        "socket_connect_timeout": timeout_s,
        "socket_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 0),  # who runs this says when to try again: it may have been heard
    }


def _client(address: BusAddress, limits: dict[str, Any]) -> Any:
    options = limits | address.redis_options()
    if address.is_cluster:
        make_node: Any = ClusterNode  # it has no types
        nodes = [make_node(host, port) for host, port in address.hosts]
        return redis.RedisCluster(startup_nodes=nodes, **options)
    if address.kind:
        asking = limits | address.redis_options(of_sentinels=True)
        make: Any = Sentinel  # nor has it
        return make(list(address.hosts), sentinel_kwargs=asking, **options).master_for(address.master)
    if address.path:
        return redis.Redis(unix_socket_path=address.path, **options)
    return redis.Redis(host=address.host, port=address.port, **options)
