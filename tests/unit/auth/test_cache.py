"""Check the cache of verified tokens: no entry past its expiry (S20), a bounded number, and small entries."""

import sys
import tracemalloc
from collections import Counter

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wsgate.auth import NO_PERMISSIONS, Identity, Permissions, PermissionTable, TokenCache
from wsgate.auth.cache import _FIELDS, AGE_LIMIT_S
from wsgate.auth.permissions import _size_bytes
from wsgate.auth.tokens import EXPIRY_LIMIT_S, TOKEN_LIMIT_BYTES
from wsgate.errors import SettingsError

NOW = 1_800_000_000.5
SOME = Permissions(("news",), ("chat:*",), ())


def identity(user: str = "42", expires_at_s: int = 0, permissions: Permissions = SOME) -> Identity:
    return Identity(user, permissions, expires_at_s)


def test_cached_identity_is_returned_with_shared_permissions() -> None:
    cache = TokenCache(10)
    cache.put("token", identity("日本", 1_800_000_600), NOW)
    found = cache.get("token", NOW)
    assert found == identity("日本", 1_800_000_600)
    assert found is not None
    assert found.permissions is SOME
    assert cache.get("token2", NOW) is None
    assert cache.get("", NOW) is None


def test_text_and_bytes_of_a_token_share_one_entry() -> None:
    cache = TokenCache(10)
    cache.put("token", identity("1"), NOW)
    assert cache.get(b"token", NOW) == identity("1")
    cache.put(b"token", identity("2"), NOW)
    assert cache.get("token", NOW) == identity("2")
    assert len(cache) == 1


def test_s20_no_entry_is_returned_past_its_expiry() -> None:
    cache = TokenCache(10)
    cache.put("token", identity(expires_at_s=1_800_000_010), NOW)
    assert cache.get("token", 1_800_000_009.999) is not None
    assert cache.get("token", 1_800_000_010) is None
    assert cache.get("token", 1_800_000_011) is None


def test_s20_token_cached_after_its_expiry_is_not_returned() -> None:
    cache = TokenCache(10)
    cache.put("token", identity(expires_at_s=1_800_000_000), NOW)
    assert cache.get("token", NOW) is None


def test_s20_no_entry_is_returned_after_the_age_limit() -> None:
    cache = TokenCache(10)
    cache.put("token", identity(), NOW)
    assert cache.get("token", int(NOW) + AGE_LIMIT_S - 0.001) is not None
    assert cache.get("token", int(NOW) + AGE_LIMIT_S) is None


def test_s20_hit_does_not_extend_an_entry_but_a_new_put_does() -> None:
    cache = TokenCache(10)
    cache.put("token", identity(), NOW)
    assert cache.get("token", NOW + 200) is not None
    assert cache.get("token", NOW + 301) is None
    cache.put("token", identity(), NOW + 302)
    assert cache.get("token", NOW + 500) is not None
    assert len(cache) == 1


def test_entry_from_the_future_is_not_returned() -> None:
    cache = TokenCache(10)
    cache.put("token", identity(), NOW)
    assert cache.get("token", NOW - 3600) is None


def test_second_put_of_a_token_replaces_its_identity() -> None:
    cache = TokenCache(10)
    cache.put("token", identity("1", 1_800_000_100), NOW)
    cache.put("token", identity("1", 1_800_000_200, NO_PERMISSIONS), NOW + 1)
    assert cache.get("token", NOW + 1) == identity("1", 1_800_000_200, NO_PERMISSIONS)
    assert len(cache) == 1


@pytest.mark.parametrize("limit", [1, 2, 7, 8, 9, 100])
def test_cache_never_exceeds_its_limit_and_keeps_the_newest_entry(limit: int) -> None:
    cache = TokenCache(limit)
    for number in range(limit * 5 + 20):
        cache.put(f"token{number}", identity(str(number)), NOW)
        assert len(cache) == min(number + 1, limit)
        assert cache.get(f"token{number}", NOW) == identity(str(number))


