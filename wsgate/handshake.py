"""Parses the head of an opening handshake into a `Request` or a `Refusal`, and makes the HTTP responses.

This module has every rule of RFC 6455 section 4.2 and of RFC 9112 that concerns a WebSocket handshake, the
limits on its size, and the bytes of each response. Compression is
negotiated in wsgate/deflate.py. It must not know sockets, clocks, asyncio, paths, users or
allowed
origins: the shard decides about these, and refuses with `refusal`.

Rules:
- httptools parses the headers, but never decides alone. It accepts empty lines before the request line, two
  spaces in it and a missing version, so this module checks for these first.
- A head that two parsers could read in two ways is refused and never repaired.
- Linear time: passes over the whole head in C, one step per header, one step per list element. No regular
  expressions.
- No part of the request appears in a response, except the subprotocol that the caller of `accept` chose from
  it.
- Every refusal has one name. `REFUSALS` lists the refusals that this module decides on.

A missing `Sec-WebSocket-Version` gets the same response 426 as a wrong one, because the supported version
helps in both cases. The responses 400, 405 and 426 all contain `Sec-WebSocket-Version: 13`.
"""

from __future__ import annotations

import hashlib
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from wsgate.errors import InternalError

__all__ = [
    "HEADERS_LIMIT",
    "HEAD_LIMIT_BYTES",
    "REFUSALS",
    "REQUEST_LINE_LIMIT_BYTES",
    "Refusal",
    "Request",
    "Upgrade",
    "accept",
    "parse_head",
    "refusal",
]

HEAD_LIMIT_BYTES: Final = 16 * 1024  # the reactor has the same limit; checked again here (S12)
REQUEST_LINE_LIMIT_BYTES: Final = 8 * 1024  # what nginx and Apache allow (S12)
HEADERS_LIMIT: Final = 100  # lines; browsers send under 25, Apache allows 100 (S12)

# RFC 6455 section 1.3: appended to the key before hashing.
_ACCEPT_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_KEY_BYTES: Final = 16
_PORT_MAX: Final = 65535

_ALPHANUMERIC: Final = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
# The sets below are passed to bytes.translate(None, set), which removes their members: an empty result proves
# in one pass in C that a value has no other byte.
_TOKEN: Final = _ALPHANUMERIC + b"!#$%&'*+-.^_`|~"  # RFC 9110 section 5.6.2
_PROTOCOL: Final = _TOKEN + b"/"  # RFC 9110 section 7.8: an Upgrade element may name a version
_VISIBLE: Final = bytes(range(0x21, 0x7F))
_TARGET: Final = _VISIBLE.replace(b"#", b"")  # browsers send | { } ^ unescaped, but never a fragment
_HOST_NAME: Final = _ALPHANUMERIC + b"-._"  # narrower than RFC 3986: no escapes, no userinfo
_IPV6: Final = b"0123456789ABCDEFabcdef:."
# The bytes that may stand in a line: tab, space, visible ASCII, and 0x80 to 0xFF, which are opaque in a
# header value (RFC 9110 section 5.5). Among them is 0x85, a part of many UTF-8 characters. Some parsers treat
# 0x85 as a line end (S15, Daphne CVE-2026-44546), so this module must not split a head with str.splitlines.
_LINE: Final = bytes([0x09, *range(0x20, 0x7F), *range(0x80, 0x100)])

# Headers that may occur only once, because two parsers could choose different values (P8, S15, S17).
_SINGLE: Final = frozenset(
    {
        b"authorization",
        b"content-length",
        b"host",
        b"origin",
        b"sec-websocket-key",
        b"sec-websocket-version",
    }
)
# An upgrade request has no body and expects no interim response (S16). Content-Length is allowed with the
# value zero: see `_has_no_body`.
_FORBIDDEN: Final = frozenset({b"transfer-encoding", b"expect"})


