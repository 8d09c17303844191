"""Check stream positions: within an epoch no offset is read twice, and another epoch is another stream."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgate.client.positions import Position, Track, parse_position


def test_valid_position_is_parsed_into_epoch_and_offset() -> None:
    assert parse_position("Qz9-5") == Position("Qz9", 5)
    assert parse_position(f"a-{2**64}") == Position("a", 2**64)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "5",
        "-5",
        "Qz-",
        "Qz-x",
        "Q_z-5",
        "Qz-5 ",
        "Qz--5",
        "é-5",
        "Qz-\u0665",
        "Qz-5\n",
        "Qz-" + "1" * 21,
    ],
)
def test_malformed_position_is_parsed_as_none(text: str | None) -> None:
    assert parse_position(text) is None


def test_track_accepts_only_offsets_above_the_last_one() -> None:
    track = Track()
    assert [track.advance(each) for each in ("a-1", "a-2", "a-2", "a-1", "a-4", "a-3")] == [
        True,
        True,
        False,
        False,
        True,
        False,
    ]
    assert track.last == "a-4"


def test_track_starts_over_at_another_epoch_and_ignores_missing_positions() -> None:
    track = Track("a-9")
    assert track.advance(None)
    assert track.advance("nonsense")
    assert track.last == "a-9"
    assert not track.advance("a-9")
    assert track.advance("b-1")
    assert track.last == "b-1"
    track.restart("b-0")
    assert track.advance("b-1")
    track.restart(None)
    assert track.last is None
    assert track.advance("b-1")


@given(st.lists(st.integers(0, 30)))
def test_accepted_offsets_rise_in_any_order_of_arrival(offsets: list[int]) -> None:
    track = Track()
    read = [offset for offset in offsets if track.advance(f"e-{offset}")]
    assert read == sorted(set(read))
