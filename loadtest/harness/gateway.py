"""Starts a complete gateway in the way that its users do, and measures it only from outside.

It runs `python -m wsgate serve --config FILE` with a private bus. The ports come from the gateway's runtime
directory, CPU and memory from the kernel by the names of the processes, and the counters from /metrics. A
backend in its own process publishes (peers/redis_publisher.py).

The configuration is the one of a user, except for four lines whose comments give the reason.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

from prometheus_client.parser import text_string_to_metric_families

from loadtest.harness import processes
from loadtest.harness.server import ServerError, ServerProcess

__all__ = ["SECRET", "GatewayProcess"]

_ROOT: Final = Path(__file__).resolve().parents[2]
SECRET: Final = "a secret of the benchmark, which is public"  # noqa: S105 - it protects nothing
_START_S: Final = 60.0
_STOP_S: Final = 15.0
_SCRAPE_S: Final = 10.0
_FRESH_S: Final = 1.3  # a shard writes its statistics once a second
_SHARD: Final = "wsgate-shard-"
_BUS: Final = "wsgate-bus"
# Publications and publish commands that were not carried out.
_DROPPED: Final = (("publications", "malformed"), ("publications", "too_large"), ("publishes", "failed"))

_CONFIG: Final = """
[server]
host = "127.0.0.1"
port = {port}
shards = {shards}
compression = {compression}
drain_timeout = "{drain_timeout_s}s"  # 1: does not wait for the jitter of clients

[admin]
port = 0

[auth]
hmac_secret = "{secret}"
allow_anonymous = true

[heartbeat]
ping_interval = "{ping_interval_s}s"  # 0 in the bench: the pings would disturb the other servers

[limits]
outbox_frames = 65536  # measures the cost of a flood, without closing slow readers:
outbox_bytes = "16MiB"  # a client may wait for a processor that it shares
publish_rate = 0  # off: one connection publishes as fast as the gateway accepts it

[admission]
{admission}

[events]
enabled = {events}

