"""Find the servers of the bus: the primary that sentinels know, or the owner of each slot of a cluster.

The primary is looked up again for every attempt to connect. A cluster is first read from the nodes of the
last map, so that it is found again when the nodes of the configuration no longer exist. Replies are not
trusted: a reply that is not valid counts as a failure, and the next sentinel or node gets the request. A map
that loses most slots counts as a failure, too: a node that restarts without its `nodes.conf` knows no slot.

Source: redis.io/docs, "Sentinel client spec" (request the primary from each sentinel, then the role from the
server) and "Cluster specification", CLUSTER SLOTS.
"""

import math
import random
import time
from binascii import crc_hqx
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from wsgate.bus.question import Answer, asking
from wsgate.bus_address import BusAddress
from wsgate.errors import BackendError

__all__ = [
    "SLOTS",
    "ClusterMap",
    "Node",
    "NodeOrder",
    "find_primary",
    "node_in_moved",
    "read_cluster",
    "slot_of",
]

SLOTS: Final = 16384
NODES_MOST: Final = 1_000
"""The most nodes in a map: the largest cluster that Redis recommends. Each node with slots is connected."""
GOSSIP_S: Final = 5.0
"""Time after which the nodes of a cluster have notified each other of a moved slot, with a large margin."""
HOST_LIMIT_BYTES: Final = 255
Node = tuple[str, int]
"""The host and the port of one server."""


def slot_of(name: bytes) -> int:
    """Compute the cluster slot of a key or sharded channel, 0 to 16,383.

    Only the text between the first pair of braces counts, if there is one that is not empty.

    Source: redis.io/docs, "Cluster specification", "Hash tags".
    """
    start = name.find(b"{")
    if start >= 0 and (end := name.find(b"}", start + 1)) > start + 1:
        name = name[start + 1 : end]
    return crc_hqx(name, 0) % SLOTS


@dataclass(frozen=True, slots=True)
class ClusterMap:
    """The map of a cluster: which primary serves each slot.

    Attributes:
        owners: The primary of each slot; None for a slot that no server serves.
        nodes: All nodes of the reply, replicas included: the next map is read from these first.
    """

    owners: tuple[Node | None, ...]
    nodes: tuple[Node, ...]

    @property
    def primaries(self) -> set[Node]:
        """The servers that serve at least one slot."""
        return {node for node in self.owners if node is not None}


async def find_primary(address: BusAddress, timeout_s: float) -> BusAddress:
    """Request the present primary from the sentinels of an address, and check the role of that server.

    Args:
        address: An address of kind sentinel.
        timeout_s: Time for each sentinel, and for the server, in seconds.

    Returns:
        The address of the primary.

    Raises:
        BackendError: No sentinel knows a primary, or the server that it names is no primary.
    """
    why = "no sentinel knows it"
    for node in address.hosts:
        try:
            sentinel = address.server(*node)
            async with asking(
                sentinel, address.sentinel_username, address.sentinel_password, timeout_s
            ) as questioner:
                primary = _primary(await questioner.ask("SENTINEL", "MASTERS"), address.master)
        except BackendError as error:
            why = str(error)
            continue
        if primary is not None:
            found = address.server(*primary)
            break
    else:
        raise BackendError(f"no primary {address.master!r}: {why}", temporary=True)
    # A sentinel that was disconnected may still name a former primary; the server knows its own role.
    async with asking(found, found.username, found.password, timeout_s) as questioner:
        role = await questioner.ask("ROLE")
    if not isinstance(role, list) or not role or role[0] != b"master":
        raise BackendError(f"{found} is no longer the primary", temporary=True)
    return found


def _primary(rows: Answer, name: str) -> Node | None:
    """Find the primary of a name in a reply to SENTINEL MASTERS; None: it is absent, or marked as down."""
    for row in rows if isinstance(rows, list) else []:
        if not isinstance(row, list):
            continue
        fields = {
            key: value for key, value in zip(row[::2], row[1::2], strict=False) if isinstance(key, bytes)
        }
        if fields.get(b"name") != name.encode():
            continue
        flags = fields.get(b"flags")
        told = set(flags.split(b",")) if isinstance(flags, bytes) else set()
        if b"master" in told and not told & {b"s_down", b"o_down"}:
            return _node(fields.get(b"ip"), fields.get(b"port"), "")
    return None


class NodeOrder:
    """Choose in which order the nodes of a cluster are asked for the map.

    Each reading begins behind the node that sent the last map, so that one node with an old map cannot be the
    only source. A node that failed comes last, and so does a node whose map a server has contradicted with
    MOVED: a node that is cut off from the port of the cluster still replies, but its map no longer changes.

    For `GOSSIP_S` after a change the same node is asked again: the others may not know of the change yet, and
    their maps would move the slots back.
    """

    def __init__(self) -> None:
        self._source: Node | None = None  # the node that sent the last map
        self._changed_s = -math.inf  # when a map last differed from the one before
        self._doubted: dict[Node, None] = {}  # the nodes that come last, doubted longest first
        self._named: Node | None = None  # the node that the last MOVED names

    def sort(self, nodes: Iterable[Node], now_s: float) -> list[Node]:
        """Return distinct nodes in the order for the next reading, and forget doubts about other nodes.

        Args:
            nodes: The nodes that may be asked.
            now_s: A monotonic clock.
        """
        known = list(dict.fromkeys(nodes))
        self._doubted = {node: None for node in self._doubted if node in known}
        if self._source in known:
            start = known.index(self._source) + (now_s - self._changed_s >= GOSSIP_S)
        else:  # the shards of a fleet must not all ask the same node
            start = random.randrange(len(known)) if known else 0  # noqa: S311 - spreading
        turned = [node for node in known[start:] + known[:start] if node not in self._doubted]
        named, self._named = self._named, None
        first = [named] if named is not None and named in known else []
        return list(dict.fromkeys([*first, *turned, *self._doubted]))

    def on_replied(self, node: Node, now_s: float, *, has_changed: bool) -> None:
        """Note that a node sent the map that is used from now on, and whether its owners are others."""
        self._source = node
        if has_changed:
            self._changed_s = now_s
        self._doubted.pop(node, None)

    def on_failed(self, node: Node) -> None:
        """Let a node come last, because it sent no valid map."""
        self._doubted.pop(node, None)
        self._doubted[node] = None

    def on_contradicted(self, named: Node | None) -> None:
        """Let the node that sent the map come last; ask first the node that a MOVED names.

        Args:
            named: The node in the reply; None: it names none. A node that is not in the map is not asked.
        """
        self._named = named or self._named
        if self._source is not None and self._source != named:
            self.on_failed(self._source)


