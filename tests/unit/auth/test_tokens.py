"""Check the verifier of tokens: S18 in full, the pure half of S20, and every rule about claims.

PyJWT signs for the tests that accept. The tests that refuse use a signer of their own, because PyJWT does not
sign most of their tokens.
"""

import hashlib
import hmac
import json
from base64 import urlsafe_b64encode
from collections.abc import Callable
from functools import partial
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.hashes import SHA1, SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import example, given
from hypothesis import strategies as st
from jwt.algorithms import RSAAlgorithm

import wsgate.auth
from wsgate.auth import (
    FAULTS,
    NO_PERMISSIONS,
    ChannelGrant,
    Identity,
    KeyRing,
    Permissions,
    PermissionTable,
    TokenError,
    TokenPolicy,
    VerificationKey,
    Verifier,
    make_key,
)
from wsgate.auth.revoked import RevokedUsers
from wsgate.auth.tokens import EXPIRY_LIMIT_S, RETRY_LIMIT_S, TOKEN_LIMIT_BYTES
from wsgate.errors import PeerError, SettingsError
from wsgate.reasons import Reason

NOW = 1_800_000_000.5
EXP = 1_800_000_600
SECRET = b"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
RSA = rsa.generate_private_key(65537, 2048)
P256 = ec.generate_private_key(ec.SECP256R1())
P384 = ec.generate_private_key(ec.SECP384R1())
P521 = ec.generate_private_key(ec.SECP521R1())
ED25519 = ed25519.Ed25519PrivateKey.generate()
CLAIMS = {"sub": "42", "exp": EXP}
HASHES = {"HS256": hashlib.sha256, "HS384": hashlib.sha384, "HS512": hashlib.sha512}


def pem(key: PublicKeyTypes) -> str:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def verifier(
    *keys: VerificationKey,
    audience: str = "",
    issuer: str = "",
    leeway_s: int = 0,
    require_exp: bool = True,
) -> Verifier:
    """A verifier with these keys, or with the HS256 key that `sign` and `forge` sign with."""
    policy = TokenPolicy(audience=audience, issuer=issuer, leeway_s=leeway_s, require_exp=require_exp)
    return Verifier(KeyRing(keys or [make_key(None, "HS256", secret=SECRET)]), policy, PermissionTable())


def sign(claims: dict[str, Any], headers: dict[str, Any] | None = None) -> str:
    """Return a token as PyJWT makes it."""
    return jwt.encode(claims, SECRET, "HS256", headers=headers)


def text(part: Any) -> bytes:
    return part if isinstance(part, bytes) else json.dumps(part).encode()


def encoded(part: bytes) -> bytes:
    return urlsafe_b64encode(part).rstrip(b"=")


def forge(header: Any, payload: Any, secret: bytes = SECRET, algorithm: str = "HS256") -> bytes:
    """Return a correctly signed token with any header and payload, JSON or not."""
    signed = encoded(text(header)) + b"." + encoded(text(payload))
    return signed + b"." + encoded(hmac.digest(secret, signed, HASHES[algorithm]))


REASON_OF = {
    "expired": Reason.TOKEN_EXPIRED,
    "revoked": Reason.TOKEN_EXPIRED,
    "not_yet_valid": Reason.TOKEN_NOT_YET_VALID,
}


def fault_of(call: Callable[[], object]) -> str:
    """Return the fault of a refused token; check that its reason and message fit the fault."""
    with pytest.raises(TokenError) as refusal:
        call()
    error = refusal.value
    assert isinstance(error, PeerError)
    assert error.fault in FAULTS
    assert error.is_expired is (error.fault in ("expired", "revoked"))
    assert error.is_early is (error.fault == "not_yet_valid")
    assert error.reason is REASON_OF.get(error.fault, Reason.INVALID_TOKEN)
    assert error.retry_s >= 0 and (error.is_early or not error.retry_s)
    assert str(error) == ("the token has expired" if error.is_expired else "the token is not valid")
    assert error.__cause__ is None
    return error.fault


def fault(token: str | bytes, judge: Verifier | None = None, now_s: float = NOW) -> str:
    return fault_of(lambda: (judge or verifier()).verify_connection(token, now_s=now_s))


def claims_fault(**claims: Any) -> str:
    """Return the fault of a token with valid claims except for the given ones."""
    return fault(forge({"alg": "HS256"}, {**CLAIMS, **claims}))


def test_auth_package_exports_exactly_the_listed_names() -> None:
    assert wsgate.auth.__all__ == [
        "ALGORITHMS",
        "FAULTS",
        "KEYS_LIMIT",
        "NO_PERMISSIONS",
        "ChannelGrant",
        "Identity",
        "KeyRing",
        "KeySource",
        "Member",
        "OriginPolicy",
        "PermissionTable",
        "Permissions",
        "TokenCache",
        "TokenError",
        "TokenPolicy",
        "VerificationKey",
        "Verifier",
        "kid_of",
        "make_key",
        "parse_jwks",
    ]
    assert all(hasattr(wsgate.auth, name) for name in wsgate.auth.__all__)


@pytest.mark.parametrize(
    ("algorithm", "signer", "key"),
    [
        ("HS256", SECRET, make_key(None, "HS256", secret=SECRET)),
        ("HS384", SECRET, make_key(None, "HS384", secret=SECRET)),
        ("HS512", SECRET, make_key(None, "HS512", secret=SECRET)),
        ("RS256", RSA, make_key(None, "RS256", public_key=pem(RSA.public_key()))),
        ("ES256", P256, make_key(None, "ES256", public_key=pem(P256.public_key()))),
        ("EdDSA", ED25519, make_key(None, "EdDSA", public_key=pem(ED25519.public_key()))),
        *(
            (name, RSA, make_key(None, name, public_key=pem(RSA.public_key())))
            for name in ("RS384", "RS512", "PS256", "PS384", "PS512")
        ),
        ("ES384", P384, make_key(None, "ES384", public_key=pem(P384.public_key()))),
        ("ES512", P521, make_key(None, "ES512", public_key=pem(P521.public_key()))),
    ],
)
def test_token_of_every_algorithm_is_accepted_only_with_its_own_signature(
    algorithm: str, signer: Any, key: VerificationKey
) -> None:
    token = jwt.encode(CLAIMS, signer, algorithm)
    judge = verifier(key)
    assert judge.verify_connection(token, now_s=NOW) == Identity("42", NO_PERMISSIONS, EXP)
    assert judge.verify_connection(token.encode(), now_s=NOW).user == "42"
    signed, _, _ = token.rpartition(".")
    other = jwt.encode({**CLAIMS, "sub": "43"}, signer, algorithm).rpartition(".")[2]
    for signature in (other, "", "AAAA", "A" * 4096):
        assert fault(f"{signed}.{signature}", judge) == "bad_signature"


