"""Check leases of the message rate of a user: no wait for the first messages, and no lasting excess."""

import itertools
import random

import pytest

from wsgate.admission.rates import FORGET_S, Grant, UserRates


class Bucket:
    """Grant like the script on the bus, with a clock of its own; replies come later or never."""

    def __init__(self, rate_per_s: int) -> None:
        self.now_s = 100.0
        self.cost_s = 1 / rate_per_s
        self.full_s: dict[str, float] = {}
        self.asked: list[tuple[str, int, int, Grant]] = []
        self.calls = 0
        self.is_away = False

    def ask(self, user: str, want: int, debt: int, grant: Grant) -> None:
        self.calls += 1
        self.asked.append((user, want, debt, grant))

    def clock(self) -> float:
        return self.now_s

    def answer(self) -> None:
        asked, self.asked = self.asked, []
        for user, want, debt, grant in asked:
            if self.is_away:
                grant(want, 0)
                continue
            depth_s = max(1.0, self.cost_s)
            full_s = max(self.now_s, self.full_s.get(user, 0.0)) + debt * self.cost_s
            granted = max(0, min(want, int((self.now_s + depth_s - full_s) / self.cost_s + 1e-6)))
            self.full_s[user] = full_s = full_s + granted * self.cost_s
            wait_s = 0.0 if granted else full_s + self.cost_s - self.now_s - depth_s
            grant(granted, int(wait_s * 1000) + 1 if not granted else 0)


@pytest.mark.parametrize("shards", [1, 2, 5])
@pytest.mark.parametrize("rate", [1, 3, 20, 1_000])
def test_flooding_user_gets_exactly_the_rate_over_several_shards(rate: int, shards: int) -> None:
    bucket = Bucket(rate)
    held = [UserRates(rate, bucket.ask, bucket.clock) for _ in range(shards)]
    passed, seconds = 0, 20
    chance = random.Random(rate * shards)
    steps = 200
    for _ in range(seconds * steps):
        bucket.now_s += 1 / steps
        for _ in range(max(1, 3 * rate // steps)):
            passed += held[chance.randrange(shards)].take("u", bucket.now_s) == 0
        bucket.answer()
    # One second of the rate at once, then the rate, and an eighth of a second in advance on each shard.
    ahead = shards * max(1, rate // 8)
    assert passed <= rate * (seconds + 1) + ahead + 1
    assert passed >= 0.9 * rate * seconds


def test_user_below_the_rate_never_waits() -> None:
    bucket = Bucket(50)
    rates = UserRates(50, bucket.ask, bucket.clock)
    for _ in range(2_000):
        bucket.now_s += 1 / 45
        assert rates.take("u", bucket.now_s) == 0
        bucket.answer()


def test_flood_of_one_user_does_not_delay_another_user() -> None:
    bucket = Bucket(8)
    rates = UserRates(8, bucket.ask, bucket.clock)
    for _ in range(100):
        rates.take("flooding", bucket.now_s)
        bucket.answer()
    assert rates.take("flooding", bucket.now_s) > 0
    assert [rates.take("quiet", bucket.now_s) for _ in range(1)] == [0]


def test_leases_keep_requests_to_the_bus_rare() -> None:
    bucket = Bucket(8_000)
    rates = UserRates(8_000, bucket.ask, bucket.clock)
    for _ in range(4_000):
        bucket.now_s += 1 / 4_000
        assert rates.take("u", bucket.now_s) == 0
        bucket.answer()
    assert bucket.calls <= 20


def test_unanswered_lease_request_is_repeated_after_a_timeout() -> None:
    bucket = Bucket(80)
    rates = UserRates(80, bucket.ask, bucket.clock)
    # The message that requests the lease, and an eighth of a second on credit.
    assert [rates.take("u", bucket.now_s) for _ in range(20)].count(0) == 11
    assert len(bucket.asked) == 1
    bucket.now_s += 1.5
    assert rates.take("u", bucket.now_s) > 0
    assert len(bucket.asked) == 2, "requested again"
    bucket.answer()
    assert rates.take("u", bucket.now_s) == 0


def test_message_is_accepted_after_the_returned_wait() -> None:
    bucket = Bucket(2)
    rates = UserRates(2, bucket.ask, bucket.clock)
    for _ in range(50):
        wait_ms = rates.take("u", bucket.now_s)
        bucket.answer()
        if wait_ms > 100:  # from the bus, and not because its reply is missing
            bucket.now_s += wait_ms / 1000
            assert rates.take("u", bucket.now_s) == 0
            bucket.answer()


def test_rates_of_idle_users_are_freed() -> None:
    bucket = Bucket(10)
    rates = UserRates(10, bucket.ask, bucket.clock)
    for number in itertools.count():
        bucket.now_s += 0.01
        rates.take(f"u{number}", bucket.now_s)
        bucket.answer()
        assert rates.users <= 2 * FORGET_S / 0.01 + 2
        if bucket.now_s > 150:
            break
    assert number > 4_000


def test_messages_are_accepted_while_the_bus_is_down() -> None:
    bucket = Bucket(10)
    bucket.is_away = True
    rates = UserRates(10, bucket.ask, bucket.clock)
    for _ in range(500):
        assert rates.take("u", bucket.now_s) == 0
        bucket.answer()


@pytest.mark.parametrize("rate", [1, 2, 3, 8, 9, 10, 11, 16, 50, 79, 80, 81, 1_000])
def test_a_small_burst_passes_before_the_bus_has_answered(rate: int) -> None:
    bucket = Bucket(rate)
    rates = UserRates(rate, bucket.ask, bucket.clock)
    passed = [rates.take("u", bucket.now_s) for _ in range(2 * rate + 5)].count(0)
    assert passed >= min(rate, 10), "a client sends as many in one packet"
    assert passed <= max(2, min(rate, 10), rate // 8 + 1)
    bucket.answer()
    # All of it is charged: what passes within the first second is a second's worth, and the credit.
    for _ in range(100):
        bucket.now_s += 0.01
        passed += rates.take("u", bucket.now_s) == 0
        bucket.answer()
    assert passed <= 2 * rate + max(2, min(rate, 10), rate // 8 + 1)
