"""Run a whole gateway as its users start it: `wsgate serve` in a process of its own, on free ports.

All its output is kept. It is stopped by its own pid, and it must leave no process behind.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
from prometheus_client.parser import text_string_to_metric_families

from tests.support.ports import reserved_ports
from wsgate.config import parse_duration_ms

__all__ = ["Gateway", "children_of", "run_command", "running_gateway", "wait_until"]

ROOT = Path(__file__).resolve().parents[2]
START_S = 90.0  # a busy machine needs more than half a minute
STOP_S = 45.0


def wait_until(what: str, claim: Callable[[], object], within_s: float = 10.0) -> None:
    """Poll until `claim()` is true; raise AssertionError with `what` when it never is."""
    end_s = time.monotonic() + within_s
    while not claim():
        if time.monotonic() > end_s:
            raise AssertionError(f"not within {within_s} s: {what}")
        time.sleep(0.02)


def children_of(pid: int) -> dict[str, list[int]]:
    """Map the names of a process's children, as ps shows them, to their pids."""
    found: dict[str, list[int]] = {}
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with contextlib.suppress(OSError):
                found.setdefault(Path(f"/proc/{child}/comm").read_text().strip(), []).append(int(child))
    return found


@dataclass
class Gateway:
    """One running gateway, with its ports, output and processes."""

    process: subprocess.Popen[str]
    directory: Path
    port: int = 0
    admin_port: int = 0
    bus_url: str = ""
    lines: list[str] = field(default_factory=list)  # standard output and error
    secret: str = ""
    neighbours: frozenset[int] = frozenset()  # earlier processes in its directory

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws"

    @property
    def admin_url(self) -> str:
        return f"http://127.0.0.1:{self.admin_port}"

    def children(self) -> dict[str, list[int]]:
        """Return its processes by name."""
        return children_of(self.process.pid)

    def processes(self) -> list[int]:
        """Return every living process that was started for this gateway, whatever its parent is now."""
        entry = f"RUNTIME_DIRECTORY={self.directory}".encode()
        pids = [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit()]
        group = self.process.pid
        found = [pid for pid in pids if _belongs(Path(f"/proc/{pid}"), entry, self.directory, group)]
        return [pid for pid in found if pid not in self.neighbours]

    def pid_of(self, name: str) -> int:
        """Return the pid of the one child of this name, such as `wsgate-shard-0`."""
        (pid,) = self.children()[name]
        return pid

    def warnings(self) -> list[str]:
        """Return the log lines about faults; the warning about running as root is not one."""
        found = [line for line in self.lines if "Z warning " in line or "Z error " in line]
        return [line for line in found if " keeper runs_as_root " not in line]

    def why_not_ready(self) -> list[str]:
        """Return the causes that `/readyz` names; empty when ready, `admin_away` without an answer."""
        try:
            self.get("/readyz")
            return []
        except urllib.error.HTTPError as error:
            with error:
                why: list[str] = json.loads(error.read())["why"]
            return why
        except OSError:
            return ["admin_away"]

    def await_ready(self, within_s: float = START_S) -> None:
        """Wait until `/readyz` reports that the gateway is ready."""
        wait_until("ready", lambda: not self.why_not_ready(), within_s)

    def get(self, path: str) -> str:
        """Return a page of the admin port."""
        with urllib.request.urlopen(f"{self.admin_url}{path}", timeout=START_S) as answer:
            text: str = answer.read().decode()
            return text

    def metrics(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """Return every sample by its name and its sorted labels."""
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(self.get("/metrics"))
            for sample in family.samples
        }

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of the samples of this name that have these labels."""
        return sum(
            value
            for (found, has), value in self.metrics().items()
            if found == name and labels.items() <= dict(has).items()
        )

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command of wsgate in the runtime directory of this gateway."""
        return run_command(*arguments, directory=self.directory, **options)

    def token(self, user: str, *arguments: str) -> str:
        """Return a token signed with the development secret.

        With no flag but `--ttl` the token is signed in this process: on a busy machine a token of a few
        seconds may expire before another process has printed it. With other flags `wsgate token` signs it.
        """
        if len(arguments) in (0, 2) and arguments[:1] in ((), ("--ttl",)):
            now_s = int(time.time())
            ttl_s = parse_duration_ms(arguments[1] if arguments else "1h") // 1000
            return jwt.encode({"sub": user, "iat": now_s, "exp": now_s + ttl_s}, self.secret, "HS256")
        return self.run("token", "--port", str(self.port), "--user", user, *arguments).stdout.strip()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, wait for the end, and return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(STOP_S)


