"""Checks the URLs of gateways, recognizes loopback addresses, and shortens URLs for error texts. Pure."""

import ipaddress
import socket
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from wsgate.errors import SettingsError

__all__ = ["carries_token", "check_url", "is_loopback", "shown_url"]

_WRONG: Final = "url: must be ws://host:port/path or wss://host/path"
_LABEL_LIMIT: Final = 63
"""Source: RFC 1035 section 2.3.4."""


def check_url(url: str) -> None:
    """Raise SettingsError unless a WebSocket can be opened at this URL.

    The check is made when a client is created, because a wrong URL never becomes valid.

    Raises:
        SettingsError: The scheme is not `ws` or `wss`, the host is missing or cannot be a host name, the port
            is out of range, the user has no password, there is a fragment, or a character must not stand in a
            URL.
    """
    try:
        parts = urlsplit(url)
        has_port = parts.port != 0
    except ValueError:
        raise SettingsError(_WRONG) from None
    if parts.scheme not in ("ws", "wss") or not parts.hostname or not has_port or parts.fragment:
        raise SettingsError(_WRONG)
    if any(sign.isspace() or not sign.isprintable() for sign in url):
        raise SettingsError(f"{_WRONG}; white space and control characters are not allowed")
    if parts.username is not None and parts.password is None:
        raise SettingsError(f"{_WRONG}; a user name needs a password")
    if not _is_host(parts.hostname):
        raise SettingsError(f"{_WRONG}; no host can have the name {parts.hostname[:80]!r}")


def _is_host(name: str) -> bool:
    if ":" in name:
        return True  # IPv6: urlsplit has checked it
    try:
        ascii_name = name.encode("idna").decode()  # refuses empty and long labels
    except UnicodeError:
        return False
    labels = ascii_name.removesuffix(".").split(".")
    return all(0 < len(label) <= _LABEL_LIMIT for label in labels) and "%" not in ascii_name


def is_loopback(url: str) -> bool:
    """Whether a URL names this machine: `localhost`, a name below it, or a loopback address.

    Other names are not resolved, so entries of `/etc/hosts` do not count.
    """
    host = (urlsplit(url).hostname or "").rstrip(".").partition("%")[0]
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761 section 6.3
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        try:
            # `127.1` and `2130706433` are IPv4 addresses to the system's resolver.
            address = ipaddress.IPv4Address(socket.inet_aton(host))
        except (OSError, UnicodeError):
            return False
    mapped = getattr(address, "ipv4_mapped", None) or address
    return bool(mapped.is_loopback or mapped.is_unspecified)  # 0.0.0.0 connects to this machine


def shown_url(url: str) -> str:
    """Return a URL for error texts, without user, password and query, which may hold a token."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def carries_token(url: str) -> bool:
    """Whether the query of a URL holds a token, which is then the same in every attempt."""
    return any(name == "token" and value for name, value in parse_qsl(urlsplit(url).query))