def test_token_is_verified_only_with_the_key_of_its_kid() -> None:
    judge = verifier(
        make_key("one", "HS256", secret=SECRET),
        make_key("two", "RS256", public_key=pem(RSA.public_key())),
    )
    assert judge.verify_connection(sign(CLAIMS, {"kid": "one"}), now_s=NOW).user == "42"
    other = jwt.encode(CLAIMS, RSA, "RS256", headers={"kid": "two"})
    assert judge.verify_connection(other, now_s=NOW).user == "42"
    assert fault(sign(CLAIMS, {"kid": "two"}), judge) == "wrong_algorithm"
    assert fault(sign(CLAIMS, {"kid": "three"}), judge) == "unknown_key"
    assert fault(sign(CLAIMS, {"kid": ""}), judge) == "unknown_key"
    assert fault(sign(CLAIMS), judge) == "unknown_key"


def test_without_keys_no_token_is_valid() -> None:
    judge = Verifier(KeyRing([]), TokenPolicy(), PermissionTable())
    assert fault(sign(CLAIMS), judge) == "unknown_key"


@pytest.mark.parametrize("typ", ["JWT", "at+jwt", "nonsense", None, 1, {}])
def test_the_header_typ_is_ignored(typ: object) -> None:
    token = forge({"alg": "HS256", "typ": typ}, CLAIMS)
    assert verifier().verify_connection(token, now_s=NOW).user == "42"


ALL_KEYS = [
    make_key(None, "HS256", secret=SECRET),
    make_key(None, "RS256", public_key=pem(RSA.public_key())),
    make_key(None, "ES256", public_key=pem(P256.public_key())),
    make_key(None, "EdDSA", public_key=pem(ED25519.public_key())),
    make_key(None, "PS256", public_key=pem(RSA.public_key())),
    make_key(None, "RS512", public_key=pem(RSA.public_key())),
    make_key(None, "ES384", public_key=pem(P384.public_key())),
]


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "nOnE", ""])
@pytest.mark.parametrize("key", ALL_KEYS, ids=lambda key: key.algorithm)
def test_s18_alg_none_is_refused(key: VerificationKey, alg: str) -> None:
    signed = encoded(text({"alg": alg})) + b"." + encoded(text(CLAIMS)) + b"."
    assert fault(signed, verifier(key)) == "wrong_algorithm"
    assert fault(forge({"alg": alg}, CLAIMS), verifier(key)) == "wrong_algorithm"


@pytest.mark.parametrize("header", [{}, {"typ": "JWT"}, {"Alg": "HS256"}])
def test_s18_a_header_without_alg_is_refused(header: dict[str, str]) -> None:
    assert fault(forge(header, CLAIMS)) == "wrong_algorithm"


PUBLIC_TEXTS = {
    "pem": pem(RSA.public_key()).encode(),
    "pem_stripped": pem(RSA.public_key()).strip().encode(),
    "der": RSA.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
    "jwk": RSAAlgorithm.to_jwk(RSA.public_key(), as_dict=False).encode(),
}


@pytest.mark.parametrize("algorithm", HASHES)
@pytest.mark.parametrize("form", PUBLIC_TEXTS)
def test_s18_hmac_with_the_text_of_the_public_key_is_refused(form: str, algorithm: str) -> None:
    judge = verifier(make_key(None, "RS256", public_key=pem(RSA.public_key())))
    token = forge({"alg": algorithm}, CLAIMS, PUBLIC_TEXTS[form], algorithm)
    assert fault(token, judge) == "wrong_algorithm"
    relabelled = forge({"alg": "RS256"}, CLAIMS, PUBLIC_TEXTS[form], algorithm)
    assert fault(relabelled, judge) == "bad_signature"


@pytest.mark.parametrize("key", ALL_KEYS, ids=lambda key: key.algorithm)
@pytest.mark.parametrize(
    "alg", ["HS256", "HS384", "HS512", "RS256", "RS384", "PS256", "PS512", "ES256", "ES384", "EdDSA", "hs256"]
)
def test_s18_an_algorithm_other_than_the_keys_is_refused(alg: str, key: VerificationKey) -> None:
    if alg != key.algorithm:
        assert fault(forge({"alg": alg}, CLAIMS), verifier(key)) == "wrong_algorithm"


@pytest.mark.parametrize("alg", ["HS384", "HS512"])
def test_s18_a_stronger_hash_of_the_same_secret_is_refused(alg: str) -> None:
    assert fault(jwt.encode(CLAIMS, SECRET, alg)) == "wrong_algorithm"


@pytest.mark.parametrize("secret", [b"", b"\0", b"secret", SECRET[:-1], SECRET + b"0"])
def test_s18_an_empty_or_other_secret_is_refused(secret: bytes) -> None:
    assert fault(forge({"alg": "HS256"}, CLAIMS, secret)) == "bad_signature"


@pytest.mark.parametrize("name", ["jwk", "jku", "x5u", "x5c", "x5t", "x5t#S256", "key", "typ", "cty", "zip"])
def test_s18_key_or_key_url_in_the_header_is_ignored(name: str) -> None:
    """Nothing is fetched and no key is taken from a header."""
    own = rsa.generate_private_key(65537, 2048)
    brought = {
        "jwk": json.loads(RSAAlgorithm.to_jwk(own.public_key(), as_dict=False)),
        "x5c": [pem(own.public_key())],
    }
    header = {name: brought.get(name, "http://127.0.0.1:1/keys.json")}
    judge = verifier(make_key(None, "RS256", public_key=pem(RSA.public_key())))
    assert fault(jwt.encode(CLAIMS, own, "RS256", headers=header), judge) == "bad_signature"
    signed = jwt.encode(CLAIMS, RSA, "RS256", headers=header)
    assert judge.verify_connection(signed, now_s=NOW).user == "42"