def test_entry_in_an_empty_bucket_evicts_one_of_a_full_bucket_at_the_limit() -> None:
    cache = TokenCache(9)  # one more than a bucket is meant to hold, so there are two
    tokens: tuple[list[str], list[str]] = ([], [])
    for number in range(200):
        tokens[cache._digest(f"token{number}")[0] & 1].append(f"token{number}")
    for token in (*tokens[0][:9], tokens[1][0]):
        cache.put(token, identity(), NOW)
    assert len(cache) == 9
    assert cache.get(tokens[0][0], NOW) is None
    assert cache.get(tokens[1][0], NOW) == identity()


def test_full_cache_has_evicted_mostly_the_oldest_entries() -> None:
    cache = TokenCache(1000)
    for number in range(3000):
        cache.put(f"token{number}", identity(), NOW)
    kept = [number for number in range(3000) if cache.get(f"token{number}", NOW)]
    assert len(kept) == 1000
    # In a strict order all of 2000..2999; with buckets of eight, about three in four.
    assert sum(number >= 2000 for number in kept) > 600
    assert sum(number < 1000 for number in kept) < 150


def test_cache_with_limit_zero_keeps_no_entry() -> None:
    cache = TokenCache(0)
    cache.put("token", identity(), NOW)
    assert cache.get("token", NOW) is None
    assert len(cache) == 0


def test_a_negative_limit_is_refused() -> None:
    with pytest.raises(SettingsError, match="token_cache"):
        TokenCache(-1)


def test_every_entry_is_found_while_the_number_of_buckets_grows() -> None:
    cache = TokenCache(5000)
    for number in range(2000):
        cache.put(f"token{number}", identity(f"user{number}", 1_900_000_000 + number), NOW)
        if number % 97 == 0 or number < 70:
            for each in range(number + 1):
                assert cache.get(f"token{each}", NOW) == identity(f"user{each}", 1_900_000_000 + each)
    assert cache.get("token2000", NOW) is None


def test_identity_or_token_too_large_for_a_record_is_not_cached() -> None:
    cache = TokenCache(10)
    cache.put("token", identity("x" * 256), NOW)
    cache.put("token", identity(expires_at_s=EXPIRY_LIMIT_S + 1), NOW)
    cache.put("token", identity(expires_at_s=-1), NOW)
    cache.put("token", identity(), 2.0**32)
    cache.put("token", identity(), -1.0)
    cache.put("t" * (TOKEN_LIMIT_BYTES + 1), identity(), NOW)
    assert len(cache) == 0


