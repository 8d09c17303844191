"""Run Autobahn|Testsuite against a server, and check the results.

    python -m tests.conformance.autobahn.runner                     the installed wheel, 247 cases
    python -m tests.conformance.autobahn.runner --profile full      all 517 cases; --deflate: with compression
    python -m tests.conformance.autobahn.runner --against websockets  a known server: does the suite work?
    python -m tests.conformance.autobahn.runner --prove             planted defects must turn it red

This module owns the child processes and the report; judge.py decides which results conform. The exit code of
the suite has no meaning: it is 0 also when cases failed or the server was down. With an empty selection the
suite hangs. So there is a time limit, and exactly the expected number of results is required. The server
runs in an environment with the built wheel, is started from another directory, and prints the path of its
compiled module. It runs with default settings, unless sections 9, 12 or 13 are among the
cases: those echo up to 16 MiB and need higher limits (`--roomy` of the echo server).
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from typing import Final

from tests.conformance.autobahn.judge import (
    PROFILES,
    SECTIONS,
    CaseResult,
    Deviation,
    Verdict,
    judge,
    parse_deviations,
)
from tests.conformance.autobahn.provision import ProvisionError, provision
from tests.support.wheel import clean_environment, installed_wheel

__all__ = ["Server", "main", "run_suite"]

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parents[2]
SUPPORT: Final = ROOT / "tests" / "support"
REPORTS: Final = ROOT / "reports" / "autobahn"
SANITIZED: Final = ROOT / "build" / "sanitize"
TIME_LIMIT_S: Final = {"quick": 180, "full": 1800}
ROOMY: Final = frozenset({"9", "12", "13"})
START_LIMIT_S: Final = 30
STOP_LIMIT_S: Final = 10


class RunError(Exception):
    """The run was impossible or not valid, so that there is no verdict on the server."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server under test."""

    port: int
    module: Path
    """The file of its WebSocket code, as the server prints it."""