async def read_cluster(
    address: BusAddress,
    known: tuple[Node, ...],
    timeout_s: float,
    *,
    before: ClusterMap | None = None,
    order: NodeOrder | None = None,
) -> ClusterMap:
    """Read the map of a cluster from the first node that sends a valid reply.

    Args:
        address: An address of kind cluster.
        known: The nodes of an earlier map; they are asked as well as the nodes of the address.
        timeout_s: Half of the time for each node, in seconds.
        before: The map that is used now; a map that loses most of its slots is not valid.
        order: Chooses the order of the nodes, and learns which of them reply.

    Raises:
        BackendError: No node sends a valid map.
    """
    why, order = "", order or NodeOrder()
    for node in order.sort((*known, *address.hosts), time.monotonic()):
        server = address.server(*node)
        try:
            async with asking(server, address.username, address.password, 2 * timeout_s) as questioner:
                rows = await questioner.ask("CLUSTER", "SLOTS")
            found = _map(rows, node[0])
            if before is not None and _loses_most(before, found):
                raise BackendError("the map of a node has lost most slots", temporary=True)
        except BackendError as error:
            why = f"{node[0]}:{node[1]}: {error}"
            order.on_failed(node)
        else:
            has_changed = before is not None and before.owners != found.owners
            order.on_replied(node, time.monotonic(), has_changed=has_changed)
            return found
    raise BackendError(f"no node of the cluster sends a valid map: {why}", temporary=True)


def _loses_most(before: ClusterMap, fresh: ClusterMap) -> bool:
    """Return whether more than half of the slots that had an owner have none in a fresh map."""
    if before.owners == fresh.owners:
        return False
    owned = [new for old, new in zip(before.owners, fresh.owners, strict=True) if old is not None]
    return 2 * owned.count(None) > len(owned)


def _map(rows: Answer, asked: str) -> ClusterMap:
    """Convert a reply to CLUSTER SLOTS into a map.

    Args:
        rows: The reply.
        asked: The host of the node that replied, for rows that name no host.

    Raises:
        BackendError: The reply is malformed, names no owner of any slot, or has more than `NODES_MOST` nodes.
    """
    owners: list[Node | None] = [None] * SLOTS
    nodes: dict[Node, None] = {}
    for row in rows if isinstance(rows, list) else [None]:
        if not isinstance(row, list) or len(row) < 3:
            raise BackendError("the reply to CLUSTER SLOTS is not valid", temporary=True)
        first, last, *servers = row
        if not (isinstance(first, int) and isinstance(last, int) and 0 <= first <= last < SLOTS):
            raise BackendError("the reply to CLUSTER SLOTS is not valid", temporary=True)
        named = [_server(each, asked) for each in servers]
        nodes.update(dict.fromkeys(filter(None, named)))
        owners[first : last + 1] = [named[0]] * (last - first + 1)
        if len(nodes) > NODES_MOST:
            raise BackendError("the cluster has too many nodes", temporary=True)
    if owners.count(None) == SLOTS:
        raise BackendError("the node knows no owner of a slot", temporary=True)
    return ClusterMap(tuple(owners), tuple(nodes))


def node_in_moved(text: bytes, asked: str) -> Node | None:
    """Return the node that a reply `MOVED <slot> <host>:<port>` names; None when it names none.

    Args:
        text: The text of the reply.
        asked: The host of the server that replied; the reply leaves the host out when it is the same.
    """
    words = text.split(b" ")
    if len(words) != 3 or words[0] != b"MOVED":
        return None
    host, _, port = words[2].rpartition(b":")
    return _node(host, port, asked)


def _server(row: Answer, asked: str) -> Node | None:
    """Convert a server in a row of CLUSTER SLOTS into host and port; None when these are not valid."""
    if not isinstance(row, list) or len(row) < 2:
        return None
    # A node that does not know its own address leaves the host out: use the host that got the request.
    return _node(row[0] or b"", row[1], asked)


def _node(host: Answer, port: Answer, asked: str) -> Node | None:
    """Check a host and a port of a reply; None when they are not valid.

    A cluster node sends `?` for the host of another node that it does not know.
    """
    if isinstance(port, bytes) and port.isdigit() and len(port) <= 5:
        port = int(port)
    if not isinstance(host, bytes) or not isinstance(port, int) or not 0 < port <= 65_535:
        return None
    try:
        name = host.decode("ascii") or asked
    except UnicodeDecodeError:
        return None
    if not 0 < len(name) <= HOST_LIMIT_BYTES or name == "?" or not name.isprintable() or " " in name:
        return None
    return name, port
