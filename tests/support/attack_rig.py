"""Run a whole gateway under attack, with its counters and with a control group that must not notice.

An attack runs inside `besieged`. Meanwhile the clients of the control group publish and receive their own
publications. At the end they must still be connected and have had every answer in order; no process may have
died, and no log line may have a traceback.
"""

import contextlib
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jwt

from tests.support.frames import CLOSE, client_frame
from tests.support.gateway import Gateway, children_of, running_gateway, wait_until
from tests.support.raw_client import LIMIT_S, RawClient

__all__ = [
    "AUDIENCE",
    "SECRET",
    "ControlGroup",
    "besieged",
    "configured_gateway",
    "fresh_counters",
    "make_token",
    "nodes",
    "proportional_bytes_of",
    "scrape",
    "shard_pid",
]

SECRET = "a secret that is only ever used in the tests of attacks"
AUDIENCE = "phones"
REST_S = 5.0
REST_WINDOW_S = 0.25
OPEN_TO_USERS = 'subscribe = "authenticated"\npublish = "authenticated"\n'


# --- the gateway --------------------------------------------------------------------------------------


@contextlib.contextmanager
def configured_gateway(
    directory: Path, settings: str = "", *flags: str, prefix: Sequence[str] = ()
) -> Iterator[Gateway]:
    """Run a gateway outside development: tokens are required, and every user may use `control` and `open`.

    Args:
        directory: The directory for its configuration file.
        settings: More settings, in TOML.
        flags: More flags of `serve`.
        prefix: As for `running_gateway`.
    """
    file = directory / "wsgate.toml"
    file.write_text(f"{settings}\n[channels.control]\n{OPEN_TO_USERS}[channels.open]\n{OPEN_TO_USERS}")
    environ = {"WSGATE_AUTH__HMAC_SECRET": SECRET, "WSGATE_AUTH__AUDIENCE": AUDIENCE}
    arguments = ("--config", str(file), *flags)
    with running_gateway(*arguments, environ=environ, is_dev=False, prefix=prefix) as gateway:
        yield gateway


@contextlib.contextmanager
def nodes(directory: Path, bus_url: str, settings: str, count: int = 2) -> Iterator[list[Gateway]]:
    """Run this many nodes of one shard each on one bus."""
    with contextlib.ExitStack() as stack:
        found = []
        for number in range(count):
            place = directory / f"node-{number}"
            place.mkdir()
            text = f'{settings}\n[bus]\nurl = "{bus_url}"\n'
            found.append(stack.enter_context(configured_gateway(place, text)))
        yield found


def make_token(
    user: str = "42",
    *,
    ttl_s: float = 3600,
    secret: Any = SECRET,
    algorithm: str = "HS256",
    headers: dict[str, Any] | None = None,
    **claims: Any,
) -> str:
    """Return a token that the gateway accepts unless arguments change it; a claim of None is left out."""
    claims = {"sub": user, "aud": AUDIENCE, "exp": int(time.time() + ttl_s)} | claims
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(claims, secret, algorithm=algorithm, headers=headers)


def shard_pid(gateway: Gateway, number: int = 0) -> int:
    """Return the process id of one shard."""
    return gateway.children()[f"wsgate-shard-{number}"][0]


