"""Run the fuzzing server of Autobahn|Testsuite against the connection of `wsgate.client`.

    python -m tests.conformance.autobahn.client [--profile quick|full]

The suite listens on every address, so it runs in a network namespace of its own. Where none can be made, the
program reports this and gives no verdict. The client is the shipped transport (`wsgate.client.transport`)
without its subprotocol, which the suite does not have, in a loop that echoes each message. It offers
compression, so the sections about compression are checked too.

The framing is that of the library `websockets`; its known differences are in known-websockets.txt.
"""

import argparse
import asyncio
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from websockets.exceptions import ConnectionClosed

from tests.conformance.autobahn.judge import PROFILES, CaseResult, Verdict, judge, parse_deviations
from tests.conformance.autobahn.provision import ProvisionError, provision
from tests.conformance.autobahn.runner import HERE, REPORTS, TIME_LIMIT_S, print_verdict
from tests.support.namespace import FarHost, NamespaceError, far_host
from wsgate.client import transport
from wsgate.client.errors import Disconnected

__all__ = ["main"]

AGENT: Final = "client"
PORT: Final = 9_001
START_LIMIT_S: Final = 30.0
MESSAGE_LIMIT_BYTES: Final = 32 * 1024 * 1024  # section 9 sends 16 MiB


@contextmanager
def fuzzing_server(host: FarHost, sections: tuple[str, ...], report: Path) -> Iterator[str]:
    """Run the server of the suite in the namespace; yield its URL."""
    suite = provision()
    report.mkdir(parents=True, exist_ok=True)
    (report / "index.json").unlink(missing_ok=True)
    url = f"ws://{host.theirs}:{PORT}"
    specification = {
        "url": url,
        "outdir": str(report),
        "cases": [f"{section}.*" for section in sections],
        "exclude-cases": [],
        "exclude-agent-cases": {},
    }
    (report / "fuzzingserver.json").write_text(json.dumps(specification, indent=2) + "\n")
    command = suite.command("-m", "fuzzingserver", "-u", "0", "-s", str(report / "fuzzingserver.json"))
    environment = [f"{name}={value}" for name, value in suite.environ().items()]
    log = shlex.quote(str(report / "wstest.log"))
    process = host.start(["env", "-i", *environment, "sh", "-c", f'exec "$@" >{log} 2>&1', "sh", *command])
    try:
        yield url
    finally:
        process.kill()
        process.wait()


async def connect(url: str) -> Any:
    """Open the shipped transport without a subprotocol."""
    opening = transport.Opening(
        url=url, token=None, within_s=10.0, max_message_bytes=MESSAGE_LIMIT_BYTES, now_s=time.monotonic
    )
    return transport._WebSocket(await transport._dial(opening, None))


async def ask(url: str) -> Any:
    """Return the answer of the suite on a connection of its own."""
    until_s = time.monotonic() + START_LIMIT_S
    while True:
        try:
            socket = await connect(url)
            break
        except Disconnected:
            if time.monotonic() > until_s:
                raise
            await asyncio.sleep(0.1)
    try:
        return json.loads(await socket.receive())
    finally:
        await socket.close()


async def run_case(url: str) -> None:
    """Echo each message until the suite ends the connection."""
    try:
        socket = await connect(url)
        while True:
            message = await socket.receive()
            if isinstance(message, str):
                await socket._connection.send(message)  # the client itself never sends text
            else:
                await socket.send(message)
    except (Disconnected, ConnectionClosed):
        return


async def run_all(url: str) -> None:
    """Run every case in turn, then let the suite write its report."""
    count = await ask(f"{url}/getCaseCount")
    for case in range(1, count + 1):
        await run_case(f"{url}/runCase?case={case}&agent={AGENT}")
        if sys.stderr.isatty():
            print(f"\r{case} of {count}", end="", file=sys.stderr)
    await run_case(f"{url}/updateReports?agent={AGENT}")


def run(profile: str) -> Verdict:
    """Start the suite, run its client, check and print.

    Raises:
        NamespaceError: This machine cannot make a namespace.
        TimeoutError: The suite did not end in time.
    """
    sections, report = PROFILES[profile], REPORTS / AGENT
    with far_host() as host, fuzzing_server(host, sections, report) as url:
        asyncio.run(asyncio.wait_for(run_all(url), TIME_LIMIT_S[profile]))
    index = report / "index.json"
    results: dict[str, dict[str, CaseResult]] = json.loads(index.read_text()) if index.exists() else {}
    known = parse_deviations((HERE / "known-websockets.txt").read_text(encoding="utf-8"))
    verdict = judge(results.get(AGENT, {}), sections, known, is_deflating=True)
    print_verdict(AGENT, verdict, report)
    return verdict


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; return 0 only if all results conform, or no namespace can be made."""
    parser = argparse.ArgumentParser(prog="tests.conformance.autobahn.client")
    parser.add_argument("--profile", choices=PROFILES, default="quick")
    options = parser.parse_args(arguments)
    try:
        return 0 if run(options.profile).conforms else 1
    except NamespaceError as error:
        print(f"autobahn {AGENT}: SKIPPED: {error}")
        return 0
    except (ProvisionError, TimeoutError, Disconnected, subprocess.SubprocessError) as error:
        print(f"autobahn {AGENT}: {error!r}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
