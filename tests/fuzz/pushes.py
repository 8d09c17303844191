"""Compare the bus reader with a slow one that is easy to read: replies and faults must agree.

The slow reader slices and never looks at memory. A result that the compiled one makes of bytes that were not
sent, or of an element of the wrong kind, therefore differs.
"""

import random
from typing import Final

from tests.fuzz.mutation import mutate, pieces
from tests.support.resp import hostile_reply
from tests.unit.bus.test_push import BROKEN, CASES
from wsgate.bus import Backlog, push

__all__ = ["PushesTarget", "check_pushes", "read_slowly", "seeds"]

PREFIX: Final = b"wsgate:ch:"
LIMIT_BYTES: Final = 1_000
LINE_LIMIT: Final = 1_024
NAME_LIMIT: Final = 2_048
SKIP_LIMIT: Final = 512 * 1024 * 1024
DIGITS_MOST: Final = 18
LARGEST_EXAMPLE_BYTES: Final = 4_000

Reply = tuple[int, bytes, bytes | None]
Element = bytes | int | None


class _Broken(Exception):
    pass


class _Incomplete(Exception):
    pass


class _TooLarge(Exception):
    """A payload over the limit: its channel, and the places where its bytes begin and end."""

    def __init__(self, name: bytes, end: int) -> None:
        super().__init__()
        self.name, self.end = name, end


def read_slowly(data: bytes) -> tuple[list[Reply], bool]:
    """Return the replies in a stream, and whether the stream was broken behind them."""
    replies: list[Reply] = []
    place = 0
    while place < len(data):
        try:
            reply, place = _reply(data, place)
        except _TooLarge as found:
            kind, payload = (push.TOO_LARGE, None) if _is_ours(found.name) else (push.CONTROL, b"")
            reply, place = (kind, _bare(found.name), payload), found.end
        except _Incomplete:
            break
        except _Broken:
            return replies, True
        replies.append(reply)
    return replies, False


def _reply(data: bytes, place: int) -> tuple[Reply, int]:
    kind = data[place : place + 1]
    if kind == b"*":
        elements, place = _array(data, place)
        return _meaning(elements), place
    if kind == b"$":
        size, place = _number(data, place)
        if size == -1:
            return (push.REPLY, b"", None), place
        if not 0 <= size <= push.REPLY_LIMIT_BYTES:
            raise _Broken
        text, place = _string(data, place, size)
        return (push.REPLY, text, None), place
    if kind == b":":
        _, end = _number(data, place)
        return (push.REPLY, data[place + 1 : end - 2], None), end
    if kind not in (b"+", b"-"):
        raise _Broken
    end = data.find(b"\r", place, place + LINE_LIMIT)
    if end < 0:
        raise _Broken if len(data) - place >= LINE_LIMIT else _Incomplete
    if end + 1 == len(data):
        raise _Incomplete
    if data[end + 1 : end + 2] != b"\n":
        raise _Broken
    return (push.ERROR if kind == b"-" else push.REPLY, data[place + 1 : end], None), end + 2


def _number(data: bytes, place: int) -> tuple[int, int]:
    """Return the number behind a type byte, and the place where its line ends."""
    start = place + 1
    digits = start + 1 if data[start : start + 1] == b"-" else start
    end = digits
    while end < len(data) and data[end : end + 1].isdigit():
        end += 1
    if end - digits > DIGITS_MOST:
        raise _Broken
    if end == len(data):
        raise _Incomplete
    if data[end : end + 1] != b"\r" or end == digits:
        raise _Broken
    if end + 1 == len(data):
        raise _Incomplete
    if data[end + 1 : end + 2] != b"\n":
        raise _Broken
    return int(data[start:end]), end + 2


def _string(data: bytes, place: int, size: int) -> tuple[bytes, int]:
    if len(data) - place < size + 2:
        raise _Incomplete
    if data[place + size : place + size + 2] != b"\r\n":
        raise _Broken
    return data[place : place + size], place + size + 2


def _array(data: bytes, place: int) -> tuple[list[Element], int]:
    count, place = _number(data, place)
    if not 1 <= count <= 4:
        raise _Broken
    elements: list[Element] = []
    for number in range(count):
        if place == len(data):
            raise _Incomplete
        kind = data[place : place + 1]
        if kind not in (b":", b"$"):
            raise _Broken
        value, place = _number(data, place)
        if kind == b":":
            elements.append(value)
            continue
        if value == -1:
            elements.append(None)
            continue
        if value < 0:
            raise _Broken
        if value > (LIMIT_BYTES if number == 2 else NAME_LIMIT):
            name = elements[1] if number == 2 else None
            if count != 3 or not isinstance(name, bytes) or not _is(elements[0], b"message"):
                raise _Broken
            if value > SKIP_LIMIT:
                raise _Broken
            raise _TooLarge(name, place + value + 2)
        text, place = _string(data, place, value)
        elements.append(text)
    return elements, place


