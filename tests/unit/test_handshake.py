"""Check the opening handshake: P8 as a table, the attacks S12 to S16, and a comparison.

The reference is the server handshake of `websockets`: it must grant every request that wsgate grants.
A request that only the reference grants must be refused for one of the listed reasons.
"""

import logging
import sys
from base64 import b64encode
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from websockets.http11 import Request as JudgedRequest
from websockets.server import ServerProtocol

from tests.support.sizes import around, sizes_up_to
from wsgate import handshake
from wsgate.errors import InternalError
from wsgate.handshake import Refusal, Request, accept, parse_head, refusal

# RFC 6455 section 1.3.
RFC_KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
RFC_ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

Lines = tuple[bytes, ...]
REQUEST_LINE = b"GET /ws HTTP/1.1"
HOST = b"Host: example.com"
UPGRADE = b"Upgrade: websocket"
CONNECTION = b"Connection: Upgrade"
KEY = b"Sec-WebSocket-Key: " + RFC_KEY
VERSION = b"Sec-WebSocket-Version: 13"
GOOD: Lines = (REQUEST_LINE, HOST, UPGRADE, CONNECTION, KEY, VERSION)

BROWSER_HEAD = (
    b"GET /ws HTTP/1.1\r\n"
    b"Host: gate.example.com\r\n"
    b"Connection: Upgrade\r\n"
    b"Pragma: no-cache\r\n"
    b"Cache-Control: no-cache\r\n"
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko)"
    b" Chrome/126.0.0.0 Safari/537.36\r\n"
    b"Upgrade: websocket\r\n"
    b"Origin: https://app.example.com\r\n"
    b"Sec-WebSocket-Version: 13\r\n"
    b"Accept-Encoding: gzip, deflate, br, zstd\r\n"
    b"Accept-Language: en-GB,en;q=0.9\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
    b"Sec-WebSocket-Protocol: wsgate.v1\r\n"
    b"\r\n"
)


def head_of(lines: Lines) -> bytes:
    """Return a head with these lines and a proper end."""
    return b"\r\n".join(lines) + b"\r\n\r\n"


def with_lines(*lines: bytes) -> bytes:
    """Return the valid head with further lines."""
    return head_of((*GOOD, *lines))


def instead(old: bytes, *new: bytes) -> bytes:
    """Return the valid head with one line replaced by any number of others."""
    place = GOOD.index(old)
    return head_of((*GOOD[:place], *new, *GOOD[place + 1 :]))


def request_line(line: bytes) -> bytes:
    """Return the valid head with another request line."""
    return instead(REQUEST_LINE, line)


class Row(NamedTuple):
    """One request that must not be granted, and how it is refused."""

    name: str
    head: bytes
    status: int
    reason: str


