"""Check that the time of the cycle collector is counted from its start to its stop."""

import gc
from collections.abc import Iterator

import pytest

from wsgate.shard.collector import CollectorClock


@pytest.fixture
def clock() -> Iterator[CollectorClock]:
    made = CollectorClock()
    made.start()
    yield made
    made.stop()


def test_time_of_a_collection_is_counted_once(clock: CollectorClock) -> None:
    clock.take_ns()
    gc.collect()
    assert clock.take_ns() > 0
    gc.disable()
    try:
        assert clock.take_ns() == 0
    finally:
        gc.enable()


def test_collection_that_began_before_the_start_is_not_counted() -> None:
    made = CollectorClock()
    made._on_phase("stop", {})
    assert made.take_ns() == 0


def test_nothing_is_counted_after_the_stop_and_the_callback_is_removed(clock: CollectorClock) -> None:
    callbacks = len(gc.callbacks)
    clock.stop()
    clock.stop()
    assert len(gc.callbacks) == callbacks - 1
    clock.take_ns()
    gc.collect()
    assert clock.take_ns() == 0
