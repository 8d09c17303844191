"""Define the fuzzed readers of foreign bytes: one object each, with its own check of the result.

The `run` of a target makes one input, gives it to the reader and returns it. An AssertionError, or an
exception that the reader does not document, is a fault. `close` checks that nothing is left over.
"""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from tests.fuzz.frames import FramesTarget
from tests.fuzz.heads import HeadsTarget
from tests.fuzz.mutation import mutate
from tests.fuzz.proxies import ProxiesTarget
from tests.fuzz.pushes import PushesTarget
from tests.fuzz.tokens import TokensTarget
from tests.support.reactor_fuzz import Fuzz
from wsgate.bus import decode_publication
from wsgate.deflate import ExtensionError, agree
from wsgate.dialects import DIALECTS, BadCommand
from wsgate.dialects.commands import Publish

__all__ = ["TARGETS", "Target"]

PROTOCOLS: Final = Path(__file__).resolve().parents[2] / "protocols"
REACTOR_STEPS: Final = 300


class Target(Protocol):
    """One reader under test, with a generator of inputs."""

    def run(self, dice: random.Random) -> bytes:
        """Make and read one input; return it, so that it can be kept."""

    def close(self) -> None:
        """End the target; nothing may be left over."""


class Pure:
    """A reader without state: examples to mutate, and the claims that hold for every result."""

    def __init__(self, examples: list[bytes], check: Callable[[random.Random, bytes], None]) -> None:
        self.examples, self.check = examples, check

    def run(self, dice: random.Random) -> bytes:
        """See `Target`."""
        data = mutate(dice, self.examples)
        self.check(dice, data)
        return data

    def close(self) -> None:
        """Do nothing, because the target keeps nothing."""


class Reactor:
    """Random calls and random bytes for a reactor: every promise about events, and all memory returned."""

    def run(self, dice: random.Random) -> bytes:
        """See `Target`."""
        seed = dice.randrange(1 << 32)
        Fuzz(seed).run(REACTOR_STEPS)
        return b"seed %d" % seed

    def close(self) -> None:
        """Do nothing, because every run closes its own reactor."""


def check_extensions(_dice: random.Random, value: bytes) -> None:
    """Check that an offer of extensions is agreed to, declined or refused."""
    try:
        agreement = agree(value.decode("latin-1"))
    except ExtensionError:
        return
    assert agreement is None or agreement.response.startswith(
        "permessage-deflate; server_no_context_takeover"
    )


def check_command(_dice: random.Random, message: bytes) -> None:
    """Check that bytes are a command or an error in either form, and can be encoded for both dialects."""
    for dialect in DIALECTS:
        command = dialect.decode(message)
        if isinstance(command, BadCommand) or not isinstance(command, Publish):
            continue
        payload = dialect.payload(command)
        if payload is not None:
            for listener in DIALECTS:
                assert listener.publication("c", payload)


def check_publication(_dice: random.Random, data: bytes) -> None:
    """Check that a publication is dropped, or can be encoded for every subscriber.

    JSON numbers have any number of digits, and the interpreter converts 4,300 of them at most.
    """
    publication = decode_publication(data)
    if publication is not None:
        for dialect in DIALECTS:
            told = dialect.publication(
                "c", publication.payload, publication.user, publication.position, publication.timestamp_ms
            )
            assert dialect.opcode == 2 or json.loads(told, parse_int=len)["op"] == "msg"


def _commands() -> list[bytes]:
    document = json.loads((PROTOCOLS / "client" / "v1" / "messages.json").read_text(encoding="utf-8"))
    rows = document["messages"]
    texts = [row["json"].encode() for row in rows if row.get("json")]
    return texts + [bytes.fromhex(row["msgpack"]) for row in rows if row.get("msgpack")]


def _publications() -> list[bytes]:
    document = json.loads((PROTOCOLS / "bus" / "v1" / "vectors.json").read_text(encoding="utf-8"))
    return [bytes.fromhex(row["bus"]) for row in document["publications"]]


OFFERS: Final = [
    b"permessage-deflate; client_max_window_bits",
    b'permessage-deflate; server_max_window_bits="9"; server_no_context_takeover, x-other; a=b',
]

TARGETS: Final[dict[str, Callable[[], Target]]] = {
    "frames": FramesTarget,
    "head": HeadsTarget,
    "proxy": ProxiesTarget,
    "extensions": lambda: Pure(OFFERS, check_extensions),
    "pushes": PushesTarget,
    "commands": lambda: Pure(_commands(), check_command),
    "publications": lambda: Pure(_publications(), check_publication),
    "tokens": TokensTarget,
    "reactor": Reactor,
}
