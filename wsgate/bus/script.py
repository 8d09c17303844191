"""Scripts that run inside the bus, where several nodes must agree at once; their text is in scripts/."""

import hashlib
from collections.abc import Sequence
from importlib.resources import files
from typing import Final, Protocol

from wsgate.bus.connection import pack
from wsgate.bus.publisher import CallDone

__all__ = [
    "LEASE",
    "LEASES_PAGE",
    "NODE_CLAIM",
    "NODE_LEASE_MS",
    "NODE_RELEASE",
    "RATE_LEASE",
    "REVOCATIONS_PAGE",
    "REVOKE",
    "SIGN_OF_LIFE",
    "TRIM_EVENTS",
    "USER_ENTER",
    "Caller",
    "Script",
]


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
        self.digest: Final = hashlib.sha1(self.text, usedforsecurity=False).hexdigest().encode()
        # Packed by hand: 2 us less of the 8 that counting a connection of a user costs.
        self._head = b"$7\r\nEVALSHA\r\n$40\r\n%b\r\n$1\r\n1\r\n" % self.digest

    def run(self, caller: Caller, key: bytes, arguments: Sequence[bytes], done: CallDone) -> None:
        """Run it on one key; `done` is told as by `Publisher.call`."""
        parts = [b"*%d\r\n" % (len(arguments) + 4), self._head, b"$%d\r\n%b\r\n" % (len(key), key)]
        parts += [b"$%d\r\n%b\r\n" % (len(each), each) for each in arguments]

        def on_answer(outcome: str, text: bytes) -> None:
            if outcome == "unscripted":
                caller.call(key, pack("EVAL", self.text, "1", key, *arguments), done)
            else:
                done(outcome, text)

        caller.call(key, b"".join(parts), on_answer)


USER_ENTER: Final = Script("user_enter")
RATE_LEASE: Final = Script("rate_lease")
LEASE: Final = Script("lease")
LEASES_PAGE: Final = Script("leases_page")
REVOKE: Final = Script("revoke")
SIGN_OF_LIFE: Final = Script("sign_of_life")
REVOCATIONS_PAGE: Final = Script("revocations_page")
NODE_CLAIM: Final = Script("node_claim")
NODE_RELEASE: Final = Script("node_release")
TRIM_EVENTS: Final = Script("trim_events")
NODE_LEASE_MS: Final = 15_000
"""How long the lease of a node's name runs: three renewal intervals, so that a late one loses no lease."""
