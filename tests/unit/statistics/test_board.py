"""Check the notice board: a post is read whole, by other processes too, or not at all."""

import os

import pytest

from wsgate.errors import InternalError
from wsgate.statistics import Board


def test_last_post_is_read_until_the_next_one() -> None:
    board = Board(100)
    assert (board.version, board.read()) == (0, None)
    board.post(b"first")
    first = board.version
    assert board.read() == (first, b"first")
    board.post(b"")
    assert board.version != first
    assert board.read() == (board.version, b"")


def test_too_long_post_raises_and_leaves_the_former_one() -> None:
    board = Board(10)
    board.post(b"0123456789")
    with pytest.raises(InternalError, match="11 bytes is longer than 10"):
        board.post(bytes(11))
    assert board.read() == (board.version, b"0123456789")


def test_incomplete_post_is_not_read_and_the_next_post_is() -> None:
    board = Board(10)
    board.post(b"whole")
    board._header[0] |= 1  # the writer crashed here
    assert board.read() is None
    board.post(b"again")
    assert board.read() == (board.version, b"again")


def test_post_of_a_child_process_is_read_by_the_parent() -> None:
    board = Board(1 << 20)
    pid = os.fork()
    if not pid:
        board.post(b"x" * (1 << 20))
        os._exit(0)
    os.waitpid(pid, 0)
    assert board.read() == (board.version, b"x" * (1 << 20))
