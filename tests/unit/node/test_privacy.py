"""Check how a process protects its secrets: overwritten variables, no dumps, a final change of user."""

import os
import subprocess
import sys

import pytest

from wsgate.errors import SettingsError
from wsgate.node.children import fork_child
from wsgate.node.privacy import end_with_parent, forbid_dumps
from wsgate.node.privileges import Account, account_for, become

HIDING = """
import os, pathlib, subprocess, sys
from wsgate.node.privacy import hide_variables
kept = dict(os.environ)
hide_variables(os.environ)
block = pathlib.Path("/proc/self/environ").read_bytes()
assert b"s3cret" not in block and b"WSGATE_" not in block, block
assert b"KEPT=here" in block.split(b"\\0") and os.environ["KEPT"] == "here"
assert kept["WSGATE_AUTH__HMAC_SECRET"] == "s3cret" and not any("WSGATE" in name for name in os.environ)
show = [sys.executable, "-c", "import os; print(dict(os.environ))"]
child = subprocess.run(show, capture_output=True, text=True)
assert "KEPT" in child.stdout and "s3cret" not in child.stdout
print("done")
"""


@pytest.mark.parametrize(
    "secrets",
    [
        {"WSGATE_AUTH__HMAC_SECRET": "s3cret"},
        {
            "WSGATE_AUTH__HMAC_SECRET": "s3cret",
            "WSGATE_SERVER__PORT": "s3cret",
            "WSGATE_": "s3cret",
            "WSGATE_X": "",
        },
        {"WSGATE_AUTH__HMAC_SECRET": "s3cret", "WSGATE_ODD": "s3cret\n\u00e9=WSGATE_s3cret"},
    ],
)
def test_settings_are_removed_from_the_environment_and_other_variables_stay(secrets: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HIDING],
        env={"KEPT": "here", "PATH": os.environ["PATH"], "PYTHONPATH": os.getcwd()} | secrets,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_a_process_that_forbids_dumps_hides_its_memory_from_others_of_its_user() -> None:
    def work() -> int:
        if os.getuid() == 0:
            become(Account("", 65_534, 65_534, ()))
        forbid_dumps()
        forbid_dumps()  # a second time, as after a change of the user
        # What a process that may not be dumped owns in /proc belongs to root.
        return 7 if os.stat("/proc/self/maps").st_uid == 0 else 8

    assert os.waitstatus_to_exitcode(os.waitpid(fork_child("child", work), 0)[1]) == 7


def test_end_with_parent_reports_a_parent_that_has_already_ended() -> None:
    parent = os.getpid()
    for claimed, code in ((parent, 7), (parent + 1, 8)):

        def work(claimed: int = claimed) -> int:
            return 7 if end_with_parent(claimed, 9) else 8

        assert os.waitstatus_to_exitcode(os.waitpid(fork_child("child", work), 0)[1]) == code


@pytest.mark.parametrize("name", ["no-such-user-here", "\0", "x" * 10_000])
def test_unknown_user_raises_settings_error_without_repeating_the_name(name: str) -> None:
    with pytest.raises(SettingsError, match=r"^server.user: there is no such user") as caught:
        account_for(name)
    assert name not in str(caught.value)


def test_change_to_another_user_is_allowed_only_for_root(monkeypatch: pytest.MonkeyPatch) -> None:
    import pwd

    own, other = pwd.getpwuid(os.getuid()), pwd.getpwnam("nobody")
    assert account_for("") is None and account_for(own.pw_name) is None
    monkeypatch.setattr(os, "getuid", lambda: 4_242)
    with pytest.raises(SettingsError, match="only root"):
        account_for("nobody")
    monkeypatch.setattr(os, "getuid", lambda: 0)
    found = account_for("nobody")
    assert found is not None and (found.uid, found.gid) == (other.pw_uid, other.pw_gid)
    assert other.pw_gid in found.groups


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_process_that_gave_up_root_cannot_become_root_again() -> None:
    def work() -> int:
        become(Account("nobody", 65_534, 65_534, (65_534,)))
        for name in ("setuid", "seteuid", "setgid"):
            try:
                getattr(os, name)(0)
            except PermissionError:
                continue
            return 8
        return 7 if os.getresuid() == (65_534,) * 3 and os.getgroups() == [65_534] else 9

    assert os.waitstatus_to_exitcode(os.waitpid(fork_child("child", work), 0)[1]) == 7
