"""Parses the networks of trusted proxies, and the client addresses that proxies name in X-Forwarded-For.

An address is 16 bytes, IPv4-mapped (`::ffff:a.b.c.d`) if needed, as the reactor takes it.
"""

import ipaddress
from collections.abc import Iterable, Sequence
from typing import Final

__all__ = ["Network", "forwarded_for", "networks_of"]

Network = tuple[bytes, int]
"""A network: an address of 16 bytes, and the length of the prefix in bits, 0 to 128."""

_MAPPED: Final = b"\0" * 10 + b"\xff\xff"
_MAPPED_BITS: Final = 96
_LONGEST: Final = 64
"""The most characters of one element; an address with brackets, a zone and a port is shorter."""


def networks_of(texts: Iterable[str]) -> tuple[Network, ...]:
    """Parse networks as written in the configuration, such as `10.0.0.0/8` or a single address.

    Raises:
        ValueError: A text is neither an address nor a network; the configuration refuses it earlier.
    """
    found = [ipaddress.ip_network(text) for text in texts]
    return tuple(
        (_packed(each.network_address), each.prefixlen + (_MAPPED_BITS if each.version == 4 else 0))
        for each in found
    )


def forwarded_for(value: str, networks: Sequence[Network]) -> bytes | None:
    """Return the client address that trusted proxies name in X-Forwarded-For.

    Each proxy appends the address of its peer, so only the end of the header can be trusted. The client is
    the last address that is not a trusted proxy. Addresses that a client wrote itself stand before it and are
    not read.

    Args:
        value: The value of the header; several lines joined by commas.
        networks: The networks of trusted proxies.

    Returns:
        16 bytes; None if an element that is read is not an address, or all are trusted proxies. O(length).
    """
    end = len(value)
    while end > 0:
        start = value.rfind(",", 0, end) + 1
        address = _address_of(value[start:end].strip(" \t"))
        if address is None:
            return None
        if not _is_in(address, networks):
            return address
        end = start - 1
    return None


def _packed(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bytes:
    """Return an address as 16 bytes, IPv4-mapped if it is an IPv4 address."""
    return _MAPPED + address.packed if address.version == 4 else address.packed


def _address_of(text: str) -> bytes | None:
    """Return the address of one element of the header, with or without a port; None if there is none."""
    if len(text) > _LONGEST:
        return None
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return _packed(ipaddress.ip_address(text.partition("%")[0]))
    except ValueError:
        return None


def _is_in(address: bytes, networks: Sequence[Network]) -> bool:
    """Return whether an address is in one of the networks. O(networks)."""
    value = int.from_bytes(address)
    return any(
        (value ^ int.from_bytes(network)) >> (128 - bits) == 0 if bits else True for network, bits in networks
    )
