"""A whole gateway as its users start it, driven and measured from outside only.

It runs `python -m wsgate serve --config FILE` with a private bus, reads where it listens from its runtime
directory, its CPU and memory from the kernel by the names of its processes, its numbers from /metrics.
Publications come from a backend in a process of its own (peers/redis_publisher.py).

The configuration is what a user would write, but for four lines, each with its reason beside it.
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
SECRET: Final = "a secret of the benchmark, known to everybody"  # noqa: S105 - it keeps nothing
_START_S: Final = 60.0
_STOP_S: Final = 15.0
_SCRAPE_S: Final = 10.0
_FRESH_S: Final = 1.3  # a shard writes its numbers once a second
_SHARD: Final = "wsgate-shard-"
_BUS: Final = "wsgate-bus"
# Publications and publishes that came to nothing.
_DROPPED: Final = (("publications", "malformed"), ("publications", "too_large"), ("publishes", "failed"))

_CONFIG: Final = """
[server]
host = "127.0.0.1"
port = {port}
shards = {shards}
compression = {compression}
drain_timeout = "{drain_timeout_s}s"  # 1: nobody waits for the clients' jitter

[admin]
port = 0

[auth]
hmac_secret = "{secret}"
allow_anonymous = true

[heartbeat]
ping_interval = "{ping_interval_s}s"  # 0 beside other servers: pings of one would be charged to another

[limits]
outbox_frames = 65536  # the cost of a flood is asked for here, not what becomes of a slow reader,
outbox_bytes = "16MiB"  # and the client may wait for a processor that it shares
publish_rate = 0  # off: one connection is to publish as fast as the gateway takes it

[admission]
{admission}

[events]
enabled = {events}

[channels.default]
subscribe = "anyone"
publish = "anyone"
"""


class GatewayProcess:
    """One gateway; always ended by its keeper's own pid.

    Args:
        shards: How many.
        processor: Where its shards are pinned; the rest of it runs where its parent does. None does not pin.
        ping_interval_s: Of its heartbeats; 0: none.
        port: Where clients connect; 0: a free one.
        drain_timeout_s: How long it may take to say goodbye.
        events: Types of events that backends are told.
        admission: Settings of that section.
        prefix: A command that starts it, its own following: for a control group.
        compression: Whether clients may ask for it.
        config: The template of its configuration, with the same fields as `_CONFIG` or fewer.
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
        """Start it and wait until it is ready (ServerError if it never is)."""
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
        file.touch(mode=0o600)  # it holds a secret
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

    # --- its processes --------------------------------------------------------------------------------

    @property
    def shard_pids(self) -> list[int]:
        """Its shards."""
        return [pid for name, pids in self._children.items() if name.startswith(_SHARD) for pid in pids]

    @property
    def bus_pid(self) -> int:
        """Its private bus."""
        return self._children[_BUS][0]

    def pids_now(self, prefix: str) -> list[int]:
        """Return the processes whose name begins like this, those that were started again included."""
        found = processes.children(self._keeper.pid)
        return [pid for name, pids in found.items() if name.startswith(prefix) for pid in pids]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the keeper."""
        self._keeper.send_signal(number)

    def log_text(self) -> str:
        """Return everything that the gateway has written."""
        return self._log.read_text(errors="replace")

    def cpu_s(self) -> float:
        """Return user and system time of its shards so far."""
        return sum(processes.cpu_s(pid) for pid in self.shard_pids)

    @property
    def bus_path(self) -> str:
        """Where its bus listens."""
        return str(self._running["bus_url"]).removeprefix("unix://")

    def bus_cpu_s(self) -> float:
        """Return that of its bus."""
        return processes.cpu_s(self.bus_pid)

    def memory(self) -> dict[str, int]:
        """Return the memory of keeper, shards and admin process together, and `bus_pss_bytes` apart.

        `allocated_blocks` are CPython's, of the shards.
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
        """Wait until its shards rest."""
        processes.settle(self.cpu_s, timeout_s=timeout_s)

    def is_running(self) -> bool:
        """Whether it can still be driven."""
        return self._keeper.poll() is None

    # --- its numbers ----------------------------------------------------------------------------------

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of a metric's samples that have these labels; `name` without `wsgate_`."""
        return sum(
            sample.value
            for family in text_string_to_metric_families(self._scrape())
            for sample in family.samples
            if sample.name == f"wsgate_{name}" and labels.items() <= sample.labels.items()
        )

    def metric_by(self, name: str, label: str) -> dict[str, float]:
        """Return the sums of a metric's samples by the value of one label; zeros are left out."""
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
        """Return what went wrong inside, a sentence each: processes that died, publications dropped."""
        if not self.is_running():
            return [f"the gateway ended with status {self._keeper.returncode}"]
        time.sleep(_FRESH_S)
        found = []
        if processes.children(self._keeper.pid) != self._children or self.metric("restarts_total"):
            found.append("a process of the gateway died")
        for family, outcome in _DROPPED:
            if count := self.metric(f"{family}_total", outcome=outcome):
                found.append(f"{count:.0f} {family} {outcome}")
        if count := self.metric("errors_total"):
            found.append(f"{count:.0f} commands were answered with an error")
        return found

    # --- as the servers beside it are driven ----------------------------------------------------------

    def call(self, command: str, *, timeout_s: float = 0.0, **arguments: Any) -> Any:
        """Run a command of peers/control.py, or one of the backend's (ServerError)."""
        if command == "memory":
            return self.memory()
        if command == "stats":
            return {"cpu_s": self.cpu_s(), "counters": {}}
        return self._backend().call(command, timeout_s=timeout_s, **arguments)

    @property
    def backend_pid(self) -> int:
        """The process that publishes."""
        return self._backend().pid

    def start(self, command: str, **arguments: Any) -> int:
        """Begin a command of the backend's; `finish` with the number returned here waits for its result."""
        return self._backend().start(command, **arguments)

    def finish(self, number: int, *, timeout_s: float = 0.0) -> Any:
        """Return the result of a command that was begun."""
        return self._backend().finish(number, timeout_s=timeout_s)

    def _backend(self) -> ServerProcess:
        if self._publisher is None:
            settings = {"path": self.bus_path, "prefix": self._running["prefix"]}
            self._publisher = ServerProcess("redis_publisher", settings)
        return self._publisher

    def stop(self, *, is_killed: bool = False) -> None:
        """Tell it to end, kill it when it does not or it is to die, and remove what it left. Idempotent."""
        if self._publisher is not None:
            self._publisher.stop()
        with contextlib.suppress(OSError):
            self._keeper.send_signal(signal.SIGKILL if is_killed else signal.SIGTERM)
        try:
            self._keeper.wait(self._stop_s)
        except subprocess.TimeoutExpired:
            self._keeper.kill()  # its children see it and end
            self._keeper.wait()
        self._directory.cleanup()

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Stop."""
        self.stop()