@pytest.mark.parametrize("used", ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"])
@pytest.mark.parametrize("bound", ["RS256", "RS512", "PS256", "PS512"])
def test_s18_rsa_key_verifies_only_its_own_algorithm(bound: str, used: str) -> None:
    """The same RSA key could verify all of these: the header must not choose among them."""
    judge = verifier(make_key(None, bound, public_key=pem(RSA.public_key())))
    token = jwt.encode(CLAIMS, RSA, used)
    if used == bound:
        assert judge.verify_connection(token, now_s=NOW).user == "42"
        return
    assert fault(token, judge) == "wrong_algorithm"
    signing_input = encoded(text({"alg": bound})) + b"." + encoded(text(CLAIMS))
    signature = jwt.get_algorithm_by_name(used).sign(signing_input, RSA)
    assert fault(signing_input + b"." + encoded(signature), judge) == "bad_signature"


SIGNERS: dict[str, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey] = {
    "RS256": RSA,
    "ES256": P256,
    "EdDSA": ED25519,
    "PS256": RSA,
    "RS512": RSA,
    "ES384": P384,
    "ES512": P521,
}


@pytest.mark.parametrize(
    "signature", [b"", b"\0", bytes(64), bytes(96), bytes(132), bytes(256), b"\xff" * 64, bytes(31) + b"\1"]
)
@pytest.mark.parametrize("algorithm", SIGNERS)
def test_s18_a_degenerate_signature_is_refused(algorithm: str, signature: bytes) -> None:
    """A signature of zeros passes where its numbers are not checked for their range (CVE-2022-21449)."""
    judge = verifier(make_key(None, algorithm, public_key=pem(SIGNERS[algorithm].public_key())))
    signed = encoded(text({"alg": algorithm})) + b"." + encoded(text(CLAIMS))
    assert fault(signed + b"." + encoded(signature), judge) == "bad_signature"


def test_s18_a_signature_by_the_right_key_in_another_scheme_is_refused() -> None:
    signed = encoded(text({"alg": "RS256"})) + b"." + encoded(text(CLAIMS))
    pss = padding.PSS(padding.MGF1(SHA256()), padding.PSS.DIGEST_LENGTH)
    judge = verifier(make_key(None, "RS256", public_key=pem(RSA.public_key())))
    assert fault(signed + b"." + encoded(RSA.sign(signed, pss, SHA256())), judge) == "bad_signature"
    weaker = RSA.sign(signed, padding.PKCS1v15(), SHA1())
    assert fault(signed + b"." + encoded(weaker), judge) == "bad_signature"
    # RFC 7518 section 3.4: the two numbers one behind the other, not in DER.
    signed = encoded(text({"alg": "ES256"})) + b"." + encoded(text(CLAIMS))
    judge = verifier(make_key(None, "ES256", public_key=pem(P256.public_key())))
    assert fault(signed + b"." + encoded(P256.sign(signed, ec.ECDSA(SHA256()))), judge) == "bad_signature"


def test_s18_a_signature_of_another_token_is_refused() -> None:
    one, other = sign(CLAIMS), sign({**CLAIMS, "sub": "43"})
    assert fault(one.rpartition(".")[0] + "." + other.rpartition(".")[2]) == "bad_signature"


@pytest.mark.parametrize("crit", [["b64"], ["exp"], [], None, "b64", 0, {}, [[]]])
def test_s18_token_with_a_crit_header_is_refused(crit: object) -> None:
    assert fault(forge({"alg": "HS256", "crit": crit}, CLAIMS)) == "critical_header"
    assert fault(forge({"alg": "HS256", "crit": crit, "b64": True}, CLAIMS)) == "critical_header"


def test_s18_a_payload_that_is_not_encoded_is_refused() -> None:
    assert fault(forge({"alg": "HS256", "b64": False}, CLAIMS)) == "critical_header"
    assert fault(forge({"alg": "HS256", "b64": False, "crit": ["b64"]}, CLAIMS)) == "critical_header"
    head = encoded(text({"alg": "HS256", "b64": False})) + b"."
    signature = encoded(hmac.digest(SECRET, head + text(CLAIMS), "sha256"))
    assert fault(head + b"." + signature) == "critical_header"
    assert fault(head + text(CLAIMS) + b"." + signature) == "critical_header"


@pytest.mark.parametrize("value", [None, 0, "false", []])
def test_s18_a_b64_that_is_no_boolean_is_malformed(value: object) -> None:
    assert fault(forge({"alg": "HS256", "b64": value}, CLAIMS)) == "malformed"


@pytest.mark.parametrize(
    "aud", ["shop2", "Shop", "", [], ["other"], ["shops", "sho"], [""], "shop,other", "shop other"]
)
def test_s18_a_wrong_audience_is_refused(aud: object) -> None:
    assert fault(sign({**CLAIMS, "aud": aud}), verifier(audience="shop")) == "wrong_audience"


def test_s18_a_missing_audience_is_refused() -> None:
    assert fault(sign(CLAIMS), verifier(audience="shop")) == "wrong_audience"


@pytest.mark.parametrize("aud", ["shop", ["shop"], ["other", "shop"]])
def test_the_right_audience_is_accepted(aud: object) -> None:
    assert verifier(audience="shop").verify_connection(sign({**CLAIMS, "aud": aud}), now_s=NOW).user == "42"


@pytest.mark.parametrize("iss", ["other", "Issuer", "issuer/", ""])
def test_s18_a_wrong_issuer_is_refused(iss: str) -> None:
    assert fault(sign({**CLAIMS, "iss": iss}), verifier(issuer="issuer")) == "wrong_issuer"


def test_s18_a_missing_issuer_is_refused_and_the_right_one_accepted() -> None:
    judge = verifier(issuer="issuer")
    assert fault(sign(CLAIMS), judge) == "wrong_issuer"
    assert judge.verify_connection(sign({**CLAIMS, "iss": "issuer"}), now_s=NOW).user == "42"


def test_audience_and_issuer_are_ignored_without_a_policy() -> None:
    token = sign({**CLAIMS, "aud": ["x"], "iss": "y"})
    assert verifier().verify_connection(token, now_s=NOW).user == "42"


ILL_TYPED = [1, 1e300, {}, {"a": 1}, [1], [None], ["shop", None], [["shop"]], True]


@pytest.mark.parametrize("value", ILL_TYPED)
def test_s18_ill_typed_audience_or_issuer_is_refused_when_required(value: object) -> None:
    judge = verifier(audience="shop", issuer="issuer")
    good = {**CLAIMS, "aud": "shop", "iss": "issuer"}
    assert judge.verify_connection(sign(good), now_s=NOW).user == "42"
    assert fault(forge({"alg": "HS256"}, {**good, "aud": value}), judge) == "bad_claims"
    assert fault(forge({"alg": "HS256"}, {**good, "iss": value}), judge) == "bad_claims"
    assert fault(forge({"alg": "HS256"}, {**good, "iss": ["issuer"]}), judge) == "bad_claims"


@pytest.mark.parametrize("claim", ["aud", "iss"])
@pytest.mark.parametrize("value", [*ILL_TYPED, None, "x", ["x"]])
def test_audience_or_issuer_of_any_type_is_ignored_without_a_policy(claim: str, value: object) -> None:
    token = forge({"alg": "HS256"}, {**CLAIMS, claim: value})
    assert verifier().verify_connection(token, now_s=NOW) == Identity("42", NO_PERMISSIONS, EXP)


# --- claims that are null -------------------------------------------------------------------------------


@pytest.mark.parametrize("claim", ["aud", "iss", "nbf", "iat", "channels", "subscribe", "publish", "jti"])
def test_a_claim_that_is_null_counts_as_missing(claim: str) -> None:
    token = forge({"alg": "HS256"}, {**CLAIMS, claim: None})
    assert verifier().verify_connection(token, now_s=NOW) == Identity("42", NO_PERMISSIONS, EXP)
    grant = forge({"alg": "HS256"}, {**CHANNEL_CLAIMS, claim: None})
    opened = verifier().verify_channel(grant, channel="chat:42", user="42", now_s=NOW)
    assert opened == ChannelGrant("42", "chat:42", EXP)


def test_an_exp_that_is_null_is_a_missing_exp() -> None:
    token = forge({"alg": "HS256"}, {**CLAIMS, "exp": None})
    assert fault(token) == "bad_claims"
    assert verifier(require_exp=False).verify_connection(token, now_s=NOW).expires_at_s == 0
    assert channel_fault({**CHANNEL_CLAIMS, "exp": None}, require_exp=False) == "bad_claims"


def test_null_audience_or_issuer_is_refused_when_required() -> None:
    for claim, fault_name, judge in (
        ("aud", "wrong_audience", verifier(audience="shop")),
        ("iss", "wrong_issuer", verifier(issuer="issuer")),
    ):
        assert fault(forge({"alg": "HS256"}, {**CLAIMS, claim: None}), judge) == fault_name


def test_a_null_sub_and_a_null_channel_are_refused() -> None:
    assert claims_fault(sub=None) == "bad_claims"
    assert claims_fault(channel=None) == "bad_claims"
    assert channel_fault({**CLAIMS, "channel": None}) == "bad_claims"


BEFORE = 1_800_000_000.75


def revoked_users(before_s: float, user: str = "42") -> RevokedUsers:
    found = RevokedUsers(10)
    found.revoke(user, before_s)
    return found


@pytest.mark.parametrize(
    ("iat", "is_refused"),
    [
        (BEFORE - 100, True),
        (1_799_999_999, True),
        (1_799_999_999.99, True),
        # The same second. Of a whole number it is unknown on which side of the revocation it was written.
        (1_800_000_000, False),
        (1_800_000_000.0, False),
        # An issuer that writes fractions is compared exactly.
        (1_800_000_000.5, True),
        (1_800_000_000.75, False),
        (1_800_000_000.8, False),
        (1_800_000_001, False),
        (1_800_000_050, False),
        (None, True),
        (0, True),
        (-1e300, True),
    ],
)
def test_revocation_refuses_tokens_issued_before_its_second(iat: float | None, is_refused: bool) -> None:
    judge, token = verifier(), forge({"alg": "HS256"}, {**CLAIMS, "iat": iat})

    def verify(later_s: int, user: str) -> Identity:
        revoked = revoked_users(BEFORE, user)
        return judge.verify_connection(token, now_s=BEFORE + later_s, revoked=revoked)

    for later_s in (1, 100, 500):
        if is_refused:
            assert fault_of(partial(verify, later_s, "42")) == "revoked"
        else:
            assert verify(later_s, "42").user == "42"
        assert verify(later_s, "43").user == "42"


@pytest.mark.parametrize("before", [1_800_000_000, 1_800_000_000.0])
def test_revocation_in_whole_seconds_refuses_tokens_of_every_earlier_second(before: float) -> None:
    for iat, is_refused in ((1_799_999_999, True), (1_799_999_999.9, True), (1_800_000_000, False)):
        token = forge({"alg": "HS256"}, {**CLAIMS, "iat": iat})
        try:
            verifier().verify_connection(token, now_s=NOW, revoked=revoked_users(before))
        except TokenError as error:
            assert is_refused and error.fault == "revoked"
        else:
            assert not is_refused


def test_a_null_iat_is_as_old_as_a_missing_one() -> None:
    token = forge({"alg": "HS256"}, {**CLAIMS, "iat": None})
    refused = fault_of(lambda: verifier().verify_connection(token, now_s=NOW, revoked=revoked_users(1.0)))
    assert refused == "revoked"


@pytest.mark.parametrize("exp", [0, -1, -1e300, 1, int(NOW), NOW, NOW - 0.25])
def test_s18_an_expired_token_is_refused(exp: float) -> None:
    assert claims_fault(exp=exp) == "expired"


@pytest.mark.parametrize(
    ("claim", "start"),
    [
        *(("nbf", start) for start in (int(NOW) + 1, NOW + 0.25, 1e300, 10**300)),
        *(("iat", start) for start in (int(NOW) + 61, NOW + 60.25, 1e300, 10**300, NOW * 1000)),
    ],
)
def test_s18_a_token_of_the_future_is_refused_as_not_yet_valid(claim: str, start: float) -> None:
    assert claims_fault(**{claim: start}) == "not_yet_valid"


@pytest.mark.parametrize("ahead_s", [0.25, 0.4, 1, 5, 60])
@pytest.mark.parametrize("leeway_s", [0, 5])
def test_an_iat_of_a_clock_that_is_ahead_is_accepted(ahead_s: float, leeway_s: int) -> None:
    token = sign({**CLAIMS, "iat": NOW + ahead_s})
    assert verifier(leeway_s=leeway_s).verify_connection(token, now_s=NOW).user == "42"


@pytest.mark.parametrize(
    ("claim", "start", "leeway_s", "retry_s"),
    [
        ("nbf", NOW + 0.25, 0, 0.25),
        ("nbf", NOW + 60, 0, 60),
        ("nbf", NOW + 60, 10, 50),
        ("iat", NOW + 75, 0, 15),
        ("iat", NOW + 200, 120, 80),
        ("nbf", 1e300, 0, RETRY_LIMIT_S),
        ("nbf", 10**300, 5, RETRY_LIMIT_S),
        ("iat", NOW * 1000, 0, RETRY_LIMIT_S),
    ],
)
def test_token_not_yet_valid_has_a_retry_time_after_which_the_token_is_accepted(
    claim: str, start: float, leeway_s: int, retry_s: float
) -> None:
    judge = verifier(leeway_s=leeway_s)
    token = sign({**CLAIMS, "exp": 10**301, claim: start})
    with pytest.raises(TokenError) as refused:
        judge.verify_connection(token, now_s=NOW)
    assert refused.value.retry_s == pytest.approx(retry_s)
    if retry_s < RETRY_LIMIT_S:
        assert judge.verify_connection(token, now_s=NOW + retry_s).user == "42"


@pytest.mark.parametrize("claim", ["nbf", "iat"])
@pytest.mark.parametrize("start", [int(NOW), NOW, 0, -5, -1e300])
def test_token_with_nbf_or_iat_in_the_past_is_accepted(claim: str, start: float) -> None:
    assert verifier().verify_connection(sign({**CLAIMS, claim: start}), now_s=NOW).user == "42"


@pytest.mark.parametrize("claim", ["exp", "nbf", "iat"])
@pytest.mark.parametrize("value", [True, False, "1800000600", [], {}, ""])
def test_s18_a_time_that_is_no_number_is_refused(claim: str, value: object) -> None:
    assert claims_fault(**{claim: value}) == "bad_claims"


@pytest.mark.parametrize("claim", ["exp", "nbf", "iat"])
@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 5000])
def test_s18_a_time_that_is_not_finite_is_refused(claim: str, literal: str) -> None:
    rest = "" if claim == "exp" else f', "exp": {EXP}'
    payload = f'{{"sub": "42", "{claim}": {literal}{rest}}}'.encode()
    assert fault(forge({"alg": "HS256"}, payload)) in ("malformed", "bad_claims")


