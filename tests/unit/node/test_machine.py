"""Check the resources that the machine grants, read from files that the tests write."""

import os
import resource
from pathlib import Path

import pytest

from wsgate.errors import SettingsError
from wsgate.node import machine, memory
from wsgate.node.machine import (
    address_space_left,
    cpu_quota,
    memory_quota,
    raise_descriptor_limit,
    usable_cores,
    usable_memory,
)

MIB = 1 << 20


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def quota(root: Path, membership: str) -> float:
    write(root / "membership", membership)
    return cpu_quota(root / "membership", root / "groups")


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("max 100000\n", 0),
        ("150000 100000\n", 1.5),
        ("50000 100000\n", 0.5),
        ("nonsense\n", 0),
        ("1 0\n", 0),
        ("", 0),
    ],
)
def test_cpu_quota_of_a_version_2_control_group_is_read(tmp_path: Path, text: str, cores: float) -> None:
    write(tmp_path / "groups/app/cpu.max", text)
    assert quota(tmp_path, "0::/app\n") == cores


def test_cpu_quota_of_a_container_is_read_from_the_root_group(tmp_path: Path) -> None:
    write(tmp_path / "groups/cpu.max", "200000 100000\n")
    assert quota(tmp_path, "0::/\n") == 2
    assert quota(tmp_path, "0::/../outside/what/is/seen\n") == 2


def test_cpu_quota_is_the_smallest_of_all_enclosing_groups(tmp_path: Path) -> None:
    write(tmp_path / "groups/system.slice/cpu.max", "300000 100000\n")
    write(tmp_path / "groups/system.slice/wsgate.service/cpu.max", "max 100000\n")
    assert quota(tmp_path, "0::/system.slice/wsgate.service\n") == 3
    write(tmp_path / "groups/system.slice/wsgate.service/cpu.max", "100000 100000\n")
    assert quota(tmp_path, "0::/system.slice/wsgate.service\n") == 1


@pytest.mark.parametrize("mount", ["cpu,cpuacct", "cpu"])
def test_cpu_quota_of_a_version_1_control_group_is_read(tmp_path: Path, mount: str) -> None:
    write(tmp_path / f"groups/{mount}/docker/x/cpu.cfs_quota_us", "250000\n")
    write(tmp_path / f"groups/{mount}/docker/x/cpu.cfs_period_us", "100000\n")
    rows = "12:cpuset:/elsewhere\n4:cpu,cpuacct:/docker/x\n1:name=systemd:/docker/x\n0::/\n"
    assert quota(tmp_path, rows) == 2.5
    write(tmp_path / f"groups/{mount}/docker/x/cpu.cfs_quota_us", "-1\n")
    assert quota(tmp_path, rows) == 0


def test_cpuset_group_is_not_read_for_a_cpu_quota(tmp_path: Path) -> None:
    write(tmp_path / "groups/cpuset/x/cpu.max", "100000 100000\n")
    assert quota(tmp_path, "12:cpuset:/x\n") == 0


def test_missing_control_groups_mean_no_cpu_quota(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path / "none", tmp_path) == 0
    assert quota(tmp_path, "not a row\n") == 0


@pytest.mark.parametrize(("paid", "cores"), [(0.0, 4), (0.2, 1), (1.0, 1), (1.5, 2), (3.0, 3), (64.0, 4)])
def test_usable_cores_are_limited_by_affinity_and_rounded_quota(
    monkeypatch: pytest.MonkeyPatch, paid: float, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    monkeypatch.setattr(machine, "cpu_quota", lambda membership, root: paid)
    assert usable_cores() == cores


def test_descriptor_limit_is_raised_to_the_hard_limit_or_nr_open(monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda kind, pair: limits.append(pair))
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1_024, 20_000))
    assert raise_descriptor_limit() == 20_000
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1_024, resource.RLIM_INFINITY))
    most = int(Path("/proc/sys/fs/nr_open").read_text())
    assert raise_descriptor_limit() == most > 0
    assert limits == [(20_000, 20_000), (most, most)]