@contextmanager
def echo_server(against: str, defect: str, *, roomy: bool, is_deflating: bool) -> Iterator[Server]:
    """Run the server under test as a child process; it must stop in an orderly way at the end.

    Args:
        against: `wheel`, `tree` (the development build), `sanitized` (a copy of it, see sanitize.sh) or
            `websockets`.
        defect: One of the echo server's defects, or `none`.
        roomy: Whether limits are above the defaults, as some sections need.
        is_deflating: Whether the server agrees to permessage-deflate.

    Raises:
        RunError: The server does not start, runs the wrong code, or died before it was stopped.
    """
    script = "websockets_echo_server.py" if against == "websockets" else "echo_server.py"
    python = [str(installed_wheel().python) if against == "wheel" else sys.executable]
    if against == "sanitized":
        python = ["sh", str(SUPPORT / "sanitize.sh"), *python]
    options = [] if defect == "none" else ["--defect", defect]
    if against != "websockets":  # this server has neither flag, and agrees to everything
        options += ["--roomy"] * roomy + ["--deflate"] * is_deflating
    source = {"tree": ROOT, "sanitized": SANITIZED}.get(against)
    environment = clean_environment() | ({"PYTHONPATH": str(source)} if source else {})
    with (
        tempfile.TemporaryDirectory() as elsewhere,
        subprocess.Popen(
            [*python, str(SUPPORT / script), *options],
            cwd=ROOT if against == "sanitized" else elsewhere,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            deadline = Timer(START_LIMIT_S, process.kill)
            deadline.start()
            port, module = process.stdout.readline().strip(), process.stdout.readline().strip()
            deadline.cancel()
            if not port or not module:
                raise RunError(f"the echo server did not start (exit code {process.wait(START_LIMIT_S)})")
            if against == "wheel" and (ROOT / "wsgate") in Path(module).parents:
                raise RunError(f"the server runs the source tree's {module}, not the installed wheel's")
            if against == "sanitized" and SANITIZED not in Path(module).parents:
                raise RunError(f"the server runs {module}, which is not compiled with sanitizers")
            yield Server(int(port), Path(module))
            if process.poll() is not None:
                raise RunError(f"the echo server died with exit code {process.returncode}")
            process.terminate()
            if process.wait(STOP_LIMIT_S) != 0:
                raise RunError(f"the echo server stopped with exit code {process.returncode}")
        finally:
            if process.poll() is None:
                process.kill()


def run_suite(
    port: int, sections: Iterable[str], *, report: Path, time_limit_s: float
) -> dict[str, CaseResult]:
    """Run the client of the suite against a server on this machine; return the results by case id.

    Args:
        port: The port of the server; without a listener there are no results, which is no error here.
        sections: The sections to run; an empty selection would make the suite hang.
        report: Folder for the pages and the log of the suite.
        time_limit_s: The suite is killed after this time.

    Raises:
        RunError: The time limit was reached, or the suite left no index.
    """
    chosen = tuple(sections)
    if not chosen:
        raise RunError("no section chosen")
    suite = provision()
    report.mkdir(parents=True, exist_ok=True)
    index = report / "index.json"
    index.unlink(missing_ok=True)
    specification = {
        "outdir": str(report),
        "servers": [{"agent": "server", "url": f"ws://127.0.0.1:{port}"}],
        "cases": [f"{section}.*" for section in chosen],
        "exclude-cases": [],
        "exclude-agent-cases": {},
    }
    (report / "fuzzingclient.json").write_text(json.dumps(specification, indent=2) + "\n")
    command = suite.command("-m", "fuzzingclient", "-s", str(report / "fuzzingclient.json"))
    with (report / "wstest.log").open("w") as log:
        try:
            subprocess.run(
                command,
                cwd=report,
                env=suite.environ(),
                stdout=log,
                stderr=log,
                timeout=time_limit_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise RunError(f"the suite did not end within {time_limit_s:g} s, see {log.name}") from None
    if not index.exists():
        raise RunError(f"the suite left no index, see {report / 'wstest.log'}")
    results: dict[str, dict[str, CaseResult]] = json.loads(index.read_text())
    return results.get("server", {})


def print_verdict(title: str, verdict: Verdict, report: Path) -> None:
    """Print a line of counts, a line for each fault, and the path of the report."""
    counts = ", ".join(f"{count} {name}" for name, count in sorted(verdict.counts.items())) or "no results"
    state = "pass" if verdict.conforms else "FAIL"
    print(f"autobahn {title}: {state}: {sum(verdict.counts.values())} cases: {counts}")
    for fault in verdict.faults:
        print(f"  {fault}")
    print(f"  report: {os.path.relpath(report / 'index.html')}", flush=True)


def allowed_deviations(against: str) -> dict[str, Deviation]:
    """The allow-list: for wsgate one that is meant to stay empty, for the yardstick what is known."""
    name = "known-websockets.txt" if against == "websockets" else "deviations.txt"
    return parse_deviations((HERE / name).read_text(encoding="utf-8"))


def run(
    against: str,
    sections: tuple[str, ...],
    *,
    defect: str = "none",
    is_deflating: bool = False,
    time_limit_s: float,
) -> Verdict:
    """Start a server, run the suite against it, check the results and print the verdict."""
    name = "-".join([against, *[defect] * (defect != "none"), *["deflate"] * is_deflating])
    report = REPORTS / name
    roomy = not ROOMY.isdisjoint(sections)
    with echo_server(against, defect, roomy=roomy, is_deflating=is_deflating) as server:
        print(f"autobahn {name}: {server.module}", flush=True)
        results = run_suite(server.port, sections, report=report, time_limit_s=time_limit_s)
    verdict = judge(results, sections, allowed_deviations(against), is_deflating=is_deflating)
    print_verdict(name, verdict, report)
    return verdict


def prove(against: str) -> list[str]:
    """Show that the runner can turn red, and that the suite decides as it is known to; what did not.

    The yardstick's run has failed and non-strict cases among its results: exactly those, no other.
    """
    problems = []
    if not run("websockets", PROFILES["quick"], time_limit_s=TIME_LIMIT_S["quick"]).conforms:
        problems.append("the suite does not judge the websockets library as it is known to")
    # Section 3 is short, yet echoes; each of its cases waits a second for an echo that never comes.
    problems += [
        f"the planted defect {defect} went unnoticed"
        for defect in ("corrupt-payload", "swap-opcode", "drop-message")
        if run(against, ("3",), defect=defect, time_limit_s=60).conforms
    ]
    if server_down().conforms:
        problems.append("a server that is down went unnoticed")
    return problems


def server_down() -> Verdict:
    """Return the verdict on a port without a listener."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening, so that no other process can use the port
        results = run_suite(unused.getsockname()[1], ("1",), report=REPORTS / "down", time_limit_s=60)
    verdict = judge(results, ("1",), {})
    print_verdict("server-down", verdict, REPORTS / "down")
    return verdict


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; return 0 only if every chosen run has its expected verdict."""
    parser = argparse.ArgumentParser(prog="tests.conformance.autobahn.runner")
    parser.add_argument("--profile", choices=PROFILES, default="quick")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, help="instead of a profile's")
    parser.add_argument("--against", choices=("wheel", "tree", "sanitized", "websockets"), default="wheel")
    parser.add_argument("--defect", default="none", help="of tests/support/echo_server.py")
    parser.add_argument("--deflate", action="store_true", help="agree to permessage-deflate")
    parser.add_argument("--prove", action="store_true", help="prove that the runner can turn red")
    options = parser.parse_args(arguments)
    try:
        if options.prove:
            problems = prove(options.against)
            print("\n".join(problems) or "autobahn: every planted defect turned the runner red")
            return 1 if problems else 0
        sections = tuple(options.sections or PROFILES[options.profile])
        verdict = run(
            options.against,
            sections,
            defect=options.defect,
            is_deflating=options.deflate,
            time_limit_s=TIME_LIMIT_S[options.profile],
        )
    except (ProvisionError, RunError) as error:
        print(f"autobahn: {error}", file=sys.stderr)
        return 1
    return 0 if verdict.conforms else 1


if __name__ == "__main__":
    sys.exit(main())