def test_text_longer_than_a_token_is_not_hashed(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = TokenCache(10)
    monkeypatch.delattr(TokenCache, "_digest")
    assert cache.get("t" * (TOKEN_LIMIT_BYTES + 1), NOW) is None


def test_largest_and_empty_identities_that_fit_a_record_are_cached() -> None:
    cache = TokenCache(10)
    largest = identity("x" * 255, EXPIRY_LIMIT_S)
    cache.put("t" * TOKEN_LIMIT_BYTES, largest, NOW)
    cache.put("empty", identity(""), NOW)
    assert cache.get("t" * TOKEN_LIMIT_BYTES, NOW) == largest
    assert cache.get("empty", NOW) == identity("")


@pytest.mark.parametrize("issued_at_s", [0, 100, 100.2, 1_900_000_000.999_999])
def test_time_of_issue_is_cached_with_its_fraction(issued_at_s: float) -> None:
    cache, issued = TokenCache(10), Identity("ann", NO_PERMISSIONS, 0, issued_at_s)
    cache.put("token", issued, NOW)
    assert cache.get("token", NOW) == issued


@given(st.one_of(st.text(), st.binary()))
@example("\ud800")
def test_any_text_or_bytes_can_be_cached_and_found(token: str | bytes) -> None:
    cache = TokenCache(4)
    assert cache.get(token, NOW) is None
    cache.put(token, identity(), NOW)
    assert cache.get(token, NOW) == identity()


def test_user_name_that_looks_like_records_creates_no_entry() -> None:
    cache = TokenCache(10)
    cache.put("token1", identity("a" * 100), NOW)
    cache.put("token2", identity("b" * 29 + "\x00" * 40), NOW)
    assert cache.get("token1", NOW) == identity("a" * 100)
    assert cache.get("token2", NOW) == identity("b" * 29 + "\x00" * 40)


def test_two_caches_have_different_digests_of_one_token() -> None:
    one, two = TokenCache(10), TokenCache(10)
    assert one._digest("token") != two._digest("token")
    assert one._digest("token") == one._digest(b"token")


def sweep_all(cache: TokenCache, now_s: float) -> None:
    for _ in range(200):
        cache.sweep(now_s, 64)


def test_sweep_frees_exactly_the_entries_above_the_age_limit() -> None:
    cache = TokenCache(10_000)
    empty = cache.bytes_estimate()
    for number in range(1000):
        cache.put(f"old{number}", identity(), NOW)
    for number in range(1000):
        cache.put(f"new{number}", identity(), NOW + 200)
    sweep_all(cache, NOW + 299)
    assert len(cache) == 2000
    sweep_all(cache, NOW + 301)
    assert len(cache) == 1000
    assert all(cache.get(f"new{number}", NOW + 301) for number in range(1000))
    sweep_all(cache, NOW + 501)
    assert len(cache) == 0
    assert cache.bytes_estimate() == empty
    cache.put("token", identity(), NOW + 502)
    assert cache.get("token", NOW + 502) == identity()


def test_sweep_frees_all_entries_after_the_clock_was_set_back() -> None:
    """Entries from before the step stand in front of younger ones in their bucket."""
    cache = TokenCache(10_000)
    empty = cache.bytes_estimate()
    for number in range(500):
        cache.put(f"early{number}", identity(), NOW)
    back_s = NOW - 86_400
    for number in range(500):
        cache.put(f"late{number}", identity(), back_s)
    assert all(cache.get(f"late{number}", back_s) for number in range(500))
    assert not any(cache.get(f"early{number}", back_s) for number in range(500))
    sweep_all(cache, back_s)
    assert len(cache) == 500
    sweep_all(cache, back_s + 301)
    assert len(cache) == 0
    assert cache.bytes_estimate() == empty


def test_token_cached_after_a_step_of_the_clock_is_returned() -> None:
    cache = TokenCache(10)
    cache.put("token", identity(expires_at_s=int(NOW) + 600), NOW)
    for step_s in (-1, -100, -86_400, 86_400, 200):
        now_s = NOW + step_s
        cache.get("token", now_s)
        fresh = identity(expires_at_s=int(now_s) + 600)
        cache.put("token", fresh, now_s)
        assert cache.get("token", now_s) == fresh
        assert cache.get("token", now_s + 299) == fresh
        assert cache.get("token", now_s + 301) is None
        assert len(cache) == 1


def test_no_entry_is_returned_past_its_expiry_after_steps_of_the_clock() -> None:
    cache = TokenCache(10)
    cache.put("token", identity(expires_at_s=int(NOW) + 60), NOW)
    for step_s in (0, -50, 59, -3600, 60, 61, 299, 3600, -86_400, 86_400):
        found = cache.get("token", NOW + step_s)
        assert (found is not None) is (0 <= step_s < 59.5)


def test_sweep_visits_at_most_the_given_number_of_buckets() -> None:
    cache = TokenCache(10_000)
    for number in range(2000):
        cache.put(f"token{number}", identity(), NOW)
    cache.sweep(NOW + 400, 1)
    assert 1900 < len(cache) < 2000


def test_new_entry_in_a_full_cache_evicts_entries_above_the_age_limit() -> None:
    cache = TokenCache(8)
    for number in range(8):
        cache.put(f"old{number}", identity(), NOW)
    cache.put("new", identity(), NOW + 400)
    assert len(cache) < 8
    assert cache.get("new", NOW + 400) == identity()


def recomputed(cache: TokenCache) -> tuple[int, int]:
    """Return entries and bytes summed over the buckets; check the number of holders of each set."""
    entries, held, holders = 0, 0, Counter[int]()
    for place, bucket in enumerate(cache._buckets):
        at = 0
        while at < len(bucket):
            _, _, _, number, length = _FIELDS.unpack_from(bucket, at + 16)
            assert cache._place(bucket[at : at + 16]) == place
            holders[number] += 1
            entries += 1
            held += 16 + _FIELDS.size + length
            at += 16 + _FIELDS.size + length
        assert at == len(bucket)
    numbers = cache._numbers
    assert dict(holders) == {number: numbers._holders[number] for number in numbers._numbers.values()}
    sets = sum(_size_bytes(numbers[number]) for number in holders)
    assert numbers.bytes_held == sets
    return entries, held + 49 * len(cache._buckets) + sets


ACCOUNT_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "put", "put", "sweep", "shrink", "get"]),
        st.integers(0, 60),  # which token
        st.sampled_from([0, 1, 10, 127, 128, 254, 255, 256]),  # bytes of the user's name
        st.integers(-400, 400),  # how far the clock moves before
    ),
    max_size=120,
)


