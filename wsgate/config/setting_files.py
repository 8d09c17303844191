"""Read the files that settings name, and refuse a file of a secret that other users can read or change."""

import os
import stat
from typing import Final, NamedTuple

from wsgate.config.units import format_size
from wsgate.errors import SettingsError

__all__ = ["SettingFile", "check_file", "file_text"]

_FILE_LIMIT_BYTES: Final = 64 * 1024  # longer than any key; an endless file such as /dev/zero is refused


class SettingFile(NamedTuple):
    """A reference to a file whose content is the value of a setting."""

    file: str
    is_secret: bool


def file_text(source: SettingFile) -> str:
    """Read the file of a setting, check it, and remove one line end at its end."""
    try:
        with open(source.file, "rb", opener=_open_at_once) as file:
            check_file(os.fstat(file.fileno()), is_secret=source.is_secret)
            content = file.read(_FILE_LIMIT_BYTES + 1)
        text = content.decode()
    except OSError as fault:
        raise SettingsError(f"cannot read the file: {fault.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError("the file is not UTF-8 text") from None
    except ValueError:
        raise SettingsError("cannot read the file: a path holds no NUL") from None
    if len(content) > _FILE_LIMIT_BYTES:
        raise SettingsError(f"the file is larger than {format_size(_FILE_LIMIT_BYTES)}")
    text = text.removesuffix("\n").removesuffix("\r") if text.endswith("\n") else text
    if not text:
        raise SettingsError("the file is empty")
    return text


def _open_at_once(path: str, flags: int) -> int:
    # Opening a pipe without a writer would otherwise block the start.
    return os.open(path, flags | os.O_NONBLOCK)


def check_file(status: os.stat_result, *, is_secret: bool) -> None:
    """Refuse a file that is not regular, and the file of a secret that other users can read or change.

    The rule is that of PostgreSQL for its private key: the file belongs to root or to this user, its group
    may read it, and other users have no rights. So platforms can provide secrets: Kubernetes and systemd with
    owner root and a group, Docker with the user as owner.

    Args:
        status: The status of the opened file, after all symbolic links: Kubernetes replaces secrets by a
            link.
        is_secret: Whether the file contains a secret; every user may read the file of a public key.

    Raises:
        SettingsError: The file is refused.
    """
    if not stat.S_ISREG(status.st_mode):
        raise SettingsError("this is not a regular file")
    if not is_secret:
        return
    if status.st_uid not in (0, os.geteuid()):
        raise SettingsError(
            f"the file belongs to user {status.st_uid}, who could change it: it must belong to root or to "
            f"the user of this process ({os.geteuid()})"
        )
    if status.st_mode & 0o037:
        raise SettingsError(
            f"others can use the file (mode {status.st_mode & 0o777:04o}): chmod 640 or 600 it; in "
            "Kubernetes set defaultMode: 0440 on the secret's volume and fsGroup in the pod's securityContext"
        )