# P8, and the parts of S12, S13, S15 and S16 that one head shows.
REFUSED = [
    # P8: method.
    Row("P8-post", request_line(b"POST /ws HTTP/1.1"), 405, "wrong_method"),
    Row("P8-head", request_line(b"HEAD /ws HTTP/1.1"), 405, "wrong_method"),
    Row("P8-options-asterisk", request_line(b"OPTIONS * HTTP/1.1"), 405, "wrong_method"),
    Row("P8-connect-authority", request_line(b"CONNECT example.com:80 HTTP/1.1"), 405, "wrong_method"),
    Row("P8-lower-case-method", request_line(b"get /ws HTTP/1.1"), 405, "wrong_method"),
    Row("P8-unknown-method", request_line(b"SPEAK /ws HTTP/1.1"), 405, "wrong_method"),
    Row("P8-method-not-a-token", request_line(b"G(T /ws HTTP/1.1"), 400, "malformed_request_line"),
    Row("P8-http2-preface", b"PRI * HTTP/2.0\r\n\r\n", 405, "wrong_method"),
    # P8: HTTP version.
    Row("P8-http-1.0", request_line(b"GET /ws HTTP/1.0"), 400, "wrong_http_version"),
    Row("P8-http-1.2", request_line(b"GET /ws HTTP/1.2"), 400, "wrong_http_version"),
    Row("P8-http-2.0", request_line(b"GET /ws HTTP/2.0"), 400, "wrong_http_version"),
    Row("P8-http-0.9", request_line(b"GET /ws"), 400, "malformed_request_line"),
    Row("P8-http-lower-case", request_line(b"GET /ws http/1.1"), 400, "malformed_request_line"),
    Row("P8-http-1.10", request_line(b"GET /ws HTTP/1.10"), 400, "malformed_request_line"),
    Row("P8-http-other-protocol", request_line(b"GET /ws ICY/1.1"), 400, "malformed_request_line"),
    # P8: request line and target.
    Row("P8-leading-empty-line", b"\r\n" + head_of(GOOD), 400, "malformed_request_line"),
    Row("P8-leading-space", request_line(b" GET /ws HTTP/1.1"), 400, "malformed_request_line"),
    Row("P8-two-spaces-before-target", request_line(b"GET  /ws HTTP/1.1"), 400, "malformed_target"),
    Row("P8-two-spaces-after-target", request_line(b"GET /ws  HTTP/1.1"), 400, "malformed_target"),
    Row("P8-tabs", request_line(b"GET\t/ws\tHTTP/1.1"), 400, "malformed_request_line"),
    Row("P8-trailing-space", request_line(b"GET /ws HTTP/1.1 "), 400, "malformed_request_line"),
    Row("P8-space-in-target", request_line(b"GET /w s HTTP/1.1"), 400, "malformed_target"),
    Row("P8-tab-in-target", request_line(b"GET /w\ts HTTP/1.1"), 400, "malformed_target"),
    Row("P8-no-target", request_line(b"GET  HTTP/1.1"), 400, "malformed_target"),
    Row("P8-absolute-uri", request_line(b"GET http://example.com/ws HTTP/1.1"), 400, "malformed_target"),
    Row("P8-ws-uri", request_line(b"GET ws://example.com/ws HTTP/1.1"), 400, "malformed_target"),
    Row("P8-asterisk-form", request_line(b"GET * HTTP/1.1"), 400, "malformed_target"),
    Row("P8-authority-form", request_line(b"GET example.com:80 HTTP/1.1"), 400, "malformed_target"),
    Row("P8-relative-target", request_line(b"GET ws HTTP/1.1"), 400, "malformed_target"),
    Row("P8-query-only", request_line(b"GET ?a=b HTTP/1.1"), 400, "malformed_target"),
    Row("P8-fragment", request_line(b"GET /ws#top HTTP/1.1"), 400, "malformed_target"),
    Row("P8-high-bytes-in-target", request_line(b"GET /\xc3\xa9 HTTP/1.1"), 400, "malformed_target"),
    # P8: Host.
    Row("P8-no-host", instead(HOST), 400, "bad_host"),
    Row("P8-two-hosts", with_lines(b"Host: example.com"), 400, "duplicate_header"),
    Row("P8-two-hosts-other-case", with_lines(b"hOST: evil.example"), 400, "duplicate_header"),
    Row("P8-empty-host", instead(HOST, b"Host:"), 400, "bad_host"),
    Row("P8-host-list", instead(HOST, b"Host: a.example, b.example"), 400, "bad_host"),
    Row("P8-host-userinfo", instead(HOST, b"Host: a@b.example"), 400, "bad_host"),
    Row("P8-host-userinfo-and-port", instead(HOST, b"Host: a@b.example:80"), 400, "bad_host"),
    Row("P8-host-ipv4-in-brackets", instead(HOST, b"Host: [192.0.2.1]"), 400, "bad_host"),
    Row("P8-host-path", instead(HOST, b"Host: example.com/ws"), 400, "bad_host"),
    Row("P8-host-high-bytes", instead(HOST, b"Host: \xc3\xa9.example"), 400, "bad_host"),
    Row("P8-host-port-not-digits", instead(HOST, b"Host: example.com:8o"), 400, "bad_host"),
    Row("P8-host-port-too-big", instead(HOST, b"Host: example.com:65536"), 400, "bad_host"),
    Row("P8-host-port-empty", instead(HOST, b"Host: example.com:"), 400, "bad_host"),
    Row("P8-host-port-only", instead(HOST, b"Host: :80"), 400, "bad_host"),
    Row("P8-host-two-ports", instead(HOST, b"Host: example.com:80:80"), 400, "bad_host"),
    Row("P8-host-bare-ipv6", instead(HOST, b"Host: 2001:db8::1"), 400, "bad_host"),
    Row("P8-host-open-bracket", instead(HOST, b"Host: [::1"), 400, "bad_host"),
    Row("P8-host-name-in-brackets", instead(HOST, b"Host: [example.com]"), 400, "bad_host"),
    Row("P8-host-after-bracket", instead(HOST, b"Host: [::1]evil"), 400, "bad_host"),
    # P8: Upgrade and Connection.
    Row("P8-no-upgrade", instead(UPGRADE), 426, "not_websocket"),
    Row("P8-empty-upgrade", instead(UPGRADE, b"Upgrade:"), 426, "not_websocket"),
    Row("P8-upgrade-h2c", instead(UPGRADE, b"Upgrade: h2c"), 426, "not_websocket"),
    Row("P8-upgrade-longer-word", instead(UPGRADE, b"Upgrade: websockets"), 426, "not_websocket"),
    Row("P8-upgrade-with-version", instead(UPGRADE, b"Upgrade: websocket/13"), 426, "not_websocket"),
    Row("P8-upgrade-semicolon", instead(UPGRADE, b"Upgrade: h2c; websocket"), 426, "not_websocket"),
    Row("P8-upgrade-two-words", instead(UPGRADE, b"Upgrade: web socket"), 426, "not_websocket"),
    Row("P8-upgrade-high-bytes", instead(UPGRADE, b"Upgrade: \xff, websocket"), 426, "not_websocket"),
    Row("P8-connection-no-token", instead(CONNECTION, b"Connection: a b, Upgrade"), 426, "not_websocket"),
    Row("P8-connection-versioned", instead(CONNECTION, b"Connection: a/1, Upgrade"), 426, "not_websocket"),
    Row("P8-no-connection", instead(CONNECTION), 426, "not_websocket"),
    Row("P8-keep-alive", instead(CONNECTION, b"Connection: keep-alive"), 426, "not_websocket"),
    Row("P8-connection-longer", instead(CONNECTION, b"Connection: Upgraded"), 426, "not_websocket"),
    Row("P8-connection-quoted", instead(CONNECTION, b'Connection: "a, upgrade, b"'), 426, "not_websocket"),
    Row("P8-plain-get", head_of((REQUEST_LINE, HOST)), 426, "not_websocket"),
    # P8: version.
    Row("P8-no-version", instead(VERSION), 426, "wrong_version"),
    Row("P8-version-8", instead(VERSION, b"Sec-WebSocket-Version: 8"), 426, "wrong_version"),
    Row("P8-version-0", instead(VERSION, b"Sec-WebSocket-Version: 0"), 426, "wrong_version"),
    Row("P8-version-13.0", instead(VERSION, b"Sec-WebSocket-Version: 13.0"), 426, "wrong_version"),
    Row("P8-version-013", instead(VERSION, b"Sec-WebSocket-Version: 013"), 426, "wrong_version"),
    Row("P8-version-list", instead(VERSION, b"Sec-WebSocket-Version: 13, 8"), 426, "wrong_version"),
    Row("P8-version-twice", with_lines(VERSION), 400, "duplicate_header"),
    # P8: key.
    Row("P8-no-key", instead(KEY), 400, "bad_key"),
    Row("P8-two-keys", with_lines(KEY), 400, "duplicate_header"),
    Row("P8-empty-key", instead(KEY, b"Sec-WebSocket-Key:"), 400, "bad_key"),
    Row("P8-key-15-bytes", instead(KEY, b"Sec-WebSocket-Key: " + b64encode(bytes(15))), 400, "bad_key"),
    Row("P8-key-17-bytes", instead(KEY, b"Sec-WebSocket-Key: " + b64encode(bytes(17))), 400, "bad_key"),
    Row("P8-key-no-padding", instead(KEY, b"Sec-WebSocket-Key: " + RFC_KEY[:-2]), 400, "bad_key"),
    Row("P8-key-more-padding", instead(KEY, b"Sec-WebSocket-Key: " + RFC_KEY + b"="), 400, "bad_key"),
    Row("P8-key-not-canonical", instead(KEY, b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZR=="), 400, "bad_key"),
    Row("P8-key-url-alphabet", instead(KEY, b"Sec-WebSocket-Key: _-hlIHNhbXBsZSBub25jZQ=="), 400, "bad_key"),
    Row("P8-key-space", instead(KEY, b"Sec-WebSocket-Key: dGhlIHNh bXBsZSBub25jZQ=="), 400, "bad_key"),
    Row("P8-key-high-byte", instead(KEY, b"Sec-WebSocket-Key: \xffGhlIHNhbXBsZSBub25jZQ=="), 400, "bad_key"),
    # P8: the rest of section 4.2.1.
    Row("P8-subprotocol-empty", with_lines(b"Sec-WebSocket-Protocol:"), 400, "bad_subprotocols"),
    Row("P8-subprotocol-commas", with_lines(b"Sec-WebSocket-Protocol: , ,"), 400, "bad_subprotocols"),
    Row("P8-subprotocol-twice", with_lines(b"Sec-WebSocket-Protocol: a, b, a"), 400, "bad_subprotocols"),
    Row("P8-subprotocol-no-token", with_lines(b"Sec-WebSocket-Protocol: a b"), 400, "bad_subprotocols"),
    Row("P8-subprotocol-bytes", with_lines(b"Sec-WebSocket-Protocol: a, \xff"), 400, "bad_subprotocols"),
    Row(
        "P8-subprotocol-twice-two-lines",
        with_lines(b"Sec-WebSocket-Protocol: a", b"sec-websocket-protocol: a"),
        400,
        "bad_subprotocols",
    ),
    Row("P8-extensions-bytes", with_lines(b"Sec-WebSocket-Extensions: \xff"), 400, "bad_header_value"),
    Row("S17-two-origins", with_lines(b"Origin: http://a", b"Origin: http://a"), 400, "duplicate_header"),
    Row("S17-empty-origin", with_lines(b"Origin:"), 400, "bad_origin"),
    Row("S17-origin-list", with_lines(b"Origin: http://a http://b"), 400, "bad_origin"),
    Row("S17-origin-bytes", with_lines(b"Origin: http://\xe9"), 400, "bad_origin"),
    Row(
        "P8-two-authorizations", with_lines(b"Authorization: a", b"Authorization: b"), 400, "duplicate_header"
    ),
    Row("P8-authorization-bytes", with_lines(b"Authorization: \xff"), 400, "bad_header_value"),
    Row("P8-bearer-bytes", with_lines(b"Authorization: bEARER a\x85"), 400, "bad_header_value"),
    # S12: sizes.
    Row("S12-head-too-large", with_lines(b"X: " + b"a" * 16_384), 431, "head_too_large"),
    Row("S12-ten-thousand-headers", with_lines(*[b"A: b"] * 10_000), 431, "head_too_large"),
    Row("S12-101-headers", with_lines(*[b"A: b"] * 96), 431, "too_many_headers"),
    Row("S12-long-uri", request_line(b"GET /" + b"a" * 8_192 + b" HTTP/1.1"), 414, "uri_too_long"),
    Row("S12-long-uri-no-end", b"GET /" + b"a" * 9_000, 414, "uri_too_long"),
    # S13: folded lines, one header many times.
    Row("S13-obs-fold-space", with_lines(b"X: a", b" b"), 400, "malformed_head"),
    Row("S13-obs-fold-tab", with_lines(b"X: a", b"\tb"), 400, "malformed_head"),
    Row("S13-fold-first-line", head_of((REQUEST_LINE, b" Folded: a", *GOOD[1:])), 400, "malformed_head"),
    Row("S13-host-5000-times", head_of((REQUEST_LINE, *[b"A:"] * 4_000)), 431, "too_many_headers"),
    # S15: bytes that some parsers take for the end of a line, and names that some parsers repair.
    *[
        Row(f"S15-{place}-{byte:02x}", head, 400, "malformed_head")
        for byte in (0x00, 0x0B, 0x0C, 0x1C, 0x1D, 0x1E, 0x7F, 0x0A, 0x0D)
        for place, head in (
            ("value", with_lines(b"X: a" + bytes([byte]) + b"b")),
            ("name", with_lines(b"X" + bytes([byte]) + b"Y: a")),
            ("split", with_lines(b"X: a" + bytes([byte]) + b"Authorization: b")),
            ("request-line", request_line(b"GET /a" + bytes([byte]) + b"b HTTP/1.1")),
        )
    ],
    *[
        row
        for byte in (0x80, 0x85, 0xA0, 0xFF)
        for row in (
            Row(f"S15-name-{byte:02x}", with_lines(b"X" + bytes([byte]) + b"Y: a"), 400, "malformed_head"),
            Row(
                f"S15-request-line-{byte:02x}",
                request_line(b"GET /a" + bytes([byte]) + b"b HTTP/1.1"),
                400,
                "malformed_target",
            ),
        )
    ],
    Row("S15-space-before-colon", with_lines(b"X : a"), 400, "malformed_head"),
    Row("S15-tab-before-colon", with_lines(b"X\t: a"), 400, "malformed_head"),
    Row("S15-host-space-before-colon", instead(HOST, b"Host : example.com"), 400, "malformed_head"),
    Row("S15-utf8-name", with_lines(b"\xc3\xa9: a"), 400, "malformed_head"),
    Row("S15-empty-name", with_lines(b": a"), 400, "malformed_head"),
    Row("S15-no-colon", with_lines(b"Header"), 400, "malformed_head"),
    Row("S15-separator-in-name", with_lines(b"X(Y): a"), 400, "malformed_head"),
    Row("S15-lf-only", b"\n".join(GOOD) + b"\n\n", 400, "malformed_head"),
    Row("S15-first-lf", b"GET /ws HTTP/1.1\n", 400, "malformed_head"),
    Row("S15-cr-cr-lf", b"\r\n".join(GOOD) + b"\r\r\n\r\n", 400, "malformed_head"),
    # S16: bodies, second requests, early frames glued to the head.
    Row("S16-content-length", with_lines(b"Content-Length: 5"), 400, "request_body"),
    *[
        Row(f"S16-content-length-{name}", with_lines(b"Content-Length: " + value), 400, "request_body")
        for name, value in (("1", b"1"), ("01", b"01"), ("large", b"9" * 19))
    ],
    *[
        Row(f"S16-content-length-{name}", with_lines(b"Content-Length: " + value), 400, "malformed_head")
        for name, value in (
            ("empty", b""),
            ("plus", b"+0"),
            ("minus", b"-0"),
            ("hexadecimal", b"0x0"),
            ("fraction", b"0.0"),
            ("list", b"0, 0"),
            ("space", b"0 0"),
            ("letters", b"none"),
            ("bytes", b"0\xff"),
        )
    ],
    *[
        Row(f"S16-{name}", with_lines(b"Content-Length: 0", line), 400, "malformed_head")
        for name, line in (
            ("content-length-twice", b"content-length: 0"),
            ("two-lengths", b"Content-Length: 1"),
            ("no-length-but-chunked", b"Transfer-Encoding: chunked"),
        )
    ],
    Row("S16-no-length-but-expect", with_lines(b"Content-Length: 0", b"Expect: a"), 400, "request_body"),
    Row("S16-chunked", with_lines(b"Transfer-Encoding: chunked"), 400, "request_body"),
    Row("S16-transfer-identity", with_lines(b"Transfer-Encoding: identity"), 400, "request_body"),
    Row("S16-expect", with_lines(b"Expect: 100-continue"), 400, "request_body"),
    Row("S16-second-request", head_of(GOOD) + head_of(GOOD), 400, "malformed_head"),
    Row("S16-early-frame", head_of(GOOD) + b"\x81\x80abcd", 400, "malformed_head"),
    Row("S16-head-in-two", head_of(GOOD[:2]) + head_of(GOOD[2:]), 400, "malformed_head"),
    Row("S16-two-empty-lines", head_of(GOOD) + b"\r\n", 400, "malformed_head"),
    # A head that never ended.
    Row("P8-nothing", b"", 400, "malformed_head"),
    Row("P8-one-empty-line", b"\r\n\r\n", 400, "malformed_request_line"),
    Row("P8-no-empty-line", head_of(GOOD)[:-2], 400, "malformed_head"),
    Row("P8-request-line-only", REQUEST_LINE, 400, "malformed_head"),
]

# P8: requests that must be granted.
GRANTED = [
    ("minimal", head_of(GOOD)),
    ("browser", BROWSER_HEAD),
    ("firefox", instead(CONNECTION, b"Connection: keep-alive, Upgrade")),
    ("names-in-any-case", head_of((REQUEST_LINE, *(line.lower() for line in GOOD[1:4]), *GOOD[4:]))),
    ("values-in-any-case", instead(UPGRADE, b"Upgrade: WebSocket")),
    ("upgrade-list", instead(UPGRADE, b"Upgrade: h2c/1, websocket")),
    ("upgrade-two-lines", with_lines(b"Upgrade: h2c")),
    ("connection-two-lines", instead(CONNECTION, b"Connection: keep-alive", b"connection: UPGRADE")),
    ("connection-empty-line", with_lines(b"Connection:")),
    ("connection-empty-elements", instead(CONNECTION, b"Connection: ,keep-alive,\t, Upgrade ,")),
    ("no-space-after-colon", head_of((REQUEST_LINE, *(line.replace(b": ", b":") for line in GOOD[1:])))),
    ("white-space-around-values", head_of((REQUEST_LINE, *(b"%b \t " % line for line in GOOD[1:])))),
    ("host-with-port", instead(HOST, b"Host: example.com:65535")),
    ("host-ipv4", instead(HOST, b"Host: 192.0.2.1:8000")),
    ("host-ipv6", instead(HOST, b"Host: [2001:db8::1]")),
    ("host-ipv6-with-port", instead(HOST, b"Host: [::ffff:192.0.2.1]:443")),
    *[
        (f"opaque-value-{name}", with_lines(line.encode()))
        for name, line in (
            ("cookie-latin", "Cookie: city=Ålesund"),
            ("cookie-cyrillic", "Cookie: w=хлеб"),
            ("cookie-chinese", "Cookie: w=光明中文"),
            ("town", "CF-IPCity: Århus"),
            ("agent", "User-Agent: Gerät/1.0"),
            ("forwarded", "X-Forwarded-For: …"),
            ("authorization", 'Authorization: Digest username="Åse"'),
            ("referer", "Referer: https://a.example/Å"),
        )
    ],
    *[
        (f"content-length-{name}", with_lines(b"Content-Length:" + value))
        for name, value in (("0", b" 0"), ("00", b" 00"), ("blanks", b" \t0 "), ("no-space", b"0"))
    ],
    ("subprotocol-empty-elements", with_lines(b"Sec-WebSocket-Protocol: ,a, ,\tb,")),
    ("connection-odd-tokens", instead(CONNECTION, b"Connection: !#$%&'*+-.^_`|~, upGRADE")),
    ("origin-file", with_lines(b"Origin: file://")),
    ("empty-value", with_lines(b"X:")),
    ("odd-query", request_line(b"GET /ws?a=b|c{d}^e?f HTTP/1.1")),
    ("two-cookies", with_lines(b"Cookie: a=b", b"Cookie: c=d")),
    ("100-headers", with_lines(*[b"A: b"] * 95)),
    ("largest-head", with_lines(b"X: " + b"a" * (16_384 - len(with_lines(b"X: "))))),
    ("longest-request-line", request_line(b"GET /" + b"a" * (8_192 - 14) + b" HTTP/1.1")),
]


def response_of(answer: Refusal) -> tuple[bytes, dict[bytes, bytes], bytes]:
    """Return status line, headers and body of a refusal, parsed strictly."""
    head, _, body = answer.response.partition(b"\r\n\r\n")
    status_line, *lines = head.split(b"\r\n")
    headers = dict(line.split(b": ", 1) for line in lines)
    assert len(headers) == len(lines)
    return status_line, headers, body


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row.name)
def test_p8_invalid_head_is_refused_with_its_status_and_reason(row: Row) -> None:
    """P8, S12, S13, S15, S16: never 101; Sec-WebSocket-Version is in the response where it belongs."""
    answer = parse_head(row.head)

    assert isinstance(answer, Refusal)
    assert (answer.status, answer.reason) == (row.status, row.reason)
    assert answer is handshake.REFUSALS[answer.reason]
    status_line, headers, _ = response_of(answer)
    assert status_line.startswith(b"HTTP/1.1 %d " % row.status)
    assert (headers.get(b"Sec-WebSocket-Version") == b"13") == (row.status in (400, 405, 426))


@pytest.mark.parametrize("head", [head for _, head in GRANTED], ids=[name for name, _ in GRANTED])
def test_p8_valid_head_is_granted_with_the_accept_key(head: bytes) -> None:
    """P8: requests that section 4.2.1 of RFC 6455 allows are granted."""
    request = parse_head(head)

    assert isinstance(request, Request), request
    assert b"\r\nSec-WebSocket-Accept: %b\r\n" % RFC_ACCEPT in accept(request).response


def test_table_of_refused_heads_covers_every_reason() -> None:
    """A reason without a row is untested, and one that is not listed would not be counted."""
    assert {row.reason for row in REFUSED} == set(handshake.REFUSALS)


def test_response_to_the_example_of_rfc_6455_is_exact() -> None:
    """RFC 6455 section 1.3 has the request and the response."""
    request = parse_head(
        with_lines(b"Sec-WebSocket-Protocol: chat, superchat", b"Origin: http://example.com")
    )

    assert isinstance(request, Request)
    assert request.subprotocols == ("chat", "superchat")
    assert accept(request, subprotocol="chat").response == (
        b"HTTP/1.1 101 Switching Protocols\r\n"
        b"Upgrade: websocket\r\n"
        b"Connection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
        b"Sec-WebSocket-Protocol: chat\r\n"
        b"\r\n"
    )


def test_head_of_a_browser_is_parsed_into_all_fields() -> None:
    request = parse_head(BROWSER_HEAD.replace(b"/ws ", b"/ws/%41?token=a?b "))

    assert isinstance(request, Request)
    assert request.method == "GET"
    assert request.target == "/ws/%41?token=a?b"
    assert (request.path, request.query) == ("/ws/%41", "token=a?b")
    assert request.host == "gate.example.com"
    assert request.origin == "https://app.example.com"
    assert request.subprotocols == ("wsgate.v1",)
    assert request.extensions == "permessage-deflate; client_max_window_bits"
    assert request.authorization is None
    assert request.key == RFC_KEY
    assert request.header("accept-encoding") == "gzip, deflate, br, zstd"
    assert request.header("cookie") is None


def test_header_lines_of_one_name_are_joined_in_order() -> None:
    """Source: RFC 9110 section 5.3."""
    request = parse_head(
        with_lines(
            b"Sec-WebSocket-Protocol: a",
            b"Cookie: a=b",
            b"Sec-WebSocket-Extensions: x; y=1",
            b"SEC-WEBSOCKET-PROTOCOL: b ,c",
            b"cookie: c=\xe9",
            b"sec-websocket-extensions: z",
        )
    )

    assert isinstance(request, Request)
    assert request.subprotocols == ("a", "b", "c")
    assert request.extensions == "x; y=1, z"
    assert request.header("cookie") == "a=b; c=\xe9"
    assert (request.origin, request.query) == (None, "")


def test_s21_repr_of_request_and_refusal_contains_no_token() -> None:
    """S21: no header, cookie or query that may contain a token is shown."""
    request = parse_head(
        with_lines(
            b"Authorization: Bearer canary",
            b"Cookie: canary",
            b"Sec-WebSocket-Protocol: wsgate.v1.json, wsgate.bearer.canary",
        ).replace(b"/ws ", b"/ws?t=canary ")
    )

    assert isinstance(request, Request)
    assert request.authorization == "Bearer canary"
    assert "canary" not in repr(request)
    assert "canary" not in repr(parse_head(with_lines(b"canary")))


@pytest.mark.parametrize("byte", range(256))
def test_s15_each_byte_is_granted_only_where_the_grammar_allows(byte: int) -> None:
    """S15: the bytes that a header name, a header value and a target may have."""
    char = bytes([byte])
    token = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

    def granted(head: bytes) -> bool:
        return isinstance(parse_head(head), Request)

    assert granted(with_lines(b"X" + char + b"Y: a")) == (char in token + b":")
    assert granted(with_lines(char + b": a")) == (char in token)
    assert granted(with_lines(b"X: a" + char + b"b")) == (byte == 0x09 or (byte >= 0x20 and byte != 0x7F))
    assert granted(request_line(b"GET /a" + char + b"b HTTP/1.1")) == (0x20 < byte < 0x7F and char != b"#")
    assert granted(request_line(b"GET /?" + char + b"b HTTP/1.1")) == (0x20 < byte < 0x7F and char != b"#")


def test_s15_byte_0x85_in_a_value_does_not_start_a_new_header() -> None:
    """0x85 in a value is opaque: the header that seems to follow belongs to the value."""
    request = parse_head(with_lines(b"X: a\x85Authorization: Bearer forged"))

    assert isinstance(request, Request)
    assert request.authorization is None
    assert request.headers[b"x"] == b"a\x85Authorization: Bearer forged"


@pytest.mark.parametrize("separator", [0x00, 0x0A, 0x0B, 0x0C, 0x0D, 0x1C, 0x1D, 0x1E])
def test_s15_head_with_a_smuggled_header_is_refused(separator: int) -> None:
    """S15: a header behind such a byte never reaches the application, because there is no request."""
    answer = parse_head(with_lines(b"X: a" + bytes([separator]) + b"Authorization: Bearer forged"))

    assert isinstance(answer, Refusal)
    assert b"forged" not in answer.response


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 408, 413, 414, 426, 429, 431, 503])
def test_refusal_is_a_complete_response(status: int) -> None:
    """The response ends by its length and by the end of the connection."""
    answer = refusal(status, "some_reason", retry_after_s=7, extra_headers=[("X-Y", "z")])

    status_line, headers, body = response_of(answer)
    assert (answer.status, answer.reason) == (status, "some_reason")
    assert status_line.startswith(b"HTTP/1.1 %d " % status)
    assert headers[b"Connection"].startswith(b"close")
    assert int(headers[b"Content-Length"]) == len(body)
    assert (headers[b"Retry-After"], headers[b"X-Y"]) == (b"7", b"z")
    assert (b"Sec-WebSocket-Version" in headers) == (status in (400, 405, 426))
    assert (headers.get(b"Allow") == b"GET") == (status == 405)
    assert (headers.get(b"Upgrade") == b"websocket") == (status == 426)
    assert (headers[b"Connection"] == b"close, Upgrade") == (status == 426)


