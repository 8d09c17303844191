"""Run Lua scripts on the bus, for decisions that must be atomic between nodes; their text is in scripts/."""

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
    """An object that sends a command to the bus: a `Publisher` or a `ClusterPublisher`."""

    def call(self, key: bytes, command: bytes, done: CallDone) -> None:
        """Send a packed command about one key, see `Publisher.call`."""


class Script:
    """One Lua script. Each run sends only its SHA-1 digest, and the whole text if the server has no copy.

    Args:
        name: The name of the file in scripts/, without `.lua`.

    Attributes:
        text: The text of the script.
        digest: The SHA-1 digest of the text, in hexadecimal.
    """

    def __init__(self, name: str) -> None:
        self.text: Final = files("wsgate.bus").joinpath("scripts", f"{name}.lua").read_bytes()
        self.digest: Final = hashlib.sha1(self.text, usedforsecurity=False).hexdigest().encode()
        # Packed here and not by hiredis: this saves 2 of the 8 us that counting a connection of a user costs.
        self._head = b"$7\r\nEVALSHA\r\n$40\r\n%b\r\n$1\r\n1\r\n" % self.digest

    def run(self, caller: Caller, key: bytes, arguments: Sequence[bytes], done: CallDone) -> None:
        """Run the script on one key.

        Args:
            caller: Sends the command.
            key: KEYS[1] of the script.
            arguments: ARGV of the script.
            done: Called once, later, with the outcome and the script's result, as by `Publisher.call`.
        """
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
"""Duration of the lease of a node's name: three renewal intervals, so that a late renewal loses no lease."""
