"""Check that options outside their ranges are refused by their names, and that the bounds are accepted."""

import math
from typing import Any

import pytest

from wsgate.client import Backoff, ClientOptions
from wsgate.client.backend import ConsumerOptions
from wsgate.errors import SettingsError

NO_NUMBERS = (None, "5", math.nan, True, [1])
COUNTS = [
    (ClientOptions, "unauthorized_limit", 1),
    (ClientOptions, "queue_limit", 1),
    (ClientOptions, "max_message_bytes", 1),
    (ConsumerOptions, "partitions", 1),
    (ConsumerOptions, "concurrency", 1),
    (ConsumerOptions, "attempts", 1),
    (ConsumerOptions, "deliveries_limit", 1),
    (ConsumerOptions, "seen_limit", 0),
    (ConsumerOptions, "dead_limit", 1),
]
TIME_LIMITS = [
    (ClientOptions, "command_timeout_s"),
    (ClientOptions, "open_timeout_s"),
    (ClientOptions, "token_timeout_s"),
    (ClientOptions, "silence_margin_s"),
    (ClientOptions, "own_ping_s"),
]
WAITS = [
    (Backoff, "base_s", 0),
    (Backoff, "cap_s", 0),
    (ClientOptions, "steady_s", 0),
    *(
        (ConsumerOptions, name, 0.001)
        for name in ("takeover_idle_s", "takeover_every_s", "block_s", "timeout_s")
    ),
]


def assert_refused(options: type[Any], name: str, value: object) -> None:
    with pytest.raises(SettingsError, match=rf"^{options.__name__}\.{name}: .* is not a "):
        options(**{name: value})


@pytest.mark.parametrize(("options", "name", "least"), COUNTS)
def test_count_below_its_least_value_or_without_a_whole_number_is_refused(
    options: type[Any], name: str, least: int
) -> None:
    for value in (least - 1, -(2**40), least + 0.5, 2.0, math.inf, *NO_NUMBERS):
        assert_refused(options, name, value)
    for value in (least, least + 1, 2**40):
        assert getattr(options(**{name: value}), name) == value


@pytest.mark.parametrize(("options", "name"), TIME_LIMITS)
def test_time_limit_that_is_not_above_zero_is_refused_and_infinity_is_accepted(
    options: type[Any], name: str
) -> None:
    for value in (0, 0.0, -1, -math.inf, *NO_NUMBERS):
        assert_refused(options, name, value)
    for value in (0.001, 1, math.inf):
        assert getattr(options(**{name: value}), name) == value


@pytest.mark.parametrize(("options", "name", "least"), WAITS)
def test_wait_outside_its_range_is_refused(options: type[Any], name: str, least: float) -> None:
    for value in (least - 0.0005, -1, math.inf, -math.inf, 1e300, *NO_NUMBERS):
        assert_refused(options, name, value)
    for value in (least, 1, 86_400.0):
        assert getattr(options(**{name: value}), name) == value


def test_error_of_an_option_names_its_value_and_its_range() -> None:
    with pytest.raises(
        SettingsError, match=r"^ClientOptions\.queue_limit: 0 is not a whole number from 1 on$"
    ):
        ClientOptions(queue_limit=0)
    with pytest.raises(
        SettingsError, match=r"^ClientOptions\.own_ping_s: -1 is not a number of seconds above 0$"
    ):
        ClientOptions(own_ping_s=-1)
    with pytest.raises(SettingsError, match=r"^Backoff\.cap_s: -1 is not a number of seconds from 0 to \d+$"):
        Backoff(cap_s=-1)
