"""Check that readers see shared memory in the order in which it was written, on every machine."""

import os
import signal
from pathlib import Path

import pytest

from wsgate.statistics import Board, Layout, StatisticsBlock, block, board

LAYOUT = Layout(("came", "went"), ("room",))


def test_post_and_read_of_a_board_fence_both_sides_of_the_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []
    made = Board(8)
    monkeypatch.setattr(
        board, "fence", lambda: seen.append((made._header[0] % 2, bytes(made._memory[16:19])))
    )
    made.post(b"old")
    made.post(b"new")
    assert seen == [(1, bytes(3)), (1, b"old"), (1, b"old"), (1, b"new")]
    seen.clear()
    assert made.read() == (made.version, b"new")
    assert len(seen) == 2, "after the first read of the version and before the second"


def test_fold_and_snapshot_of_a_block_fence_both_sides_of_the_sums(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []
    made = StatisticsBlock.create(LAYOUT, 1)
    monkeypatch.setattr(block, "fence", lambda: seen.append((made._header[2] % 2, made.retired["came"])))
    made.shard(0).add("came", 3)
    made.retire(0)
    assert seen == [(1, 0), (1, 3)]
    seen.clear()
    made.snapshot()
    assert len(seen) == 2


def test_reader_never_gets_a_partial_post_while_another_process_posts() -> None:
    made = Board(4096)
    made.post(b"a" * 4096)
    pid = os.fork()
    if not pid:
        try:
            while True:
                for letter in b"abcdefgh":
                    made.post(bytes([letter]) * (2048 + letter))
        finally:
            os._exit(1)
    try:
        versions = set()
        for _ in range(20_000):
            if (found := made.read()) is not None:
                versions.add(found[0])
                assert len(set(found[1])) == 1
                assert len(found[1]) in (4096, 2048 + found[1][0])
        assert versions
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_only_board_and_block_use_a_fence() -> None:
    """A new version number in shared memory needs a decision about the order of its writes."""
    folder = Path(board.__file__).parent
    with_versions = {"board.py", "block.py"}
    for file in folder.glob("*.py"):
        text = file.read_text()
        assert ("fence()" in text) == (file.name in with_versions), file
