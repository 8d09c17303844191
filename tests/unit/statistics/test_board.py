"""The notice board: what is posted is read whole, by other processes too, or not at all."""

import os

import pytest

from wsgate.errors import InternalError
from wsgate.statistics import Board


def test_what_was_posted_last_is_read_until_the_next() -> None:
    board = Board(100)
    assert (board.version, board.read()) == (0, None)
    board.post(b"first")
    first = board.version
    assert board.read() == (first, b"first")
    board.post(b"")
    assert board.version != first
    assert board.read() == (board.version, b"")


def test_what_is_too_long_leaves_what_was_there() -> None:
    board = Board(10)
    board.post(b"0123456789")
    with pytest.raises(InternalError, match="11 bytes is longer than 10"):
        board.post(bytes(11))
    assert board.read() == (board.version, b"0123456789")


def test_half_a_post_is_not_read_and_the_next_puts_it_right() -> None:
    board = Board(10)
    board.post(b"whole")
    board._header[0] |= 1  # its writer died here
    assert board.read() is None
    board.post(b"again")
    assert board.read() == (board.version, b"again")


def test_children_see_it() -> None:
    board = Board(1 << 20)
    pid = os.fork()
    if not pid:
        board.post(b"x" * (1 << 20))
        os._exit(0)
    os.waitpid(pid, 0)
    assert board.read() == (board.version, b"x" * (1 << 20))
