"""Check that the verifier accepts only tokens that `jwt.decode` accepts, and reads these in the same way."""

import hmac
import json
import random
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from typing import Any, Final

import jwt
import pytest

from tests.fuzz.tokens import NOW_S, SECRET, TokensTarget, agree, is_accepted, signed
from tests.support.token_reference import STRICTER, Oracle, Refused

EXP: Final = int(NOW_S) + 600
HEADER: Final = b'{"alg":"HS256","typ":"JWT"}'
CLAIMS: Final = b'{"sub":"42","exp":%d}' % EXP
GOOD: Final = signed(HEADER, CLAIMS)
ALPHABET: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def test_valid_token_is_accepted_by_verifier_and_reference() -> None:
    assert agree(GOOD) is True
    assert Oracle(SECRET).connection(GOOD, NOW_S) == ("42", set(), set(), set(), EXP)


@pytest.mark.parametrize("seed", range(40))
def test_random_tokens_have_the_same_outcome_as_the_reference_or_are_refused(seed: int) -> None:
    target, dice = TokensTarget(), random.Random(seed)
    for _ in range(100):
        target.run(dice)
    target.close()


def test_fuzz_target_fails_if_the_verifier_skips_the_signature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsgate.auth.keys.VerificationKey.has_signed", lambda *_: True)
    target, dice = TokensTarget(), random.Random(1)
    with pytest.raises(AssertionError):
        for _ in range(2_000):
            target.run(dice)


# --- one spelling -----------------------------------------------------------------------------------------


def respelled(segment: bytes) -> Iterator[bytes]:
    """Yield other texts that some base64 decoder reads as the same bytes, or nearly."""
    yield segment + b"="
    yield segment + b"=="
    yield segment + b"==="
    yield b"=" + segment
    for junk in (b"\n", b" ", b"\r\n", b"\t", b"\x00", b"%3D", b"!", b"A", b"\xc2\xa0", b"\xef\xbb\xbf"):
        yield segment + junk
        yield junk + segment
        yield segment[:4] + junk + segment[4:]
    yield segment.replace(b"-", b"+").replace(b"_", b"/")
    if len(segment) % 4:  # bits behind the last byte
        place = ALPHABET.index(segment[-1:])
        spare = 16 if len(segment) % 4 == 2 else 4
        first = place - place % spare
        for other in range(first, first + spare):
            yield segment[:-1] + ALPHABET[other : other + 1]


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("size", range(42, 50))
def test_token_with_another_base64_spelling_of_a_segment_is_refused(place: int, size: int) -> None:
    """The changed token is signed again where possible, so that only the spelling is wrong."""
    claims = CLAIMS.ljust(size)
    good = signed(HEADER.ljust(size), claims)
    assert is_accepted(good)
    segments = good.split(b".")
    for other in respelled(segments[place]):
        if other == segments[place]:
            continue
        changed = [*segments[:place], other, *segments[place + 1 :]]
        assert not is_accepted(b".".join(changed))
        if place < 2:
            signing_input = b".".join(changed[:2])
            signature = urlsafe_b64encode(hmac.digest(SECRET, signing_input, "sha256")).rstrip(b"=")
            assert not is_accepted(signing_input + b"." + signature)


def test_a_token_with_plus_or_slash_is_refused_where_the_other_alphabet_is_accepted() -> None:
    seen = set()
    for number in range(200):
        token = signed(HEADER, CLAIMS[:-1] + b',"x":"%s\xc3\xbf\xc3\xbe"}' % (b"\xc3\xbf" * (number % 7)))
        token = token if number % 2 else signed(HEADER, CLAIMS[:-1] + b',"x":%d}' % number)
        for letter, wrong in ((b"-", b"+"), (b"_", b"/")):
            if letter in token:
                seen.add(letter)
                assert is_accepted(token)
                assert not is_accepted(token.replace(letter, wrong))
    assert seen == {b"-", b"_"}


@pytest.mark.parametrize(
    "token",
    [
        GOOD + b".",
        GOOD + b"..",
        b"." + GOOD,
        GOOD.replace(b".", b"..", 1),
        GOOD + b"." + GOOD,
        GOOD + b"\n",
        b"\xef\xbb\xbf" + GOOD,
        GOOD[:-1],
        GOOD[:-43],
        GOOD + GOOD[-43:],
    ],
)
def test_dots_and_junk_around_a_good_token_are_refused(token: bytes) -> None:
    assert not is_accepted(token)
    agree(token)


# --- JSON that parsers read differently -------------------------------------------------------------------

DEEP: Final = b'{"alg":"HS256","x":%s}'
VALUES: Final = (
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b"1e999",
    b"-1e999",
    b"-0",
    b"-0.0",
    b"0.0",
    b"1E400",
    b"1.8e9",
    b"1" * 19,
    b"9" * 20,
    b"1" * 400,
    b"1" * 4400,
    b"00",
    b"+1",
    b"1.",
    b".5",
    b"true",
    b"false",
    b"null",
    b'""',
    b'"\xff"',
    b'"\xc3"',
    b'"\xed\xa0\x80"',
    b'"\xc0\x80"',
    b'"\xf5\x80\x80\x80"',
    b'"\\ud800"',
    b'"\\udc00\\ud800"',
    b'"\\ud83d\\ude00"',
    b'"\\u0000"',
    b'"\x00"',
    b'"\t"',
    b'"\\q"',
    b'"\x7f"',
    b"[]",
    b"[null]",
    b"[1]",
    b'["a",]',
    b"{}",
    b'{"a":1,"a":2}',
    b"[" * 50 + b"]" * 50,
    b"[" * 700 + b"]" * 700,
    b'{"a":' * 300 + b"1" + b"}" * 300,
    b"'a'",
    b'"a',
)
MEMBERS: Final = "sub exp nbf iat aud iss channel channels subscribe publish jti x".split()