def run_command(
    *arguments: str, directory: Path, environ: Mapping[str, str] | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a command of `wsgate` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "wsgate", *arguments],
        env=os.environ | {"RUNTIME_DIRECTORY": str(directory)} | dict(environ or {}),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=check,
    )


@contextlib.contextmanager
def running_gateway(
    *flags: str,
    environ: Mapping[str, str] | None = None,
    is_dev: bool = True,
    wait: bool = True,
    directory: Path | None = None,
    prefix: Sequence[str] = (),
    host: str | None = "127.0.0.1",
) -> Iterator[Gateway]:
    """Run a gateway with `serve --dev` and one shard by default; it is ready when it is yielded.

    Its ports are reserved while the block lasts, so that a test may start a successor on them.

    Args:
        flags: More flags of `serve`.
        environ: More environment variables.
        is_dev: Whether to give --dev.
        wait: Whether to wait until the gateway prints "ready".
        directory: The runtime directory; a new one by default.
        prefix: A command that limits something and becomes the gateway by exec.
        host: The address for clients; None for the default of the gateway.
    """
    with contextlib.ExitStack() as stack:
        if directory is None:
            name = stack.enter_context(tempfile.TemporaryDirectory(prefix="wsgate-test-"))
            directory = Path(name)
        port, admin_port = stack.enter_context(reserved_ports(2))
        command = [*prefix, sys.executable, "-m", "wsgate", "serve"]
        command += ["--port", str(port), "--admin-port", str(admin_port)]
        command += [] if host is None else ["--host", host]
        command += ["--dev"] if is_dev else []
        command += flags if "--shards" in flags else ["--shards", "1", *flags]
        process = subprocess.Popen(
            command,
            env=os.environ | {"RUNTIME_DIRECTORY": str(directory)} | dict(environ or {}),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            process_group=None if prefix else 0,
        )
        gateway = Gateway(process, directory)
        gateway.neighbours = frozenset(gateway.processes()) - {process.pid}
        reader = threading.Thread(target=_read, args=(process, gateway.lines), daemon=True)
        reader.start()
        try:
            if wait:
                _await(gateway, "ready")
            else:
                wait_until("it listens", lambda: _described(gateway), START_S)
            _describe(gateway)
            yield gateway
        finally:
            _end(gateway)
            reader.join(5)
            assert process.stdout is not None
            process.stdout.close()


def _read(process: subprocess.Popen[str], lines: list[str]) -> None:
    assert process.stdout is not None
    with contextlib.suppress(ValueError):
        lines.extend(line.rstrip("\n") for line in process.stdout)


def _await(gateway: Gateway, word: str) -> None:
    def is_there() -> bool:
        if gateway.process.poll() is not None:
            raise AssertionError("it ended instead:\n" + "\n".join(gateway.lines))
        return word in gateway.lines

    try:
        wait_until(word, is_there, START_S)
    except AssertionError as error:
        raise AssertionError(f"{error}\n" + "\n".join(gateway.lines)) from None


def _described(gateway: Gateway) -> list[dict[str, Any]]:
    """Return the description that the gateway writes into its runtime directory when it listens."""
    rows = [json.loads(file.read_text()) for file in gateway.directory.glob("gateway-*.json")]
    return [row for row in rows if row["pid"] == gateway.process.pid]


def _describe(gateway: Gateway) -> None:
    (row,) = _described(gateway)
    gateway.port, gateway.admin_port = row["port"], row["admin_port"]
    gateway.bus_url, gateway.secret = row["bus_url"], row["secret"]


def _end(gateway: Gateway) -> None:
    """End the keeper and every child, in whatever state the test left them."""
    if gateway.process.poll() is None:
        gateway.process.terminate()
        try:
            gateway.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            gateway.process.kill()
            gateway.process.wait(5)
    for pid in gateway.processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(
                pid, signal.SIGCONT
            )  # a child that a test had stopped can now notice that its keeper is gone
    try:
        wait_until("its children are gone", lambda: not gateway.processes())
    finally:
        for pid in gateway.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _belongs(process: Path, entry: bytes, directory: Path, group: int) -> bool:
    """Whether a process belongs to the gateway, by its group, its environment or its working directory.

    The private bus has a group of its own. Only root can read the environment of a process that is not
    dumpable. A process that has ended has none of these.
    """
    with contextlib.suppress(OSError, IndexError):
        state, _, its_group = (process / "stat").read_text().rsplit(")", 1)[1].split()[:3]
        if state in "ZX":
            return False
        if int(its_group) == group:
            return True
        if entry in (process / "environ").read_bytes().split(b"\0"):
            return True
        return (process / "cwd").readlink().is_relative_to(directory)
    return False
