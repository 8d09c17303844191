"""Check reservations of ports for the servers of tests."""

import socket
from pathlib import Path

import pytest

from tests.support import ports
from tests.support.ports import reserved_port, reserved_ports


def test_a_reserved_port_is_free_and_below_the_range_of_the_kernel() -> None:
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    with reserved_ports(50) as numbers:
        assert len(set(numbers)) == 50
        assert not [number for number in numbers if first <= number <= last]
        for number in numbers:
            socket.create_server(("127.0.0.1", number)).close()


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> int:
    """Leave only two neighbouring free ports to reserve; return the first of them."""
    with reserved_ports(1, also_at=1) as (number,):
        pass
    monkeypatch.setattr(ports, "FIRST", number)
    monkeypatch.setattr(ports, "LAST", number + 1)
    return number


def test_a_port_is_reserved_once_at_a_time_and_again_after_the_block(pair: int) -> None:
    with reserved_port() as one, reserved_port() as other:
        assert {one, other} == {pair, pair + 1}
    with reserved_ports(2) as both:
        assert set(both) == {pair, pair + 1}


def test_a_port_that_is_in_use_is_not_reserved(pair: int) -> None:
    with socket.create_server(("127.0.0.1", pair)), reserved_port() as other:
        assert other == pair + 1