@pytest.mark.parametrize("value", VALUES)
def test_odd_values_of_claims_and_headers_are_read_as_by_the_reference_or_refused(value: bytes) -> None:
    for name in MEMBERS:
        member = b'"%s":%s' % (name.encode(), value)
        for claims in (
            b"{%s}" % member,
            b'{"sub":"42","exp":%d,%s}' % (EXP, member),
            b'{%s,"sub":"42","exp":%d}' % (member, EXP),
            b'{"sub":"42","exp":%d,"%s":1,%s}' % (EXP, name.encode(), member),
            b'{"sub":"42","exp":%d,%s,"%s":"42"}' % (EXP, member, name.encode()),
        ):
            agree(signed(HEADER, claims))
    for name in ("alg", "kid", "typ", "crit", "b64", "jwk", "x"):
        agree(signed(b'{"alg":"HS256","%s":%s}' % (name.encode(), value), CLAIMS))
        agree(signed(b'{"%s":%s,"alg":"HS256"}' % (name.encode(), value), CLAIMS))


@pytest.mark.parametrize("raw", [b'{"alg":"HS256","x":"\xff"}', b'{"alg":"HS256","\xff":1}'])
def test_unread_header_member_with_invalid_utf8_is_refused(raw: bytes) -> None:
    assert not is_accepted(signed(raw, CLAIMS))


@pytest.mark.parametrize("extra", [b'"x":"\xff"', b'"\xff":1', b'"x":[{"y":"\xc3"}]'])
def test_unread_claim_with_invalid_utf8_is_refused(extra: bytes) -> None:
    assert not is_accepted(signed(HEADER, b'{"sub":"42","exp":%d,%s}' % (EXP, extra)))


def test_a_number_with_more_digits_than_python_reads_is_refused() -> None:
    assert not is_accepted(signed(HEADER, b'{"sub":"42","exp":%d,"x":%s}' % (EXP, b"1" * 4400)))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "utf-8-sig"])
def test_json_in_another_encoding_is_refused(encoding: str) -> None:
    for header, claims in (
        (HEADER.decode().encode(encoding), CLAIMS),
        (HEADER, CLAIMS.decode().encode(encoding)),
    ):
        token = signed(header, claims)
        assert not is_accepted(token)
        agree(token)


@pytest.mark.parametrize(
    "alg", ["HS256", "hs256", "HS384", "HS512", "RS256", "ES256", "none", "None", "nOnE", "", "HS256 ", None]
)
@pytest.mark.parametrize("digest", ["sha256", "sha384", "sha512"])
def test_only_the_algorithm_of_the_key_is_accepted(alg: str | None, digest: str) -> None:
    token = signed(json.dumps({"alg": alg}).encode(), CLAIMS, digest=digest)
    assert agree(token) is (alg == "HS256" and digest == "sha256")


def test_tokens_encoded_by_pyjwt_are_accepted() -> None:
    every: dict[str, Any] = {
        "sub": "42",
        "exp": EXP,
        "nbf": EXP - 700,
        "iat": EXP - 700.5,
        "aud": ["a", "b"],
        "iss": "x",
        "jti": "1",
        "channels": ["a"],
        "subscribe": ["b:*"],
        "publish": ["c"],
    }
    for count in range(2, len(every) + 1):
        claims = dict(list(every.items())[:count])
        assert agree(jwt.encode(claims, SECRET, "HS256").encode()) is True


def test_reference_refuses_a_token_signed_with_another_secret() -> None:
    token = signed(HEADER, CLAIMS, secret=b"another secret of more than 32 bytes")
    with pytest.raises(Refused):
        Oracle(SECRET).connection(token, NOW_S)


STRICTER_EXAMPLES: Final = {
    "a segment ends with `=`": GOOD + b"=",
    "NaN or Infinity": signed(HEADER, CLAIMS[:-1] + b',"x":NaN}'),
    "a byte order mark or UTF-16": signed(HEADER, CLAIMS.decode().encode("utf-16")),
    "half a surrogate pair": signed(HEADER, CLAIMS[:-1] + b',"x":"\\ud800"}'),
    "bytes of half a surrogate pair": signed(HEADER, CLAIMS[:-1] + b',"x":"\xed\xa0\x80"}'),
    "a member that is there twice, first with a wrong type": signed(HEADER, b'{"sub":7,' + CLAIMS[1:]),
    "the header member b64 is no boolean": signed(HEADER[:-1] + b',"b64":null}', CLAIMS),
}


def test_every_listed_difference_to_the_reference_has_an_example() -> None:
    assert STRICTER.keys() == STRICTER_EXAMPLES.keys()


@pytest.mark.parametrize("name", STRICTER_EXAMPLES)
def test_example_of_each_difference_is_accepted_by_the_reference_only(name: str) -> None:
    assert Oracle(SECRET).connection(STRICTER_EXAMPLES[name], NOW_S)[0] == "42"
    assert not is_accepted(STRICTER_EXAMPLES[name])