@settings(max_examples=200)
@given(ACCOUNT_STEPS, st.sampled_from([1, 7, 8, 9, 1000]))
def test_memory_account_of_the_cache_is_exact_after_random_operations(
    steps: list[tuple[str, int, int, int]], limit: int
) -> None:
    cache, now_s = TokenCache(limit), int(NOW)
    for step, token, size, passed_s in steps:
        now_s += passed_s
        if step == "put":
            own = Permissions((f"room:{token % 5}",), ("chat:*",) * (token % 2), ())
            cache.put(f"token{token}", identity("u" * size, now_s + 500, own), now_s)
        elif step == "get":
            cache.get(f"token{token}", now_s)
        elif step == "sweep":
            cache.sweep(now_s, token)
        else:
            before = cache.bytes_estimate()
            assert cache.shrink(size * 4, now_s) == before - cache.bytes_estimate()
            assert before - cache.bytes_estimate() >= size * 4 or len(cache) == 0
        assert (len(cache), cache.bytes_estimate()) == recomputed(cache)


def test_cache_keeps_entries_again_after_it_was_emptied() -> None:
    cache = TokenCache(1000)
    for number in range(500):
        cache.put(f"token{number}", identity(permissions=Permissions((f"r:{number}",), (), ())), NOW)
    held = cache.bytes_estimate()
    assert cache.shrink(held, NOW) > 0.99 * held
    assert cache.get("token1", NOW) is None
    for number in range(500):
        cache.put(f"token{number}", identity(str(number)), NOW)
    assert all(cache.get(f"token{number}", NOW) == identity(str(number)) for number in range(500))