def test_detail_of_a_refusal_follows_the_phrase_of_the_status() -> None:
    """The content length counts both."""
    _, headers, body = response_of(refusal(403, "forbidden_origin", detail="see server.allowed_origins"))
    assert body == b"Forbidden: see server.allowed_origins\n"
    assert int(headers[b"Content-Length"]) == len(body)


def test_refusal_has_retry_after_only_if_given() -> None:
    assert b"Retry-After" not in refusal(503, "draining").response
    assert b"Retry-After: 0\r\n" in refusal(503, "draining", retry_after_s=0).response


@pytest.mark.parametrize(
    "call",
    [
        lambda request: refusal(200, "fine"),
        lambda request: refusal(503, "full", retry_after_s=-1),
        lambda request: refusal(401, "no", extra_headers=[("A", "b\r\nC: d")]),
        lambda request: refusal(403, "no", detail="a\nb"),
        lambda request: refusal(403, "no", detail="\xe9"),
        lambda request: refusal(401, "no", extra_headers=[("A\n", "b")]),
        lambda request: refusal(401, "no", extra_headers=[("", "b")]),
        lambda request: accept(request, subprotocol="not-offered"),
        lambda request: accept(request, extensions="a\r\nb: c"),
        lambda request: accept(request, extra_headers=[("A:", "b")]),
    ],
)
def test_invalid_arguments_for_a_response_raise_internal_error(call: Callable[[Request], object]) -> None:
    """A response that cannot be correct is never rendered."""
    request = parse_head(head_of(GOOD))

    assert isinstance(request, Request)
    with pytest.raises(InternalError):
        call(request)


