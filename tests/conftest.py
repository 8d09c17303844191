"""Set up what holds for all tests: the server they use, the signals of their processes, Hypothesis."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.support.ports import reserved_port
from tests.support.server_choice import choose_server, server_version
from tests.support.signals import stop_ignoring_signals

# Configuration files of tests hold secrets, and one that others may read is refused.
os.umask(0o077)

# Nothing is timed in a test: machines differ, and a slow one is no fault of the code.
settings.register_profile("wsgate", deadline=None, print_blob=True)
settings.load_profile("wsgate")

stop_ignoring_signals()


def pytest_configure(config: pytest.Config) -> None:
    """Choose the server by the environment variable TEST_SERVER: `valkey` (the default) or `redis`."""
    try:
        choose_server(os.environ.get("TEST_SERVER", "valkey"))
    except LookupError as error:
        raise pytest.UsageError(f"TEST_SERVER: {error}") from error


def pytest_report_header(config: pytest.Config) -> str:
    """Name the server, so that a report says what it was made with."""
    return f"server: {server_version()}"


@pytest.fixture
def port() -> Iterator[int]:
    """Reserve a port for the whole test, for servers that are started on it one after the other."""
    with reserved_port() as number:
        yield number