def proportional_bytes_of(pid: int) -> int:
    """Return the proportional set size of a process."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the kernel does not say")


# --- counters -----------------------------------------------------------------------------------------


def scrape(gateway: Gateway) -> dict[str, float]:
    """Return every sample of /metrics by its name and labels as they are written there."""
    with urllib.request.urlopen(f"{gateway.admin_url}/metrics", timeout=LIMIT_S) as answer:
        lines = answer.read().decode().splitlines()
    rows = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in rows}


def fresh_counters(gateway: Gateway) -> dict[str, float]:
    """Return a scrape that includes all that the only shard of a gateway counted before the call."""
    seen: list[float] = []

    def is_written() -> bool:
        polls = scrape(gateway)["wsgate_polls_total"]
        if polls not in seen:
            seen.append(polls)
        return len(seen) > 2  # the first change may have begun before the call

    wait_until("the shard publishes its counters", is_written, LIMIT_S)
    return scrape(gateway)


# --- the control group --------------------------------------------------------------------------------


class ControlGroup(threading.Thread):
    """Clients of which each publishes numbers to a channel of its own and must receive all of them.

    Attributes:
        rounds: How often all clients were answered.
        fault: The first fault, or None.
    """

    def __init__(self, gateway: Gateway, clients: int = 3) -> None:
        super().__init__(daemon=True, name="control group")
        self.rounds = 0
        self.fault: BaseException | None = None
        self._clients: list[RawClient] = []
        self._is_over = threading.Event()
        for number in range(clients):
            client = RawClient.welcomed(gateway, make_token(f"control-{number}"))
            self._clients.append(client)
            client.say(op="sub", ch=f"control:{number}", id=0)
            assert client.hear() == {"op": "subbed", "ch": f"control:{number}", "id": 0}

    def run(self) -> None:
        """Publish and receive until the group has to stop."""
        try:
            while not self._is_over.wait(0.02):
                self._ask_all(self.rounds + 1)
                self.rounds += 1
        except BaseException as fault:
            self.fault = fault

    def _ask_all(self, number: int) -> None:
        for place, client in enumerate(self._clients):
            client.say(op="pub", ch=f"control:{place}", data=number, id=number)
        for client in self._clients:
            heard = [client.hear(), client.hear()]
            heard.sort(key=lambda said: str(said["op"]))
            assert heard[0]["op"] == "msg" and heard[0]["data"] == number, heard
            assert heard[1] == {"op": "ok", "id": number}, heard

    def is_answered(self) -> None:
        """Wait until every client has an answer to a command that was sent after this call."""
        wanted = self.rounds + 2
        wait_until("the control group is answered", lambda: self.rounds >= wanted or self.fault, LIMIT_S)
        if self.fault is not None:
            raise AssertionError("the control group was harmed") from self.fault

    def leave(self) -> None:
        """Stop, and close the connections with a Close."""
        self._is_over.set()
        self.join(LIMIT_S)
        for client in self._clients:
            with client, contextlib.suppress(OSError):
                client.sock.sendall(client_frame(CLOSE, b"\x03\xe8"))
                client.ending()


@contextlib.contextmanager
def besieged(gateway: Gateway, clients: int = 3) -> Iterator[ControlGroup]:
    """Run a control group during an attack; afterwards check its answers and every process.

    Raises:
        AssertionError: The control group was harmed, a process ended, or a traceback was written.
    """
    pids = _descendants(gateway.process.pid)
    group = ControlGroup(gateway, clients)
    group.start()
    try:
        group.is_answered()
        yield group
        group.is_answered()
    finally:
        group.leave()
    assert _descendants(gateway.process.pid) == pids
    everybody = [gateway.process.pid, *(pid for group in pids.values() for pid in group)]
    wait_until("every process is idle (I10)", lambda: _rest(everybody), REST_S)
    assert not [line for line in gateway.lines if "Traceback" in line or "command_failed" in line]


def _rest(pids: list[int]) -> bool:
    """Whether each of these processes uses less than a fiftieth of a core for a while."""
    before = [_busy_ns(pid) for pid in pids]
    time.sleep(REST_WINDOW_S)
    return all(_busy_ns(pid) - was < REST_WINDOW_S * 1e9 / 50 for pid, was in zip(pids, before, strict=True))


def _busy_ns(pid: int) -> int:
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(file.read_text().split()[0]) for file in threads)


def _descendants(pid: int) -> dict[str, list[int]]:
    found = children_of(pid)
    for child in [each for group in found.values() for each in group]:
        found |= _descendants(child)
    return found