class Request(NamedTuple):
    """A valid opening handshake, with the values that the shard needs to accept or refuse the connection.

    Text is ASCII, except in `headers`. `repr` shows neither the query nor the subprotocols nor the headers,
    because they may contain a token (S21).
    """

    target: str
    """The request target as sent, not decoded; starts with "/"."""
    host: str
    """The Host header as sent: name, IPv4 or [IPv6] address, with or without ":port"."""
    origin: str | None
    """The Origin header as sent, never empty; None without one, so the client is not a browser."""
    subprotocols: tuple[str, ...]
    """The subprotocols that the client offers, in its order of preference, without duplicates."""
    key: bytes
    """The Sec-WebSocket-Key header as sent, already validated."""
    headers: Mapping[bytes, bytes]
    """Header values by lower-case name; several lines of one name are joined by ", " (Cookie: "; ")."""

    def __repr__(self) -> str:
        """Show only the fields that cannot contain a secret."""
        return f"Request(host={self.host!r}, origin={self.origin!r})"

    @property
    def method(self) -> str:
        """Return the HTTP method, which is always GET."""
        return "GET"

    @property
    def path(self) -> str:
        """Return the target up to the first "?", not decoded; to compare, not to open as a file."""
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        """Return the query: the target after the first "?", not decoded; "" if there is none."""
        return self.target.partition("?")[2]

    @property
    def authorization(self) -> str | None:
        """Return the value of the Authorization header, or None."""
        return self.header("authorization")

    @property
    def extensions(self) -> str:
        """Return the offered extensions, not parsed, all lines joined; "" if there are none."""
        return self.header("sec-websocket-extensions") or ""

    def header(self, name: str) -> str | None:
        """Return the value of a header, decoded as Latin-1, or None if the client did not send it.

        Args:
            name: The name of the header in lower case.
        """
        value = self.headers.get(name.encode("ascii"))
        return None if value is None else value.decode("latin-1")


class Upgrade(NamedTuple):
    """An accepted handshake with its 101 response."""

    response: bytes
    """The complete 101 response; frames can follow at once."""
    subprotocol: str | None
    """The subprotocol that the response names, or None."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refused handshake with its HTTP response."""

    status: int
    """The HTTP status of `response`."""
    reason: str
    """The name by which the refusal is counted, in snake case."""
    response: bytes = field(repr=False)
    """The complete HTTP/1.1 response with `Connection: close`; nothing follows it."""


_PHRASES: Final = {
    400: b"Bad Request",
    401: b"Unauthorized",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    413: b"Content Too Large",
    414: b"URI Too Long",
    426: b"Upgrade Required",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    503: b"Service Unavailable",
}
_VERSION_LINE: Final = b"Sec-WebSocket-Version: 13\r\n"
_STATUS_LINES: Final = {
    400: _VERSION_LINE,
    405: b"Allow: GET\r\n" + _VERSION_LINE,  # RFC 9110 section 15.5.6: Allow is required
    426: b"Upgrade: websocket\r\n" + _VERSION_LINE,  # RFC 9110 section 15.5.22, RFC 6455 section 4.4
}


def refusal(
    status: int,
    reason: str,
    *,
    retry_after_s: int | None = None,
    extra_headers: Iterable[tuple[str, str]] = (),
    detail: str = "",
) -> Refusal:
    """Make a `Refusal` with a complete HTTP response.

    Args:
        status: The HTTP status: 400, 401, 403, 404, 405, 408, 413, 414, 426, 429, 431 or 503.
        reason: The name by which the refusal is counted; never sent.
        retry_after_s: Retry-After in seconds, >= 0, for 429 and 503; the caller adds jitter.
        extra_headers: More headers as `(name, value)`, such as WWW-Authenticate with 401.
        detail: Printable ASCII that follows the phrase of the status in the body, such as a remedy.

    Raises:
        InternalError: The status is not in the list, or a header or the detail would break the response.
    """
    phrase = _PHRASES.get(status)
    if phrase is None or (retry_after_s is not None and retry_after_s < 0):
        raise InternalError(f"a refusal cannot have status {status} and Retry-After {retry_after_s}")
    if not (detail.isascii() and detail.isprintable()):
        raise InternalError("the detail of a refusal is not printable ASCII")
    body = b"%b: %b\n" % (phrase, detail.encode()) if detail else phrase + b"\n"
    # RFC 9110 section 7.6.1: a sender of Upgrade must name it in Connection.
    connection = b"Connection: close, Upgrade\r\n" if status == 426 else b"Connection: close\r\n"
    retry_after = b"" if retry_after_s is None else b"Retry-After: %d\r\n" % retry_after_s
    response = b"".join(
        (
            b"HTTP/1.1 %d %b\r\n" % (status, phrase),
            connection,
            _STATUS_LINES.get(status, b""),
            retry_after,
            _header_lines(extra_headers),
            b"Content-Type: text/plain\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body),
        )
    )
    return Refusal(status, reason, response)


