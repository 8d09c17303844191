"""Check the Origin header of a handshake: which web pages may open a connection. Pure.

A browser sends its cookies and reaches the local network from any page, so the page's origin is checked
before its token. A client that is not a browser sends no Origin header; only its token is checked.

Rules:
- The origin of a web page is exactly `scheme "://" host [":" port]` with one of the schemes http, https, ws
  and wss. Two origins are equal when all their parts are equal; there is no match by prefix or suffix. A web
  origin of any other form is refused.
- A host name with a dot at its end is another host than the one without, as it is for browsers.
- The origin of an app or an extension has a scheme of its own (`file://`, `capacitor://localhost`,
  `app://obsidian.md`). The app decides its form, so it is compared as text, exactly as it is sent.
- In development mode the pages of this machine are allowed, and a host name that anyone can register is not.

Source: RFC 6454 sections 4 and 6, RFC 6455 section 10.2.
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

# No two parts of the pattern can match the same character, so a match takes linear time. International names
# have the form xn--.
_AUTHORITY: Final = r"([a-z0-9_-]+(?:\.[a-z0-9_-]+)*\.?|\[[0-9a-f:.]{2,45}\])(?::([1-9][0-9]{0,4}))?"
_ORIGIN: Final = re.compile(rf"(https?|wss?)://{_AUTHORITY}")
_HOST: Final = re.compile(_AUTHORITY)
# The origin of an app: no path, query, fragment, user or list. It has no "*", because patterns do not exist
# here.
_APP_ORIGIN: Final = re.compile(
    r"(?!(?i:https?|wss?):)[A-Za-z][A-Za-z0-9+.-]*://[A-Za-z0-9._~:\[\]!$&'()+;=%-]*"
)


class _Origin(NamedTuple):
    """The origin of a web page in canonical form: lower case, and with the default port of its scheme."""

    scheme: str
    host: str
    port: int | None
    """The port; None: this scheme has no default port."""


@dataclass(frozen=True, slots=True)
class OriginPolicy:
    """The rules that decide whether a handshake with an Origin header is allowed.

    Args:
        allowed: Exact origins: `scheme://host[:port]` of a web page, the origin of an app exactly as the app
            sends it, such as `file://`, or "null".
        same_host: Whether an origin is allowed whose host and port equal the Host header. The scheme must be
            http or https and decides only the default port, because TLS may end at a proxy.
        is_dev: Whether every web page of this machine is allowed: its host is localhost or a loopback
            address, with any port. `same_host` then holds for IP addresses only: the owner of a name can let
            the name point to this machine (DNS rebinding), and then Origin and Host are equal.

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
        """Decide whether a handshake with these headers is allowed.

        Args:
            origin: The Origin header; None: the request has none, which is allowed.
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
    """Whether an origin is a page of this machine: http or https on localhost or a loopback address."""
    if origin.scheme not in _PAGE_SCHEMES:
        return False
    is_address = _is_address(origin.host)
    return ip_address(origin.host.strip("[]")).is_loopback if is_address else origin.host == "localhost"


def _is_address(host: str) -> bool:
    """Whether a host is an IPv4 address or an IPv6 address in brackets, and no name."""
    try:
        return bool(ip_address(host.strip("[]")))
    except ValueError:
        return False


def _is_same_host(origin: _Origin, host: str) -> bool:
    """Whether the host and port of a page's origin equal those of the Host header."""
    match = _HOST.fullmatch(host.lower()) if host.isascii() else None
    return (
        match is not None
        and origin.scheme in _PAGE_SCHEMES
        and _complete(origin.scheme, match[1], match[2]) == origin
    )


def _parse_origin(text: str) -> _Origin | None:
    """Parse the origin of a web page into canonical form; None if it is no such origin."""
    # Check for ASCII before lower(): the Kelvin sign would become a k.
    match = _ORIGIN.fullmatch(text.lower()) if text.isascii() else None
    return None if match is None else _complete(match[1], match[2], match[3])


def _complete(scheme: str, host: str, port_text: str | None) -> _Origin | None:
    """Make an origin from its parts, with the default port and a compressed IPv6 address; None if invalid."""
    port = int(port_text) if port_text else _DEFAULT_PORTS.get(scheme)
    if port is not None and port > _PORT_MAX:
        return None
    if host.startswith("["):
        try:
            host = f"[{IPv6Address(host[1:-1]).compressed}]"
        except ValueError:
            return None
    return _Origin(scheme, host, port)
