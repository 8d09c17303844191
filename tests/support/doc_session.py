"""Run the blocks of one page as a reader types them: `python -m tests.support.doc_session PAGE`.

The page is one session in a temporary directory that looks like a fresh copy of the repository. Shell
blocks are typed into one shell. A block that keeps its terminal (a gateway, a web server) runs in a
terminal of its own, which starts with the directory and the environment of that shell; it is stopped with
Ctrl-C at the end of the page.

The session has a network of its own, in which nothing but a loopback interface exists. So the ports of the
page are free whatever else runs on the machine, and the text needs no replacements. Where the kernel does
not allow that, the page uses the machine's network, and pages wait for each other.
"""

import argparse
import contextlib
import fcntl
import os
import pty
import re
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from tests.support.browser import Browser, find_chromium, running_browser
from tests.support.doc_blocks import SAVED, Block, PageError, Remark, Step, matches, parse_page
from tests.support.node import provide_node
from tests.support.packages import find_or_install, find_program
from tests.support.server_choice import choose_server

__all__ = ["prepare_programs", "run_page"]

ROOT: Final = Path(__file__).resolve().parents[2]
BLOCK_S: Final = 240.0
"""A block that compiles takes seconds, and on a busy machine much longer."""
READY_S: Final = 120.0
OUTPUT_S: Final = 30.0
STOP_S: Final = 45.0
AGAIN_S: Final = 3.0

SHARED: Final = "DOCS_SHARED_NETWORK"
"""The variable that is set where a page uses the network of the machine."""

_SERVERS: Final = {
    re.compile(r"^(make run\b|wsgate serve\b)", re.MULTILINE): r"^ready$",
    re.compile(r"^make chat\b", re.MULTILINE): r"^open http",
    re.compile(r"^redis-server\b", re.MULTILINE): r"Ready to accept connections",
    re.compile(r"^python -m http\.server\b", re.MULTILINE): r"^Serving HTTP",
}
"""Commands that keep their terminal without a remark, and what they print when they are ready."""

_RUNNERS: Final = {"python": "python", "javascript": "node", "php": "php", "go": "go run"}
_ENDINGS: Final = {"python": ".py", "javascript": ".mjs", "php": ".php", "go": ".go"}
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP_RUNNING: Final = 0x41


# --- the programs that pages need ---------------------------------------------------------------------


def prepare_programs(steps: Sequence[Step]) -> None:
    """Find or install what the blocks of a page use beside the repository's own environment.

    Raises:
        PageError: A program is missing and could not be installed.
    """
    text = "\n".join(step.text for step in steps if isinstance(step, Block) and step.is_code)
    languages = {step.language for step in steps if isinstance(step, Block)}
    needed = {
        "php": ("php" in languages, ["php-cli"]),
        "go": ("go" in languages, ["golang-go"]),
        "redis-cli": ("redis-cli" in text, ["redis-tools"]),
        "curl": ("curl " in text, ["curl"]),
    }
    for program, (is_needed, packages) in needed.items():
        if is_needed and find_or_install(partial(_program, program), packages) is None:
            raise PageError(f"no {program} here, and none could be installed: {' or '.join(packages)}")
    if "javascript" in languages or "node " in text:
        provide_node()


def _program(name: str) -> str | None:
    """The path of a program; Go's own installer puts it where PATH may not lead."""
    return find_program(name) or (shutil.which(name, path="/usr/local/go/bin") if name == "go" else None)


def _environment(directory: Path) -> dict[str, str]:
    """The environment of a terminal: nothing of the tests but where programs are."""
    folders = [str(Path(found).parent) for name in ("go", "php", "node") if (found := _program(name))]
    # Without the environment that runs the tests: a reader has to activate the repository's.
    path = [each for each in os.environ["PATH"].split(os.pathsep) if not (Path(each) / "activate").exists()]
    environment = {
        "HOME": str(directory),
        "PATH": os.pathsep.join([*path, *folders]),
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "NO_COLOR": "1",
        "RUNTIME_DIRECTORY": str(directory / ".run"),
        "GOCACHE": str(ROOT / ".cache" / "go-build"),
        "GOTOOLCHAIN": "local",
    }
    if _node_version() < 22:
        environment["NODE_OPTIONS"] = "--experimental-websocket"  # as the pages advise for Node 20
    return environment


