"""Check which connections are replaced or refused when a user has too many (A4)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgate.admission.users import LimitDecision, UserConnections

MINE = "00000000000000aa@me"


@pytest.mark.parametrize(
    ("members", "limit", "dead", "replaces", "verdict"),
    [
        (["1@a", "2@b", MINE], 2, set(), True, LimitDecision([], ["1@a"], is_refused=False)),
        (["1@a", "2@b", MINE], 2, set(), False, LimitDecision([], [], is_refused=True)),
        (["1@a", "2@b", MINE], 1, set(), True, LimitDecision([], ["1@a", "2@b"], is_refused=False)),
        # Connections of a dead shard are removed first, and then no other one.
        (["1@a", "2@b", MINE], 2, {"b"}, True, LimitDecision(["2@b"], [], is_refused=False)),
        (["1@a", "2@b", MINE], 2, {"b"}, False, LimitDecision(["2@b"], [], is_refused=False)),
        (["1@a", "2@b", MINE], 1, {"b"}, True, LimitDecision(["2@b"], ["1@a"], is_refused=False)),
        # A connection of the same shard is replaced like any other, but never the new one.
        (["0@me", MINE], 1, set(), True, LimitDecision([], ["0@me"], is_refused=False)),
        ([MINE, "1@a"], 1, set(), True, LimitDecision([], ["1@a"], is_refused=False)),
    ],
)
def test_limit_decision_lists_dead_replaced_and_refused_connections(
    members: list[str], limit: int, dead: set[str], replaces: bool, verdict: LimitDecision
) -> None:
    text = f"{len(members)} {' '.join(members)}".encode()
    crowd = UserConnections.from_bytes(text)
    assert crowd.owners() == {each.partition("@")[2] for each in members}
    assert crowd.judge(MINE, limit, dead, replaces=replaces) == verdict


@given(
    st.lists(st.tuples(st.integers(0, 99), st.sampled_from("abcd")), unique=True, max_size=20),
    st.integers(1, 10),
    st.sets(st.sampled_from("abcd")),
    st.booleans(),
)
def test_limit_decision_leaves_as_many_connections_as_the_limit_allows(
    others: list[tuple[int, str]], limit: int, dead: set[str], replaces: bool
) -> None:
    members = [f"{number:016x}@{owner}" for number, owner in others] + [MINE]
    verdict = UserConnections(len(members), members).judge(MINE, limit, dead, replaces=replaces)
    alive = [each for each in members if each.partition("@")[2] not in dead]
    left = set(alive) - set(verdict.replaced) - ({MINE} if verdict.is_refused else set())
    assert set(verdict.gone) == set(members) - set(alive)
    if replaces:
        assert not verdict.is_refused
        assert MINE in left
        assert len(left) == min(limit, len(alive))
    else:
        assert not verdict.replaced
        assert verdict.is_refused == (len(alive) > limit)


@pytest.mark.parametrize("text", [b"", b"x", b"x 1@a", b"\xff"])
def test_malformed_count_of_connections_raises_value_error(text: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        UserConnections.from_bytes(text)
