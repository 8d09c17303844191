"""Keep the channels whose cluster server ended or refused the subscription, and choose when to ask again.

A server refuses for a moment while a slot moves, or for hours while its part of the cluster is down. So the
channels are requested again in rounds, one for each reading of the map, and a round is done in parts:

- A part follows when every channel of the last one is answered.
- A part of which every channel is refused again ends the round: the server is not better yet, and thousands
  of further requests would only add to its load.
- Channels that were never refused come first. Those that were refused follow, and begin with the one that
  was refused longest ago, so that one slot that stays refused does not hold back the others.
"""

from collections.abc import Callable, Container, Iterable, Iterator
from itertools import islice

from wsgate.bus.subscriber import NAMES_PER_COMMAND

__all__ = ["LostChannels"]


class LostChannels:
    """The lost channels of one shard, as a set with an order."""

    def __init__(self) -> None:
        self._ended: dict[bytes, None] = {}  # the server has ended these subscriptions
        self._refused: dict[
            bytes, None
        ] = {}  # the server has refused these, the one refused longest ago first
        self._refusals: dict[bytes, int] = {}  # refusals in a row, of channels in `_refused` and `_part`
        self._part: set[bytes] = set()  # requested again, and not answered yet
        self._ended_left = self._refused_left = 0  # channels that this round has not come to
        self._has_refusal = self._has_success = False  # of the part
        self._is_refusing = False

    def __len__(self) -> int:
        return len(self._ended) + len(self._refused)

    def __contains__(self, name: bytes) -> bool:
        return name in self._ended or name in self._refused

    def __iter__(self) -> Iterator[bytes]:
        yield from self._ended
        yield from self._refused

    @property
    def is_refusing(self) -> bool:
        """Whether every channel of the last part was refused, so that another refusal is likely to last."""
        return self._is_refusing and len(self) > 0

    @property
    def has_due(self) -> bool:
        """Whether the next part of the round can be taken now."""
        return bool(self._ended_left or self._refused_left) and not self._part

    def add(self, name: bytes) -> None:
        """Add a channel whose subscription has ended."""
        if name not in self._refused:
            self._ended[name] = None

    def refuse(self, name: bytes) -> int:
        """Add a channel whose SUBSCRIBE was refused; return how many times in a row that was so."""
        refusals = self._refusals.get(name, 0) + 1
        self.discard(name)
        self._refused[name] = None
        self._refusals[name] = refusals
        self._has_refusal = self._has_refusal or name in self._part
        return refusals

    def on_confirmed(self, name: bytes) -> None:
        """Note that the server has confirmed a channel."""
        self._refusals.pop(name, None)
        self._has_success = self._has_success or name in self._part

    def discard(self, name: bytes) -> None:
        """Remove a channel, because it was left or is requested in another way."""
        self._ended.pop(name, None)
        self._refused.pop(name, None)
        self._refusals.pop(name, None)

    def renew(self, covers: Callable[[bytes], bool]) -> None:
        """Forget the refusals of channels that have another server now, so that they come first."""
        for name in [name for name in self._refused if covers(name)]:
            self.discard(name)
            self.add(name)

    def difference_update(self, names: Iterable[bytes]) -> None:
        """Remove several channels, as `discard` does."""
        for name in names:
            self.discard(name)

    def clear(self) -> None:
        """Remove every channel, and end the round."""
        self._ended.clear()
        self._refused.clear()
        self._refusals.clear()
        self._part.clear()
        self._ended_left = self._refused_left = 0

    def begin(self) -> None:
        """Begin a round over all channels, because the map was read. A part that is not answered goes on."""
        self._ended_left, self._refused_left = len(self._ended), len(self._refused)

    def end_part(self, unconfirmed: Container[bytes]) -> bool:
        """End the last part if all its channels are answered, and the round if all of them were refused.

        Args:
            unconfirmed: The channels that the bus has not answered yet.

        Returns:
            Whether a part has ended now of which every channel was refused.
        """
        for name in [name for name in self._part if name not in unconfirmed]:
            self._part.discard(name)
            if name not in self:
                self._refusals.pop(name, None)
        if self._part or not (self._has_refusal or self._has_success):
            return False
        self._is_refusing = not self._has_success
        self._has_refusal = self._has_success = False
        if self._is_refusing:
            self._ended_left = self._refused_left = 0
        return self._is_refusing

    def take(self, is_live: Callable[[bytes], bool]) -> list[bytes]:
        """Remove and return the next part of the round; the caller requests these channels now.

        Args:
            is_live: Returns whether the server of a channel is connected. The other channels stay: no
                connection comes up for a slot that no server has.
        """
        if self._part:
            return []
        self._ended_left, ended = self._look(self._ended, self._ended_left, NAMES_PER_COMMAND, is_live)
        room = NAMES_PER_COMMAND - len(ended)
        self._refused_left, refused = self._look(self._refused, self._refused_left, room, is_live)
        self._part.update(ended, refused)
        return ended + refused

    @staticmethod
    def _look(
        names: dict[bytes, None], left: int, most: int, is_live: Callable[[bytes], bool]
    ) -> tuple[int, list[bytes]]:
        """Look at the first of some names: move those that are not live to the end, and remove the others.

        Returns:
            How many of `left` names are left for the next part, and the removed names.
        """
        seen = list(islice(names, min(left, most)))
        taken: list[bytes] = []
        for name in seen:
            del names[name]
            if is_live(name):
                taken.append(name)
            else:
                names[name] = None
        return max(0, min(left - len(seen), len(names))), taken
