"""A gateway for as long as an example runs. In real life it runs by itself, as a service."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["RunningGateway", "running_gateway"]

_STOP_S = 15


@dataclass(frozen=True, slots=True)
class RunningGateway:
    """Where clients and backends find it."""

    port: int
    bus_url: str

    @property
    def url(self) -> str:
        """For clients."""
        return f"ws://localhost:{self.port}/ws"


@contextlib.contextmanager
def running_gateway(
    config: Path, *, secret: str, port: int = 0, redis: str | None = None, origin: str = ""
) -> Iterator[RunningGateway]:
    """Start a gateway with this configuration, and end it afterwards; SIGTERM then counts as Ctrl-C.

    Args:
        config: A wsgate.toml.
        secret: What its tokens are signed with.
        port: For clients; 0: a free one.
        redis: The bus; None: a private one, which is gone with the gateway.
        origin: Of pages that may connect, `http://host:port`.

    Raises:
        RuntimeError: It did not start; its own words stand above.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="wsgate-example-") as directory:
        command = [sys.executable, "-m", "wsgate.cli", "serve", "--config", str(config), "--port", str(port)]
        command += ["--admin-port", "0", "--shards", "1", *(["--redis", redis] if redis else [])]
        environment = os.environ | {"XDG_RUNTIME_DIR": directory, "WSGATE_AUTH__HMAC_SECRET": secret}
        environment["WSGATE_SERVER__ALLOWED_ORIGINS"] = origin
        environment.pop("RUNTIME_DIRECTORY", None)
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
        )
        try:
            yield _read_banner(process)
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_S)
            process.kill()
            process.wait()


def _read_banner(process: "subprocess.Popen[str]") -> RunningGateway:
    """What it prints before it is ready: `socket ws://...`, `bus unix://...`."""
    said: dict[str, str] = {}
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == "ready":
            port = int(said["socket"].rsplit(":", 1)[1].split("/")[0])
            return RunningGateway(port, said["bus"].removeprefix("private, on "))
        name, _, value = line.strip().partition(" ")
        said[name] = value.strip()
    raise RuntimeError("the gateway did not start")
