"""Check permessage-deflate: negotiation (S8, S14), and how often a publication is deflated."""

import zlib
from collections import Counter
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsgate.deflate import (
    NARROW_BITS,
    OFFERS_LIMIT,
    WIDE_BITS,
    Agreement,
    ExtensionError,
    agree,
    deflate,
    is_shared,
)
from wsgate.dialects import DIALECTS, Dialect
from wsgate.reactor import event_kinds
from wsgate.shard.publication_encoder import (
    DIALECT_OF,
    PLAIN_VARIANTS,
    VARIANTS,
    PublicationEncoder,
    opcodes,
    variant_of,
)

BASE: Final = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
WIDE: Final = Agreement(WIDE_BITS, BASE)
WIDE_SAID: Final = Agreement(WIDE_BITS, f"{BASE}; server_max_window_bits=15")
NARROW: Final = Agreement(NARROW_BITS, f"{BASE}; server_max_window_bits=9")

OFFERS: Final = {
    "permessage-deflate": WIDE,
    "permessage-deflate; client_max_window_bits": WIDE,  # the offer of browsers
    "permessage-deflate; client_max_window_bits=8": WIDE,  # the client's window: any can be inflated
    'permessage-deflate; client_max_window_bits="15"': WIDE,
    BASE: WIDE,
    "permessage-deflate; server_max_window_bits=15": WIDE_SAID,
    "permessage-deflate; server_max_window_bits=14": NARROW,
    "permessage-deflate;server_max_window_bits=9": NARROW,
    "\tpermessage-deflate ;\tserver_max_window_bits = 9 , ": NARROW,
    # Declined: no agreement, or the next offer.
    "": None,
    ", ,": None,
    "permessage-bzip2": None,
    "x-webkit-deflate-frame": None,
    "PERMESSAGE-DEFLATE": None,
    "permessage-deflate; server_max_window_bits": None,
    "permessage-deflate; server_max_window_bits=7": None,
    "permessage-deflate; server_max_window_bits=8": None,
    "permessage-deflate; server_max_window_bits=16": None,
    "permessage-deflate; server_max_window_bits=09": None,
    "permessage-deflate; server_max_window_bits=99999999999999999999": None,
    "permessage-deflate; client_max_window_bits=7": None,
    "permessage-deflate; client_max_window_bits=16": None,
    "permessage-deflate; server_no_context_takeover=true": None,
    "permessage-deflate; server_no_context_takeover; server_no_context_takeover": None,
    "permessage-deflate; server_max_window_bits=9; server_max_window_bits=9": None,
    "permessage-deflate; unknown": None,
    "permessage-deflate; server_max_window_bits=8, permessage-deflate": WIDE,
    "x-a; b=c, permessage-deflate; unknown=1, permessage-deflate; server_max_window_bits=12": NARROW,
}

MALFORMED: Final = (
    ";",
    "permessage-deflate;",
    "permessage-deflate; ; client_max_window_bits",
    "permessage-deflate; =9",
    "permessage-deflate; server_max_window_bits=",
    'permessage-deflate; server_max_window_bits=""',
    'permessage-deflate; server_max_window_bits="9',
    'permessage-deflate; server_max_window_bits="9,10"',
    "permessage-deflate; server_max_window_bits=9=9",
    "permessage deflate",
    "permessage-deflate; server max=9",
    "permessage-deflate, \x7f",
    "permessage-deflate, caf\xe9",
    "=",
    '"',
)


@pytest.mark.parametrize(("offers", "agreement"), OFFERS.items(), ids=OFFERS)
def test_s8_offers_lead_to_the_expected_agreement_or_none(offers: str, agreement: Agreement | None) -> None:
    assert agree(offers) == agreement


@pytest.mark.parametrize("offers", MALFORMED)
def test_s8_malformed_offers_raise_extension_error(offers: str) -> None:
    with pytest.raises(ExtensionError):
        agree(offers)


def test_s8_more_offers_than_the_limit_raise_extension_error() -> None:
    declined = "permessage-deflate; server_max_window_bits=8"
    most = [declined] * (OFFERS_LIMIT - 1) + ["permessage-deflate"]
    assert agree(", ".join(most)) == WIDE
    with pytest.raises(ExtensionError):
        agree(", ".join([*[declined] * 500, "permessage-deflate"]))


@given(st.text(alphabet='permsag-dflt;,=" \t9\\é', max_size=200))
def test_s14_random_offers_lead_to_an_agreement_none_or_extension_error(offers: str) -> None:
    try:
        assert agree(offers) in (None, WIDE, WIDE_SAID, NARROW)
    except ExtensionError as error:
        assert offers not in str(error) or not offers.strip()


# --- deflating --------------------------------------------------------------------------------------


