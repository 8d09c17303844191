"""Check which address X-Forwarded-For yields, and which proxies are trusted (A4)."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgate.admission import forwarded_for, networks_of

PROXIES = networks_of(["10.0.0.0/8", "192.0.2.7", "fd00::/8"])


def packed(text: str) -> bytes:
    address = ipaddress.ip_address(text)
    return b"\0" * 10 + b"\xff\xff" + address.packed if address.version == 4 else address.packed


@pytest.mark.parametrize(
    ("header", "named"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("203.0.113.9:4711", "203.0.113.9"),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]:4711", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        # The entry that a client wrote comes first and is not trusted.
        ("1.1.1.1, 203.0.113.9", "203.0.113.9"),
        ("1.1.1.1,203.0.113.9 , 10.1.2.3,\t192.0.2.7", "203.0.113.9"),
        ("fd00::2, 203.0.113.9, fd12:3::4", "203.0.113.9"),
        # No address: an empty header, only proxies, or another text in place of an address.
        ("", None),
        (",", None),
        ("10.0.0.1", None),
        ("203.0.113.9, unknown", None),
        ("203.0.113.9, ", None),
        ("203.0.113.9, 10.0.0.1, _hidden", None),
        ("203.0.113.999", None),
        ("for=203.0.113.9", None),
        ("9" * 5_000, None),
    ],
)
def test_forwarded_for_yields_the_last_address_that_is_no_trusted_proxy(
    header: str, named: str | None
) -> None:
    expected = None if named is None else packed(named)
    assert forwarded_for(header, PROXIES) == expected


@given(st.text(max_size=200))
def test_random_forwarded_for_header_raises_no_error(header: str) -> None:
    named = forwarded_for(header, PROXIES)
    assert named is None or len(named) == 16


@given(st.lists(st.ip_addresses(), min_size=1, max_size=6), st.text(alphabet=", .:[]10", max_size=40))
def test_forged_entries_of_a_client_do_not_change_the_last_address(
    chain: list[ipaddress.IPv4Address | ipaddress.IPv6Address], forged: str
) -> None:
    alone = forwarded_for(", ".join(map(str, chain)), ())
    assert forwarded_for(", ".join([forged, *map(str, chain)]), ()) == alone == packed(str(chain[-1]))


def test_network_text_is_parsed_into_address_and_prefix_length() -> None:
    assert networks_of(["10.0.0.0/8"]) == ((packed("10.0.0.0"), 104),)
    assert networks_of(["192.0.2.7", "::1"]) == ((packed("192.0.2.7"), 128), (packed("::1"), 128))
    everything = networks_of(["::/0"])
    assert forwarded_for("203.0.113.9", everything) is None


def test_network_with_host_bits_raises_value_error() -> None:
    with pytest.raises(ValueError, match="host bits"):
        networks_of(["10.0.0.1/8"])
