"""Shared memory is seen in the order in which it was written, on every machine."""

import os
import signal
from pathlib import Path

import pytest

from wsgate.statistics import Board, Layout, StatisticsBlock, block, board

LAYOUT = Layout(("came", "went"), ("room",))


def test_a_post_fences_the_data_off_from_both_versions(monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert len(seen) == 2, "after the first look at the version, and before the second"


def test_a_fold_fences_the_sums_off_from_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    made = StatisticsBlock.create(LAYOUT, 1)
    monkeypatch.setattr(block, "fence", lambda: seen.append((made._header[2] % 2, made.retired["came"])))
    made.shard(0).add("came", 3)
    made.retire(0)
    assert seen == [(1, 0), (1, 3)]
    seen.clear()
    made.snapshot()
    assert len(seen) == 2


def test_a_reader_beside_a_writer_never_takes_half_of_a_post_for_a_whole_one() -> None:
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


def test_no_file_of_shared_memory_is_without_a_fence() -> None:
    """Whoever adds a version to shared memory is to think of the order in which it is seen."""
    folder = Path(board.__file__).parent
    with_versions = {"board.py", "block.py"}
    for file in folder.glob("*.py"):
        text = file.read_text()
        assert ("fence()" in text) == (file.name in with_versions), file
