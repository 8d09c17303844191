"""Change this process from root to an ordinary user, after everything that only root may do.

The order matters: the supplementary groups first, then the group, then the user, because each step removes
the right to do the step before it. Source: setuid(2), setgroups(2); POSIX.1 saved set-user-ID.
"""

import contextlib
import importlib
import os
import pwd
from dataclasses import dataclass
from typing import Final

from wsgate.errors import InternalError, SettingsError

__all__ = ["Account", "account_for", "become"]

_LATER: Final = (
    "difflib",
    "encodings.ascii",
    "encodings.idna",
    "encodings.latin_1",
    "linecache",
    "tomllib",
    "traceback",
    "wsgate.admin.server",
    "wsgate.bus.once",
)
"""Modules that are otherwise imported when they are first used. After the change of the user such an import
may fail, because the new user may have no right to read the directory where Python or wsgate is installed."""


@dataclass(frozen=True, slots=True)
class Account:
    """The account that the process changes to, with its groups."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]


def account_for(name: str) -> Account | None:
    """Look up the account that `server.user` names; None: no change is needed.

    Raises:
        SettingsError: There is no such user, or this process runs neither as root nor as that user.
    """
    if not name:
        return None
    try:
        row = pwd.getpwnam(name)
    except (KeyError, ValueError):
        raise SettingsError("server.user: there is no such user on this machine") from None
    if row.pw_uid == os.getuid():
        return None
    if os.getuid() != 0:
        raise SettingsError(f"server.user: only root can become another user, and this is user {os.getuid()}")
    return Account(name, row.pw_uid, row.pw_gid, tuple(os.getgrouplist(name, row.pw_gid)))


def become(account: Account) -> None:
    """Change this process to another user permanently. Call it as root, with a single thread.

    Raises:
        OSError: The kernel refuses the change.
        InternalError: The process could still become root again.
    """
    for module in _LATER:
        importlib.import_module(module)
    os.setgroups(account.groups)
    os.setresgid(account.gid, account.gid, account.gid)
    os.setresuid(account.uid, account.uid, account.uid)
    with contextlib.suppress(PermissionError):
        os.setuid(0)
        raise InternalError("server.user: this process could become root again")
