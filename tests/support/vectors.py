"""Read the vectors of protocols/websocket into Python; the README there describes the format."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["DIRECTORY", "Message", "Outcome", "Vector", "load_vectors"]

DIRECTORY = Path(__file__).parents[2] / "protocols" / "websocket"


class Message(NamedTuple):
    """One complete message for the application."""

    opcode: int
    payload: bytes


class Outcome(NamedTuple):
    """The outcome of a stream in a server."""

    messages: tuple[Message, ...]
    pongs: tuple[bytes, ...]
    state: str
    code: int | None


class Vector(NamedTuple):
    """One stream and its correct outcome."""

    name: str
    settings: dict[str, int]
    stream: bytes
    outcome: Outcome


def _bytes(parts: list[Any]) -> bytes:
    joined = bytearray()
    for part in parts:
        hexadecimal, times = (part, 1) if isinstance(part, str) else (part["hex"], part["times"])
        joined += bytes.fromhex(hexadecimal) * times
    return bytes(joined)


def load_vectors() -> Iterator[Vector]:
    """Yield every vector, with its theme as a prefix of its name."""
    for path in sorted((DIRECTORY / "vectors").glob("*.json")):
        for raw in json.loads(path.read_text(encoding="ascii")):
            yield Vector(
                f"{path.stem}/{raw['name']}",
                raw.get("settings", {}),
                _bytes(raw["stream"]),
                Outcome(
                    tuple(Message(each["opcode"], _bytes(each["payload"])) for each in raw["messages"]),
                    tuple(bytes.fromhex(each) for each in raw["pongs"]),
                    raw["end"]["state"],
                    raw["end"].get("code"),
                ),
            )
