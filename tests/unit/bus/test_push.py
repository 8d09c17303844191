"""Check the bus reader: split replies read like whole ones, and lengths are checked before their use."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.resp import BOUNDS, NUMBERS, hostile_reply
from wsgate.bus import push
from wsgate.bus.push import PushError, PushReader

PREFIX = b"wsgate:ch:"
LIMIT = 1_000
PASS = 10_000


def bulk(data: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(data), data)


def message(name: bytes, payload: bytes) -> bytes:
    return b"*3\r\n" + bulk(b"message") + bulk(name) + bulk(payload)


def answer(word: bytes, name: bytes, count: int = 1) -> bytes:
    return b"*3\r\n" + bulk(word) + bulk(name) + b":%d\r\n" % count


CASES: list[tuple[bytes, tuple[int, bytes, bytes | None]]] = [
    (message(PREFIX + b"news", b'{"a":1}'), (push.MESSAGE, b"news", b'{"a":1}')),
    (message(PREFIX + b"news", b""), (push.MESSAGE, b"news", b"")),
    (message(PREFIX + b"a\r\nb *\x00{}", b"\r\n$5\r\n"), (push.MESSAGE, b"a\r\nb *\x00{}", b"\r\n$5\r\n")),
    (message(PREFIX + b"n", b"x" * LIMIT), (push.MESSAGE, b"n", b"x" * LIMIT)),
    (message(PREFIX + b"n", b"x" * (LIMIT + 1)), (push.TOO_LARGE, b"n", None)),
    (message(PREFIX + b"n", b"x" * 300_000), (push.TOO_LARGE, b"n", None)),
    (message(b"wsgate:probe:a:0", b"7"), (push.CONTROL, b"wsgate:probe:a:0", b"7")),
    (message(PREFIX, b"7"), (push.CONTROL, PREFIX, b"7")),
    (answer(b"subscribe", PREFIX + b"news"), (push.SUBSCRIBED, b"news", None)),
    (answer(b"subscribe", b"other"), (push.CONTROL, b"other", None)),
    (answer(b"unsubscribe", PREFIX + b"news", 0), (push.UNSUBSCRIBED, b"news", None)),
    (answer(b"ssubscribe", PREFIX + b"news"), (push.SUBSCRIBED, b"news", None)),
    (answer(b"ssubscribe", b"other"), (push.CONTROL, b"other", None)),
    (answer(b"sunsubscribe", PREFIX + b"news", 0), (push.UNSUBSCRIBED, b"news", None)),
    (b"*3\r\n$11\r\nunsubscribe\r\n$-1\r\n:0\r\n", (push.UNSUBSCRIBED, b"", None)),
    (b"*2\r\n" + bulk(b"pong") + bulk(b""), (push.PONG, b"", None)),
    (b"+OK\r\n", (push.REPLY, b"OK", None)),
    (b"-NOAUTH Authentication required.\r\n", (push.ERROR, b"NOAUTH Authentication required.", None)),
    (b":12\r\n", (push.REPLY, b"12", None)),
    (bulk(b"PONG"), (push.REPLY, b"PONG", None)),
    (bulk(b"x" * push.REPLY_LIMIT_BYTES), (push.REPLY, b"x" * push.REPLY_LIMIT_BYTES, None)),
    (b"$-1\r\n", (push.REPLY, b"", None)),
]
BROKEN = [
    b"*1000000000\r\n",
    b"*99999999999999999999\r\n",
    b"*0\r\n",
    b"*-1\r\n",
    b"*5\r\n",
    b"*\r\n",
    b"*3x",
    b"*3\n",
    b"%2\r\n",
    b">3\r\n",
    b"GET / HTTP/1.1\r\n",
    b"\x00",
    b"$2000000\r\n",
    b"*3\r\n$7\r\nmessage\r\n$99999999\r\n",
    b"*3\r\n$7\r\nmessage\r\n$-2\r\n",
    b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$536870913\r\n",
    b"*3\r\n$9\r\nsubscribe\r\n$-1\r\n:1\r\n",
    b"$2\r\nOKxx",
    b"*3\r\n*3\r\n",
    b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$-1\r\n",
    b"*3\r\n$7\r\nmessage\r\n:5\r\n$1\r\na\r\n",
    b"*3\r\n$7\r\nmessagX\r\n$1\r\na\r\n$1\r\na\r\n",
    b"*3\r\n$7\r\nmessage\r\n$1\r\nab\r\n",
    b"*4\r\n$8\r\npmessage\r\n$1\r\n*\r\n$1\r\na\r\n$1\r\na\r\n",
    b"*1\r\n$-1\r\n",
    b"*3\r\n:5\r\n$1\r\nx\r\n$2000\r\n",
    b"*3\r\n$-1\r\n$1\r\nx\r\n$2000\r\n",
    b"*3\r\n$7\r\nmessage\r\n:99\r\n$2000\r\n",
    b"*3\r\n$7\r\nmessage\r\n:5\r\n$2000\r\n",
    b"*3\r\n$7\r\nmessage\r\n:-5\r\n$2000\r\n",
    b"*3\r\n$7\r\nmessage\r\n$-1\r\n$2000\r\n",
    b"*3\r\n$9\r\nsubscribe\r\n:1\r\n:1\r\n",
    b"*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n$1\r\n1\r\n",
    b"*3\r\n$11\r\nunsubscribe\r\n:1\r\n:1\r\n",
    b"*3\r\n$11\r\nunsubscribe\r\n$-1\r\n$-1\r\n",
    b"*2\r\n$4\r\npong\r\n:1\r\n",
    b"*2\r\n$4\r\npong\r\n$-1\r\n",
    b":abc\r\n",
    b":\r\n",
    b":1.5\r\n",
    b"$16385\r\n",
    b"+" + b"x" * 2_000,
    b"+OK\rx",
    b":" + b"1" * 30 + b"\r" * 2_000,
]


@pytest.mark.parametrize(("wire", "expected"), CASES)
def test_each_whole_reply_is_read_as_its_expected_kind(
    wire: bytes, expected: tuple[int, bytes, bytes | None]
) -> None:
    reader = PushReader(PREFIX, LIMIT)
    reader.feed(wire)
    assert reader.take(PASS) == [expected]
    assert reader.take(PASS) == []


@pytest.mark.parametrize(("wire", "expected"), [case for case in CASES if len(case[0]) < 2_000])
def test_each_reply_split_at_every_byte_is_read_as_when_whole(
    wire: bytes, expected: tuple[int, bytes, bytes | None]
) -> None:
    for cut in range(1, len(wire)):
        reader = PushReader(PREFIX, LIMIT)
        taken = []
        for part in (wire[:cut], wire[cut:]):
            reader.feed(part)
            taken += reader.take(PASS)
        assert taken == [expected]


@pytest.mark.parametrize("wire", BROKEN)
def test_reply_invalid_for_a_subscriber_raises_push_error_within_bounded_memory_s26(wire: bytes) -> None:
    for size in (1, len(wire)):
        reader = PushReader(PREFIX, LIMIT)
        with pytest.raises(PushError):
            for start in range(0, len(wire), size):
                reader.feed(wire[start : start + size])
                reader.take(PASS)
        assert reader.buffered < 100_000


@given(
    order=st.lists(st.sampled_from(CASES), max_size=20),
    cuts=st.lists(st.integers(1, 2_000), max_size=40),
    most=st.integers(1, 5),
)
def test_stream_of_replies_in_random_pieces_is_read_as_when_whole(
    order: list[tuple[bytes, tuple[int, bytes, bytes | None]]], cuts: list[int], most: int
) -> None:
    wire = b"".join(each for each, _ in order)
    reader = PushReader(PREFIX, LIMIT)
    taken: list[tuple[int, bytes, bytes | None]] = []
    place = 0
    for size in (*cuts, len(wire)):
        reader.feed(wire[place : place + size])
        place += size
        while part := reader.take(most):
            assert len(part) <= most
            taken += part
    assert taken == [expected for _, expected in order]


@given(st.binary(max_size=300))
def test_random_bytes_are_read_as_replies_or_raise_push_error(wire: bytes) -> None:
    reader = PushReader(PREFIX, LIMIT)
    reader.feed(wire)
    try:
        for kind, name, payload in reader.take(PASS):
            assert 1 <= kind <= 8
            assert type(name) is bytes and type(payload) in (bytes, type(None))
    except PushError:
        pass


def read_all(wire: bytes, cuts: list[int]) -> tuple[list[tuple[int, bytes, bytes | None]], bool]:
    """Return the replies of a stream that arrives in pieces, and whether the stream broke."""
    reader = PushReader(PREFIX, LIMIT)
    taken: list[tuple[int, bytes, bytes | None]] = []
    try:
        for start, end in itertools.pairwise((0, *cuts, len(wire))):
            reader.feed(wire[start:end])
            taken += reader.take(PASS)
    except PushError:
        return taken, True
    return taken, False


ELEMENTS = [
    *(b":%d\r\n" % number for number in NUMBERS),
    *(b"$%d\r\n" % number for number in NUMBERS),
    *(bulk(b"x" * size) for size in BOUNDS if 0 <= size <= 4_096),
    *(b"$-1\r\n", b"*-1\r\n", b"*1\r\n:1\r\n", b"+OK\r\n", b"$\r\n", b":\r\n", b""),
]


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("word", [b"message", b"smessage", b"subscribe", b"unsubscribe", b"pong"])
def test_odd_element_at_each_place_of_an_array_is_read_or_breaks_the_stream(word: bytes, place: int) -> None:
    texts = {word, b"x", PREFIX + b"n", b""}
    for element, third in itertools.product(ELEMENTS, (bulk(b"x"), b":1\r\n", b"$-1\r\n", b"$2000\r\n")):
        parts = [bulk(word), bulk(PREFIX + b"n"), third]
        parts[place] = element
        wire = b"*3\r\n" + b"".join(parts)
        taken, is_broken = read_all(wire, [])
        for kind, name, payload in taken:
            # A name or payload is one that was sent as a string: never a number, never foreign memory.
            assert kind in (push.MESSAGE, push.CONTROL, push.SUBSCRIBED, push.UNSUBSCRIBED, push.TOO_LARGE)
            assert name in texts or name == b"n" or not name.strip(b"x")
            assert payload is None or not payload.strip(b"x")
        assert read_all(wire, list(range(1, min(len(wire), 60)))) == (taken, is_broken)


@pytest.mark.parametrize("seed", range(20))
def test_generated_hostile_replies_are_read_or_break_the_stream(seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(1_000):
        wire = b"".join(hostile_reply(dice, (PREFIX + b"n", b"other")) for _ in range(dice.choice((1, 1, 3))))
        whole = read_all(wire, [])
        cuts = sorted(dice.randrange(len(wire) + 1) for _ in range(4))
        assert read_all(wire, cuts)[1] == whole[1]
        for kind, name, payload in whole[0]:
            assert 1 <= kind <= 8
            assert type(name) is bytes and type(payload) in (bytes, type(None))


def test_oversized_payload_is_not_buffered_and_the_next_message_is_read() -> None:
    reader = PushReader(PREFIX, LIMIT)
    head = b"*3\r\n" + bulk(b"message") + bulk(PREFIX + b"n") + b"$50000000\r\n"
    reader.feed(head)
    assert reader.take(PASS) == [(push.TOO_LARGE, b"n", None)]
    for _ in range(50):
        reader.feed(b"x" * 1_000_000)
        assert reader.take(PASS) == []
        assert reader.buffered < 2_000_000
    reader.feed(b"\r\n" + message(PREFIX + b"n", b"good"))
    assert reader.take(PASS) == [(push.MESSAGE, b"n", b"good")]


def test_buffer_of_one_large_message_is_freed_after_reading() -> None:
    reader = PushReader(PREFIX, 10_000_000)
    reader.feed(message(PREFIX + b"n", b"x" * 5_000_000))
    assert len(reader.take(PASS)) == 1
    assert reader.buffered == 0
