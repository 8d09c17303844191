"""Where the bus is: a URL in, its parts out. Pure."""

from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

from wsgate.errors import SettingsError

__all__ = ["BusAddress", "parse_address"]

_PORT: Final = 6379
_LATER: Final = ("rediss", "redis+sentinel", "redis+cluster")


@dataclass(frozen=True, slots=True)
class BusAddress:
    """One server: a Unix socket when `path` is set, else TCP.

    Pub/sub ignores databases, so there is none here: an address that names one other than 0 is refused,
    because keys and channels would then mean different things.
    """

    host: str = "localhost"
    port: int = _PORT
    path: str = ""
    username: str = ""
    password: str = field(default="", repr=False)

    def __str__(self) -> str:
        """For people: without user and password."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"unix://{self.path}" if self.path else f"redis://{host}:{self.port}"


def parse_address(url: str) -> BusAddress:
    """The address a bus URL names.

    Args:
        url: `redis://[user:password@]host[:port][/0]` or `unix://[user:password@]/path`; user and
            password may also be `?username=` and `?password=`.

    Raises:
        SettingsError: Anything else; the message never holds the URL, which may hold a password.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise SettingsError("bus.url: this is not a URL") from None
    if parts.scheme in _LATER:
        raise SettingsError(f"bus.url: {parts.scheme}:// is not supported yet")
    query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
    username = unquote(parts.username or "") or query.pop("username", "")
    password = unquote(parts.password or "") or query.pop("password", "")
    database = query.pop("db", "") or (parts.path.strip("/") if parts.scheme == "redis" else "")
    if query or database not in ("", "0"):
        raise SettingsError("bus.url: only database 0, and no options but username and password")
    if parts.scheme == "redis" and port != 0:
        return BusAddress(parts.hostname or "localhost", port or _PORT, "", username, password)
    if parts.scheme == "unix" and parts.path and not parts.hostname:
        return BusAddress(path=unquote(parts.path), username=username, password=password)
    raise SettingsError("bus.url: must be redis://host:port or unix:///path")
