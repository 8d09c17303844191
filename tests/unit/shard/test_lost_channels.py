"""Check in which order lost channels are requested again, and when a round of requests ends."""

from wsgate.bus.subscriber import NAMES_PER_COMMAND
from wsgate.bus.subscriber import NAMES_PER_COMMAND as PART
from wsgate.shard.lost_channels import LostChannels


def take(lost: LostChannels) -> list[bytes]:
    return lost.take(lambda name: True)


def refuse(lost: LostChannels, names: list[bytes]) -> bool:
    """Refuse a part; return whether it ends the round."""
    for name in names:
        lost.refuse(name)
    return lost.end_part(())


def names_of(kind: bytes, count: int) -> list[bytes]:
    return [b"%b%d" % (kind, number) for number in range(count)]


def test_next_part_follows_when_the_last_one_is_answered() -> None:
    lost, names = LostChannels(), names_of(b"n", 2 * PART + 1)
    for name in names:
        lost.add(name)
    assert take(lost) == [], "no round has begun"
    lost.begin()
    for start in range(0, len(names), PART):
        assert lost.has_due
        part = take(lost)
        assert part == names[start : start + PART]
        assert not lost.end_part(set(part)) and take(lost) == [] and not lost.has_due
        for name in part:
            lost.on_confirmed(name)
        assert not lost.end_part(())
    assert len(lost) == 0 and not lost.has_due


def test_part_that_is_refused_ends_the_round_and_the_next_round_begins_with_the_others() -> None:
    lost, names = LostChannels(), names_of(b"n", PART + 10)
    for name in names:
        assert lost.refuse(name) == 1
    lost.begin()
    assert refuse(lost, take(lost)) and lost.is_refusing
    assert take(lost) == [] and not lost.has_due
    lost.begin()
    part = take(lost)
    assert part[:10] == names[PART:]
    lost.on_confirmed(part[0])
    assert lost.refuse(part[1]) == 2
    assert lost.refuse(part[-1]) == 3
    assert not lost.end_part(()) and not lost.is_refusing, "the server has confirmed one"
    assert take(lost) == names[PART - 10 : PART], "a channel is requested once in a round"


def test_channels_that_were_never_refused_come_first() -> None:
    lost = LostChannels()
    lost.refuse(b"refused")
    lost.add(b"ended")
    lost.begin()
    assert take(lost) == [b"ended", b"refused"]


def test_channel_without_a_connected_server_stays_and_ends_no_round() -> None:
    lost = LostChannels()
    names = names_of(b"n", 3 * PART)
    for name in names:
        lost.add(name)
    lost.begin()
    for _ in range(3):
        assert lost.has_due
        assert lost.take(lambda name: False) == []
    assert not lost.has_due and set(lost) == set(names)


def test_nothing_is_kept_of_channels_that_were_left_confirmed_or_cleared() -> None:
    lost = LostChannels()
    for name in names_of(b"n", 4):
        lost.refuse(name)
    lost.begin()
    take(lost)
    lost.refuse(b"n0")
    lost.on_confirmed(b"n1")
    lost.difference_update([b"n0"])
    lost.end_part(())
    assert not lost._refusals and not lost._part and len(lost) == 0
    lost.refuse(b"n0")
    lost.add(b"n0")
    assert list(lost) == [b"n0"]
    lost.clear()
    assert not lost._refusals and b"n0" not in lost and not lost.is_refusing


def test_channels_with_another_server_come_before_those_that_stay_refused() -> None:
    lost = LostChannels()
    stuck = [b"stuck%d" % number for number in range(3 * NAMES_PER_COMMAND)]
    for name in (*stuck, b"moved"):
        lost.refuse(name)
    lost.renew(lambda name: name == b"moved")
    lost.begin()
    assert lost.take(lambda name: True)[0] == b"moved"
    assert lost.refuse(b"moved") == 1, "the former server's refusals do not count"