[channels.default]
subscribe = "anyone"
publish = "anyone"
"""


class GatewayProcess:
    """One running gateway; `stop` ends it by the process id of its keeper.

    Args:
        shards: The number of shards.
        processor: The CPU of the shards; the other processes inherit that of the parent. None: do not
            pin.
        ping_interval_s: The interval of the pings; 0: no pings.
        port: The port for clients; 0: a free one.
        drain_timeout_s: How long the gateway may take to drain when it ends.
        events: The types of events that are written for backends.
        admission: The settings of that section.
        prefix: A command that starts the gateway's command, for instance to put it into a control group.
        compression: Whether the gateway offers compression.
        config: The template of the configuration, with the same fields as `_CONFIG` or fewer.
    """

    module = "gateway"

    def __init__(
        self,
        *,
        shards: int = 1,
        processor: int | None = None,
        ping_interval_s: int = 0,
        port: int = 0,
        drain_timeout_s: int = 1,
        events: Sequence[str] = (),
        admission: Mapping[str, int | str] | None = None,
        prefix: Sequence[str] = (),
        compression: bool = False,
        config: str = _CONFIG,
    ) -> None:
        """Start the gateway and wait until it is ready; raise ServerError if that takes too long."""
        self.shards = shards
        self._stop_s = _STOP_S + drain_timeout_s
        self._directory = tempfile.TemporaryDirectory(prefix="wsgate-bench-")
        self._publisher: ServerProcess | None = None
        where = Path(self._directory.name)
        file = where / "wsgate.toml"
        text = config.format(
            shards=shards,
            secret=SECRET,
            ping_interval_s=ping_interval_s,
            compression=json.dumps(compression),
            port=port,
            drain_timeout_s=drain_timeout_s,
            events=json.dumps(list(events)),
            admission="\n".join(f"{key} = {json.dumps(value)}" for key, value in (admission or {}).items()),
        )
        file.touch(mode=0o600)  # the file holds a secret
        file.write_text(text, encoding="utf-8")
        self._log = where / "log"
        environ = {name: value for name, value in os.environ.items() if not name.startswith("WSGATE_")}
        with self._log.open("wb") as log:
            self._keeper = subprocess.Popen(
                [*prefix, sys.executable, "-m", "wsgate", "serve", "--config", str(file)],
                env=environ | {"RUNTIME_DIRECTORY": self._directory.name},
                cwd=_ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self._await_ready()
            self._running: dict[str, Any] = json.loads(next(where.glob("gateway-*.json")).read_text())
            self.port: int = self._running["port"]
            self._children = processes.children(self._keeper.pid)
            if processor is not None:
                for pid in self.shard_pids:
                    os.sched_setaffinity(pid, (processor,))
        except BaseException:
            self.stop()
            raise

    def _await_ready(self) -> None:
        until_s = time.monotonic() + _START_S
        while "ready" not in self._log.read_text(errors="replace").splitlines():
            if self._keeper.poll() is not None or time.monotonic() > until_s:
                last = self._log.read_text(errors="replace")[-2_000:]
                raise ServerError(f"the gateway is not ready: {last}")
            time.sleep(0.02)

    # --- the processes of the gateway -----------------------------------------------------------------

    @property
    def shard_pids(self) -> list[int]:
        """The process ids of the shards at the start."""
        return [pid for name, pids in self._children.items() if name.startswith(_SHARD) for pid in pids]

    @property
    def bus_pid(self) -> int:
        """The process id of the private bus."""
        return self._children[_BUS][0]

    def pids_now(self, prefix: str) -> list[int]:
        """Return the process ids of all children whose name starts with this prefix.

        Processes that were restarted are included.
        """
        found = processes.children(self._keeper.pid)
        return [pid for name, pids in found.items() if name.startswith(prefix) for pid in pids]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the keeper process."""
        self._keeper.send_signal(number)

    def log_text(self) -> str:
        """Return everything that the gateway has written to its log."""
        return self._log.read_text(errors="replace")

    def cpu_s(self) -> float:
        """Return the user and system CPU time of all shards until now, in seconds."""
        return sum(processes.cpu_s(pid) for pid in self.shard_pids)

    @property
    def bus_path(self) -> str:
        """The path of the Unix socket of the private bus."""
        return str(self._running["bus_url"]).removeprefix("unix://")

    def bus_cpu_s(self) -> float:
        """Return the CPU time of the private bus until now, in seconds."""
        return processes.cpu_s(self.bus_pid)

    def memory(self) -> dict[str, int]:
        """Return the memory of keeper, shards and admin process together, and separately `bus_pss_bytes`.

        `allocated_blocks` is the number of CPython's memory blocks in the shards.
        """
        time.sleep(_FRESH_S)
        blocks = int(self.metric("python_blocks"))
        own = [pid for name, pids in self._children.items() if name != _BUS for pid in pids]
        held = [processes.memory(pid) for pid in (self._keeper.pid, *own)]
        return {
            "pss_bytes": sum(each.pss_bytes for each in held),
            "private_bytes": sum(each.private_bytes for each in held),
            "bus_pss_bytes": processes.memory(self.bus_pid).pss_bytes,
            "allocated_blocks": blocks,
        }

    def settle(self, *, timeout_s: float = 15.0) -> None:
        """Wait until the shards use almost no CPU."""
        processes.settle(self.cpu_s, timeout_s=timeout_s)

    def is_running(self) -> bool:
        """Whether the keeper process still runs."""
        return self._keeper.poll() is None

    # --- metrics --------------------------------------------------------------------------------------

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of those samples of a metric that have these labels. `name` is without `wsgate_`."""
        return sum(
            sample.value
            for family in text_string_to_metric_families(self._scrape())
            for sample in family.samples
            if sample.name == f"wsgate_{name}" and labels.items() <= sample.labels.items()
        )

    def metric_by(self, name: str, label: str) -> dict[str, float]:
        """Return the sums of a metric's samples by the value of one label, without zeros."""
        sums: dict[str, float] = {}
        for family in text_string_to_metric_families(self._scrape()):
            for sample in family.samples:
                if sample.name == f"wsgate_{name}" and sample.value:
                    value = sample.labels.get(label, "")
                    sums[value] = sums.get(value, 0.0) + sample.value
        return sums

    def _scrape(self) -> str:
        url = f"http://127.0.0.1:{self._running['admin_port']}/metrics"
        with urllib.request.urlopen(url, timeout=_SCRAPE_S) as answer:
            text: str = answer.read().decode()
        return text

    def faults(self) -> list[str]:
        """Return a sentence for each fault: ended processes, dropped publications, errors of commands."""
        if not self.is_running():
            return [f"the gateway ended with status {self._keeper.returncode}"]
        time.sleep(_FRESH_S)
        found = []
        if processes.children(self._keeper.pid) != self._children or self.metric("restarts_total"):
            found.append("a process of the gateway ended")
        for family, outcome in _DROPPED:
            if count := self.metric(f"{family}_total", outcome=outcome):
                found.append(f"{count:.0f} {family} {outcome}")
        if count := self.metric("errors_total"):
            found.append(f"{count:.0f} commands were answered with an error")
        return found

    # --- the interface that the other servers have too ------------------------------------------------

    def call(self, command: str, *, timeout_s: float = 0.0, **arguments: Any) -> Any:
        """Run a command of peers/control.py or of the backend, and return its result (ServerError)."""
        if command == "memory":
            return self.memory()
        if command == "stats":
            return {"cpu_s": self.cpu_s(), "counters": {}}
        return self._backend().call(command, timeout_s=timeout_s, **arguments)

    @property
    def backend_pid(self) -> int:
        """The process id of the backend that publishes."""
        return self._backend().pid

    def start(self, command: str, **arguments: Any) -> int:
        """Start a command of the backend; `finish` with the returned number waits for its result."""
        return self._backend().start(command, **arguments)

    def finish(self, number: int, *, timeout_s: float = 0.0) -> Any:
        """Wait for the result of a command that `start` has begun."""
        return self._backend().finish(number, timeout_s=timeout_s)

    def _backend(self) -> ServerProcess:
        if self._publisher is None:
            settings = {"path": self.bus_path, "prefix": self._running["prefix"]}
            self._publisher = ServerProcess("redis_publisher", settings)
        return self._publisher

    def stop(self, *, is_killed: bool = False) -> None:
        """End the gateway and remove its files; kill it if it does not end in time, or if `is_killed`.

        May be called twice.
        """
        if self._publisher is not None:
            self._publisher.stop()
        with contextlib.suppress(OSError):
            self._keeper.send_signal(signal.SIGKILL if is_killed else signal.SIGTERM)
        try:
            self._keeper.wait(self._stop_s)
        except subprocess.TimeoutExpired:
            self._keeper.kill()  # the child processes notice this and end
            self._keeper.wait()
        self._directory.cleanup()

    def __enter__(self) -> Self:
        """Return the gateway itself on entry."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Stop the gateway and its backend."""
        self.stop()