def _node_version() -> int:
    node = find_program("node")
    if node is None:
        return 22
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    return int(version.strip().removeprefix("v").split(".")[0])


# --- terminals ----------------------------------------------------------------------------------------


class Shell:
    """The terminal into which a page's blocks are typed: one shell, whose state lasts as long as the page."""

    _LOOP = """
while read -r mode file <&{orders}; do
    if test "$mode" = run; then set -e; . "$file"; set +e; echo 0 >&{answers}
    elif test "$mode" = try; then . "$file"; echo $? >&{answers}
    else env -0 >"$file"; pwd >&{answers}; fi
done
"""

    def __init__(self, directory: Path, copy: Path) -> None:
        """Start the shell in a copy of the repository; blocks and their output are kept in `directory`."""
        self._directory = directory
        self._number = 0
        self._has_timed_out = False
        orders, self._orders = os.pipe()
        self._answers, answers = os.pipe()
        self._closed = f"{orders}<&- {answers}>&-"  # the blocks do not get these
        script = self._LOOP.format(orders=orders, answers=answers)
        self._process = subprocess.Popen(
            ["bash", "--norc", "--noprofile", "-c", script],
            cwd=copy,
            env=_environment(directory),
            pass_fds=(orders, answers),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # of the shell itself; a test that waits for the end would wait for it
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(orders)
        os.close(answers)

    def run(self, commands: str, *, must_fail: bool = False) -> str:
        """Type commands and return what they print, on either stream.

        Raises:
            PageError: A command failed, or, with `must_fail`, the last one did not; or they took too long.
        """
        self._number += 1
        script = self._directory / f".block-{self._number}"
        output = self._directory / f".output-{self._number}"
        script.write_text(f"{{\n{commands}\n}} >{shlex.quote(str(output))} 2>&1 {self._closed}\n")
        status = self._order("try" if must_fail else "run", script)
        printed = output.read_text(errors="replace") if output.exists() else ""
        if status == "" and self._has_timed_out:
            raise PageError(f"this block has not ended after {BLOCK_S} s:\n{commands}\nIt prints:\n{printed}")
        if (status == "0") is must_fail:
            what = "should fail and does not" if must_fail else "fails"
            raise PageError(f"this block {what}:\n{commands}\nIt prints:\n{printed}")
        return printed

    def state(self) -> tuple[str, dict[str, str]]:
        """The working directory and the exported variables of the shell."""
        file = self._directory / ".environment"
        directory = self._order("state", file)
        pairs = file.read_bytes().rstrip(b"\0").split(b"\0")
        return directory, dict(os.fsdecode(pair).split("=", 1) for pair in pairs)

    def _order(self, mode: str, file: Path) -> str:
        """The answer of the shell; empty when the shell has ended because a command failed."""
        os.write(self._orders, f"{mode} {file}\n".encode())
        timer = threading.Timer(BLOCK_S, self._time_out)
        timer.start()
        try:
            answer = b""
            while not answer.endswith(b"\n") and (part := os.read(self._answers, 4096)):
                answer += part
        finally:
            timer.cancel()
        return answer.decode().strip()

    def _time_out(self) -> None:
        self._has_timed_out = True
        self.close()

    def close(self) -> None:
        """End the shell and everything that runs in its session."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(STOP_S)


_TAKE_TERMINAL: Final = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""
"""A program that takes its standard input as its terminal, so that Ctrl-C works, and becomes another one."""


class Background:
    """A terminal that a block keeps for itself: a real one, so that programs print as for a reader."""

    def __init__(self, commands: str, directory: str, environment: dict[str, str]) -> None:
        """Start a shell that runs the commands."""
        self.commands = commands
        self._printed = ""
        self._checked = 0  # up to here output was compared
        self._is_stopping = False
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 500, 0, 0))
        self._process = subprocess.Popen(
            [sys.executable, "-c", _TAKE_TERMINAL, "bash", "--norc", "--noprofile", "-c", commands],
            cwd=directory,
            env=environment,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the last process of the terminal has ended
            while part := os.read(self._master, 65536):
                self._printed += part.decode(errors="replace").replace("\r\n", "\n")

    def wait_until_ready(self, ready: str) -> None:
        """Wait until the terminal shows a text that this regular expression matches."""
        pattern = re.compile(ready, re.MULTILINE)
        self._wait(f"ready, which is {ready!r}", lambda: pattern.search(self._printed) is not None, READY_S)

    def expect(self, expected: str) -> None:
        """Wait until the terminal shows these lines, after those that were expected before."""

        def is_there() -> bool:
            found = matches(expected, self._printed[self._checked :], somewhere=True)
            if found is not None:
                self._checked += found.end()
            return found is not None

        self._wait(f"these lines:\n{expected}", is_there, OUTPUT_S)

    def _wait(self, what: str, claim: Callable[[], bool], within_s: float) -> None:
        end_s = time.monotonic() + within_s
        while not claim():
            has_ended = self._process.poll() is not None
            if has_ended:
                self._reader.join(STOP_S)
                if claim():
                    return
            if has_ended or time.monotonic() > end_s:
                why = f"It ended with {self._process.returncode}" if has_ended else f"Not within {within_s} s"
                raise PageError(
                    f"no {what}\n{why}. In this terminal:\n{self.commands}\nis shown:\n{self._printed}"
                )
            time.sleep(0.02)

    def stop(self) -> None:
        """Press Ctrl-C and wait for the end, also if the commands have ended before.

        It is pressed again after a while, because a gateway that other nodes may replace drains first.
        """
        try:
            for patience_s in (AGAIN_S, STOP_S):
                with contextlib.suppress(OSError):
                    os.write(self._master, b"\x03")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(patience_s)
                    return
            self._process.wait(0)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(STOP_S)
            raise PageError(f"Ctrl-C does not end:\n{self.commands}\nIt shows:\n{self._printed}") from None
        finally:
            os.close(self._master)


# --- a page -------------------------------------------------------------------------------------------


class Session:
    """Everything that runs for one page."""

    def __init__(self, directory: Path) -> None:
        """Make the copy of the repository, and open the first terminal in it."""
        self._copy = directory / "wsgate"
        _mirror(self._copy)
        (directory / ".run").mkdir(mode=0o700)
        self._directory = directory
        self._shell = Shell(directory, self._copy)
        self._backgrounds: list[Background] = []
        self._printed: str | None = None  # by the last block that has ended
        self._browser: Browser | None = None
        self._stack = contextlib.ExitStack()
        self._files = 0

    def close(self) -> None:
        """Close the browser, stop what runs, the youngest first, and end the shell."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._shell.close)
            for background in self._backgrounds:
                stack.callback(background.stop)
            stack.callback(self._stack.close)

    def do(self, step: Step) -> None:
        """Do what a reader does at this place of the page."""
        if isinstance(step, Remark):
            self._obey(step)
        elif step.reason_not_to_run is not None:
            self._printed = None
        elif step.language == "text":
            self._compare(step)
        elif (
            (name := step.file_name) and (step.is_code or step.language in SAVED) and step.language != "shell"
        ):
            self._save(step, name)
        elif step.language == "shell":
            self._type(step)
        elif step.is_code:
            self._files += 1
            name = f"block{self._files}{_ENDINGS[step.language]}"
            self._save(step, name)
            self._printed = self._shell.run(f"{_RUNNERS[step.language]} {name}")

    def _obey(self, remark: Remark) -> None:
        if remark.verb == "ctrl-c":
            background = self._background(remark.object)
            self._backgrounds.remove(background)
            background.stop()
        else:
            if self._browser is None:
                chromium = find_chromium()
                if chromium is None:
                    raise PageError("no Chromium here, and none could be installed")
                self._browser = self._stack.enter_context(running_browser(chromium))
            self._browser.open(remark.object)

    def _background(self, text: str) -> Background:
        for background in reversed(self._backgrounds):
            if text in background.commands:
                return background
        raise PageError(f"no terminal in which {text!r} runs")

    def _type(self, block: Block) -> None:
        ready = block.remarks.get("background")
        if ready is None:
            found = (each for command, each in _SERVERS.items() if command.search(block.text))
            pattern = next(found, None)
        else:
            pattern = re.escape(ready)
        if pattern is None:
            self._printed = self._shell.run(block.text, must_fail="fails" in block.remarks)
            return
        background = Background(block.text, *self._shell.state())
        self._backgrounds.append(background)
        background.wait_until_ready(pattern)
        self._printed = None

    def _save(self, block: Block, name: str) -> None:
        directory, _ = self._shell.state()
        (Path(directory) / name).write_text(block.text)

    def _compare(self, block: Block) -> None:
        if (text := block.remarks.get("output of")) is not None:
            self._background(text).expect(block.text)
        elif "browser shows" in block.remarks:
            if self._browser is None:
                raise PageError("no page is open in the browser")
            for line in block.text.splitlines():
                self._browser.wait_for(f"document.body.innerText.includes({line.strip()!r})")
            # Every browser loads /favicon.ico; a page that needs another missing file shows no lines.
            faults = [fault for fault in self._browser.faults if "404 (File not found)" not in fault]
            if faults:
                raise PageError("the page in the browser complains: " + "; ".join(faults))
        elif block.is_announced:
            if self._printed is None:
                raise PageError(f"nothing was run that could print:\n{block.text}")
            if matches(block.text, self._printed) is None:
                raise PageError(
                    f"the page says that this is printed:\n{block.text}\nbut it was:\n{self._printed}"
                )


def _mirror(copy: Path) -> None:
    """Make a directory with links to everything in the repository: what a page writes stays in the copy.

    The copy shares .venv with the repository. A `make` in the copy must find nothing to do, because it would
    install the gateway from the path of the copy, which is removed afterwards.
    """
    up_to_date = subprocess.run(["make", "-q", "run-is-ready"], cwd=ROOT, capture_output=True, check=False)
    if up_to_date.returncode != 0:
        raise PageError("the build is older than its sources: run `make build` first")
    copy.mkdir()
    for entry in ROOT.iterdir():
        if entry.name not in (".git", "reports"):
            (copy / entry.name).symlink_to(entry)


def run_page(page: Path) -> None:
    """Run all blocks of a page.

    Raises:
        PageError: A block does not do what the page says; the message starts with the line of the block.
    """
    steps = parse_page(page.read_text())
    with tempfile.TemporaryDirectory(prefix="wsgate-docs-") as name, contextlib.ExitStack() as stack:
        session = Session(Path(name))
        stack.callback(session.close)
        for step in steps:
            try:
                session.do(step)
            except AssertionError as error:
                raise PageError(f"{page.name}, line {step.line}: {error}") from error


# --- a network of its own -----------------------------------------------------------------------------


def isolation() -> list[str]:
    """The command that gives another one a network of its own; empty where the kernel does not allow that."""
    unshare = find_program("unshare")
    if unshare is None:
        return []
    for flags in ([] if os.geteuid() == 0 else ["--user", "--map-root-user"],):
        command = [unshare, *flags, "--net"]
        if subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
            return command
    return []


def _start_loopback() -> None:
    """Switch the loopback interface of a new network on."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as some:
        fcntl.ioctl(some, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP_RUNNING))


def _wait_for_turn() -> None:
    """Let one page use the ports of the machine at a time; the end of the process lets the next one."""
    lock = os.open(
        Path(tempfile.gettempdir()) / f"wsgate-docs-{os.getuid()}.lock", os.O_RDWR | os.O_CREAT, 0o600
    )
    os.set_inheritable(lock, True)
    fcntl.flock(lock, fcntl.LOCK_EX)


def main() -> int:
    """Run one page, and print why it fails where it does."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("page", type=Path)
    parser.add_argument("--isolated", action="store_true", help="set by the program for itself")
    options = parser.parse_args()
    page: Path = options.page.resolve()
    if not options.isolated:
        prepare_programs(parse_page(page.read_text()))  # installing needs the machine's network
        command = [sys.executable, "-m", "tests.support.doc_session", "--isolated", str(page)]
        prefix = isolation()
        if not prefix:
            _wait_for_turn()
            os.environ[SHARED] = "1"
        command = [*prefix, *command]
        os.execvp(command[0], command)  # so that the end of this process ends the session
    choose_server(os.environ.get("TEST_SERVER", "valkey"))
    if SHARED not in os.environ:
        _start_loopback()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # what runs for the page is stopped, too
    try:
        run_page(page)
    except PageError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