def _meaning(elements: list[Element]) -> Reply:
    if len(elements) == 3 and isinstance(name := elements[1], bytes):
        payload = elements[2]
        is_ours = _is_ours(name)
        if _is(elements[0], b"message") and isinstance(payload, bytes):
            return (push.MESSAGE if is_ours else push.CONTROL), _bare(name), payload
        if _is(elements[0], b"subscribe") and isinstance(payload, int):
            return (push.SUBSCRIBED if is_ours else push.CONTROL), _bare(name), None
    if len(elements) == 3 and _is(elements[0], b"unsubscribe") and isinstance(elements[2], int):
        if not isinstance(elements[1], int):
            return push.UNSUBSCRIBED, _bare(elements[1] or b""), None
    if len(elements) == 2 and elements[0] == b"pong" and isinstance(elements[1], bytes):
        return push.PONG, _bare(elements[1]), None
    raise _Broken


def _is(element: Element, word: bytes) -> bool:
    return element in (word, b"s" + word)


def _is_ours(name: bytes) -> bool:
    """Whether a name is the name of a channel."""
    return len(name) > len(PREFIX) and name.startswith(PREFIX)


def _bare(name: bytes) -> bytes:
    return name[len(PREFIX) :] if _is_ours(name) else name


# --- the compiled reader ------------------------------------------------------------------------------


def read_compiled(parts: list[bytes]) -> tuple[list[Reply], bool]:
    """Return the result of the compiled reader for a stream in these parts, and whether it was broken."""
    reader = push.PushReader(PREFIX, LIMIT_BYTES)
    taken: list[Reply] = []
    try:
        for part in parts:
            reader.feed(part)
            while found := reader.take(1):
                taken += found
            assert reader.buffered <= 64 * 1024 + 2 * len(part)
    except push.PushError:
        return taken, True
    return taken, False


def read_into_backlog(parts: list[bytes]) -> tuple[list[Reply], list[tuple[bytes, bytes | None]], bool]:
    """Read with a backlog; return the other replies, the publications, and whether the stream was broken."""
    reader, backlog = push.PushReader(PREFIX, LIMIT_BYTES), Backlog(1 << 20)
    taken: list[Reply] = []
    is_broken = False
    try:
        for part in parts:
            reader.feed(part)
            while found := reader.take(1, backlog):
                taken += found
    except push.PushError:
        is_broken = True
    publications = []
    while (publication := backlog.take()) is not None:
        publications.append(publication)
    return taken, publications, is_broken


def check_pushes(dice: random.Random, stream: bytes) -> None:
    """Compare with the slow reader for every kind of cut: the same replies, and broken or not."""
    expected = read_slowly(stream)
    assert read_compiled([stream]) == expected
    assert read_compiled(pieces(dice, stream)) == expected
    replies, is_broken = expected
    publications = [(name, data) for kind, name, data in replies if kind in (push.MESSAGE, push.TOO_LARGE)]
    others = [reply for reply in replies if reply[0] not in (push.MESSAGE, push.TOO_LARGE)]
    assert read_into_backlog(pieces(dice, stream)) == (others, publications, is_broken)
    assert all(len(payload or b"") <= LIMIT_BYTES for _, _, payload in expected[0])


def seeds() -> list[bytes]:
    """Return the first examples: valid and broken streams."""
    return [wire for wire in (*(wire for wire, _ in CASES), *BROKEN) if len(wire) < LARGEST_EXAMPLE_BYTES]


class PushesTarget:
    """Streams of replies, built from the grammar with numbers at every bound, or mutated."""

    def __init__(self) -> None:
        self._examples = seeds()

    def run(self, dice: random.Random) -> bytes:
        """See `Target`."""
        if dice.random() < 0.5:
            stream = mutate(dice, self._examples)
        else:
            names = (PREFIX + b"n", PREFIX, b"other")
            stream = b"".join(hostile_reply(dice, names) for _ in range(dice.randrange(1, 4)))
            if dice.random() < 0.3:
                stream = mutate(dice, [stream])
        check_pushes(dice, stream)
        return stream

    def close(self) -> None:
        """Do nothing, because the target keeps nothing."""
