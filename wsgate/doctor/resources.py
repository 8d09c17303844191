"""Find out the resources of a node with a given configuration on this machine."""

import re
import shutil
import subprocess
from collections.abc import Mapping
from typing import Final

from wsgate.bus import parse_address
from wsgate.bus.once import round_trip_once
from wsgate.bus_address import with_password
from wsgate.config import Config
from wsgate.doctor.model import Resources
from wsgate.errors import BackendError
from wsgate.node.machine import is_memory_limited, raise_descriptor_limit, usable_cores, usable_quota
from wsgate.node.memory import bus_share, memory_share
from wsgate.reactor import ListenerOptions
from wsgate.shard.options import DESCRIPTORS_OF_OURS

__all__ = ["UNIT", "resources", "span_s", "unit_properties"]

UNIT: Final = "wsgate.service"
_ASK_S: Final = 5.0
_UNITS_S: Final = {
    "us": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "min": 60.0,
    "h": 3_600.0,
    "d": 86_400.0,
    "w": 604_800.0,
}


def resources(config: Config, stop_timeout_s: float | None) -> Resources:
    """Read the resources from the machine, the service manager and the bus.

    Args:
        config: The configuration of the gateway.
        stop_timeout_s: The time after which a stopping service is killed; None: read it from systemd.

    Raises:
        SettingsError: There is too little memory for any gateway of this configuration.
    """
    shards = config.server.shards or usable_cores()
    listener, unit = ListenerOptions(), unit_properties()
    budget = config.admission.memory_budget_bytes
    if stop_timeout_s is None:
        stop_timeout_s = span_s(unit.get("TimeoutStopUSec", ""))
    return Resources(
        shards=shards,
        cores=usable_cores(),
        descriptors=_descriptors(unit),
        reserve_descriptors=config.admission.reserve_descriptors + DESCRIPTORS_OF_OURS,
        memory_bytes=shards
        * memory_share(budget, shards, 0 if config.bus.url else bus_share(budget, shards)),
        backlog=listener.backlog,
        send_buffer_bytes=listener.send_buffer_bytes,
        drain_s=config.server.drain_timeout_ms / 1000,
        stop_timeout_s=stop_timeout_s,
        bus_round_trip_s=_round_trip_s(config),
        cpu_quota=usable_quota(),
        memory_source=_memory_source(budget),
    )


def _descriptors(unit: Mapping[str, str]) -> int:
    """Return the limit of open files of the service if it exists, else the limit of this process."""
    ours, told = raise_descriptor_limit(), unit.get("LimitNOFILE", "")
    return int(told) if told.isdigit() else ours


def _memory_source(budget_bytes: int) -> str:
    """Name the origin of the memory limit."""
    if budget_bytes:
        return "[admission] memory_budget"
    return "the control group's limit" if is_memory_limited() else "the machine's memory"


def _round_trip_s(config: Config) -> float | None:
    """Measure the round trip to the bus; None for a private bus, infinity if the bus does not reply."""
    if not config.bus.url:
        return None
    address = parse_address(with_password(config.bus.url, config.bus.password))
    try:
        return round_trip_once(address, config.bus.connect_timeout_ms / 1000)
    except BackendError:
        return float("inf")


def unit_properties() -> dict[str, str]:
    """Read properties of the service `UNIT` from systemd; empty when there is no such service."""
    systemctl = shutil.which("systemctl")
    if systemctl is None:
        return {}
    asked = [systemctl, "show", UNIT, "--property=LoadState,TimeoutStopUSec,LimitNOFILE"]
    try:
        done = subprocess.run(  # noqa: S603 - all of it is ours
            asked, capture_output=True, text=True, timeout=_ASK_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return {}
    told = dict(line.partition("=")[::2] for line in done.stdout.splitlines())
    return told if told.get("LoadState") == "loaded" else {}


def span_s(text: str) -> float | None:
    """Convert a time span of systemd, such as "1min 30s", into seconds; None if it is none.

    Source: systemd.time(7), "Parsing Time Spans".
    """
    if text == "infinity":
        return float("inf")
    parts = re.findall(r"(\d+(?:\.\d+)?)(us|ms|s|min|h|d|w)(?:\s+|$)", text)
    return sum(float(number) * _UNITS_S[unit] for number, unit in parts) if parts else None
