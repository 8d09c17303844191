"""Which servers make up the bus now: the primary that sentinels name, the slots of a cluster.

Servers are asked anew for every attempt to connect. Nothing is kept but the nodes that answered, so that a
cluster is found again when the nodes of the configuration are gone. What they answer is not trusted: an
answer that makes no sense is no answer, and the next node is asked.

Source: redis.io/docs, "Sentinel client spec" (ask each sentinel, then ask the server for its role) and
"Cluster specification", CLUSTER SLOTS.
"""

from binascii import crc_hqx
from dataclasses import dataclass
from typing import Final

from wsgate.bus.question import Answer, asking
from wsgate.bus_address import BusAddress
from wsgate.errors import BackendError

__all__ = ["SLOTS", "ClusterMap", "Node", "find_primary", "read_cluster", "slot_of"]

SLOTS: Final = 16384
NODES_MOST: Final = 1_000
"""The largest cluster that Redis recommends; a connection is made to each node that has slots."""
HOST_LIMIT_BYTES: Final = 255
Node = tuple[str, int]
"""Host and port."""


def slot_of(name: bytes) -> int:
    """The slot of a key or sharded channel: of what stands between the first braces, or of all of it."""
    start = name.find(b"{")
    if start >= 0 and (end := name.find(b"}", start + 1)) > start + 1:
        name = name[start + 1 : end]
    return crc_hqx(name, 0) % SLOTS


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
    why = "none of the sentinels knows it"
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
    # A sentinel that was away does not know better; the server does.
    async with asking(found, found.username, found.password, timeout_s) as questioner:
        role = await questioner.ask("ROLE")
    if not isinstance(role, list) or not role or role[0] != b"master":
        raise BackendError(f"{found} is no primary any more", temporary=True)
    return found


def _primary(rows: Answer, name: str) -> Node | None:
    """The primary of this name that a sentinel believes to be well; None: it knows none."""
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


async def read_cluster(address: BusAddress, known: tuple[Node, ...], timeout_s: float) -> ClusterMap:
    """The cluster as the first node that answers knows it.

    Args:
        address: Of kind cluster.
        known: Nodes seen before, asked first.
        timeout_s: For each node.

    Raises:
        BackendError: None of them answers.
    """
    why = ""
    for node in dict.fromkeys((*known, *address.hosts)):
        server = address.server(*node)
        try:
            async with asking(server, address.username, address.password, 2 * timeout_s) as questioner:
                rows = await questioner.ask("CLUSTER", "SLOTS")
            return _map(rows, node[0])
        except BackendError as error:
            why = str(error)
    raise BackendError(f"no node of the cluster answers: {why}", temporary=True)


def _map(rows: Answer, asked: str) -> ClusterMap:
    """The map that an answer of CLUSTER SLOTS draws; BackendError when it draws none."""
    owners: list[Node | None] = [None] * SLOTS
    nodes: dict[Node, None] = {}
    for row in rows if isinstance(rows, list) else [None]:
        if not isinstance(row, list) or len(row) < 3:
            raise BackendError("no map of a cluster", temporary=True)
        first, last, *servers = row
        if not (isinstance(first, int) and isinstance(last, int) and 0 <= first <= last < SLOTS):
            raise BackendError("no map of a cluster", temporary=True)
        named = [_server(each, asked) for each in servers]
        nodes.update(dict.fromkeys(filter(None, named)))
        owners[first : last + 1] = [named[0]] * (last - first + 1)
        if len(nodes) > NODES_MOST:
            raise BackendError("a cluster of too many nodes", temporary=True)
    return ClusterMap(tuple(owners), tuple(nodes))


def _server(row: Answer, asked: str) -> Node | None:
    """A server in a row of CLUSTER SLOTS; None when its address makes no sense."""
    if not isinstance(row, list) or len(row) < 2:
        return None
    # A node that does not know its own address leaves it out: it is where we asked.
    return _node(row[0] or b"", row[1], asked)


def _node(host: Answer, port: Answer, asked: str) -> Node | None:
    """An address, or None; `?` is how a node says that it does not know another one's host."""
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
