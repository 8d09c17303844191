"""From root to an ordinary user, once everything that only root may do is done.

The order matters: groups first, then the group, then the user, because each step takes away the right to do
the one before it. Source: setuid(2), setgroups(2); POSIX.1 saved set-user-ID.
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
"""Modules that are otherwise imported only when they are needed. After the change of the user that may fail,
because the new user may not be allowed to read the folder where Python or wsgate is installed."""


@dataclass(frozen=True, slots=True)
class Account:
    """The account that the process changes to, with its groups."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]


def account_for(name: str) -> Account | None:
    """The account that `server.user` names; None: the process stays what it is.

    Raises:
        SettingsError: There is no such user, or we are neither root nor that user.
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
    """Become another user for good. Call as root, with a single thread.

    Raises:
        OSError: The kernel refuses it.
        InternalError: We could still return to root.
    """
    for module in _LATER:
        importlib.import_module(module)
    os.setgroups(account.groups)
    os.setresgid(account.gid, account.gid, account.gid)
    os.setresuid(account.uid, account.uid, account.uid)
    with contextlib.suppress(PermissionError):
        os.setuid(0)
        raise InternalError("server.user: this process could become root again")
