"""Runs a gateway while an example runs. In production the gateway runs as a service of its own."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["RunningGateway", "running_gateway"]

_STOP_S = 15


@dataclass(frozen=True, slots=True)
class RunningGateway:
    """The addresses of a running gateway for clients and backends; `bus_url` may hold a password."""

    port: int
    bus_url: str

    @property
    def url(self) -> str:
        """The WebSocket URL for clients."""
        return f"ws://localhost:{self.port}/ws"


@contextlib.contextmanager
def running_gateway(
    config: Path, *, secret: str, port: int = 0, redis: str | None = None, origins: Iterable[str] = ()
) -> Iterator[RunningGateway]:
    """Start a gateway with this configuration, and stop it afterwards; SIGTERM then acts as Ctrl-C.

    Args:
        config: The path of a wsgate.toml.
        secret: The key that signs its tokens.
        port: The port for clients; 0: a free one.
        redis: The URL of the bus; None: the gateway starts a private one, which ends with it.
        origins: The origins of web pages that may connect, each `http://host:port`.

    Raises:
        RuntimeError: The gateway did not start. It has printed the reason.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="wsgate-example-") as directory:
        command = [sys.executable, "-m", "wsgate.cli", "serve", "--config", str(config), "--port", str(port)]
        command += ["--admin-port", "0", "--shards", "1", *(["--redis", redis] if redis else [])]
        environment = os.environ | {"XDG_RUNTIME_DIR": directory, "WSGATE_AUTH__HMAC_SECRET": secret}
        environment["WSGATE_SERVER__ALLOWED_ORIGINS"] = " ".join(origins)
        environment.pop("RUNTIME_DIRECTORY", None)
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
        )
        try:
            yield _read_banner(process, redis)
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_S)
            process.kill()
            process.wait()


def _read_banner(process: "subprocess.Popen[str]", redis: str | None) -> RunningGateway:
    """Read the lines that the gateway prints until it is ready: `socket ws://...`, `bus unix://...`.

    The gateway prints the URL of a given bus without its password. Therefore that URL is not read here.
    """
    said: dict[str, str] = {}
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == "ready":
            port = int(said["socket"].rsplit(":", 1)[1].split("/")[0])
            return RunningGateway(port, redis or said["bus"].removeprefix("private, on "))
        name, _, value = line.strip().partition(" ")
        said[name] = value.strip()
    raise RuntimeError("the gateway did not start")