@given(st.binary(max_size=3_000), st.sampled_from([NARROW_BITS, WIDE_BITS]))
def test_deflated_content_inflates_with_the_agreed_window(content: bytes, bits: int) -> None:
    inflater = zlib.decompressobj(-bits)
    assert inflater.decompress(deflate(content, bits) + b"\0\0\xff\xff") == content
    assert not inflater.eof


def test_deflated_content_larger_than_the_window_inflates_with_that_window() -> None:
    noise = b"".join(zlib.crc32(b"%d" % index).to_bytes(4, "big") for index in range(500))
    content = noise * 20  # the content repeats beyond the reach of the narrow window
    for bits in (NARROW_BITS, WIDE_BITS):
        assert zlib.decompressobj(-bits).decompress(deflate(content, bits) + b"\0\0\xff\xff") == content
    assert len(deflate(content, WIDE_BITS)) < len(deflate(content, NARROW_BITS))


def test_content_within_the_narrow_window_deflates_equally_for_both_windows() -> None:
    for size in (0, 1, 250, 251, 512):
        content = bytes(index % 251 for index in range(size))
        assert is_shared(content)
        assert deflate(content, WIDE_BITS) == deflate(content, NARROW_BITS)
    assert not is_shared(bytes(513))


# --- forms ------------------------------------------------------------------------------------------


def bits_of(*variants: int) -> int:
    return sum(1 << variant for variant in variants)


JSON, MSGPACK = (dialect.variant for dialect in DIALECTS)
JSON_WIDE, JSON_NARROW = (variant_of(DIALECTS[0], bits) for bits in (WIDE_BITS, NARROW_BITS))
MSGPACK_WIDE = variant_of(DIALECTS[1], WIDE_BITS)


class Maker:
    def __init__(self, size: int, threshold_bytes: int = 512) -> None:
        self.size = size
        self.encoded: list[str] = []
        self.counted: Counter[str] = Counter()
        self.forms = PublicationEncoder(threshold_bytes, self.count)

    def count(self, name: str, amount: int) -> None:
        self.counted[name] += amount

    def encode(self, dialect: Dialect) -> bytes:
        self.encoded.append(dialect.subprotocol)
        return (dialect.subprotocol.encode() * self.size)[: self.size]

    def make(self, *variants: int) -> list[bytes | int | None]:
        return self.forms.make(bits_of(*variants), self.encode)


def test_variants_begin_with_the_plain_dialects_and_have_their_opcodes() -> None:
    assert VARIANTS[: len(DIALECTS)] == tuple((dialect, 0) for dialect in DIALECTS)
    assert DIALECT_OF == DIALECTS * 3
    assert bits_of(JSON, MSGPACK) == PLAIN_VARIANTS
    assert opcodes(is_compressing=False) == (event_kinds.TEXT, event_kinds.BINARY)
    deflated = (event_kinds.TEXT | event_kinds.DEFLATED, event_kinds.BINARY | event_kinds.DEFLATED)
    assert opcodes(is_compressing=True) == (event_kinds.TEXT, event_kinds.BINARY, *deflated, *deflated)


def test_publication_without_compressing_subscribers_is_not_deflated() -> None:
    maker = Maker(2_000)
    assert maker.make(MSGPACK) == [None, maker.encode(DIALECTS[1])]
    assert not maker.counted


def test_publication_is_encoded_once_a_dialect_and_deflated_once_a_window() -> None:
    maker = Maker(2_000)
    forms = maker.make(JSON, JSON_WIDE, JSON_NARROW, MSGPACK_WIDE)
    assert sorted(maker.encoded) == sorted(dialect.subprotocol for dialect in DIALECTS)
    assert maker.counted["publications_deflated"] == 3
    assert maker.counted["deflate_bytes_in"] == 6_000
    content = maker.encode(DIALECTS[0])
    assert forms[JSON] == content
    assert forms[JSON_WIDE] == deflate(content, WIDE_BITS)
    assert forms[JSON_NARROW] == deflate(content, NARROW_BITS)
    assert forms[MSGPACK] is None


def test_small_publication_has_one_deflated_form_for_both_windows() -> None:
    maker = Maker(512)
    forms = maker.make(JSON_WIDE, JSON_NARROW)
    assert forms[JSON_NARROW] == JSON_WIDE
    assert maker.counted["publications_deflated"] == 1


def test_publication_below_the_threshold_is_sent_plain_to_all() -> None:
    maker = Maker(511)
    forms = maker.make(JSON_WIDE, JSON_NARROW)
    assert forms[JSON] == maker.encode(DIALECTS[0])
    assert (forms[JSON_WIDE], forms[JSON_NARROW]) == (JSON, JSON)
    assert not maker.counted


def test_incompressible_publication_is_sent_plain() -> None:
    noise = b"".join(zlib.crc32(b"%d" % index).to_bytes(4, "big") for index in range(200))
    forms = PublicationEncoder(0, Maker(1).count).make(bits_of(JSON_WIDE), lambda _: noise)
    assert (forms[JSON], forms[JSON_WIDE]) == (noise, JSON)
