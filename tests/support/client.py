"""Provide an independent client: the `websockets` library, with one command or answer per call."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgpack
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

__all__ = ["ANSWER_S", "Client", "connected"]

ANSWER_S = 30.0  # a limit that no healthy run reaches


@dataclass
class Client:
    """One connection of `wsgate.v1`."""

    socket: ClientConnection
    is_msgpack: bool = False
    welcome: dict[str, Any] = field(default_factory=dict)
    gaps: list[dict[str, Any]] = field(default_factory=list)
    """Gaps that `heard` received between publications."""

    def send(self, op: str, **fields: Any) -> None:
        """Send one command."""
        command = {"op": op, **fields}
        self.socket.send(msgpack.packb(command) if self.is_msgpack else json.dumps(command))

    def receive(self, within_s: float = ANSWER_S) -> dict[str, Any]:
        """Return the next message."""
        message = self.socket.recv(within_s)
        assert isinstance(message, bytes) is self.is_msgpack
        found: dict[str, Any] = msgpack.unpackb(message) if self.is_msgpack else json.loads(message)
        return found

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """Send one command and return the next message, which is its answer if nothing else arrives."""
        self.send(op, **fields)
        return self.receive()

    def subscribe(self, channel: str) -> None:
        """Subscribe, and wait until the subscription is confirmed."""
        assert self.ask("sub", ch=channel, id=1) == {"op": "subbed", "ch": channel, "id": 1}

    def heard(self, count: int, within_s: float = ANSWER_S) -> list[Any]:
        """Return the payloads of the next `count` publications; gaps between them are kept."""
        found: list[Any] = []
        while len(found) < count:
            item = self.receive(within_s)
            if item["op"] == "gap":
                self.gaps.append(item)
                continue
            assert item["op"] == "msg", item
            found.append(item["data"])
        return found

    def end(self, within_s: float = ANSWER_S) -> tuple[list[dict[str, Any]], int]:
        """Return the messages until the connection ends, and its close code."""
        said = []
        while True:
            try:
                said.append(self.receive(within_s))
            except ConnectionClosed as closed:
                return said, closed.rcvd.code if closed.rcvd else 1006


@contextlib.contextmanager
def connected(
    url: str, count: int = 1, *, dialect: str = "json", token: str = "", **options: Any
) -> Iterator[list[Client]]:
    """Connect `count` clients and wait for their welcome; close them at the end.

    Args:
        url: `ws://host:port/ws`.
        count: The number of clients.
        dialect: `json` or `msgpack`.
        token: The token for the header, or an empty text for none.
        options: More options of `websockets`.
    """
    settings: dict[str, Any] = {
        "subprotocols": [Subprotocol(f"wsgate.v1.{dialect}")],
        "additional_headers": {"Authorization": f"Bearer {token}"} if token else None,
        "open_timeout": ANSWER_S,
        "close_timeout": 1,
        "max_size": None,
    }
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(count):
            client = Client(stack.enter_context(connect(url, **settings, **options)), dialect == "msgpack")
            client.welcome = client.receive()
            assert client.welcome["op"] == "welcome"
            clients.append(client)
        yield clients
