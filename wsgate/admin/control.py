"""Send control commands of backends to all shards, and wait until every shard has confirmed them.

A command is published on the control channel with the id of a request. Each shard executes it and then adds
itself to the set of replies to that request. The call succeeds when all known shards are in this set: the
members of the set of shards on the bus, and always the shards of this node. The error names each shard
without a reply, such as one that has stopped or does not receive the control channel. Repeating a command is
harmless.

A revocation is stored on the bus before it is published, so that a disconnected shard reads it when it
reconnects.

Source: protocols/bus/v1/spec.md, "Control".
"""

import asyncio
import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import Final, TypeVar

import msgspec

from wsgate.bus import BusPublisher, Names, Revocation, pack, read_leases, store_revocation

__all__ = ["Controller", "Unreached"]

WAIT_S: Final = 3.0
"""How long a call waits for the replies of all shards, in seconds."""
POLL_S: Final = 0.02
NAMED_MOST: Final = 20

Result = TypeVar("Result")


class Unreached(Exception):
    """A control command is not confirmed by all shards, or the bus has failed.

    Args:
        text: One line for the caller of the API.
        shards: The shards that have not confirmed the command.
    """

    def __init__(self, text: str, shards: Iterable[str] = ()) -> None:
        super().__init__(text)
        self.text: Final = text
        self.shards: Final = tuple(sorted(shards))


class Controller:
    """The sender of control commands in the admin process.

    Args:
        publisher: Sends commands and publications to the bus.
        names: The names of keys and channels on the bus.
        own: Returns the labels of this node's shards, `<node>/<number>`.
        wait_s: How long to wait for all replies, in seconds.
    """

    def __init__(
        self,
        publisher: BusPublisher,
        names: Names,
        own: Callable[[], Iterable[str]],
        *,
        wait_s: float = WAIT_S,
    ) -> None:
        self._publisher: Final = publisher
        self._names: Final = names
        self._own: Final = own
        self._wait_s: Final = wait_s

    async def send(self, command: Mapping[str, object]) -> None:
        """Send a command to every shard of every node, and wait for all confirmations.

        Args:
            command: The fields as in protocols/bus/v1, "Control", without `request`.

        Raises:
            Unreached: The bus has failed, or a shard did not confirm in time.
        """
        if command["op"] == "revoke":
            await self._keep(Revocation(str(command["user"]), float(str(command["before"]))))
        elif command["op"] == "unrevoke":
            await self._remove(str(command["user"]))
        expected = set(self._own()) | await self._members(self._names.shards())
        request = secrets.token_hex(8)
        data = msgspec.json.encode({**command, "request": request})
        await self._publish(self._names.control("")[0], data)
        missing = expected
        try:
            async with asyncio.timeout(self._wait_s):
                # The bus does not notify about new members of a set, so poll it.
                while True:
                    missing = expected - await self._members(self._names.replies(request))
                    if not missing:
                        break
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            named = ", ".join(sorted(missing)[:NAMED_MOST])
            more = f" and {len(missing) - NAMED_MOST} more" if len(missing) > NAMED_MOST else ""
            text = (
                f"{len(missing)} of {len(expected)} shards did not confirm within {self._wait_s:g} s:"
                f" {named}{more}; the others have confirmed, and repeating the call is harmless"
            )
            raise Unreached(text, missing) from None
        if command["op"] == "unrevoke":
            # Remove it again: a shard may have stored it once more before it received the command.
            await self._remove(str(command["user"]))

    async def _remove(self, user: str) -> None:
        """Remove a user's revocation from the bus."""
        key = self._names.revoked()

        def begin(done: Callable[[str, bytes], None]) -> None:
            self._publisher.call(key, pack("ZREM", key, user), done)

        outcome, _ = await _answered(begin)
        if outcome:
            raise Unreached(_why(outcome, "the revocation was not removed from the bus"))

    async def _keep(self, revocation: Revocation) -> None:
        """Store a revocation on the bus."""

        def begin(done: Callable[[str, bytes], None]) -> None:
            store_revocation(self._publisher, self._names, revocation, done)

        outcome, _ = await _answered(begin)
        if outcome:
            raise Unreached(_why(outcome, "the revocation was not stored on the bus"))

    async def _members(self, key: bytes) -> frozenset[str]:
        """Read the members of a set of leases."""

        def begin(done: Callable[[str, frozenset[str]], None]) -> None:
            read_leases(self._publisher, key, done)

        outcome, members = await _answered(begin)
        if outcome:
            raise Unreached(_why(outcome, "the shards on the bus cannot be read"))
        return members

    async def _publish(self, name: bytes, data: bytes) -> None:
        """Publish a command on the control channel."""

        def begin(done: Callable[[str, bytes], None]) -> None:
            self._publisher.publish(name, data, lambda outcome: done(outcome, b""))

        outcome, _ = await _answered(begin)
        if outcome:
            raise Unreached(_why(outcome, "the command was not published"))


async def _answered(begin: Callable[[Callable[[str, Result], None]], None]) -> tuple[str, Result]:
    """Call a function that takes a callback, and wait for the callback's arguments."""
    answered: asyncio.Future[tuple[str, Result]] = asyncio.get_running_loop().create_future()

    def done(outcome: str, result: Result) -> None:
        if not answered.done():  # the waiting task may be cancelled
            answered.set_result((outcome, result))

    begin(done)
    return await answered


def _why(outcome: str, text: str) -> str:
    """Return the text for the caller of the API about a failure of the bus."""
    if outcome == "unknown":
        return "no reply of the bus in time: the command may have been executed"
    return f"unavailable: {text}"