def test_shrink_evicts_the_oldest_entries_first_and_only_as_many_as_wanted() -> None:
    cache = TokenCache(1000)
    for number in range(400):
        cache.put(f"token{number}", identity(), NOW + number // 2)
    held = cache.bytes_estimate()
    freed = cache.shrink(held // 4, NOW + 200)
    assert held // 4 <= freed < held // 2
    kept = [number for number in range(400) if cache.get(f"token{number}", NOW + 200) is not None]
    assert len(kept) == len(cache) > 200
    assert not set(range(98)) & set(kept), "entries older than half of the age limit are evicted first"
    assert set(range(252, 400)) <= set(kept), "entries younger than a quarter of the age limit stay"


def test_cache_stays_within_its_byte_limit_and_keeps_the_newest_entry() -> None:
    cache = TokenCache(1000, limit_bytes=20_000)
    for number in range(300):
        patterns = tuple(f"room:{number}:{each}" for each in range(20))
        cache.put(f"token{number}", identity(permissions=Permissions((), patterns, ())), NOW)
        assert cache.bytes_estimate() <= 20_000
        assert cache.get(f"token{number}", NOW) is not None
    assert len(cache) > 3


def test_cache_and_connections_share_one_table_of_permission_sets() -> None:
    table = PermissionTable()
    cache = TokenCache(1000, table)
    own = table.hold(Permissions((), ("chat:*",), ()))
    one = table.bytes_held
    cache.put("token", identity(permissions=Permissions((), ("chat:*",), ())), NOW)
    found = cache.get("token", NOW)
    assert found is not None and found.permissions is own
    assert table.bytes_held == one
    table.release(own)
    assert table.bytes_held == one
    cache.clear()
    assert (len(table), table.bytes_held) == (0, 0)


def test_permission_set_is_freed_with_its_last_cache_entry() -> None:
    cache = TokenCache(8)
    empty = cache.bytes_estimate()
    for number in range(100):
        cache.put(f"token{number}", identity(permissions=Permissions((f"room:{number}",), (), ())), NOW)
    assert len(cache._numbers) == 8
    found = cache.get("token99", NOW)
    assert found is not None
    assert found.permissions.channels == ("room:99",)
    sweep_all(cache, NOW + 400)
    assert len(cache._numbers) == 0
    assert cache.bytes_estimate() == empty


def test_entries_own_no_python_objects_and_the_byte_estimate_is_close() -> None:
    entries = 4000
    tracemalloc.start()
    try:
        cache = TokenCache(entries)
        blocks, (held, _) = sys.getallocatedblocks(), tracemalloc.get_traced_memory()
        for number in range(entries):
            cache.put(b"%d" % number, Identity(f"user{number:06}", SOME, 1_900_000_000 + number), NOW)
        blocks = sys.getallocatedblocks() - blocks
        held = tracemalloc.get_traced_memory()[0] - held
    finally:
        tracemalloc.stop()
    assert len(cache) == entries
    assert blocks < entries * 0.5
    assert held < entries * 64
    assert 0.8 * held < cache.bytes_estimate() < 1.25 * held


@pytest.mark.parametrize("patterns", [1, 5, 40])
def test_byte_estimate_includes_permission_sets_of_single_entries(patterns: int) -> None:
    tracemalloc.start()
    try:
        cache = TokenCache(1000)
        held = tracemalloc.get_traced_memory()[0]
        for number in range(400):
            own = Permissions((), tuple(f"room:{number}:{each}:*" for each in range(patterns)), ())
            cache.put(b"%d" % number, identity(permissions=own), NOW)
        held = tracemalloc.get_traced_memory()[0] - held
    finally:
        tracemalloc.stop()
    assert 0.6 * held < cache.bytes_estimate() < 2 * held


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["put", "get", "sweep"]),
        st.integers(0, 30),  # which token
        st.integers(0, 400),  # when it expires from now on; 0: never
        st.integers(-5, 120),  # how far the clock moves before
    ),
    max_size=80,
)


@settings(max_examples=150)
@given(STEPS, st.sampled_from([3, 1000]))
def test_s20_cache_agrees_with_a_plain_model_after_random_steps(
    steps: list[tuple[str, int, int, int]], limit: int
) -> None:
    cache, model, now_s = TokenCache(limit), dict[int, tuple[int, Identity]](), int(NOW)
    for step, token, lifetime_s, passed_s in steps:
        now_s += passed_s
        if step == "put":
            expires_at_s = now_s + lifetime_s if lifetime_s else 0
            who = identity(f"user{token}", expires_at_s, Permissions((f"room:{token % 3}",), (), ()))
            cache.put(f"token{token}", who, now_s)
            model[token] = (now_s, who)
        elif step == "sweep":
            cache.sweep(now_s, token)
        put_s, expected = model.get(token, (0, None))
        if expected and not (put_s <= now_s < put_s + 300 and not 0 < expected.expires_at_s <= now_s):
            expected = None
        found = cache.get(f"token{token}", now_s)
        assert found == expected or (found is None and limit == 3)
        assert len(cache) <= min(limit, len(model))
