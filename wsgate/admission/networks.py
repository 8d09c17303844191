"""Proxies that are believed, and whom they name.

Addresses are 16 bytes, IPv4 mapped (`::ffff:a.b.c.d`), as the reactor takes them.
"""

import ipaddress
from collections.abc import Iterable, Sequence
from typing import Final

__all__ = ["Network", "forwarded_for", "networks_of"]

Network = tuple[bytes, int]
"""16 bytes and the length of the prefix that counts, 0 to 128."""

_MAPPED: Final = b"\0" * 10 + b"\xff\xff"
_MAPPED_BITS: Final = 96
_LONGEST: Final = 64
"""An address with brackets, a zone and a port is shorter."""


def networks_of(texts: Iterable[str]) -> tuple[Network, ...]:
    """Networks as the configuration writes them.

    Raises:
        ValueError: One is no address and no network; the configuration has refused it before.
    """
    found = [ipaddress.ip_network(text) for text in texts]
    return tuple(
        (_packed(each.network_address), each.prefixlen + (_MAPPED_BITS if each.version == 4 else 0))
        for each in found
    )


def forwarded_for(value: str, networks: Sequence[Network]) -> bytes | None:
    """Whom a believed proxy speaks for, by its X-Forwarded-For.

    Every proxy appends whom it heard, so only the end can be believed: from there backwards, the first
    address that is no proxy of ours. What a client wrote itself stands before that and is never reached.

    Args:
        value: The header, several lines joined by commas.
        networks: The proxies that are believed.

    Returns:
        16 bytes, or None when the header names nobody that way. O(length).
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
    return _MAPPED + address.packed if address.version == 4 else address.packed


def _address_of(text: str) -> bytes | None:
    """The address of one element, with or without a port."""
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
    value = int.from_bytes(address)
    return any(
        (value ^ int.from_bytes(network)) >> (128 - bits) == 0 if bits else True for network, bits in networks
    )