def _header_lines(headers: Iterable[tuple[str, str]]) -> bytes:
    """Encode headers of a response; raise InternalError if one could end its line or the head."""
    lines = []
    for name, value in headers:
        raw_name, raw_value = name.encode("latin-1"), value.encode("latin-1")
        if not raw_name or raw_name.translate(None, _TOKEN) or raw_value.translate(None, _LINE):
            raise InternalError("a header of a response is not valid")
        lines.append(b"%b: %b\r\n" % (raw_name, raw_value))
    return b"".join(lines)


# The refusals are constants, so that refusing a handshake makes no response anew.
_HEAD_TOO_LARGE: Final = refusal(431, "head_too_large")
_TOO_MANY_HEADERS: Final = refusal(431, "too_many_headers")
_URI_TOO_LONG: Final = refusal(414, "uri_too_long")
_MALFORMED_HEAD: Final = refusal(400, "malformed_head")
_MALFORMED_REQUEST_LINE: Final = refusal(400, "malformed_request_line")
_MALFORMED_TARGET: Final = refusal(400, "malformed_target")
_WRONG_METHOD: Final = refusal(405, "wrong_method")
_WRONG_HTTP_VERSION: Final = refusal(400, "wrong_http_version")
_DUPLICATE_HEADER: Final = refusal(400, "duplicate_header")
_REQUEST_BODY: Final = refusal(400, "request_body")
_BAD_HOST: Final = refusal(400, "bad_host")
_BAD_ORIGIN: Final = refusal(400, "bad_origin")
_BAD_HEADER_VALUE: Final = refusal(400, "bad_header_value")
_NOT_WEBSOCKET: Final = refusal(426, "not_websocket")
_WRONG_VERSION: Final = refusal(426, "wrong_version")
_BAD_KEY: Final = refusal(400, "bad_key")
_BAD_SUBPROTOCOLS: Final = refusal(400, "bad_subprotocols")

REFUSALS: Final[Mapping[str, Refusal]] = {
    each.reason: each
    for each in (
        _HEAD_TOO_LARGE,
        _TOO_MANY_HEADERS,
        _URI_TOO_LONG,
        _MALFORMED_HEAD,
        _MALFORMED_REQUEST_LINE,
        _MALFORMED_TARGET,
        _WRONG_METHOD,
        _WRONG_HTTP_VERSION,
        _DUPLICATE_HEADER,
        _REQUEST_BODY,
        _BAD_HOST,
        _BAD_ORIGIN,
        _BAD_HEADER_VALUE,
        _NOT_WEBSOCKET,
        _WRONG_VERSION,
        _BAD_KEY,
        _BAD_SUBPROTOCOLS,
    )
}
"""Every refusal that `parse_head` can return, by the name by which it is counted."""


