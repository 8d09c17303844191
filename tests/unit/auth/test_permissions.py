"""Check permissions: the grammar of names and patterns, matching, and the sharing of equal sets."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgate.auth import NO_PERMISSIONS, Permissions, PermissionTable
from wsgate.auth.permissions import PermissionNumbers, is_channel_name, is_pattern

NAMES = ["a", "news", "chat:42", "a*b", "*", "a" * 200, "ü" * 100, "日本", "a@b", "a/b?c#d", "€"]
NOT_NAMES = [
    "",
    "@me",
    "@",
    "a b",
    "a\tb",
    "a\nb",
    "a\x00",
    "a\x1f",
    "a\x7f",
    "a\x85",
    "a\x9f",
    "a\xa0b",
    "a\u2028b",
    "a\u3000b",
    "a{b",
    "a}b",
    "a" * 201,
    "ü" * 101,
    "\ud800",
]


@pytest.mark.parametrize("name", NAMES)
def test_valid_channel_name_is_accepted(name: str) -> None:
    assert is_channel_name(name)


@pytest.mark.parametrize("name", NOT_NAMES)
def test_invalid_channel_name_is_refused_as_name_and_pattern(name: str) -> None:
    assert not is_channel_name(name)
    assert not is_pattern(name)
    for claims in ((name,), (), ()), ((), (name,), ()), ((), (), (name,)):
        with pytest.raises(ValueError, match="not a"):
            Permissions(*claims)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a*", True), ("*", True), ("a", True), ("a**", False), ("**", False), ("*a", False), ("a*b*", False)],
)
def test_a_pattern_has_its_only_star_at_its_end(text: str, *, expected: bool) -> None:
    assert is_pattern(text) is expected


def test_a_channel_to_subscribe_on_connect_has_no_star() -> None:
    with pytest.raises(ValueError, match="not a channel name"):
        Permissions(("a*",), (), ())


def test_patterns_match_names_and_prefixes() -> None:
    permissions = Permissions(("home",), ("news", "chat:*"), ("chat:42",))
    assert [permissions.may_subscribe(name) for name in ("news", "chat:", "chat:42")] == [True] * 3
    assert not any(permissions.may_subscribe(name) for name in ("news2", "new", "chat", "xchat:1", "home"))
    assert permissions.may_publish("chat:42")
    assert not any(permissions.may_publish(name) for name in ("chat:421", "chat:4", "news"))


def test_no_permissions_allow_nothing() -> None:
    assert not NO_PERMISSIONS.may_subscribe("news")
    assert not NO_PERMISSIONS.may_publish("news")
    assert NO_PERMISSIONS.channels == ()


@pytest.mark.parametrize("name", ["@me", "@42", "@"])
def test_star_pattern_matches_no_inbox(name: str) -> None:
    everything = Permissions((), ("*",), ("*",))
    assert everything.may_subscribe("news")
    assert everything.may_publish("news")
    assert not everything.may_subscribe(name)
    assert not everything.may_publish(name)


LETTERS = st.text("ab:", min_size=1, max_size=4)
PATTERNS = st.lists(st.builds(str.__add__, LETTERS, st.sampled_from(["", "*"])), max_size=5).map(tuple)


@given(PATTERNS, PATTERNS, LETTERS)
def test_matching_of_patterns_agrees_with_a_plain_model(
    subscribe: tuple[str, ...], publish: tuple[str, ...], name: str
) -> None:
    def matches(patterns: tuple[str, ...]) -> bool:
        return any(p == name or (p[-1] == "*" and name[: len(p) - 1] == p[:-1]) for p in patterns)

    permissions = Permissions((), subscribe, publish)
    assert permissions.may_subscribe(name) == matches(subscribe)
    assert permissions.may_publish(name) == matches(publish)


@given(st.text(max_size=210))
def test_validity_of_random_channel_names_agrees_with_a_plain_model(name: str) -> None:
    raw = name.encode("utf-8", "surrogatepass")
    odd = any(
        ch.isspace() or ch in "{}" or ord(ch) < 32 or 127 <= ord(ch) < 160 or 0xD800 <= ord(ch) < 0xE000
        for ch in name
    )
    assert is_channel_name(name) == (1 <= len(raw) <= 200 and not odd and not name.startswith("@"))


@given(PATTERNS, st.randoms(use_true_random=False))
def test_permission_sets_are_equal_in_any_order_and_with_repetitions(
    patterns: tuple[str, ...], random: Random
) -> None:
    again = [*patterns, *patterns]
    random.shuffle(again)
    table = PermissionTable()
    assert Permissions((), patterns, patterns) == Permissions((), tuple(again), tuple(again))
    first = table.hold(table.intern([], patterns, again))
    assert table.intern([], again, patterns) is first


def test_channels_keep_their_order_without_repetitions() -> None:
    assert Permissions(("b", "a", "b"), (), ()).channels == ("b", "a")
    assert PermissionTable().intern(["b", "a", "b"], [], []).channels == ("b", "a")


def test_equal_held_sets_are_one_object_and_empty_ones_the_constant() -> None:
    table = PermissionTable()
    first = table.hold(table.intern(["news"], ["chat:*"], ["chat:42"]))
    assert table.intern(["news"], ["chat:*"], ["chat:42"]) is first
    assert table.intern(["news"], ["chat:*"], []) is not first
    assert table.intern([], [], []) is NO_PERMISSIONS
    assert table.hold(NO_PERMISSIONS) is NO_PERMISSIONS
    assert len(table) == 1


def test_channels_subscribe_and_publish_patterns_are_kept_apart() -> None:
    table = PermissionTable()
    one, two, three = table.intern(["a"], [], []), table.intern([], ["a"], []), table.intern([], [], ["a"])
    assert (one.channels, two.subscribe, three.publish) == (("a",), ("a",), ("a",))
    assert (one.subscribe, two.publish, three.channels) == ((), (), ())


def test_memory_account_of_held_sets_returns_to_zero_after_all_releases() -> None:
    table = PermissionTable()
    sets = [
        table.hold(table.intern([f"room:{number}"], [f"p{each}:*" for each in range(256)], []))
        for number in range(20)
    ]
    total = table.bytes_held
    assert len(table) == 20 and 256 * 100 < total // 20 < 256 * 300
    for each in sets:
        assert table.hold(each) is each
    assert table.bytes_held == total
    for each in sets:
        table.release(each)
    assert table.bytes_held == total
    for each in sets:
        table.release(Permissions(each.channels, each.subscribe, each.publish))
    assert (len(table), table.bytes_held) == (0, 0)


def test_invalid_set_leaves_no_entry_in_the_table() -> None:
    table = PermissionTable()
    with pytest.raises(ValueError, match="not a pattern"):
        table.intern([], ["a b"], [])
    assert len(table) == 0


def test_a_set_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        NO_PERMISSIONS.subscribe = ("*",)  # type: ignore[misc]


def test_numbers_of_sets_are_shared_while_held_and_reused_after_release() -> None:
    table = PermissionTable()
    numbers = PermissionNumbers(table)
    one, two = Permissions((), ("a",), ()), Permissions((), ("b",), ())
    first = numbers.hold(one)
    assert numbers.hold(Permissions((), ("a",), ())) == first
    second = numbers.hold(two)
    assert second != first
    assert (numbers[first], numbers[second]) == (one, two)
    held = numbers.bytes_held
    numbers.release(first)
    assert (numbers[first], numbers.bytes_held) == (one, held)
    numbers.release(first)
    assert numbers.bytes_held < held
    assert len(numbers) == 1
    assert numbers.hold(Permissions((), ("c",), ())) == first
    numbers.release(first)
    numbers.release(second)
    assert (len(numbers), numbers.bytes_held, table.bytes_held) == (0, 0, 0)
