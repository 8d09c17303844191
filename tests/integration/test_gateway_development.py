"""Use development mode as a newcomer: safe on an office network, and open to pages of this machine."""

import http.client
import os
import re
import socket
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gateway import ROOT, Gateway, running_gateway, wait_until

pytestmark = pytest.mark.slow

LIMIT_S = 10.0


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with running_gateway(host=None) as running:
        yield running


@pytest.fixture(scope="module")
def production() -> Iterator[Gateway]:
    with running_gateway(is_dev=False, environ={"WSGATE_AUTH__ALLOW_ANONYMOUS": "1"}) as running:
        yield running


def get(gateway: Gateway, path: str, **headers: str) -> tuple[int, dict[str, str], str]:
    """Return the status, headers and body of a GET on the client port."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=LIMIT_S)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read().decode()
    finally:
        connection.close()


def handshake_answer(gateway: Gateway, origin: str, host: str) -> str:
    """Return the whole answer to the handshake of a page of this origin."""
    lines = [
        "GET /ws HTTP/1.1",
        f"Host: {host}",
        f"Origin: {origin}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {b64encode(os.urandom(16)).decode()}",
    ]
    with socket.create_connection(("127.0.0.1", gateway.port), LIMIT_S) as peer:
        peer.sendall("\r\n".join([*lines, "\r\n"]).encode())
        answer = peer.recv(1 << 16)
        while not answer.startswith(b"HTTP/1.1 101") and (more := peer.recv(1 << 16)):
            answer += more
    return answer.decode("latin-1")


def listening_addresses(port: int) -> set[str]:
    """Return the addresses that have a listener on this port, in hexadecimal as the kernel shows them."""
    rows = (
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    )
    local = (row[1].split(":") for row in rows if row[3] == "0A")
    return {address for address, number in local if int(number, 16) == port}


def test_development_gateway_listens_only_on_loopback(gateway: Gateway) -> None:
    assert listening_addresses(gateway.port) == {"0100007F"}
    assert listening_addresses(gateway.admin_port) == {"0100007F"}


def test_development_gateway_with_a_host_flag_listens_there_and_prints_a_warning() -> None:
    with running_gateway(host="0.0.0.0") as open_to_all:
        assert listening_addresses(open_to_all.port) == {"00000000"}
        [line] = [line for line in open_to_all.lines if line.startswith("  listens ")]
        assert f"0.0.0.0:{open_to_all.port} (every address of this machine)" in line
        assert "every client that reaches it may read and publish" in line


@pytest.mark.parametrize(
    "origin", ["http://localhost:5173", "https://127.0.0.1", "http://[::1]:3000", "http://127.9.9.9:1"]
)
def test_loopback_origin_may_connect_in_development_but_not_in_production(
    gateway: Gateway, production: Gateway, origin: str
) -> None:
    for host in (f"localhost:{gateway.port}", f"127.0.0.1:{gateway.port}"):
        assert handshake_answer(gateway, origin, host).startswith("HTTP/1.1 101 ")
    assert handshake_answer(production, origin, f"gate.example:{production.port}").startswith("HTTP/1.1 403 ")


@pytest.mark.parametrize(
    "origin", ["null", "file://", "http://evil.example:%d", "https://localhost.evil.example"]
)
def test_foreign_origin_is_403_in_development_and_the_answer_and_log_name_the_setting(
    gateway: Gateway, origin: str
) -> None:
    """One case is a foreign name that was rebound to this machine, so that Origin and Host agree."""
    origin = origin % gateway.port if "%d" in origin else origin
    host = origin.partition("://")[2] or f"localhost:{gateway.port}"
    wait_until(  # a cause is logged once a second, so an earlier refusal may suppress the line
        "a log line names the origin and the setting",
        lambda: (
            _is_refused_with_cause(handshake_answer(gateway, origin, host), origin)
            and any(
                "origin_refused" in line and f"origin={origin} " in line and "server.allowed_origins" in line
                for line in gateway.lines
            )
        ),
    )


def _is_refused_with_cause(answer: str, origin: str) -> bool:
    head, _, body = answer.partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 403 ")
    assert origin in body
    assert "server.allowed_origins" in body
    return True


def test_root_of_the_client_port_redirects_to_the_admin_page_only_in_development(
    gateway: Gateway, production: Gateway
) -> None:
    for path in ("/", "/?a=b"):
        status, headers, body = get(gateway, path, Host="evil.example")
        assert (status, headers["location"]) == (302, f"{gateway.admin_url}/")
        assert gateway.admin_url in body
        assert get(production, path)[0] == 404


def test_unknown_path_on_the_client_port_is_404_and_known_ones_are_served(
    gateway: Gateway, production: Gateway
) -> None:
    for running in (gateway, production):
        for path in ("/nothing", "/ws/", "/index.html", "/favicon.ico"):
            assert (path, get(running, path)[0]) == (path, 404)
        assert get(running, "/ws")[0] == 426
        assert get(running, "/readyz")[0] == get(running, "/client.js")[0] == 200


def test_start_in_development_prints_addresses_commands_and_the_way_to_stop(gateway: Gateway) -> None:
    place = gateway.lines.index("ready")
    rows = dict(line.strip().split(None, 1) for line in gateway.lines[place - 8 : place])
    assert list(rows) == ["listens", "socket", "page", "bus", "publish", "listen", "token", "stop"]
    assert rows["listens"] == f"127.0.0.1:{gateway.port} (this machine only)"
    assert "Ctrl-C" in rows["stop"]
    assert not [line for line in gateway.lines[:place] if "Z error" in line]
    text = "\n".join(gateway.lines)
    assert re.search(rf"ws://[^:]+:{gateway.port}/", text)
    assert re.search(rf"admin +http://[^:]+:{gateway.admin_port}/", text)


@pytest.mark.parametrize("row", ["publish", "token"])
def test_printed_command_runs_unchanged_in_a_shell(gateway: Gateway, row: str) -> None:
    """They also work where `wsgate` is not on the path, as after `make run`."""
    rows = dict(line.strip().split(None, 1) for line in gateway.lines if line.startswith("  "))
    environ = os.environ | {"RUNTIME_DIRECTORY": str(gateway.directory)}
    done = subprocess.run(
        rows[row],
        shell=True,
        env=environ,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=True,
    )
    assert done.stdout.strip()
    assert sys.executable in rows[row] or rows[row].startswith(("wsgate ", ".venv/bin/wsgate "))


def test_printed_commands_name_the_started_program_when_wsgate_is_not_on_the_path(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("wsgate")
    environ = {"PATH": "/usr/bin:/bin", "RUNTIME_DIRECTORY": str(tmp_path)}
    started = subprocess.Popen(
        [
            os.path.relpath(program, ROOT),
            "serve",
            "--dev",
            "--port",
            "0",
            "--admin-port",
            "0",
            "--shards",
            "1",
        ],
        env=environ,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert started.stdout is not None
        lines = []
        for line in started.stdout:
            lines.append(line.rstrip("\n"))
            if lines[-1] == "ready":
                break
        commands = [line.split(None, 1)[1] for line in lines if line.startswith(("  publish", "  token"))]
        assert len(commands) == 2
        for command in commands:
            assert command.startswith(f"{os.path.relpath(program, ROOT)} ")
            subprocess.run(
                command,
                shell=True,
                env=environ,
                cwd=ROOT,
                check=True,
                stdout=subprocess.DEVNULL,
                timeout=LIMIT_S,
            )
    finally:
        started.terminate()
        started.wait(LIMIT_S * 3)
        assert started.stdout is not None
        started.stdout.close()
