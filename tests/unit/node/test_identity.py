"""Check the name of a node: its source, and the process that may have it."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from wsgate.bus import NODE_LEASE_MS, Names
from wsgate.bus_address import parse_address
from wsgate.errors import BackendError, SettingsError
from wsgate.node import identity
from wsgate.node.identity import Claim, Holder, claim_name, names_for

ADDRESS = parse_address("redis://127.0.0.1:1")
KEY = Names("wsgate").node("n")


def test_configured_node_name_is_the_only_candidate() -> None:
    assert names_for("gate-1", 8000) == ("gate-1",)


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("web-7.example", "web-7.example"),
        ("odd host\u00e9!", "odd-host"),
        ("", "node"),
        ("...", "node"),
        ("x" * 300, "x" * 58),
    ],
)
def test_node_name_candidates_are_the_host_name_and_one_with_the_port(
    host: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: host)
    assert names_for("", 65_535) == (name, f"{name}-65535")
    assert all(len(each) <= 64 for each in names_for("", 65_535))


def test_holder_text_is_parsed_back_and_the_own_process_is_alive() -> None:
    here = Holder.here()
    assert Holder.from_text(here.to_text()) == here
    assert here.is_of_this_machine and here.lives


def test_ended_process_and_a_later_one_with_its_pid_do_not_count_as_alive() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        there = replace(Holder.here(), pid=child.pid, started=identity._started(child.pid))
        assert there.lives
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not there.lives, "a process that waits to be reaped has ended"
    assert not there.lives
    assert not replace(Holder.here(), started=Holder.here().started + 1).lives


@pytest.mark.parametrize("other", [{"boot": "another"}, {"namespace": 1}])
def test_holder_of_another_boot_or_namespace_is_not_of_this_machine(other: dict[str, object]) -> None:
    assert not replace(Holder.here(), **other).is_of_this_machine  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "7", "[]", "{}", "null", '{"pid":"x"}', "\udcff", "{" * 1_000])
def test_a_lease_with_other_text_names_no_holder(text: str) -> None:
    assert Holder.from_text(text) is None


class Lease:
    """The lease of one name on a bus, in place of `claim_once`; the number of calls is its clock."""

    def __init__(self, held: str, left_ms: list[int]) -> None:
        self.held, self.left_ms = held, left_ms

    def claim(self, address: object, key: bytes, holder: str, dead: str, timeout_s: float) -> tuple[str, int]:
        assert key == KEY
        if not self.held or self.held in (holder, dead) or not self.left_ms:
            self.held = holder
            return "", 0
        return self.held, self.left_ms.pop(0)


def claim(lease: Lease, monkeypatch: pytest.MonkeyPatch, former: str = "") -> int | None:
    monkeypatch.setattr(identity, "claim_once", lease.claim)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return identity._claim_one(ADDRESS, KEY, Holder.here(), 1.0, former=former)


ELSEWHERE = '{"boot":"another","namespace":1,"pid":1,"started":1}'


@pytest.mark.parametrize(
    ("held", "left_ms", "by"),
    [
        ("", [], None),
        (replace(Holder.here(), started=1).to_text(), [9_000] * 3, None),  # dead: at once
        (
            replace(Holder.here(), pid=os.getppid(), started=identity._started(os.getppid())).to_text(),
            [1],
            -1,
        ),
        (ELSEWHERE, [9_000, 8_500, 8_000, 500, 0], None),  # the lease is not renewed and expires
        (ELSEWHERE, [9_000, 8_500, 14_900], 0),  # the lease is renewed
        ("not ours", [9_000, 8_500, 15_000], 0),
        ("not ours", [9_000, 500], None),
    ],
    ids=(
        "free",
        "dead",
        "alive",
        "elsewhere_expires",
        "elsewhere_renews",
        "foreign_renews",
        "foreign_expires",
    ),
)
def test_node_name_is_claimed_unless_its_holder_is_alive(
    held: str, left_ms: list[int], by: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = claim(Lease(held, left_ms), monkeypatch)
    assert found == (os.getppid() if by == -1 else by)


OTHER_CONTAINER = replace(Holder.here(), namespace=1, pid=1).to_text()


@pytest.mark.parametrize(
    ("held", "former", "left_ms", "by"),
    [
        (OTHER_CONTAINER, OTHER_CONTAINER, [9_000], None),
        (OTHER_CONTAINER, replace(Holder.here(), namespace=1, pid=2).to_text(), [9_000, 8_500, 14_900], 0),
        (OTHER_CONTAINER, "", [9_000, 8_500, 14_900], 0),
        (ELSEWHERE, ELSEWHERE, [9_000, 8_500, 14_900], 0),  # a copy of the disk of a machine that still runs
        ("not ours", "not ours", [9_000, 8_500, 14_900], 0),
    ],
    ids=("same_boot", "another_predecessor", "no_predecessor", "another_boot_renews", "foreign"),
)
def test_name_of_a_predecessor_in_another_namespace_is_claimed_at_once(
    held: str, former: str, left_ms: list[int], by: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = Lease(held, left_ms)
    assert claim(lease, monkeypatch, former) == by
    assert not left_ms
    assert (lease.held == Holder.here().to_text()) == (by is None)


def test_live_process_keeps_its_node_name_although_the_lock_file_names_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parent = replace(Holder.here(), pid=os.getppid(), started=identity._started(os.getppid())).to_text()
    assert claim(Lease(parent, [9_000]), monkeypatch, parent) == os.getppid()


@pytest.mark.parametrize(
    ("fault", "by"),
    [(PermissionError, 0), (ProcessLookupError, None), (OverflowError, None)],
    ids=("hidden", "ended", "no_process_id"),
)
def test_process_hidden_in_proc_by_permissions_counts_as_alive(
    fault: type[Exception], by: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(pid: int, number: int) -> None:
        assert (pid, number) == (unseen, 0)
        raise fault

    unseen = 1 << 30  # beyond the largest process id, so that /proc has no such entry
    monkeypatch.setattr("os.kill", kill)
    held = replace(Holder.here(), pid=unseen).to_text()
    assert claim(Lease(held, [9_000, 8_500, 14_900]), monkeypatch, held) == by


def test_name_of_a_predecessor_is_claimed_after_a_reboot_if_not_renewed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from wsgate.shard.lease import RENEW_S

    assert RENEW_S < identity.REBOOT_WATCH_S < NODE_LEASE_MS / 1000
    monkeypatch.setattr(identity, "REBOOT_WATCH_S", -1.0)
    left_ms = [9_000, 8_500]
    assert claim(Lease(ELSEWHERE, left_ms), monkeypatch, ELSEWHERE) is None
    assert left_ms == [8_500]


def test_second_unnamed_node_of_a_machine_takes_the_name_with_its_port(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = {"host": 77, "host-8001": None}
    monkeypatch.setattr(
        identity,
        "_claim_one",
        lambda address, key, holder, timeout_s, *, former: answers[key.decode().split(":")[-1]],
    )
    names = ("host", "host-8001")
    assert claim_name(names, ADDRESS, "wsgate", Holder.here(), 1.0) == "host-8001"
    answers["host-8001"] = 78
    with pytest.raises(SettingsError, match=r'^server.node: .* is named "host-8001" \(process 78'):
        claim_name(names, ADDRESS, "wsgate", Holder.here(), 1.0)
    answers["host"] = 0
    with pytest.raises(SettingsError, match=r'is named "host" \(on another machine'):
        claim_name(names, ADDRESS, "wsgate", Holder.here(), 1.0)


def test_unreachable_bus_does_not_prevent_the_start_with_the_first_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*arguments: object, **more: object) -> int:
        raise BackendError("the bus is down", temporary=True)

    monkeypatch.setattr(identity, "_claim_one", refuse)
    assert identity._claim(("a", "b"), refuse) == Claim("a", why="the bus is down")
    assert claim_name(("a", "b"), ADDRESS, "wsgate", Holder.here(), 1.0) == "a"

    def fail(*arguments: object, **more: object) -> int:
        os._exit(3)

    monkeypatch.setattr(identity, "_claim_one", fail)
    assert claim_name(("a", "b"), ADDRESS, "wsgate", Holder.here(), 1.0) == "a"


def test_lease_of_a_name_lasts_at_least_three_renewal_intervals() -> None:
    from wsgate.shard.lease import RENEW_S

    assert NODE_LEASE_MS >= 3 * RENEW_S * 1000
    assert json.loads(Holder.here().to_text())["pid"] == os.getpid()
