"""Check that processes started by tests have the default action for every signal, also under nohup."""

import subprocess
import sys

from tests.support.tcp_rig import ROOT

# Prints 1 for every signal that is ignored in a child of a process that had ignored it.
UNDER_NOHUP = """
import os
import signal
import subprocess
import sys

NUMBERS = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGPIPE)
for number in NUMBERS:
    signal.signal(number, signal.SIG_IGN)
import tests.conftest
os.kill(os.getpid(), signal.SIGHUP)
child = f"import signal; print(*(int(signal.getsignal(n) == signal.SIG_IGN) for n in {[*map(int, NUMBERS)]}))"
print(subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True).stdout)
"""


def test_children_have_default_signal_actions_although_the_test_run_ignores_them() -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNDER_NOHUP], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    # SIGPIPE is ignored by every Python process, so the child shows it as ignored again.
    assert done.stdout.split() == ["0", "0", "0", "0", "1"]