def test_leeway_moves_exp_and_nbf_by_exactly_its_seconds() -> None:
    judge = verifier(leeway_s=10)
    for good in ({"exp": NOW - 9.75}, {"nbf": NOW + 10}, {"iat": NOW + 60}):
        assert judge.verify_connection(sign({**CLAIMS, **good}), now_s=NOW).user == "42"
    assert fault(sign({**CLAIMS, "exp": NOW - 10}), judge) == "expired"
    assert fault(sign({**CLAIMS, "nbf": NOW + 10.25}), judge) == "not_yet_valid"
    assert fault(sign({**CLAIMS, "iat": NOW + 60.25}), judge) == "not_yet_valid"
    generous = verifier(leeway_s=120)
    assert generous.verify_connection(sign({**CLAIMS, "iat": NOW + 120}), now_s=NOW).user == "42"
    assert fault(sign({**CLAIMS, "iat": NOW + 120.25}), generous) == "not_yet_valid"


def test_a_negative_leeway_or_life_is_refused() -> None:
    with pytest.raises(SettingsError, match="leeway"):
        TokenPolicy(leeway_s=-1)
    with pytest.raises(SettingsError, match="token_max_life"):
        TokenPolicy(token_max_life_s=-1)


@pytest.mark.parametrize(
    ("claims", "cause"),
    [
        ({"iat": int(NOW)}, ""),
        ({"iat": EXP - 3600}, ""),
        ({"iat": EXP - 3601}, "long_life"),
        ({"iat": EXP - 3600.5}, "long_life"),
        ({"iat": 0}, "long_life"),
        ({"iat": int(NOW), "exp": 10**300}, "long_life"),
        ({"iat": -(10**300)}, "long_life"),
        ({}, "missing_iat"),
        ({"iat": None}, "missing_iat"),
        ({"iat": int(NOW), "exp": None}, "missing_exp"),
    ],
)
@pytest.mark.parametrize("require_exp", [True, False])
def test_limited_life_is_measured_from_iat_to_exp_and_both_are_required(
    claims: dict[str, Any], cause: str, require_exp: bool
) -> None:
    policy = TokenPolicy(token_max_life_s=3600, require_exp=require_exp)
    judge = Verifier(KeyRing([make_key(None, "HS256", secret=SECRET)]), policy, PermissionTable())
    token = forge({"alg": "HS256"}, {**CLAIMS, **claims})
    grant = forge({"alg": "HS256"}, {**CHANNEL_CLAIMS, **claims})
    if not cause:
        assert judge.verify_connection(token, now_s=NOW).user == "42"
        assert judge.verify_channel(grant, channel="chat:42", user="42", now_s=NOW).user == "42"
        return
    for call in (
        lambda: judge.verify_connection(token, now_s=NOW),
        lambda: judge.verify_channel(grant, channel="chat:42", user="42", now_s=NOW),
    ):
        with pytest.raises(TokenError) as refused:
            call()
        assert refused.value.cause == cause
        assert refused.value.fault == "bad_claims"


