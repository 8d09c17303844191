"""Find or install Node with the packages of the tests, and run a process that evaluates scripts."""

import contextlib
import json
import os
import queue
import re
import subprocess
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.support.packages import find_or_install, find_program, installation_lock

__all__ = ["Node", "NodeError", "NodeProcess", "provide_node"]

ROOT: Final = Path(__file__).resolve().parents[2]
CACHE: Final = ROOT / ".cache" / "node"
PACKAGES: Final = {"ws": "8", "typescript": "5"}
OLDEST: Final = (20, 19)  # the first version that loads a module with the suffix .js without a package.json
INSTALL_S = 180
ANSWER_S = 30.0
STOP_S = 10


class NodeError(AssertionError):
    """Node or a package is missing, or a script failed."""


@dataclass(frozen=True)
class Node:
    """An interpreter, and the directory of its packages."""

    program: str
    modules: Path

    def run(
        self, *arguments: str, environ: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run Node to its end, without colours in the output."""
        return subprocess.run(
            [self.program, *arguments],
            cwd=ROOT,
            env=os.environ | {"NO_COLOR": "1"} | dict(environ or {}),
            capture_output=True,
            text=True,
            timeout=INSTALL_S,
            check=False,
        )

    @contextlib.contextmanager
    def process(self) -> Iterator["NodeProcess"]:
        """Run a process that evaluates scripts; end it at the end of the context."""
        peer = Path(__file__).with_name("node_peer.mjs")
        with subprocess.Popen(
            [self.program, str(peer), str(self.modules)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
        ) as process:
            running = NodeProcess(process)
            threads = [
                threading.Thread(target=running.read_answers, daemon=True),
                threading.Thread(target=running.read_complaints, daemon=True),
            ]
            for thread in threads:
                thread.start()
            try:
                yield running
            finally:
                process.terminate()
                process.wait(STOP_S)
                for thread in threads:
                    thread.join(STOP_S)


@dataclass
class NodeProcess:
    """One process, in which `wsgate` and `WebSocket` are global."""

    process: subprocess.Popen[str]
    complaints: list[str] = field(default_factory=list)  # standard error
    _answers: "queue.Queue[dict[str, Any] | None]" = field(default_factory=queue.Queue)

    def read_answers(self) -> None:
        """Read its answers until it ends."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._answers.put(json.loads(line))
        self._answers.put(None)

    def read_complaints(self) -> None:
        """Read its standard error, because a full pipe would stop it."""
        assert self.process.stderr is not None
        self.complaints.extend(self.process.stderr)

    def evaluate(self, script: str) -> Any:
        """Return the value of a JavaScript expression, which is awaited when it is a promise."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(script) + "\n")
        try:
            answer = self._answers.get(timeout=ANSWER_S)
        except queue.Empty:
            raise NodeError(f"no answer: {script}") from None
        if answer is None:
            raise NodeError("it ended:\n" + "".join(self.complaints))
        if "error" in answer:
            raise NodeError(answer["error"])
        return answer.get("value")

    def wait_for(self, claim: str, within_ms: int = 15_000) -> None:
        """Poll an expression every 20 ms until it is true."""
        is_true = self.evaluate(f"""(async () => {{
            const until = performance.now() + {within_ms};
            while (!({claim})) {{
                if (performance.now() > until) return false;
                await new Promise((resolve) => setTimeout(resolve, 20));
            }}
            return true;
        }})()""")
        if not is_true:
            raise NodeError(f"never true: {claim}")


def provide_node() -> Node:
    """Return Node with its packages, which are installed once if they are missing.

    Raises:
        NodeError: Node or a package is missing and cannot be installed; the message names it.
    """
    program = find_or_install(lambda: find_program("node", "nodejs"), ["nodejs"])
    if program is None:
        raise NodeError("no node here, and none could be installed: install Node 20.19 or later")
    asked = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    version = asked.stdout.strip()
    found = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if found < OLDEST:
        raise NodeError(f"{program} is {version}: the tests need Node 20.19 or later")
    modules = CACHE / "node_modules"
    if _missing(modules):
        npm = _find_npm()
        with installation_lock():
            if missing := _missing(modules):  # another process may have installed them in the meantime
                _install(npm, [f"{name}@{PACKAGES[name]}" for name in missing])
    return Node(program, modules)


def _missing(modules: Path) -> list[str]:
    return [name for name in PACKAGES if not (modules / name / "package.json").exists()]


def _find_npm() -> str:
    npm = find_or_install(lambda: find_program("npm"), ["npm"])
    if npm is None:
        raise NodeError(f"no npm here, and none could be installed: it is needed for {', '.join(PACKAGES)}")
    return npm


def _install(npm: str, packages: list[str]) -> None:
    CACHE.mkdir(parents=True, exist_ok=True)
    flags = ("--no-fund", "--no-audit", "--ignore-scripts", "--prefix", str(CACHE))
    command = [npm, "install", *flags, *packages]
    done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    if done.returncode != 0:
        raise NodeError(f"npm could not install {', '.join(packages)}:\n{done.stdout}{done.stderr}")