def test_memory_quota_is_the_smallest_limit_of_either_group_version(tmp_path: Path) -> None:
    root, membership = tmp_path / "groups", tmp_path / "membership"
    write(membership, "0::/a.slice/b.service\n")
    write(root / "a.slice/b.service/memory.max", "max\n")
    assert memory_quota(membership, root) == 0
    write(root / "a.slice/memory.max", "3000\n")
    write(root / "a.slice/b.service/memory.high", "2000\n")
    assert memory_quota(membership, root) == 2000
    write(membership, "9:memory:/docker/x\n2:cpu:/docker/x\n")
    write(root / "memory/docker/x/memory.limit_in_bytes", str(0x7FFFFFFFFFFFF000))
    assert memory_quota(membership, root) == 0
    write(root / "memory/docker/x/memory.limit_in_bytes", "1000\n")
    write(root / "cpu/docker/x/memory.limit_in_bytes", "1\n")
    assert memory_quota(membership, root) == 1000
    assert memory_quota(tmp_path / "none", root) == 0


def test_usable_memory_is_the_smaller_of_group_limit_and_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory_quota", lambda membership, root: 0)
    total = usable_memory()
    assert total == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    monkeypatch.setattr(machine, "memory_quota", lambda membership, root: 1 << 20)
    assert usable_memory() == 1 << 20
    monkeypatch.setattr(machine, "memory_quota", lambda membership, root: total * 2)
    assert usable_memory() == total


def test_address_space_left_follows_rlimit_as(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert address_space_left() == 0
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1 << 40, resource.RLIM_INFINITY))
    assert 0 < address_space_left() < 1 << 40
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (4096, 4096))
    assert address_space_left() == 1


@pytest.mark.parametrize(
    ("budget", "usable", "left", "shards", "bus", "share"),
    [
        (112 * MIB, 112 * MIB, 0, 1, 0, 32 * MIB),
        (0, 1000 * MIB, 0, 1, 0, 820 * MIB),
        (0, 1000 * MIB, 0, 1, 120 * MIB, 700 * MIB),
        (0, 1000 * MIB, 400 * MIB, 1, 0, 300 * MIB),
        (188 * MIB, 1000 * MIB, 0, 2, 0, 50 * MIB),
        (188 * MIB, 1000 * MIB, 0, 2, 20 * MIB, 40 * MIB),
    ],
)
def test_memory_share_of_a_shard_follows_budget_machine_and_bus(
    monkeypatch: pytest.MonkeyPatch, budget: int, usable: int, left: int, shards: int, bus: int, share: int
) -> None:
    monkeypatch.setattr(memory, "usable_memory", lambda: usable)
    monkeypatch.setattr(memory, "address_space_left", lambda: left)
    assert memory.memory_share(budget, shards, bus) == share


def test_memory_share_of_the_private_bus_follows_budget_and_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "usable_memory", lambda: 1000 * MIB)
    assert memory.bus_share(800 * MIB, 2) == 100 * MIB
    assert memory.bus_share(0, 1) == 1000 * MIB * 9 // 10 // 8
    assert memory.bus_share(100 * MIB, 1) == 16 * MIB
    assert memory.bus_share(100 * MIB, 4) == 40 * MIB


@pytest.mark.parametrize(
    ("budget", "usable", "left", "message"),
    [
        (
            90 * MIB,
            1000 * MIB,
            0,
            "admission.memory_budget: 90 MiB leave too little for clients, 96 MiB are the least",
        ),
        (0, 64 * MIB, 0, "admission.memory_budget is not set and nine tenths"),
        (2000 * MIB, 1000 * MIB, 0, "2000 MiB are more than this machine or its control group has, 1000 MiB"),
        (0, 1000 * MIB, 20 * MIB, "RLIMIT_AS leaves 20 MiB of address space"),
    ],
)
def test_too_small_or_too_large_memory_budget_raises_settings_error(
    monkeypatch: pytest.MonkeyPatch, budget: int, usable: int, left: int, message: str
) -> None:
    monkeypatch.setattr(memory, "usable_memory", lambda: usable)
    monkeypatch.setattr(memory, "address_space_left", lambda: left)
    with pytest.raises(SettingsError, match=message):
        memory.memory_share(budget, 1)