def test_revocation_ends_when_no_earlier_token_can_be_valid() -> None:
    assert TokenPolicy().revocation_ends_at_s(NOW) is None
    policy = TokenPolicy(token_max_life_s=60, leeway_s=5)
    ends_at_s = policy.revocation_ends_at_s(1_800_000_000.0)
    assert ends_at_s == 1_800_000_065
    judge = Verifier(KeyRing([make_key(None, "HS256", secret=SECRET)]), policy, PermissionTable())
    last = sign({"sub": "42", "iat": 1_799_999_999.75, "exp": 1_800_000_059.75})
    assert judge.verify_connection(last, now_s=ends_at_s - 1).user == "42"
    assert fault(last, judge, now_s=ends_at_s) == "expired"


def test_exp_is_required_unless_the_policy_allows_tokens_without_exp() -> None:
    token = sign({"sub": "42"})
    assert fault(token) == "bad_claims"
    assert verifier(require_exp=False).verify_connection(token, now_s=NOW).expires_at_s == 0
    assert fault(sign({"sub": "42", "exp": 1}), verifier(require_exp=False)) == "expired"


def test_s20_expiry_is_exact_by_the_time_that_the_caller_passes() -> None:
    token = sign(CLAIMS)
    assert verifier().verify_connection(token, now_s=EXP - 0.001).expires_at_s == EXP
    assert fault(token, now_s=EXP) == "expired"
    assert verifier().verify_connection(token, now_s=0).expires_at_s == EXP


