"""Plant defects, and check that each suite fails.

    python -m tests.support.defects                    every defect; 1 when one was not noticed
    python -m tests.support.defects drift padding      some of them
    python -m tests.support.defects --plant length     change the source in this directory, a copy

Each defect is one change in a copy of the source, never a switch in what is shipped. A line that is not
there exactly once any more is a fault here, so that no defect rots unnoticed.

Defects that only a sanitizer is sure to see run in a sanitized build (tests/support/sanitize.sh). The others
run in a plain copy with the tests that must notice them. Those tests must pass there without the defect, so
that nothing counts as noticed that is red anyway.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["DEFECTS", "PLAIN", "SUITES", "Defect", "main", "plant"]

ROOT: Final = Path(__file__).resolve().parents[2]
COPY: Final = ROOT / "build" / "defect"
BUILT: Final = ("build/cython", "build/inplace", "build/inplace-objects")
"""Directories of the development build, so that only the changed module is compiled again."""


class Defect(NamedTuple):
    """One wrong line that replaces a right one in a file."""

    text: str
    file: str
    right: str
    wrong: str


DEFECTS: Final = {
    "length": Defect(
        "a length check that is off by one",
        "wsgate/reactor/messages.pyx",
        "            if header.length <= size - place and (",
        "            if header.length <= size - place + 1 and (",
    ),
    "leak": Defect(
        "a buffer that is not given back",
        "wsgate/reactor/partial.pyx",
        "    buffer_give(core, &c.input.message, KIND_PARTIAL)\n",
        "",
    ),
    "utf8": Defect(
        "a byte that UTF-8 validation skips",
        "wsgate/reactor/codec.pyx",
        "                if word & <uint64_t>0x8080808080808080:",
        "                if word & <uint64_t>0x0080808080808080:",
    ),
    "walk": Defect(
        "a subscriber that leaves in the middle of a walk",
        "wsgate/reactor/channels.pyx",
        "        if walk.channel == index and position < walk.left:",
        "        if walk.channel == index and position > walk.left:",
    ),
    "element": Defect(
        "an element of an array whose kind is not checked",
        "wsgate/bus/push.pyx",
        '    return count == 3 and is_kind(&pieces[0], b"message") and pieces[1].kind == PIECE_BULK',
        '    return count == 3 and is_kind(&pieces[0], b"message")',
    ),
    "inflate": Defect(
        "an inflater that does not check whether a block was complete",
        "wsgate/reactor/inflate.pyx",
        "            if not inflater.eof or inflater.unused_data:",
        "            if inflater.unused_data:",
    ),
    "block": Defect(
        "a block that is freed with another size than it was allocated with",
        "wsgate/reactor/channels.pyx",
        "        memory_give(core, channel.name.there, channel.name_length, KIND_CHANNEL)",
        "        memory_give(core, channel.name.there, (channel.name_length + 63) & ~63, KIND_CHANNEL)",
    ),
    "drift": Defect(
        "an outbox whose bytes are not counted down when an entry is written",
        "wsgate/reactor/outbox.pyx",
        "        written -= rest\n        outbox.bytes -= rest\n",
        "        written -= rest\n",
    ),
    "index": Defect(
        "a connection that stays in the index by user when it is released",
        "wsgate/reactor/closing.pyx",
        "    user_leave(core, slot)\n",
        "",
    ),
    "charge": Defect(
        "a permission set that is held and not charged to its account",
        "wsgate/auth/permissions.py",
        "            self.bytes_held += shared.size_bytes\n        shared.holders += 1\n",
        "        shared.holders += 1\n",
    ),
    "cancel": Defect(
        "a name that was unsubscribed before it was sent to the bus, and that is sent nevertheless",
        "wsgate/bus/subscriber.py",
        "        elif waiting.command is not command:\n            self._drop_unsent(name)\n",
        "",
    ),
    "orphan": Defect(
        "a peer that has not taken everything and is not reset when lingering ends",
        "wsgate/reactor/deadlines.pyx",
        "        release(core, slot, 0, holds_data)\n",
        "        release(core, slot, 0, False)\n",
    ),
    "unasked": Defect(
        "a large write after a small one, after which the memory of the kernel is not measured",
        "wsgate/reactor/writer.pyx",
        "    if written >= ASK_BYTES:\n",
        "    if written >= ASK_BYTES and not c.units & SENT_SINCE:\n",
    ),
    "proxy": Defect(
        "a PROXY header whose port is not bounded",
        "wsgate/reactor/proxy.pyx",
        " or data[place] != last or value > 65535:",
        " or data[place] != last:",
    ),
    "head": Defect(
        "a request head that may be one byte too long",
        "wsgate/reactor/head.pyx",
        "    if end > core.limits.head_limit_bytes or (",
        "    if end > core.limits.head_limit_bytes + 1 or (",
    ),
    "crowded": Defect(
        "a half-sent head that is displaced although another address has more of them",
        "wsgate/reactor/table.pyx",
        "        if group.list.count > core.heads[largest].list.count or (",
        "        if 0 < group.list.count < core.heads[largest].list.count or (",
    ),
    "unpaid": Defect(
        "a script that counts connections, and that a server without memory refuses",
        "wsgate/bus/scripts/user_enter.lua",
        "redis.call('expire', key, ARGV[3])\nredis.call('zadd'",
        "redis.call('zadd'",
    ),
    "forbidden": Defect(
        "a channel that the bus forbids, and for which the whole connection is closed",
        "wsgate/bus/subscriber.py",
        "not (self._is_redirected(name) or self._is_forbidden(name)):",
        "not self._is_redirected(name):",
    ),
    "duty": Defect(
        "a duty of the keeper whose exception is not contained",
        "wsgate/node/duties.py",
        "        except Exception as fault:",
        "        except WsgateError as fault:",
    ),
    "log": Defect(
        "a log line that waits for the reader of standard error",
        "wsgate/output.py",
        "        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC",
        "        flags = os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC",
    ),
    "places": Defect(
        "a new connection of the admin port that is closed while half requests use all places",
        "wsgate/admin/connections.py",
        "            replaceable = [each for each in others if each.is_replaceable]",
        "            replaceable = [each for each in others if each.conn.their_state is h11.CLOSED]",
    ),
    "passing": Defect(
        "a temporary refusal that the client treats as final",
        "wsgate/client/close_info.py",
        "_PASSING_REJECTIONS: Final = frozenset({408, 425, 429})",
        "_PASSING_REJECTIONS: Final = frozenset({408, 425})",
    ),
    "final": Defect(
        "a shard that drains, and closes with a code that forbids to reconnect",
        "wsgate/reasons.py",
        "    ReasonEntry(Reason.DRAIN, 4012, 0,",
        "    ReasonEntry(Reason.DRAIN, 4512, 0,",
    ),
    "unseen": Defect(
        "a channel that is subscribed again after a break of the bus, and whose subscribers receive no gap",
        "wsgate/shard/hub.py",
        "            self._gaps.mark(name)\n",
        "",
    ),
    "merged": Defect(
        "a loss during a walk of notices that counts as notified",
        "wsgate/shard/gaps.py",
        "        self._round, self._marked_ms = self._round % 0xFFFF_FFFF + 1, None\n",
        "        self._marked_ms = None\n",
    ),
    "vain": Defect(
        "a publish that is answered ok while the shard does not receive from the bus",
        "wsgate/shard/commands.py",
        "        if outcome or not hub.receives(name):\n",
        "        if outcome:\n",
    ),
    "padding": Defect(
        "a token that is accepted in a second spelling",
        "wsgate/auth/tokens.py",
        ".translate(_TO_URL_SAFE) != segment:",
        '.translate(_TO_URL_SAFE) != segment.rstrip(b"="):',
    ),
    "audience": Defect(
        "a token whose audience is not looked at",
        "wsgate/auth/tokens.py",
        "        if audience:\n",
        "        if audience and claims.aud is UNSET:\n",
    ),
    "judge": Defect(
        "an outbox that is judged by its limits although its socket was never full",
        "wsgate/reactor/outbox.pyx",
        "        if outbox.owed and over(core, outbox, frame.length):",
        "        if over(core, outbox, frame.length):",
    ),
    "grace": Defect(
        "a connection that may hold more bytes than its limit because it fell behind only lately",
        "wsgate/reactor/outbox.pyx",
        "    if outbox.bytes + size > core.limits.outbox_bytes:\n",
        "    if not outbox.grace_ms and outbox.bytes + size > core.limits.outbox_bytes:\n",
    ),
    "moving": Defect(
        "publications that wait for no reader which is behind, unless most are",
        "wsgate/reactor/pacing.pyx",
        "        core.paced[<int>PACE_MOVING] != 0 and core.moving_us > 0\n",
        "        False\n",
    ),
    "pacing": Defect(
        "publications that are handed on although outboxes of readers are full",
        "wsgate/shard/pacing.py",
        "        if backlog.is_held or reactor.is_full:",
        "        if backlog.is_held:",
    ),
    "backlog": Defect(
        "a backlog of publications that is on no account",
        "wsgate/shard/reporter.py",
        "            + self.backlog.held_bytes\n",
        "",
    ),
    "turns": Defect(
        "a message whose cost is not charged to its connection",
        "wsgate/reactor/loop.pyx",
        "            debts_charge(core, slot, debts_measured(core, cost_ns), 1)\n",
        "            debts_measured(core, cost_ns)\n",
    ),
    "reserve": Defect(
        "costly connections that have no turn while others use up every pass",
        "wsgate/reactor/loop.pyx",
        "    core.passes_without += 1\n",
        "",
    ),
    "shares": Defect(
        "a share of the loop for each connection of a user",
        "wsgate/reactor/debts.pyx",
        "    return user | DEBT_OF_USER if user else slot + 1\n",
        "    return slot + 1\n",
    ),
    "unverified": Defect(
        "a token in a message that is verified at once, however many wait",
        "wsgate/shard/wiring.py",
        "            verify_later=self.newcomers.verify_later,\n",
        "            verify_later=lambda conn, size, act: act(),\n",
    ),
    "unnamed": Defect(
        "publications that the backlog drops without a notice to their subscribers",
        "wsgate/bus/backlog.pyx",
        "            if before == NULL or sizes[0] != before_size",
        "            if before != NULL and sizes[0] != before_size",
    ),
    "newcomer": Defect(
        "a newcomer that waits behind a round of talkers",
        "wsgate/reactor/table.pyx",
        "    if core.newcomers == 0 and core.attention.count == 0:\n",
        "    if True:\n",
    ),
    "listener": Defect(
        "a listener that is not asked while more is ready than epoll reports at once",
        "wsgate/reactor/poller.pyx",
        "    if core.listener >= 0 and not core.listener_muted:\n",
        "    if False:\n",
    ),
    "batches": Defect(
        "a part of what is ready where all of it is asked for",
        "wsgate/reactor/poller.pyx",
        "    for batch in range(BATCHES_PER_WAIT):\n",
        "    for batch in range(1):\n",
    ),
}
QUIET: Final = ("-q", "-x", "-p", "no:cacheprovider")
_PYTEST: Final = ("-m", "pytest", *QUIET)
_FUZZ: Final = ("-m", "tests.fuzz.run", "--seed", "1", "--seconds", "30")

PLAIN: Final[dict[str, tuple[Sequence[str], ...]]] = {
    "block": ((*_PYTEST, "tests/unit/reactor/test_channels.py", "-k", "agree_with_a_plain_model"),),
    "drift": ((*_PYTEST, "tests/unit/reactor/test_outbox.py", "-k", "over_half"),),
    "index": ((*_PYTEST, "tests/unit/reactor/test_users.py"),),
    "charge": ((*_PYTEST, "tests/unit/auth/test_permissions.py", "-k", "held"),),
    "cancel": ((*_PYTEST, "tests/integration/test_subscriber.py", "-k", "stands_still"),),
    "orphan": ((*_PYTEST, "tests/attack/reactor/test_kernel_memory.py"),),
    "unasked": ((*_PYTEST, "tests/attack/reactor/test_kernel_memory.py", "-k", "sent_little"),),
    "proxy": ((*_PYTEST, "tests/unit/reactor/test_proxy.py"), (*_FUZZ, "proxy")),
    "head": ((*_FUZZ, "head"),),
    "crowded": ((*_PYTEST, "tests/unit/reactor/test_half_sent_heads.py"),),
    "unpaid": ((*_PYTEST, "tests/integration/test_user_scripts.py", "-k", "reached_its_memory"),),
    "forbidden": ((*_PYTEST, "tests/integration/test_subscriber.py", "-k", "forbidden"),),
    "duty": ((*_PYTEST, "tests/unit/node/test_keeper.py"),),
    "log": ((*_PYTEST, "tests/unit/test_output.py"),),
    "places": ((*_PYTEST, "tests/integration/test_admin.py", "-k", "every_connection_of_the_admin_port"),),
    "passing": ((*_PYTEST, "tests/unit/client/test_close_info.py"),),
    "final": ((*_PYTEST, "tests/unit/test_passing.py"), (*_PYTEST, "tests/unit/test_codes.py")),
    "unseen": (
        (*_PYTEST, "tests/unit/shard/test_hub.py"),
        (*_PYTEST, "tests/chaos/test_loss.py", "-k", "twenty"),
    ),
    "merged": ((*_PYTEST, "tests/unit/shard/test_gaps.py"),),
    "vain": ((*_PYTEST, "tests/unit/shard/test_sessions.py"),),
    "padding": ((*_PYTEST, "tests/unit/auth/test_differential.py"), (*_FUZZ, "tokens")),
    "audience": ((*_PYTEST, "tests/unit/auth/test_tokens.py"), (*_FUZZ, "tokens")),
    "judge": ((*_PYTEST, "tests/unit/reactor/test_pacing.py"),),
    "grace": ((*_PYTEST, "tests/unit/reactor/test_pacing.py"),),
    "moving": ((*_PYTEST, "tests/unit/reactor/test_pacing.py"),),
    "pacing": ((*_PYTEST, "tests/unit/bus/test_backlog.py"),),
    "backlog": ((*_PYTEST, "tests/attack/gateway/test_burst.py", "-k", "on_the_account"),),
    "turns": (
        (*_PYTEST, "tests/unit/reactor/test_debts.py"),
        (*_PYTEST, "tests/unit/shard/test_turns.py", "-k", "charged"),
    ),
    "reserve": ((*_PYTEST, "tests/unit/reactor/test_debts.py"),),
    "shares": ((*_PYTEST, "tests/unit/reactor/test_debts.py", "-k", "one_share"),),
    "unverified": ((*_PYTEST, "tests/unit/shard/test_turns.py"),),
    "unnamed": ((*_PYTEST, "tests/unit/bus/test_backlog.py"),),
    "newcomer": ((*_PYTEST, "tests/unit/reactor/test_turns.py", "-k", "newcomers_are_read"),),
    "listener": ((*_PYTEST, "tests/unit/reactor/test_turns.py", "-k", "listener_is_polled"),),
    "batches": ((*_PYTEST, "tests/unit/reactor/test_turns.py", "-k", "full_socket"),),
}
"""For each defect that needs no sanitizer, the commands each of which must notice it."""

SUITES: Final[dict[str, tuple[Sequence[str], frozenset[str]]]] = {
    # All unit tests take minutes in a sanitized build, so each defect has the file that is about its part.
    "reading": ((*_PYTEST, "tests/unit/reactor/test_reader.py"), frozenset({"length", "leak"})),
    "walks": ((*_PYTEST, "tests/unit/reactor/test_channel_walks.py"), frozenset({"walk"})),
    "push reader": ((*_PYTEST, "tests/unit/bus/test_push.py"), frozenset({"element"})),
    "inflating": ((*_PYTEST, "tests/unit/reactor/test_inflate.py"), frozenset({"inflate"})),
    "vectors": (
        (*_PYTEST, "tests/conformance/test_vectors_reactor.py"),
        frozenset({"length", "utf8"}),
    ),
    "fuzz": (
        ("-m", "tests.fuzz.run", "--seed", "1", "--seconds", "60", "frames", "reactor", "pushes"),
        frozenset({"length", "leak", "utf8", "element"}),
    ),
}
"""For each suite that runs in a sanitized build, its command and the defects that it must notice."""

TIME_LIMIT_S: Final = 600


def plant(name: str, folder: Path = Path()) -> None:
    """Change the source below a directory; the current one by default.

    Raises:
        SystemExit: The line is not there exactly once.
    """
    defect = DEFECTS[name]
    path = folder / defect.file
    text = path.read_text(encoding="utf-8")
    if text.count(defect.right) != 1:
        sys.exit(f"defect {name}: its line is {text.count(defect.right)} times in {defect.file}")
    path.write_text(text.replace(defect.right, defect.wrong), encoding="utf-8")


def notices(suite: str, defect: str) -> bool:
    """Whether a suite ends red when a defect is planted."""
    command, _ = SUITES[suite]
    done = subprocess.run(
        ["sh", "tests/support/sanitize.sh", sys.executable, *command],
        env={**os.environ, "WSGATE_DEFECT": defect},
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_S,
        check=False,
    )
    output = done.stdout + done.stderr
    if "sanitize:" in output or "defect " in output:
        sys.exit(output)  # nothing was tested
    return done.returncode != 0


def make_copy(defect: str | None) -> None:
    """Make a plain copy of the source and of the development build, with the defect planted and compiled."""
    shutil.rmtree(COPY, ignore_errors=True)
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    compiled = [file for folder in ("wsgate", "loadtest") for file in (ROOT / folder).rglob("*.so")]
    for file in (*(ROOT / name for name in names if name), *compiled):
        if file.is_file():
            target = COPY / file.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, target)
    for folder in BUILT:
        shutil.copytree(ROOT / folder, COPY / folder)
    if defect is not None:
        plant(defect, COPY)
        if DEFECTS[defect].file.endswith(".pyx"):
            _run(("setup.py", "--quiet", "build_ext", "--inplace"), must_pass=True)
    where = "import pathlib, wsgate; assert pathlib.Path.cwd() in pathlib.Path(wsgate.__file__).parents"
    _run(("-c", where), must_pass=True)


def _run(command: Sequence[str], *, must_pass: bool = False) -> subprocess.CompletedProcess[str]:
    """Run Python in the copy.

    Raises:
        SystemExit: The command failed although it had to pass.
    """
    done = subprocess.run(
        [sys.executable, *command],
        cwd=COPY,
        env={**os.environ, "PYTHONPATH": str(COPY)},
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_S,
        check=False,
    )
    if must_pass and done.returncode:
        sys.exit(f"{' '.join(command)} failed without a reason\n{(done.stdout + done.stderr)[-4_000:]}")
    return done


def what_noticed(done: subprocess.CompletedProcess[str]) -> str:
    """Name what turned red: the failed test, the fault of a fuzzer, or the signal; empty when nothing did."""
    if done.returncode < 0:
        return f"ended by signal {-done.returncode}"
    if done.returncode == 0:
        return ""
    output = (done.stdout + done.stderr).splitlines()
    found = [line for line in output if line.startswith("FAILED ") or ": FAULT, see " in line]
    if not found:
        sys.exit("\n".join(output[-60:]))  # nothing was tested
    return found[0].removeprefix("FAILED ").split(" - ")[0].split(", see ")[0]


def prove_plain(names: Sequence[str]) -> int:
    """Run the commands of these defects, without and with each defect; how many went unnoticed."""
    unnoticed = 0
    if names:
        make_copy(None)
        commands = dict.fromkeys(command for name in names for command in PLAIN[name])
        for command in commands:
            if command[: len(_PYTEST)] == _PYTEST:  # the fuzzers' own runs show that those pass
                _run(command, must_pass=True)
    for name in names:
        make_copy(name)
        for command in PLAIN[name]:
            noticed = what_noticed(_run(command))
            unnoticed += not noticed
            print(f"{name}: {DEFECTS[name].text}: {noticed or 'UNNOTICED by ' + command[-1]}", flush=True)
    return unnoticed


def main(arguments: list[str] | None = None) -> int:
    """Plant, or prove."""
    parser = argparse.ArgumentParser(prog="tests.support.defects")
    parser.add_argument("--plant", choices=DEFECTS, metavar="DEFECT")
    parser.add_argument("defects", nargs="*", choices=[[], *DEFECTS])
    options = parser.parse_args(arguments)
    if options.plant:
        plant(options.plant)
        return 0
    chosen = options.defects or list(DEFECTS)
    unnoticed = prove_plain([name for name in chosen if name in PLAIN])
    for name in chosen:
        for suite, (_, expected) in SUITES.items():
            if name in expected:
                is_red = notices(suite, name)
                unnoticed += not is_red
                print(f"{name}: {DEFECTS[name].text}: {suite} {'red' if is_red else 'UNNOTICED'}", flush=True)
    return 1 if unnoticed else 0


if __name__ == "__main__":
    sys.exit(main())
