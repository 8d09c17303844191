"""Which web pages may open a connection.

A browser sends its cookies and reaches the local network from any page, so the page's origin is judged
before its token. A client that is not a browser sends no Origin and is judged by its token alone.

Rules:
- The origin of a web page is exactly `scheme "://" host [":" port]` with one of the schemes http, https, ws
  and wss. Two of them are compared whole, part by part, never by prefix or suffix. A web origin of any
  other form is refused, not repaired.
- A name with a dot at its end is another host than the one without, as it is for browsers.
- The origin of an app or an extension has a scheme of its own (`file://`, `capacitor://localhost`,
  `app://obsidian.md`). Its form is the app's affair, so it is compared as text, exactly as it is sent.
- In development the pages of this machine are allowed, and a host name that anybody can choose is not.

Source: RFC 6454 sections 4 and 6, RFC 6455 section 10.2; architecture, section 6.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from typing import Final, NamedTuple

from wsgate.errors import SettingsError

__all__ = ["OriginPolicy"]

_NULL: Final = "null"  # RFC 6454 section 6.1: pages from files, sandboxed frames, some redirects
_DEFAULT_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_PAGE_SCHEMES: Final = ("http", "https")
_PORT_MAX: Final = 65535

# No two parts can match one character, so a match is linear. International names come as xn--.
_AUTHORITY: Final = r"([a-z0-9_-]+(?:\.[a-z0-9_-]+)*\.?|\[[0-9a-f:.]{2,45}\])(?::([1-9][0-9]{0,4}))?"
_ORIGIN: Final = re.compile(rf"(https?|wss?)://{_AUTHORITY}")
_HOST: Final = re.compile(_AUTHORITY)
# What an app may send: no path, query, fragment, user or list, and no "*", which is no pattern here.
_APP_ORIGIN: Final = re.compile(
    r"(?!(?i:https?|wss?):)[A-Za-z][A-Za-z0-9+.-]*://[A-Za-z0-9._~:\[\]!$&'()+;=%-]*"
)


class _Origin(NamedTuple):
    """One origin of a web page in the one form that is compared."""

    scheme: str
    host: str
    port: int | None
    """None: this scheme has no default port."""


@dataclass(frozen=True, slots=True)
class OriginPolicy:
    """Which origins are allowed.

    Args:
        allowed: Exact origins: `scheme://host[:port]` of a web page, the origin of an app exactly as the app
            sends it, such as `file://`, or "null".
        same_host: Whether an origin is allowed whose host and port are those of the Host header. The
            scheme is then http or https and tells only the default port: TLS may end at a proxy.
        is_dev: Whether any web page of this machine is allowed: its host is localhost or a loopback
            address, its port any. The rule of the same host then holds for IP addresses only: whoever owns
            a name can let it point to this machine (DNS rebinding), and origin and Host agree.

    Raises:
        SettingsError: An entry is not an exact origin.
    """

    allowed: tuple[str, ...]
    same_host: bool = field(default=True, kw_only=True)
    is_dev: bool = field(default=False, kw_only=True)
    _origins: frozenset[_Origin | str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        origins: set[_Origin | str] = set()
        for entry in self.allowed:
            if entry == _NULL or _APP_ORIGIN.fullmatch(entry):
                origins.add(entry)
            elif (origin := _parse_origin(entry)) is not None:
                origins.add(origin)
            else:
                raise SettingsError(f"allowed origin {entry!r} is not scheme://host[:port] or null")
        object.__setattr__(self, "_origins", frozenset(origins))

    def allows(self, origin: str | None, host: str) -> bool:
        """Whether a page of this origin may connect.

        Args:
            origin: The Origin header; None: there was none.
            host: The Host header.
        """
        if origin is None or origin in self._origins:
            return True
        parsed = _parse_origin(origin)
        if parsed is None:
            return False
        if parsed in self._origins or (self.is_dev and _is_of_this_machine(parsed)):
            return True
        may_be_same = self.same_host and (not self.is_dev or _is_address(parsed.host))
        return may_be_same and _is_same_host(parsed, host)


def _is_of_this_machine(origin: _Origin) -> bool:
    """Whether it is a page that only this machine can serve to its own browsers."""
    if origin.scheme not in _PAGE_SCHEMES:
        return False
    is_address = _is_address(origin.host)
    return ip_address(origin.host.strip("[]")).is_loopback if is_address else origin.host == "localhost"


def _is_address(host: str) -> bool:
    """Whether a host is an IPv4 or a bracketed IPv6 address, and no name."""
    try:
        return bool(ip_address(host.strip("[]")))
    except ValueError:
        return False


def _is_same_host(origin: _Origin, host: str) -> bool:
    match = _HOST.fullmatch(host.lower()) if host.isascii() else None
    return (
        match is not None
        and origin.scheme in _PAGE_SCHEMES
        and _complete(origin.scheme, match[1], match[2]) == origin
    )


def _parse_origin(text: str) -> _Origin | None:
    # ASCII before lower(): the Kelvin sign becomes a k.
    match = _ORIGIN.fullmatch(text.lower()) if text.isascii() else None
    return None if match is None else _complete(match[1], match[2], match[3])


def _complete(scheme: str, host: str, port_text: str | None) -> _Origin | None:
    port = int(port_text) if port_text else _DEFAULT_PORTS.get(scheme)
    if port is not None and port > _PORT_MAX:
        return None
    if host.startswith("["):
        try:
            host = f"[{IPv6Address(host[1:-1]).compressed}]"
        except ValueError:
            return None
    return _Origin(scheme, host, port)