def test_s20_fresh_token_of_the_same_user_has_a_later_expiry() -> None:
    judge = verifier()
    old = judge.verify_connection(sign(CLAIMS), now_s=NOW)
    new = judge.verify_connection(sign({**CLAIMS, "exp": EXP + 60}), now_s=EXP + 1)
    assert new.user == old.user
    assert new.expires_at_s == old.expires_at_s + 60


def test_s20_expiry_is_rounded_down_to_seconds_within_1_and_the_limit() -> None:
    judge = verifier()
    assert judge.verify_connection(sign({**CLAIMS, "exp": EXP + 0.9}), now_s=NOW).expires_at_s == EXP
    assert judge.verify_connection(sign({**CLAIMS, "exp": 0.5}), now_s=0.0).expires_at_s == 1
    for distant in (EXPIRY_LIMIT_S + 1, 10**300, 1e300, 1_800_000_600_000):
        found = judge.verify_connection(sign({**CLAIMS, "exp": distant}), now_s=NOW)
        assert found.expires_at_s == EXPIRY_LIMIT_S


@pytest.mark.parametrize(
    "wrong", [{"aud": "x"}, {"iss": "x"}, {"sub": ""}, {"channels": ["@1"]}, {"nbf": 9e9}]
)
def test_s20_a_token_is_expired_only_when_nothing_else_is_wrong(wrong: dict[str, Any]) -> None:
    judge = verifier(audience="shop", issuer="issuer")
    good = {"sub": "42", "exp": 1, "aud": "shop", "iss": "issuer"}
    assert fault(sign(good), judge) == "expired"
    assert fault(sign({**good, **wrong}), judge) != "expired"


@pytest.mark.parametrize("size", [TOKEN_LIMIT_BYTES + 1, 1_000_000])
def test_s18_a_token_over_the_cap_is_refused_unread(size: int) -> None:
    assert fault("a" * size) == "too_large"
    assert fault(b"a" * size) == "too_large"
    assert fault("\ud800" * size) == "too_large"
    good = forge({"alg": "HS256"}, {**CLAIMS, "x": "y" * size})
    assert fault(good) == "too_large"


