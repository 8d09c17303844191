"""Scripts that run inside the bus, where several nodes must agree at once; their text is in scripts/."""

import hashlib
from collections.abc import Sequence
from functools import partial
from importlib.resources import files
from typing import Final, Protocol

from wsgate.bus.connection import pack
from wsgate.bus.publisher import CallDone

__all__ = ["RATE_LEASE", "USER_ENTER", "Caller", "Script"]


class Caller(Protocol):
    """Who sends a command; `Publisher` and `ClusterPublisher` do."""

    def call(self, key: bytes, command: bytes, done: CallDone) -> None:
        """See `Publisher.call`."""


class Script:
    """One script, sent by its digest, and whole where the server does not know it yet.

    Args:
        name: Of the file, without `.lua`.
    """

    def __init__(self, name: str) -> None:
        self.text: Final = files("wsgate.bus").joinpath("scripts", f"{name}.lua").read_bytes()
        self._digest = hashlib.sha1(self.text, usedforsecurity=False).hexdigest()

    def run(self, caller: Caller, key: bytes, arguments: Sequence[str | int], done: CallDone) -> None:
        """Run it on one key; `done` is told as by `Publisher.call`."""
        rest = [str(each) for each in arguments]
        command = pack("EVALSHA", self._digest, "1", key, *rest)
        caller.call(key, command, partial(self._on_answer, caller, key, rest, done))

    def _on_answer(
        self, caller: Caller, key: bytes, rest: list[str], done: CallDone, outcome: str, text: bytes
    ) -> None:
        if outcome == "unscripted":
            caller.call(key, pack("EVAL", self.text, "1", key, *rest), done)
        else:
            done(outcome, text)


USER_ENTER: Final = Script("user_enter")
RATE_LEASE: Final = Script("rate_lease")
