"""Limit one address on a whole gateway: over all shards, behind proxies, and after a crash (A4)."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.attack_rig import scrape, shard_pid
from tests.support.gateway import Gateway, running_gateway, wait_until
from tests.support.packages import find_or_install, find_program
from tests.support.ports import reserved_port
from tests.support.raw_client import LIMIT_S, RawClient, request

pytestmark = pytest.mark.slow

HAPROXY = """
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend door
    bind 127.0.0.1:{port}
    default_backend gate
backend gate
    server one 127.0.0.1:{gateway} {option} source 127.0.0.9
"""


@contextmanager
def limited(*flags: str, **settings: str) -> Iterator[Gateway]:
    environ = {name.upper(): value for name, value in settings.items()}
    with running_gateway(*flags, environ=environ) as gateway:
        yield gateway


def status(
    gateway: Gateway, *headers: tuple[str, str], before: bytes = b"", source: str = "127.0.0.1"
) -> int:
    """Return the status of the answer to a new connection, which is closed again."""
    with RawClient(gateway, source=source) as client:
        return client.ask(before + request(headers=headers)).status


def stay(held: ExitStack, gateway: Gateway, *headers: tuple[str, str], source: str, port: int = 0) -> None:
    client = held.enter_context(RawClient(gateway, source=source, port=port))
    assert client.ask(request(headers=headers)).status == 101


def counted(gateway: Gateway, kind: str, reason: str) -> float:
    return scrape(gateway).get(f'wsgate_{kind}_total{{reason="{reason}"}}', 0.0)


def test_address_limit_covers_all_shards_and_a_crash_frees_exactly_the_lost_connections() -> None:
    with (
        limited("--shards", "2", wsgate_admission__per_address_connections="6") as gateway,
        ExitStack() as held,
    ):
        for _ in range(6):
            stay(held, gateway, source="127.0.0.5")
        with RawClient(gateway, source="127.0.0.5") as late:
            answer = late.ask(request())
        assert answer.status == 429
        assert 1 <= int(answer.headers["retry-after"]) <= 10
        # A shard dies with some of the connections: only these no longer count.
        names = [f'wsgate_connections{{shard="{number}",state="open"}}' for number in range(2)]
        wait_until("all are counted", lambda: sum(scrape(gateway)[name] for name in names) == 6, LIMIT_S)
        lost = scrape(gateway)[names[0]]
        os.kill(shard_pid(gateway, 0), signal.SIGKILL)
        wait_until("the crash is noticed", lambda: scrape(gateway)["wsgate_restarts_total"] == 1, LIMIT_S)
        wait_until("the successor serves", lambda: scrape(gateway)['wsgate_phase{shard="0"}'] == 1, LIMIT_S)
        room = 0
        while room <= 6:
            client = held.enter_context(RawClient(gateway, source="127.0.0.5"))
            if client.ask(request()).status != 101:
                break
            room += 1
        assert room == lost
        name = "refused_address_connections"
        wait_until("two are counted", lambda: counted(gateway, "refusals", name) == 2, LIMIT_S)


def test_reload_that_raises_max_connections_keeps_the_limit_of_one_address(tmp_path: Path) -> None:
    """Connections beyond the first limit of the node count for their address like the others."""
    file = tmp_path / "wsgate.toml"
    text = "[admission]\nper_address_connections = 6\nmax_connections = {}\n"
    file.write_text(text.format(4))
    with running_gateway("--config", str(file)) as gateway, ExitStack() as held:
        for _ in range(4):
            stay(held, gateway, source="127.0.0.5")
        assert status(gateway, source="127.0.0.6") == 503
        file.write_text(text.format(50))
        gateway.process.send_signal(signal.SIGHUP)
        wait_until("it is reloaded", lambda: scrape(gateway)["wsgate_config_reloads_total"] == 1, LIMIT_S)
        wait_until("there is room", lambda: status(gateway, source="127.0.0.7") == 101, LIMIT_S)
        for _ in range(6):
            stay(held, gateway, source="127.0.0.6")
        assert status(gateway, source="127.0.0.6") == 429
        for _ in range(2):
            stay(held, gateway, source="127.0.0.5")
        assert status(gateway, source="127.0.0.5") == 429


def test_address_rate_refuses_connections_with_429_and_not_those_of_another_address() -> None:
    with limited(wsgate_admission__per_address_rate="3") as gateway:
        began_s = time.monotonic()
        answers = [status(gateway, source="127.0.0.5") for _ in range(30)]
        assert answers[:3] == [101] * 3
        # Three at once, then three a second, for the time that thirty attempts took on this machine.
        assert answers.count(101) <= 3 + 3 * (time.monotonic() - began_s) + 1
        assert set(answers) == {101, 429}
        assert status(gateway, source="127.0.0.6") == 101


def test_x_forwarded_for_counts_only_from_a_listed_proxy_and_only_its_last_address() -> None:
    settings = {
        "wsgate_admission__per_address_connections": "1",
        "wsgate_server__trusted_proxies": "127.0.0.9/32",
    }
    with limited(**settings) as gateway, ExitStack() as held:
        named = ("X-Forwarded-For", "198.51.100.1, 203.0.113.7")
        stay(held, gateway, named, source="127.0.0.9")
        stay(held, gateway, ("X-Forwarded-For", "203.0.113.8"), source="127.0.0.9")
        assert status(gateway, named, source="127.0.0.9") == 429
        # The client can invent the earlier addresses, so they do not count.
        forged = ("X-Forwarded-For", "198.51.100.2, 203.0.113.7")
        assert status(gateway, forged, source="127.0.0.9") == 429
        # A peer that is not listed counts with its own address.
        stay(held, gateway, ("X-Forwarded-For", "203.0.113.9"), source="127.0.0.5")
        assert status(gateway, ("X-Forwarded-For", "203.0.113.10"), source="127.0.0.5") == 429
        # A proxy that names no address is accepted and counted.
        stay(held, gateway, source="127.0.0.9")
        stay(held, gateway, source="127.0.0.9")
        name = 'wsgate_addresses_missed_total{cause="unnamed"}'
        wait_until("they are counted", lambda: scrape(gateway)[name] == 2, LIMIT_S)
        assert counted(gateway, "refusals", "address_connections") == 2


@pytest.mark.parametrize("option", ["send-proxy", "send-proxy-v2"])
def test_proxy_protocol_of_haproxy_counts_connections_for_the_client_address(
    option: str, tmp_path: Path
) -> None:
    program = find_or_install(lambda: find_program("haproxy"), ["haproxy"])
    if program is None:
        pytest.skip("no haproxy here, and it could not be installed")
    settings = {
        "wsgate_admission__per_address_connections": "2",
        "wsgate_server__trusted_proxies": "127.0.0.9",
        "wsgate_server__proxy_protocol": "true",
    }
    with limited(**settings) as gateway, reserved_port() as port, ExitStack() as held:
        file = tmp_path / "haproxy.cfg"
        file.write_text(HAPROXY.format(port=port, gateway=gateway.port, option=option))
        process = held.enter_context(subprocess.Popen([program, "-db", "-f", str(file)]))
        held.callback(process.terminate)

        def is_listening() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        wait_until("haproxy listens", is_listening, LIMIT_S)
        for source in ("127.0.0.5", "127.0.0.5", "127.0.0.6"):
            stay(held, gateway, source=source, port=port)
        with RawClient(gateway, source="127.0.0.5", port=port) as late:
            assert late.ask(request()).status == 429
        # A header from an unlisted peer is no request, and a listed peer without a header is closed.
        header = b"PROXY TCP4 203.0.113.1 127.0.0.1 1 2\r\n"
        assert status(gateway, before=header) == 405
        with RawClient(gateway, source="127.0.0.9") as bare:
            bare.sock.sendall(request())
            assert bare.sock.recv(100) == b""
        name = "bad_proxy_header"
        wait_until("one is counted", lambda: counted(gateway, "closes", name) >= 1, LIMIT_S)


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        ({"server": {"trusted_proxies": ["proxy.example"]}}, "server.trusted_proxies[0]: "),
        ({"server": {"trusted_proxies": ["10.0.0.0/8", "10.0.0.1/8"]}}, "server.trusted_proxies[1]: "),
        ({"server": {"trusted_proxies": ["10.0.0.1"] * 65}}, "server.trusted_proxies: at most 64"),
        ({"server": {"proxy_protocol": True}}, "server.trusted_proxies: required with"),
        ({"admission": {"per_address_connections": -1}}, "admission.per_address_connections: "),
        ({"admission": {"per_address_rate": -1}}, "admission.per_address_rate: "),
        ({"admission": {"per_user_rate": -1}}, "admission.per_user_rate: "),
        ({"admission": {"per_user_policy": "oldest"}}, "admission.per_user_policy: "),
        ({"admission": {"handshake_rate": -5}}, "admission.handshake_rate: "),
        ({"admission": {"memory_budget": "60MiB"}}, "admission.memory_budget: 60 MiB leave too little"),
    ],
)
def test_invalid_address_or_proxy_setting_stops_the_start_and_is_named(
    settings: dict[str, object], path: str, tmp_path: Path
) -> None:
    lines = []
    for section, keys in settings.items():
        assert isinstance(keys, dict)
        lines += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]
    file = tmp_path / "wsgate.toml"
    file.write_text("\n".join(lines))
    command = [sys.executable, "-m", "wsgate", "serve", "--dev", "--port", "0", "--config", str(file)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert ended.returncode == 2
    assert path in ended.stderr
    assert "Traceback" not in ended.stderr
