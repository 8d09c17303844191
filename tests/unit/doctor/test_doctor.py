"""Check the doctor: every check turns from good to bad at its limit, and the report names the first limit."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from wsgate.doctor import (
    Demand,
    Diagnosis,
    Finding,
    Kernel,
    Resources,
    Severity,
    as_json,
    as_text,
    examine,
    read_kernel,
)
from wsgate.doctor.resources import span_s

HEALTHY: Final = Kernel(
    nr_open=1_048_576,
    file_max=2_000_000,
    files_open=1_000,
    somaxconn=4_096,
    tcp_max_syn_backlog=4_096,
    tcp_syncookies=1,
    listen_overflows=0,
    listen_drops=0,
    netdev_max_backlog=1_000,
    softnet_dropped=0,
    ip_local_port_range=(1_024, 65_535),
    tcp_tw_reuse=2,
    time_wait=0,
    page_bytes=4_096,
    tcp_mem_pages=(100_000, 150_000, 200_000),
    tcp_pages_used=10,
    wmem_max=212_992,
    tcp_rmem=(4_096, 131_072, 6_291_456),
    tcp_wmem=(4_096, 16_384, 4_194_304),
    tcp_ehash_entries=262_144,
    nf_conntrack_max=None,
    nf_conntrack_count=None,
    transparent_hugepage="madvise",
    link_mbit_per_s=10_000,
)
ENOUGH: Final = Resources(
    shards=2,
    cores=2,
    descriptors=100_096,
    reserve_descriptors=96,
    memory_bytes=8_000_000_000,
    backlog=4_096,
    send_buffer_bytes=16_384,
    drain_s=30.0,
    stop_timeout_s=90.0,
    bus_round_trip_s=0.000_2,
)
WANTED: Final = Demand(connections=100_000, rate_per_s=5_000)


def diagnose(want: Demand = WANTED, have: dict[str, Any] | None = None, **kernel: Any) -> Diagnosis:
    return examine(replace(HEALTHY, **kernel), replace(ENOUGH, **(have or {})), want)


def bad(diagnosis: Diagnosis) -> dict[str, Finding]:
    return {each.name: each for each in diagnosis.findings if each.severity is not Severity.OK}


def test_healthy_machine_has_only_ok_findings_for_all_checks() -> None:
    diagnosis = diagnose()
    assert not bad(diagnosis)
    assert not diagnosis.is_blocked
    assert len(diagnosis.findings) >= 17


@pytest.mark.parametrize(
    ("name", "severity", "worst_good", "first_bad"),
    [
        ("fs.file-max", "blocking", {"file_max": 105_096}, {"file_max": 105_095}),
        ("net.core.somaxconn", "warning", {"somaxconn": 2_000}, {"somaxconn": 1_999}),
        (
            "net.ipv4.tcp_max_syn_backlog",
            "advice",
            {"tcp_max_syn_backlog": 2_000},
            {"tcp_max_syn_backlog": 1_999},
        ),
        ("net.ipv4.tcp_syncookies", "warning", {"tcp_syncookies": 2}, {"tcp_syncookies": 0}),
        ("ListenOverflows", "warning", {"listen_overflows": 0}, {"listen_overflows": 1}),
        ("ListenOverflows", "warning", {"listen_drops": 0}, {"listen_drops": 1}),
        ("net.core.netdev_max_backlog", "advice", {"netdev_max_backlog": 1_000}, {"netdev_max_backlog": 999}),
        ("softnet_stat", "warning", {"softnet_dropped": 0}, {"softnet_dropped": 1}),
        (
            "net.ipv4.ip_local_port_range",
            "advice",
            {"ip_local_port_range": (1_024, 65_023)},
            {"ip_local_port_range": (1_024, 65_022)},
        ),
        ("TIME_WAIT", "warning", {"time_wait": 32_256}, {"time_wait": 32_257}),
        (
            "net.ipv4.tcp_mem",
            "warning",
            {"tcp_mem_pages": (1, 43_760, 50_000)},  # ten of them are used already
            {"tcp_mem_pages": (1, 43_759, 50_000)},
        ),
        (
            "net.ipv4.tcp_mem",
            "blocking",
            {"tcp_mem_pages": (1, 43_760, 43_760)},
            {"tcp_mem_pages": (1, 2, 43_759)},
        ),
        ("net.core.wmem_max", "warning", {"wmem_max": 16_384}, {"wmem_max": 16_383}),
        (
            "net.ipv4.tcp_rmem",
            "warning",
            {"tcp_rmem": (4_096, 1 << 20, 1)},
            {"tcp_rmem": (4_096, 1 << 21, 1)},
        ),
        (
            "net.ipv4.tcp_wmem",
            "warning",
            {"tcp_wmem": (16_384, 1 << 20, 1)},
            {"tcp_wmem": (16_384, 1 << 21, 1)},
        ),
        (
            "net.ipv4.tcp_wmem",
            "warning",
            {"tcp_wmem": (16_384, 16_384, 1)},
            {"tcp_wmem": (16_385, 16_384, 1)},
        ),
        ("tcp_ehash_entries", "advice", {"tcp_ehash_entries": 50_000}, {"tcp_ehash_entries": 49_999}),
        (
            "nf_conntrack_max",
            "blocking",
            {"nf_conntrack_max": 100_005, "nf_conntrack_count": 5},
            {"nf_conntrack_max": 100_004, "nf_conntrack_count": 5},
        ),
        (
            "nf_conntrack_max",
            "blocking",
            {"nf_conntrack_max": 10, "nf_conntrack_count": 0},  # loaded and not used
            {"nf_conntrack_max": 10, "nf_conntrack_count": 1},
        ),
        (
            "transparent_hugepage",
            "advice",
            {"transparent_hugepage": "never"},
            {"transparent_hugepage": "always"},
        ),
        ("link", "warning", {"link_mbit_per_s": 876}, {"link_mbit_per_s": 875}),
    ],
)
def test_kernel_check_turns_bad_exactly_at_its_limit(
    name: str, severity: str, worst_good: dict[str, Any], first_bad: dict[str, Any]
) -> None:
    assert name not in bad(diagnose(**worst_good))
    found = bad(diagnose(**first_bad))
    assert found[name].severity == severity
    assert found[name].needed and found[name].fix


@pytest.mark.parametrize(
    ("name", "severity", "worst_good", "first_bad"),
    [
        ("RLIMIT_NOFILE", "blocking", {"descriptors": 50_096}, {"descriptors": 50_095}),
        ("memory", "blocking", {"memory_bytes": 629_200_000}, {"memory_bytes": 629_100_000}),
        ("shards", "warning", {"cores": 2}, {"cores": 1}),
        ("cpu quota", "warning", {"cpu_quota": 2.0}, {"cpu_quota": 1.5}),
        ("bus", "warning", {"bus_round_trip_s": 0.005}, {"bus_round_trip_s": 0.006}),
        ("bus", "warning", {"bus_round_trip_s": None}, {"bus_round_trip_s": float("inf")}),
        ("stop timeout", "warning", {"stop_timeout_s": 40.0}, {"stop_timeout_s": 39.0}),
        ("stop timeout", "warning", {"stop_timeout_s": float("inf")}, {"stop_timeout_s": 0.0}),
    ],
)
def test_node_check_turns_bad_exactly_at_its_limit(
    name: str, severity: str, worst_good: dict[str, Any], first_bad: dict[str, Any]
) -> None:
    assert name not in bad(diagnose(have=worst_good))
    assert bad(diagnose(have=first_bad))[name].severity == severity


def test_fix_for_a_descriptor_limit_above_nr_open_names_both_settings() -> None:
    found = bad(diagnose(Demand(connections=3_000_000, rate_per_s=1), file_max=9_000_000))
    assert "fs.nr_open=1500096" in found["RLIMIT_NOFILE"].fix
    assert "30 shards" in found["RLIMIT_NOFILE"].fix


def test_binding_resource_is_the_smallest_and_sets_the_default_demand() -> None:
    diagnosis = diagnose(Demand())
    assert (diagnosis.binding.resource, diagnosis.binding.connections) == ("descriptors", 200_000)
    assert diagnosis.connections == 200_000
    tight = diagnose(Demand(), file_max=20_000, files_open=1_000)
    assert (tight.binding.resource, tight.connections) == ("fs.file-max", 20_000 - 1_000 - 4_096)
    assert not tight.is_blocked


def test_memory_capacity_counts_a_publication_only_for_its_receivers() -> None:
    everybody = diagnose(Demand(message_bytes=10_000), {"memory_bytes": 100_000_000})
    few = diagnose(Demand(message_bytes=10_000, fanout=10), {"memory_bytes": 100_000_000})
    bears = {each.capacities[0].connections for each in (everybody, few)}
    assert bears == {100_000_000 // (4_500 + 10_768), (100_000_000 - 10 * 10_768) // 4_500}


def test_unreadable_kernel_leaves_only_the_checks_of_the_node() -> None:
    diagnosis = examine(Kernel(), ENOUGH, WANTED)
    assert {each.name for each in diagnosis.findings} == {
        "RLIMIT_NOFILE",
        "memory",
        "shards",
        "bus",
        "stop timeout",
    }


def test_diagnosis_without_memory_descriptors_or_rate_raises_no_error() -> None:
    diagnosis = diagnose(Demand(rate_per_s=0), {"memory_bytes": 0, "descriptors": 10}, link_mbit_per_s=1)
    assert diagnosis.connections == 0
    assert as_text(diagnosis)


def test_findings_are_sorted_by_severity_and_equal_in_text_and_json() -> None:
    diagnosis = diagnose(somaxconn=1, transparent_hugepage="always", file_max=1_000)
    order = [finding.severity for finding in diagnosis.findings]
    assert order[:3] == [Severity.BLOCKING, Severity.WARNING, Severity.ADVICE]
    report = json.loads(as_json(diagnosis))
    assert report["is_blocked"] is True
    assert report["binding"] == {"resource": "fs.file-max", "connections": 0}
    text = as_text(diagnosis)
    for finding in report["findings"]:
        assert finding["name"] in text
        assert finding["now"] in text
    assert text.index("BLOCKING") < text.index("warning") < text.index("advice")


# --- reading ------------------------------------------------------------------------------------------

FILES: Final = {
    "proc/sys/fs/nr_open": "1048576\n",
    "proc/sys/fs/file-max": "2466170\n",
    "proc/sys/fs/file-nr": "500\t0\t2466170\n",
    "proc/sys/net/core/somaxconn": "4096\n",
    "proc/sys/net/ipv4/tcp_mem": "287898\t383867\t575796\n",
    "proc/sys/net/ipv4/ip_local_port_range": "32768\t60999\n",
    "proc/sys/net/ipv4/tcp_ehash_entries": "-262144\n",
    "proc/net/sockstat": "sockets: used 11\nTCP: inuse 2 orphan 0 tw 7 alloc 4 mem 3\nUDP: inuse 0 mem 0\n",
    "proc/net/netstat": "TcpExt: SyncookiesSent ListenOverflows ListenDrops\nTcpExt: 1 22 33\n"
    "IpExt: InNoRoutes\nIpExt: 0\n",
    "proc/net/softnet_stat": "0d439faf 00000010 00000011\n0b8e5d16 00000001 00000018\n",
    "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
    "sys/class/net/lo/speed": "99999\n",
    "sys/class/net/eth0/speed": "1000\n",
    "sys/class/net/eth1/speed": "-1\n",
}


def test_kernel_files_are_read_into_their_fields(tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    kernel = read_kernel(tmp_path / "proc", tmp_path / "sys")
    assert kernel == replace(
        Kernel(),
        nr_open=1_048_576,
        file_max=2_466_170,
        files_open=500,
        somaxconn=4_096,
        tcp_mem_pages=(287_898, 383_867, 575_796),
        ip_local_port_range=(32_768, 60_999),
        time_wait=7,
        tcp_pages_used=3,
        listen_overflows=22,
        listen_drops=33,
        softnet_dropped=17,
        transparent_hugepage="madvise",
        link_mbit_per_s=1_000,
        page_bytes=kernel.page_bytes,
    )


def test_missing_or_malformed_kernel_files_leave_their_fields_empty(tmp_path: Path) -> None:
    assert read_kernel(tmp_path, tmp_path) == Kernel(page_bytes=read_kernel().page_bytes)
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("what?")
    nonsense = read_kernel(tmp_path / "proc", tmp_path / "sys")
    assert nonsense == Kernel(page_bytes=nonsense.page_bytes)


def test_kernel_of_this_machine_yields_the_main_numbers() -> None:
    kernel = read_kernel()
    assert kernel.somaxconn and kernel.file_max and kernel.tcp_mem_pages and kernel.listen_drops is not None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1min 30s", 90.0),
        ("500ms", 0.5),
        ("2h", 7_200.0),
        ("infinity", float("inf")),
        ("", None),
        ("soon", None),
    ],
)
def test_systemd_time_span_is_parsed_into_seconds(text: str, seconds: float | None) -> None:
    assert span_s(text) == seconds