def test_response_contains_extensions_and_further_headers() -> None:
    request = parse_head(BROWSER_HEAD)

    assert isinstance(request, Request)
    upgrade = accept(request, extensions="permessage-deflate", extra_headers=[("Server", "wsgate")])
    assert upgrade.subprotocol is None
    assert upgrade.response.endswith(
        b"\r\nSec-WebSocket-Extensions: permessage-deflate\r\nServer: wsgate\r\n\r\n"
    )


def test_handshake_module_exports_exactly_the_listed_names() -> None:
    """The public names change only on purpose."""
    assert handshake.__all__ == [
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


# S12, S13, S14: cost. Counted, not timed: calls that Python makes, its own and those into C. What C
# does inside one call is a single pass (translate, split, join, find, llhttp), so that calls bound
# the time; the list of attacks is what made other servers quadratic.


def count_calls(head: bytes) -> int:
    """Return how many calls, into Python or C, parsing this head takes."""
    calls = 0

    def profile(_frame: object, event: str, _arg: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        parse_head(head)
    finally:
        sys.setprofile(None)
    return calls


def repeated(prefix: bytes, unit: bytes, suffix: bytes = b"") -> Callable[[int], bytes]:
    """Return a maker of heads with one line that repeats a unit."""
    return lambda times: with_lines(prefix + unit * times + suffix)


ATTACKS: list[tuple[str, Callable[[int], bytes]]] = [
    ("S12-many-headers", lambda times: with_lines(*[b"A%d: b" % each for each in range(times // 50)])),
    ("S12-long-uri", lambda times: request_line(b"GET /" + b"%41?" * times + b" HTTP/1.1")),
    ("S13-one-header-repeated", lambda times: with_lines(*[b"A: b"] * (times // 50))),
    ("S13-many-folds", lambda times: with_lines(b"A: b", *[b" c"] * (times // 50))),
    ("S13-blank-fold", repeated(b"A: b", b" \t", b"c")),
    ("S14-protocol-tokens", lambda times: with_lines(b"Sec-WebSocket-Protocol: " + tokens(times))),
    ("S14-protocol-commas", repeated(b"Sec-WebSocket-Protocol: a", b",")),
    ("S14-protocol-spaces", repeated(b"Sec-WebSocket-Protocol: a", b" ", b"b")),
    ("S14-cookie-semicolons", repeated(b"Cookie: a", b"; ")),
    ("S14-cookie-quotes", repeated(b"Cookie: a=", b'"\\')),
    ("S14-extension-parameters", repeated(b"Sec-WebSocket-Extensions: a", b"; b=1")),
    ("S14-extension-quotes", repeated(b'Sec-WebSocket-Extensions: a; b="', b"\\\\")),
    ("S14-connection-list", repeated(b"Connection: a", b", b")),
    ("S14-upgrade-list", repeated(b"Upgrade: a", b", b")),
    ("S14-host-colons", lambda times: instead(HOST, b"Host: " + b":" * times)),
    ("S14-host-brackets", lambda times: instead(HOST, b"Host: " + b"[" * times)),
    ("S14-key-padding", lambda times: instead(KEY, b"Sec-WebSocket-Key: " + b"=" * times)),
]


def tokens(times: int) -> bytes:
    """Return a list with that many distinct tokens."""
    return b",".join(b"%x" % each for each in range(times))


@pytest.mark.parametrize("attack", [attack for _, attack in ATTACKS], ids=[name for name, _ in ATTACKS])
def test_s12_s13_s14_number_of_calls_grows_linearly_with_the_head(attack: Callable[[int], bytes]) -> None:
    """S12, S13, S14: double input takes at most 2.5 times the calls, and few calls for each byte."""
    once, twice = attack(1_000), attack(2_000)
    assert len(twice) <= handshake.HEAD_LIMIT_BYTES

    calls_once, calls_twice = count_calls(once), count_calls(twice)

    assert calls_twice <= 2.5 * calls_once
    assert calls_twice <= 100 + len(twice)


def test_s12_too_large_head_is_refused_in_under_ten_calls() -> None:
    """S12: no header is parsed when the head is above the size or number limit."""
    assert count_calls(with_lines(*[b"A: b"] * 10_000)) < 10
    assert count_calls(with_lines(*[b"A: b"] * 2_000)) < 10


# Comparison with `websockets`.

# The reasons of wsgate for requests that `websockets` grants; a reason without an example fails a test.
STRICTER_THAN_JUDGE = {
    "malformed_head": "controls in the target, bytes after the head",
    "malformed_target": "websockets does not check the target",
    "bad_host": "websockets leaves Host to the HTTP stack",
    "duplicate_header": "websockets does not check Host or Authorization",
    "request_body": "websockets ignores Expect",
    "bad_key": "websockets accepts stray bits after the last byte",
    "bad_origin": "websockets compares Origin only if configured",
    "bad_header_value": "websockets accepts bytes above 127",
    "bad_subprotocols": "websockets reads subprotocols only if some are configured",
    "too_many_headers": "websockets allows 128",
}


def judge_status(head: bytes) -> int:
    """Return the status of `websockets`: 0 if it waits for more bytes, 400 if it fails."""
    logger = logging.getLogger("judge")
    logger.disabled = True
    protocol = ServerProtocol(logger=logger)
    protocol.receive_data(head)
    requests = protocol.events_received()
    if requests and isinstance(requests[0], JudgedRequest):
        return protocol.accept(requests[0]).status_code
    return 400 if protocol.handshake_exc else 0


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row.name)
def test_refused_head_that_websockets_grants_has_a_listed_reason(row: Row) -> None:
    if judge_status(row.head) == 101:
        assert row.reason in STRICTER_THAN_JUDGE


def test_every_listed_reason_differs_from_websockets_in_the_table() -> None:
    shown = {row.reason for row in REFUSED if judge_status(row.head) == 101}
    assert shown == STRICTER_THAN_JUDGE.keys()


NAMES = [
    b"Host", b"Upgrade", b"Connection", b"Sec-WebSocket-Key", b"Sec-WebSocket-Version", b"Origin",
    b"Sec-WebSocket-Protocol", b"Sec-WebSocket-Extensions", b"Content-Length", b"Transfer-Encoding",
    b"Expect", b"Authorization", b"Cookie", b"X", b"host", b"UPGRADE", b"",
]  # fmt: skip
VALUES = [
    b"example.com", b"websocket", b"Upgrade", b"keep-alive, Upgrade", RFC_KEY, b"13", b"8", b"", b"0",
    b"chunked", b"a, b", b"a,,b", b"h2c, WebSocket", b"\xff", b"a\x85b", b"http://a", b'"', b" 13 ",
]  # fmt: skip
PIECES = [
    b"\r\n",
    b"\n",
    b"\r",
    b" ",
    b"\t",
    b":",
    b",",
    b"\x00",
    b"\x0b",
    b"\x1c",
    b"\x85",
    b"#",
    b"\r\n\r\n",
]
REQUEST_LINES = [
    REQUEST_LINE, b"GET / HTTP/1.1", b"GET /?a#b HTTP/1.1", b"GET * HTTP/1.1", b"GET http://a/ HTTP/1.1",
    b"POST / HTTP/1.1", b"GET / HTTP/1.0", b"GET /", b"", b"GET /  HTTP/1.1",
]  # fmt: skip


SIZED_VALUES = st.sampled_from([b"a" * size for size in sizes_up_to(1_024)])


@st.composite
def mutated_heads(draw: st.DrawFn) -> bytes:
    """Draw heads so close to valid ones that a wrong rule would grant some of them."""
    lines = list(GOOD)
    for _ in range(draw(st.integers(0, 3))):
        line = draw(st.sampled_from(NAMES)) + draw(st.sampled_from([b":", b": ", b" : "]))
        line += draw(st.sampled_from(VALUES) | st.binary(max_size=8) | SIZED_VALUES)
        place = draw(st.integers(1, len(lines)))
        lines[place : place + draw(st.integers(0, 1))] = [line]
    if draw(st.integers(0, 3)) == 0:
        lines[0] = draw(st.sampled_from(REQUEST_LINES))
    head = head_of(tuple(lines))
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, len(head)))
        head = head[:place] + draw(st.sampled_from(PIECES)) + head[place + draw(st.integers(0, 2)) :]
    return head


def is_stricter_judge(request: Request) -> bool:
    """Return whether the request is one of the two kinds that only `websockets` refuses.

    It requires that Upgrade is "websocket" alone and that no Connection line is empty.
    """
    elements = [element.strip(b" \t") for element in request.headers[b"connection"].split(b",")]
    return b"," in request.headers[b"upgrade"] or b"" in elements


def check_against_judge(head: bytes) -> None:
    """Check that `websockets` agrees, or that the difference is a listed one."""
    answer = parse_head(head)
    status = judge_status(head)
    if isinstance(answer, Request):
        assert status == 101 or is_stricter_judge(answer), head
        assert accept(answer).response.startswith(b"HTTP/1.1 101 ")
    elif status == 101:
        assert answer.reason in STRICTER_THAN_JUDGE, head
    if isinstance(answer, Refusal):
        assert b" 101 " not in answer.response


@pytest.mark.parametrize("size", around((handshake.HEAD_LIMIT_BYTES,))[2:])
def test_s12_a_head_is_granted_up_to_its_limit_and_refused_one_byte_above(size: int) -> None:
    head = with_lines(b"X: " + b"a" * (size - len(with_lines(b"X: "))))
    assert len(head) == size
    answer = parse_head(head)
    if size > handshake.HEAD_LIMIT_BYTES:
        assert isinstance(answer, Refusal) and answer.reason == "head_too_large"
    else:
        assert isinstance(answer, Request)


@pytest.mark.parametrize("size", around((handshake.REQUEST_LINE_LIMIT_BYTES,))[2:])
def test_s12_a_request_line_is_granted_up_to_its_limit_and_refused_one_byte_above(size: int) -> None:
    least = len(b"GET / HTTP/1.1")
    answer = parse_head(request_line(b"GET /" + b"a" * (size - least) + b" HTTP/1.1"))
    if size > handshake.REQUEST_LINE_LIMIT_BYTES:
        assert isinstance(answer, Refusal) and answer.reason == "uri_too_long"
    else:
        assert isinstance(answer, Request)


@settings(max_examples=300, deadline=None)
@given(mutated_heads())
@example(head_of(GOOD))
def test_p8_mutated_heads_agree_with_websockets(head: bytes) -> None:
    """P8: any head close to a valid one."""
    check_against_judge(head)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_p8_random_bytes_agree_with_websockets(head: bytes) -> None:
    """P8: random bytes, alone and after a valid beginning, never raise."""
    check_against_judge(head)
    check_against_judge(head_of(GOOD)[:-2] + head + b"\r\n\r\n")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_valid_headers_in_any_order_and_case_are_granted(data: st.DataObject) -> None:
    lines: list[Any] = data.draw(st.permutations(GOOD[1:]))
    recased = [name.swapcase() + b":" + value for name, _, value in (line.partition(b":") for line in lines)]
    chosen = [data.draw(st.sampled_from(pair)) for pair in zip(lines, recased, strict=True)]

    assert isinstance(parse_head(head_of((REQUEST_LINE, *chosen))), Request)