class _Collector:
    """Collects the target and the headers of one head, as callbacks of httptools."""

    __slots__ = ("headers", "target")

    def __init__(self) -> None:
        self.target = b""
        self.headers: list[tuple[bytes, bytes]] = []

    def on_url(self, url: bytes) -> None:
        """Collect a part of the request target."""
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Collect one header with its name in lower case."""
        # httptools keeps trailing white space, which is not part of the value (RFC 9112 section 5.1).
        self.headers.append((name.lower(), value.strip(b" \t")))


# Every handshake runs this function. Its whole budget is 20 us, including the kernel: 6.3 us here and 0.9 us
# in `accept` for a browser's head of 528 bytes and 13 headers. Splitting the lines in Python instead of
# httptools, with the same checks, took 6.7 us. python -m timeit -s "from tests.unit.test_handshake import
# BROWSER_HEAD as head" \ -s "from wsgate.handshake import parse_head" "parse_head(head)"
def parse_head(head: bytes) -> Request | Refusal:
    """Parse and validate a request head; return the `Request`, or the `Refusal` if a rule is broken.

    Pure, and linear in `len(head)`.

    Args:
        head: All bytes up to and including the empty line, as the reactor reports them. Anything else (no
            empty line, bytes after it) is refused.

    Source: RFC 6455 section 4.2.1; RFC 9112 sections 2 to 5.
    """
    header_count = _scan(head)
    if isinstance(header_count, Refusal):
        return header_count
    target = _target(head[: head.find(b"\r\n")])
    if isinstance(target, Refusal):
        return target
    headers = _headers(head, target, header_count)
    if isinstance(headers, Refusal):
        return headers
    return _judge(target, headers)


def _scan(head: bytes) -> int | Refusal:
    """Check the size, the bytes and the line ends of a head; return the number of its header lines."""
    if len(head) > HEAD_LIMIT_BYTES:
        return _HEAD_TOO_LARGE
    line_end = head.find(b"\r\n")
    if line_end > REQUEST_LINE_LIMIT_BYTES or (line_end < 0 and len(head) > REQUEST_LINE_LIMIT_BYTES):
        return _URI_TOO_LONG
    # Without the bytes of lines, the whole head must consist of complete line ends. This proves that there is
    # no bare CR or LF, no NUL and no other control character in any name or value (S15).
    line_ends = head.translate(None, _LINE)
    lines = len(line_ends) // 2
    if line_ends != b"\r\n" * lines or not head.endswith(b"\r\n\r\n"):
        return _MALFORMED_HEAD
    header_count = lines - 2  # without the ends of the request line and the empty line
    return header_count if header_count <= HEADERS_LIMIT else _TOO_MANY_HEADERS


def _target(line: bytes) -> bytes | Refusal:
    """Return the request target of a request line that is exactly `GET <origin-form> HTTP/1.1`."""
    if not (line.startswith(b"GET ") and line.endswith(b" HTTP/1.1")):
        return _request_line_fault(line)
    target = line[4:-9]
    # RFC 9112 section 3.2: of the four forms only the origin-form names a WebSocket resource here. The
    # absolute form is refused although section 3.2.2 requires to accept it: its authority overrides Host, and
    # WebSocket clients send it only to proxies (P8). The set of bytes has no "#" (RFC 6455 section 3), no
    # space and no byte above 0x7F.
    if target[:1] != b"/" or target.translate(None, _TARGET):
        return _MALFORMED_TARGET
    return target


def _request_line_fault(line: bytes) -> Refusal:
    """Return the refusal for a request line that is not `GET <target> HTTP/1.1`; check the method first."""
    method, _, rest = line.partition(b" ")
    target, _, version = rest.rpartition(b" ")
    if not method or method.translate(None, _TOKEN) or not target:
        return _MALFORMED_REQUEST_LINE
    if method != b"GET":
        return _WRONG_METHOD
    is_version = len(version) == 8 and version.startswith(b"HTTP/") and version[6:7] == b"."
    if is_version and version[5:6].isdigit() and version[7:8].isdigit():
        return _WRONG_HTTP_VERSION
    return _MALFORMED_REQUEST_LINE


def _headers(head: bytes, target: bytes, header_count: int) -> dict[bytes, bytes] | Refusal:
    """Parse the headers with httptools; return the values by lower-case name, or a refusal."""
    collector = _Collector()
    try:
        HttpRequestParser(collector).feed_data(head)
    except HttpParserUpgrade:
        pass  # httptools found Upgrade and Connection; both are checked later
    except HttpParserError:
        return _MALFORMED_HEAD
    pairs = collector.headers
    # Each line must be one header. If httptools ends the head at an earlier empty line, headers are missing
    # here. Every other difference of a version of httptools (a folded line, a skipped line) is found in the
    # same way.
    if collector.target != target or len(pairs) != header_count:
        return _MALFORMED_HEAD
    headers = dict(pairs)
    return headers if len(headers) == len(pairs) else _joined(pairs)


def _joined(pairs: list[tuple[bytes, bytes]]) -> dict[bytes, bytes] | Refusal:
    """Join the values of repeated names in order, or refuse a name that may occur only once. Linear."""
    values: dict[bytes, list[bytes]] = {}
    for name, value in pairs:
        values.setdefault(name, []).append(value)
    if any(len(values.get(name, ())) > 1 for name in _SINGLE):
        return _DUPLICATE_HEADER
    # RFC 9110 section 5.3; RFC 6265 section 5.4 for Cookie.
    return {name: (b"; " if name == b"cookie" else b", ").join(each) for name, each in values.items()}


def _judge(target: bytes, headers: dict[bytes, bytes]) -> Request | Refusal:
    """Apply the rules of RFC 6455 section 4.2.1 to well-formed headers; return the request or a refusal."""
    get = headers.get
    if not _FORBIDDEN.isdisjoint(headers) or not _has_no_body(get(b"content-length")):
        return _REQUEST_BODY
    host = get(b"host", b"")
    if not _is_host(host):
        return _BAD_HOST
    # 4.2.1 items 3 and 4.
    upgrade, connection = get(b"upgrade", b""), get(b"connection", b"")
    if not (_has_token(upgrade, b"websocket", _PROTOCOL) and _has_token(connection, b"upgrade", _TOKEN)):
        return _NOT_WEBSOCKET
    if get(b"sec-websocket-version") != b"13":  # item 6, 4.2.2 item 4
        return _WRONG_VERSION
    key = get(b"sec-websocket-key", b"")
    if not _is_key(key):  # item 5
        return _BAD_KEY
    # An empty Origin is invalid: a test by `if origin` would treat the client as one without a browser.
    origin = get(b"origin")
    if origin is not None and (not origin or origin.translate(None, _VISIBLE)):
        return _BAD_ORIGIN
    # RFC 6455 section 9.1: an extension and its parameters are ASCII.
    if not get(b"sec-websocket-extensions", b"").isascii() or _is_bad_bearer(get(b"authorization", b"")):
        return _BAD_HEADER_VALUE
    offered = get(b"sec-websocket-protocol")
    subprotocols = () if offered is None else _subprotocols(offered)
    if subprotocols is None:
        return _BAD_SUBPROTOCOLS
    return Request(
        target.decode("ascii"),
        host.decode("ascii"),
        None if origin is None else origin.decode("ascii"),
        subprotocols,
        key,
        headers,
    )


def _has_no_body(length: bytes | None) -> bool:
    """Return whether Content-Length is absent or zero.

    Many devices and HTTP libraries send `Content-Length: 0` by default. The value consists of digits only
    (RFC 9110 section 8.6), so "00" is zero, while "+0", "0x0", "0, 0" and an empty value are invalid.
    """
    return length is None or (length != b"" and not length.strip(b"0"))


def _is_bad_bearer(credentials: bytes) -> bool:
    """Return whether credentials have bytes above 0x7F although their scheme is Bearer or not valid.

    A Bearer token is ASCII. A quoted parameter of another scheme may contain such bytes.

    Source: RFC 9110 sections 5.6.4 and 11.4; RFC 6750 section 2.1.
    """
    if credentials.isascii():
        return False
    scheme = credentials.partition(b" ")[0]
    return bool(scheme.translate(None, _TOKEN)) or scheme.lower() == b"bearer"


def _is_host(host: bytes) -> bool:
    """Return whether a Host value is a name, an IPv4 or a bracketed IPv6 address, with or without a port.

    Stricter than RFC 9110 section 7.2: the value is not empty, without userinfo, percent-escapes or
    sub-delimiters, and the port is 0 to 65535.
    """
    if host.startswith(b"["):
        address, bracket, port = host[1:].partition(b"]")
        if not bracket or b":" not in address or address.translate(None, _IPV6):
            return False
        return not port or (port.startswith(b":") and _is_port(port[1:]))
    name, colon, port = host.partition(b":")
    return bool(name) and not name.translate(None, _HOST_NAME) and (not colon or _is_port(port))


def _is_port(port: bytes) -> bool:
    """Return whether a text is a decimal port of 0 to 65535."""
    return port.isdigit() and len(port) <= 5 and int(port) <= _PORT_MAX


def _has_token(value: bytes, word: bytes, characters: bytes) -> bool:
    """Return whether a comma-separated list contains the lower-case token `word`, in any case of letters.

    Empty elements are ignored (RFC 9110 section 5.6.1.2). If an element has a byte that is not in
    `characters`, such as a quote or a space, the result is False.
    """
    lower = value.lower()
    if lower == word:
        return True
    elements = [each.strip(b" \t") for each in lower.split(b",")]
    return word in elements and not b"".join(elements).translate(None, characters)


def _is_key(key: bytes) -> bool:
    """Return whether a key is the canonical base64 text of 16 bytes (RFC 6455 section 4.1, item 7)."""
    try:
        nonce = a2b_base64(key)
    except Base64Error:
        return False
    # Encoding the bytes again finds what decoding ignores: foreign characters, bits after the last byte.
    return len(nonce) == _KEY_BYTES and b2a_base64(nonce, newline=False) == key


def _subprotocols(value: bytes) -> tuple[str, ...] | None:
    """Return the offered subprotocols in order; None if there is none, or one is repeated or not a token.

    Empty elements are ignored, as in `_has_token`.

    Source: RFC 6455 section 4.1, item 10; RFC 9110 section 5.6.1.2.
    """
    if not value.translate(None, _TOKEN):
        return (value.decode("ascii"),) if value else None
    elements = [each.strip(b" \t") for each in value.split(b",")]
    offered = [each for each in elements if each]
    if not offered or b"".join(offered).translate(None, _TOKEN):
        return None
    if len(set(offered)) != len(offered):
        return None
    return tuple(each.decode("ascii") for each in offered)


def accept(
    request: Request,
    *,
    subprotocol: str | None = None,
    extensions: str | None = None,
    extra_headers: Iterable[tuple[str, str]] = (),
) -> Upgrade:
    """Make the 101 response that accepts a request.

    Args:
        request: The result of `parse_head`.
        subprotocol: One of `request.subprotocols`, or None to name none.
        extensions: The value of Sec-WebSocket-Extensions, or None to accept none.
        extra_headers: More headers as `(name, value)`.

    Raises:
        InternalError: The subprotocol was not offered, or a header would break the response.

    Source: RFC 6455 section 4.2.2, item 5.
    """
    digest = hashlib.sha1(request.key + _ACCEPT_GUID, usedforsecurity=False).digest()
    lines = b""
    if subprotocol is not None:
        if subprotocol not in request.subprotocols:
            raise InternalError("the subprotocol was not offered")
        lines = b"Sec-WebSocket-Protocol: %b\r\n" % subprotocol.encode("ascii")
    if extensions is not None:
        lines += _header_lines((("Sec-WebSocket-Extensions", extensions),))
    if extra_headers:
        lines += _header_lines(extra_headers)
    response = (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: %b\r\n%b\r\n" % (b2a_base64(digest, newline=False), lines)
    )
    return Upgrade(response, subprotocol)