def test_a_token_as_large_as_the_cap_is_read() -> None:
    around = len(forge({"alg": "HS256"}, b""))
    payload = json.dumps(CLAIMS).encode().ljust((TOKEN_LIMIT_BYTES - around) * 3 // 4)
    token = forge({"alg": "HS256"}, payload)
    assert TOKEN_LIMIT_BYTES - 1 <= len(token) <= TOKEN_LIMIT_BYTES
    assert verifier().verify_connection(token, now_s=NOW).user == "42"


def test_s18_a_header_over_its_cap_is_refused_unread() -> None:
    assert fault(forge({"alg": "HS256", "x": "y" * 2000}, CLAIMS)) == "too_large"


@pytest.mark.parametrize("bomb", [b"[" * 1400, b'{"a":' * 280], ids=["arrays", "objects"])
def test_s18_deep_json_in_the_header_is_refused(bomb: bytes) -> None:
    assert fault(forge(b'{"alg": "HS256", "x": ' + bomb, CLAIMS)) == "malformed"


@pytest.mark.parametrize("bomb", [b"[" * 5900, b'{"a":' * 1180], ids=["arrays", "objects"])
@pytest.mark.parametrize("claim", ["x", "sub", "channels"])
def test_s18_deep_json_in_the_payload_is_refused(bomb: bytes, claim: str) -> None:
    token = forge({"alg": "HS256"}, f'{{"sub": "42", "exp": {EXP}, "{claim}": '.encode() + bomb)
    assert fault(token) in ("malformed", "bad_claims")


def test_s18_deep_but_valid_json_is_read_or_refused_as_malformed() -> None:
    # The interpreter decides how deep is too deep; a signed member may be skipped at any depth.
    deep = f'{{"sub": "42", "exp": {EXP}, "x": '.encode() + b"[" * 2900 + b"]" * 2900 + b"}"
    try:
        assert verifier().verify_connection(forge({"alg": "HS256"}, deep), now_s=NOW).user == "42"
    except TokenError as error:
        assert error.fault == "malformed"


@pytest.mark.parametrize("place", ["header", "payload"])
def test_s18_json_10_000_deep_is_refused(place: str) -> None:
    deep = b'{"alg": "HS256", "x": ' + b"[" * 10_000 + b"]" * 10_000 + b"}"
    token = forge(deep, CLAIMS) if place == "header" else forge({"alg": "HS256"}, deep)
    assert fault(token) == "too_large"


GOOD_TOKEN = sign(CLAIMS)


@pytest.mark.parametrize(
    "token",
    [
        "",
        ".",
        "..",
        "...",
        "a.b.c",
        GOOD_TOKEN + ".x",
        GOOD_TOKEN + "\n",
        " " + GOOD_TOKEN,
        GOOD_TOKEN + "!",
        GOOD_TOKEN.replace(".", "..", 1),
        GOOD_TOKEN.rpartition(".")[0],
        "Bearer " + GOOD_TOKEN,
        GOOD_TOKEN + "é",
        "\u212a" + GOOD_TOKEN,
        "\ud800",
        "\x00",
    ],
)
def test_text_that_is_no_token_is_malformed(token: str) -> None:
    assert fault(token) == "malformed"
    assert fault(token.encode("utf-8", "surrogatepass")) == "malformed"


@pytest.mark.parametrize(
    "header", [b"", b"null", b"[]", b'"HS256"', b"1", b"{", b'{"alg": 1}', b'{"alg": null}']
)
def test_s18_header_that_is_no_object_with_a_text_alg_is_malformed(header: bytes) -> None:
    assert fault(forge(header, CLAIMS)) == "malformed"


@pytest.mark.parametrize("kid", [1, None, ["k"], {}, True])
def test_s18_a_kid_that_is_no_string_is_malformed(kid: object) -> None:
    assert fault(forge({"alg": "HS256", "kid": kid}, CLAIMS)) == "malformed"


def test_a_header_in_another_encoding_is_malformed() -> None:
    assert fault(forge('{"alg": "HS256"}'.encode("utf-16"), CLAIMS)) == "malformed"


@pytest.mark.parametrize("payload", [b"null", b"[]", b'["sub"]', b'"42"', b"1", b"true", b"[{}]"])
def test_s18_a_payload_that_is_no_object_is_refused(payload: bytes) -> None:
    assert fault(forge({"alg": "HS256"}, payload)) == "bad_claims"


@pytest.mark.parametrize("payload", [b"", b"{", b"{}x", b"\xff", b"{'sub': '42'}", b'{"sub": "\xff"}'])
def test_s18_a_payload_that_is_no_json_is_malformed(payload: bytes) -> None:
    assert fault(forge({"alg": "HS256"}, payload)) == "malformed"


@pytest.mark.parametrize("first", ["nobody", "42"])
def test_last_of_two_equal_claims_counts_as_in_pyjwt(first: str) -> None:
    payload = f'{{"sub": "{first}", "sub": "last", "exp": {EXP}}}'.encode()
    token = forge({"alg": "HS256"}, payload)
    expected = jwt.decode(token, SECRET, ["HS256"], options={"verify_exp": False})["sub"]
    assert verifier().verify_connection(token, now_s=NOW).user == expected == "last"


@pytest.mark.parametrize(
    "sub", ["", "x" * 129, "é" * 65, "a\x00", "a\nb", "\x7f", "\x85", 42, None, True, [], {}]
)
def test_invalid_sub_is_refused(sub: object) -> None:
    assert claims_fault(sub=sub) == "bad_claims"


def test_a_token_without_sub_is_refused() -> None:
    assert fault(sign({"exp": EXP})) == "bad_claims"


def test_half_a_surrogate_pair_is_no_user() -> None:
    assert fault(forge({"alg": "HS256"}, b'{"exp": 1800000600, "sub": "\\ud800"}')) == "malformed"


@pytest.mark.parametrize("sub", ["4", "x" * 128, "é" * 64, "日本 太郎", "a@b", "o'hara", "🙂"])
def test_valid_sub_is_accepted(sub: str) -> None:
    assert verifier().verify_connection(sign({**CLAIMS, "sub": sub}), now_s=NOW).user == sub


def test_claims_about_channels_become_permissions() -> None:
    token = sign({**CLAIMS, "channels": ["news"], "subscribe": ["chat:*", "a"], "publish": ["chat:42"]})
    found = verifier().verify_connection(token, now_s=NOW).permissions
    assert found == Permissions(("news",), ("a", "chat:*"), ("chat:42",))


def test_equal_permissions_of_two_tokens_are_one_object_while_held() -> None:
    judge, found = verifier(), []
    for sub in ("1", "2"):
        claims = {"sub": sub, "exp": EXP, "subscribe": ["a", "b"]}
        identity = judge.verify_connection(sign(claims), now_s=NOW)
        found.append(judge._permissions.hold(identity.permissions))
        assert found[-1] is identity.permissions
    assert found[0] is found[1]
    assert judge.verify_connection(sign(CLAIMS), now_s=NOW).permissions is NO_PERMISSIONS


BAD_NAMES = ["", "@me", "@42", "a b", "a\n", "{a}", "a" * 201, "a**", "*a", "a\x00"]


@pytest.mark.parametrize("claim", ["channels", "subscribe", "publish"])
@pytest.mark.parametrize("name", BAD_NAMES)
def test_invalid_name_in_a_channel_claim_is_refused(claim: str, name: str) -> None:
    assert claims_fault(**{claim: ["good", name]}) == "bad_claims"


@pytest.mark.parametrize("claim", ["channels", "subscribe", "publish"])
@pytest.mark.parametrize("value", ["news", 1, {}, {"a": 1}, [1], [None], [["a"]], True])
def test_a_claim_that_is_no_list_of_names_is_refused(claim: str, value: object) -> None:
    assert claims_fault(**{claim: value}) == "bad_claims"


@pytest.mark.parametrize("claim", ["channels", "subscribe", "publish"])
def test_a_claim_has_at_most_128_names(claim: str) -> None:
    names = [f"room:{number}" for number in range(129)]
    token = sign({**CLAIMS, claim: names[:128]})
    found = verifier().verify_connection(token, now_s=NOW).permissions
    assert len(getattr(found, claim)) == 128
    assert claims_fault(**{claim: names}) == "bad_claims"


def test_a_pattern_is_no_channel_to_subscribe_on_connect() -> None:
    assert claims_fault(channels=["chat:*"]) == "bad_claims"


@pytest.mark.parametrize("channel", ["chat:42", "", None, 1, "*"])
def test_a_channel_token_never_opens_a_connection(channel: object) -> None:
    assert claims_fault(channel=channel) == "bad_claims"


def channel_fault(
    claims: dict[str, Any], *, channel: str = "chat:42", user: str | None = "42", **policy: Any
) -> str:
    return fault_of(
        lambda: verifier(**policy).verify_channel(sign(claims), channel=channel, user=user, now_s=NOW)
    )


CHANNEL_CLAIMS = {**CLAIMS, "channel": "chat:42"}


@pytest.mark.parametrize("user", ["42", None])
def test_a_channel_token_opens_its_channel_to_its_user(user: str | None) -> None:
    grant = verifier().verify_channel(sign(CHANNEL_CLAIMS), channel="chat:42", user=user, now_s=NOW)
    assert grant == ChannelGrant("42", "chat:42", EXP)


@pytest.mark.parametrize("channel", ["chat:4", "chat:421", "chat:*", "Chat:42", "", "@42"])
def test_a_channel_token_opens_no_other_channel(channel: str) -> None:
    assert channel_fault(CHANNEL_CLAIMS, channel=channel) == "wrong_channel"


@pytest.mark.parametrize("user", ["43", "4", "", "422"])
def test_a_channel_token_serves_no_other_user(user: str) -> None:
    assert channel_fault(CHANNEL_CLAIMS, user=user) == "wrong_user"


@pytest.mark.parametrize("channel", ["chat:*", "*"])
def test_star_in_a_channel_token_is_not_a_pattern(channel: str) -> None:
    assert channel_fault({**CLAIMS, "channel": channel}) == "wrong_channel"


@pytest.mark.parametrize("channel", ["", "@42", "@me", "a b", "{a}", "a" * 201, None, 1, ["chat:42"]])
def test_channel_token_with_an_invalid_channel_is_refused(channel: Any) -> None:
    asked = channel if isinstance(channel, str) else "chat:42"
    assert channel_fault({**CLAIMS, "channel": channel}, channel=asked) == "bad_claims"


def test_a_connection_token_never_opens_a_channel() -> None:
    assert channel_fault({**CLAIMS, "channels": ["chat:42"], "subscribe": ["*"]}) == "bad_claims"


@pytest.mark.parametrize("user", ["42", None])
def test_a_channel_token_needs_sub_and_exp_whatever_the_policy(user: str | None) -> None:
    for missing in ("sub", "exp"):
        claims = {name: value for name, value in CHANNEL_CLAIMS.items() if name != missing}
        assert channel_fault(claims, user=user, require_exp=False) == "bad_claims"


def test_s18_a_channel_token_obeys_the_same_policy() -> None:
    assert channel_fault({**CHANNEL_CLAIMS, "exp": 1}) == "expired"
    assert channel_fault({**CHANNEL_CLAIMS, "nbf": NOW + 1}) == "not_yet_valid"
    assert channel_fault(CHANNEL_CLAIMS, audience="shop") == "wrong_audience"
    assert channel_fault(CHANNEL_CLAIMS, issuer="issuer") == "wrong_issuer"
    forged = forge({"alg": "HS256"}, CHANNEL_CLAIMS, b"another secret")
    judge = verifier()
    refusal = fault_of(lambda: judge.verify_channel(forged, channel="chat:42", user="42", now_s=NOW))
    assert refusal == "bad_signature"


def test_s18_refusal_contains_no_text_of_the_token() -> None:
    token = forge({"alg": "HS256", "kid": "canary"}, {"sub": "canary"})
    with pytest.raises(TokenError) as refusal:
        verifier().verify_connection(token, now_s=NOW)
    assert "canary" not in str(refusal.value) + repr(refusal.value)


def judged(token: str | bytes) -> None:
    """Verify a token as connection and channel token; any error but a `TokenError` fails the test."""
    judge = verifier()
    for ask in (
        lambda: judge.verify_connection(token, now_s=NOW),
        lambda: judge.verify_channel(token, channel="a", user=None, now_s=NOW),
    ):
        try:
            ask()
        except TokenError as error:
            assert error.fault in FAULTS


@given(st.one_of(st.binary(max_size=300), st.text(max_size=300)))
@example(b"\xff.\xff.\xff")
@example("\ud800.a.b")
def test_s18_random_bytes_or_text_raise_only_token_error(token: str | bytes) -> None:
    judged(token)


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=5),
        st.sampled_from(["HS256", "none", "a", "b64"]),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
HEADER_NAMES = st.sampled_from(["alg", "kid", "crit", "b64", "typ", "jwk", "zip"])
CLAIM_NAMES = st.sampled_from(
    ["sub", "exp", "nbf", "iat", "aud", "iss", "channel", "channels", "subscribe", "publish", "x"]
)


@given(st.dictionaries(HEADER_NAMES, JSON), st.dictionaries(CLAIM_NAMES, JSON))
def test_s18_random_headers_and_claims_raise_only_token_error(
    header: dict[str, Any], claims: dict[str, Any]
) -> None:
    judged(forge({"alg": "HS256", **header}, claims))
    judged(forge({"alg": "HS256"}, {**CLAIMS, **claims}))


@given(st.binary(max_size=60), st.binary(max_size=200))
def test_s18_random_signed_bytes_raise_only_token_error(header: bytes, payload: bytes) -> None:
    judged(forge(header, payload))
    judged(forge({"alg": "HS256"}, payload))


@given(st.integers(0, len(GOOD_TOKEN) - 1), st.integers(1, 255))
def test_s18_token_with_one_changed_byte_is_refused(place: int, change: int) -> None:
    raw = bytearray(GOOD_TOKEN.encode())
    raw[place] ^= change
    fault(bytes(raw))
