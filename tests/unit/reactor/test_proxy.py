"""Check the PROXY protocol in both versions: whole headers, every prefix of a header, and invalid input."""

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgate.reactor.testing import read_proxy_header

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
MAPPED = b"\0" * 10 + b"\xff\xff"
V4 = MAPPED + socket.inet_aton("203.0.113.9")
V6 = socket.inet_pton(socket.AF_INET6, "2001:db8::7")


def binary(command: int, family: int, body: bytes) -> bytes:
    return SIGNATURE + struct.pack(">BBH", 0x20 | command, family, len(body)) + body


FOUR = V4[12:] + socket.inet_aton("192.0.2.1") + struct.pack(">HH", 4711, 443)
SIX = V6 + V6 + struct.pack(">HH", 4711, 443)
TLV = b"\x03\x00\x04crc!" + b"\x04\x00\x20" + bytes(32)

GOOD = {
    "text, IPv4": (b"PROXY TCP4 203.0.113.9 192.0.2.1 4711 443\r\n", V4),
    "text, IPv6": (b"PROXY TCP6 2001:db8::7 2001:db8::1 0 65535\r\n", V6),
    "text, the longest there is": (
        b"PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
        b" 65535 65535\r\n",
        b"\xff" * 16,
    ),
    "text, unknown": (b"PROXY UNKNOWN\r\n", None),
    "text, unknown with more": (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", None),
    "binary, IPv4": (binary(1, 0x11, FOUR), V4),
    "binary, IPv6": (binary(1, 0x21, SIX), V6),
    "binary, with extensions": (binary(1, 0x11, FOUR + TLV), V4),
    "binary, of the proxy's own": (binary(0, 0x00, b""), None),
    "binary, of its own with an address": (binary(0, 0x11, FOUR), None),
    "binary, unspecified": (binary(1, 0x00, b""), None),
    "binary, a Unix socket": (binary(1, 0x31, bytes(216)), None),
}
BAD = {
    "an HTTP request": b"GET /ws HTTP/1.1\r\nHost: x\r\n\r\n",
    "lower case": b"proxy TCP4 203.0.113.9 192.0.2.1 4711 443\r\n",
    "no family": b"PROXY 203.0.113.9 192.0.2.1 4711 443\r\n",
    "another family": b"PROXY TCP5 203.0.113.9 192.0.2.1 4711 443\r\n",
    "UDP": b"PROXY UDP4 203.0.113.9 192.0.2.1 4711 443\r\n",
    "family and address differ": b"PROXY TCP6 203.0.113.9 192.0.2.1 4711 443\r\n",
    "an octet too large": b"PROXY TCP4 203.0.113.999 192.0.2.1 4711 443\r\n",
    "an octet with zeros": b"PROXY TCP4 203.0.113.009 192.0.2.1 4711 443\r\n",
    "a zero byte behind the source": b"PROXY TCP4 203.0.113.9\0.1 192.0.2.1 4711 443\r\n",
    "a zero byte behind the destination": b"PROXY TCP6 2001:db8::7 2001:db8::1\0x 4711 443\r\n",
    "two spaces": b"PROXY TCP4  203.0.113.9 192.0.2.1 4711 443\r\n",
    "no port": b"PROXY TCP4 203.0.113.9 192.0.2.1 4711\r\n",
    "a port too large": b"PROXY TCP4 203.0.113.9 192.0.2.1 65536 443\r\n",
    "a port with zeros": b"PROXY TCP4 203.0.113.9 192.0.2.1 04711 443\r\n",
    "a port below zero": b"PROXY TCP4 203.0.113.9 192.0.2.1 -1 443\r\n",
    "something behind": b"PROXY TCP4 203.0.113.9 192.0.2.1 4711 443 x\r\n",
    "a line feed alone": b"PROXY TCP4 203.0.113.9 192.0.2.1 4711 443\n",
    "no end": b"PROXY TCP4 " + b"1" * 200,
    "nothing": b"PROXY \r\n",
    "unknown and more of the word": b"PROXY UNKNOWNS\r\n",
    "another signature": SIGNATURE[:-1] + b"?" + binary(1, 0x11, FOUR)[12:],
    "another version": SIGNATURE + b"\x31" + binary(1, 0x11, FOUR)[13:],
    "another command": binary(2, 0x11, FOUR),
    "UDP over IPv4": binary(1, 0x12, FOUR),
    "an address cut short": binary(1, 0x11, FOUR[:-1]),
    "an IPv6 address cut short": binary(1, 0x21, SIX[:-1]),
    "longer than anything": binary(1, 0x11, FOUR + bytes(5_000))[:100],
}


@pytest.mark.parametrize("name", GOOD)
def test_valid_proxy_header_yields_its_address_and_each_prefix_needs_more_bytes(name: str) -> None:
    header, address = GOOD[name]
    assert read_proxy_header(header) == (len(header), address)
    assert read_proxy_header(header + b"GET / HTTP/1.1\r\n") == (len(header), address)
    for size in range(len(header)):
        assert read_proxy_header(header[:size]) == (0, None), size


@pytest.mark.parametrize("name", BAD)
def test_invalid_proxy_header_is_refused_and_stays_refused_with_more_bytes(name: str) -> None:
    data = BAD[name]
    assert read_proxy_header(data) == (-1, None)
    verdicts = [read_proxy_header(data[:size])[0] for size in range(len(data))]
    assert set(verdicts) <= {0, -1}
    assert verdicts == sorted(verdicts, reverse=True), "a refused prefix stays refused with more bytes"


@given(st.binary(max_size=200))
def test_proxy_reader_never_consumes_more_than_the_given_bytes(data: bytes) -> None:
    for start in (b"", b"PROXY ", b"PROXY TCP4 ", SIGNATURE, SIGNATURE + b"\x21\x11"):
        size, address = read_proxy_header(start + data)
        assert -1 <= size <= len(start + data)
        assert address is None or len(address) == 16
