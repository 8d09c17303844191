"""A whole gateway as its users start it: `wsgate serve` in a process of its own, on free ports.

Everything it prints is kept; it is told to stop by its own pid, and what it leaves behind is looked at.
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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Gateway", "children_of", "running_gateway", "wait_until"]

ROOT = Path(__file__).resolve().parents[2]
START_S = 30.0
STOP_S = 45.0


def wait_until(what: str, claim, within_s: float = 10.0) -> None:  # type: ignore[no-untyped-def]
    """Poll until `claim()` is true; AssertionError naming `what` when it never is."""
    end_s = time.monotonic() + within_s
    while not claim():
        if time.monotonic() > end_s:
            raise AssertionError(f"not within {within_s} s: {what}")
        time.sleep(0.02)


def children_of(pid: int) -> dict[str, list[int]]:
    """Name to pids of a process's children, as ps shows them."""
    found: dict[str, list[int]] = {}
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with contextlib.suppress(OSError):
                found.setdefault(Path(f"/proc/{child}/comm").read_text().strip(), []).append(int(child))
    return found


@dataclass
class Gateway:
    """One running gateway."""

    process: subprocess.Popen[str]
    directory: Path
    port: int = 0
    admin_port: int = 0
    bus_url: str = ""
    lines: list[str] = field(default_factory=list)  # standard output and error
    secret: str = ""

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws"

    @property
    def admin_url(self) -> str:
        return f"http://127.0.0.1:{self.admin_port}"

    def children(self) -> dict[str, list[int]]:
        """Its processes by name."""
        return children_of(self.process.pid)

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """One of its commands, in its runtime directory."""
        return subprocess.run(
            [sys.executable, "-m", "wsgate", *arguments],
            env=os.environ | {"RUNTIME_DIRECTORY": str(self.directory)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=30,
            check=check,
        )

    def token(self, user: str, *arguments: str) -> str:
        """A token signed with the development secret."""
        return self.run("token", "--port", str(self.port), "--user", user, *arguments).stdout.strip()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Tell it to stop and wait; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(STOP_S)


@contextlib.contextmanager
def running_gateway(
    *flags: str, environ: Mapping[str, str] | None = None, is_dev: bool = True, wait: bool = True
) -> Iterator[Gateway]:
    """A gateway with `serve --dev`, one shard unless told otherwise, ready when it is yielded.

    Args:
        flags: More of `serve`'s.
        environ: More environment.
        is_dev: Whether to give --dev.
        wait: Whether to wait until it says "ready".
    """
    with tempfile.TemporaryDirectory(prefix="wsgate-test-") as name:
        directory = Path(name)
        command = [
            sys.executable,
            "-m",
            "wsgate",
            "serve",
            "--port",
            "0",
            "--admin-port",
            "0",
            "--host",
            "127.0.0.1",
        ]
        command += ["--dev"] if is_dev else []
        command += flags if "--shards" in flags else ["--shards", "1", *flags]
        process = subprocess.Popen(
            command,
            env=os.environ | {"RUNTIME_DIRECTORY": name} | dict(environ or {}),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        gateway = Gateway(process, directory)
        reader = threading.Thread(target=_read, args=(process, gateway.lines), daemon=True)
        reader.start()
        try:
            if wait:
                _await(gateway, "ready")
            else:
                wait_until("it listens", lambda: any("socket" in line for line in gateway.lines), START_S)
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


def _describe(gateway: Gateway) -> None:
    rows = [json.loads(file.read_text()) for file in gateway.directory.glob("gateway-*.json")]
    assert len(rows) == 1
    gateway.port, gateway.admin_port = rows[0]["port"], rows[0]["admin_port"]
    gateway.bus_url, gateway.secret = rows[0]["bus_url"], rows[0]["secret"]


def _end(gateway: Gateway) -> None:
    """However the test left it: the keeper and every child gone."""
    pids: Sequence[int] = [pid for group in gateway.children().values() for pid in group]
    if gateway.process.poll() is None:
        gateway.process.terminate()
        try:
            gateway.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            gateway.process.kill()
            gateway.process.wait(5)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)  # one a test had stopped sees now that its keeper is gone
    wait_until("its children are gone", lambda: not any(_is_alive(pid) for pid in pids))


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
