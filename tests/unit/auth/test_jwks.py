"""Check that a key set yields the usable keys only (S19), and that a token may arrive before its key."""

import json
import time
from base64 import urlsafe_b64decode
from collections import Counter
from typing import Any, Final

import jwt
import pytest

from tests.support.issuer import ISSUER, SigningKey, symmetric
from wsgate.auth import (
    ALGORITHMS,
    KEYS_LIMIT,
    TokenError,
    TokenPolicy,
    VerificationKey,
    kid_of,
    make_key,
    parse_jwks,
)
from wsgate.auth.jwks import read_jwks
from wsgate.errors import SettingsError
from wsgate.log import Log
from wsgate.reasons import Reason
from wsgate.shard.tokens import REVOKED_LIMIT, UNKNOWN_LIMIT, Tokens

EC: Final = SigningKey("ec")
ED: Final = SigningKey("ed", "EdDSA")
RSA: Final = SigningKey("rsa", "RS256")
NOW_S: Final = 1_000_000_000.0


def key_set(*rows: Any) -> bytes:
    return json.dumps({"keys": [row.jwk() if isinstance(row, SigningKey) else row for row in rows]}).encode()


def has_signed(key: VerificationKey, token: str) -> bool:
    signing_input, _, signature = token.encode().rpartition(b".")
    return key.has_signed(signing_input, urlsafe_b64decode(signature + b"=="))


def test_key_set_yields_public_keys_of_every_kind() -> None:
    keys = parse_jwks(key_set(EC, ED, RSA))
    assert [(key.kid, key.algorithm) for key in keys] == [("ec", "ES256"), ("ed", "EdDSA"), ("rsa", "RS256")]
    for key, source in zip(keys, (EC, ED, RSA), strict=True):
        assert has_signed(key, source.token())


def private(key: SigningKey) -> dict[str, Any]:
    """Return the whole key pair as JWK, which an owner must never publish."""
    found: dict[str, Any] = json.loads(jwt.get_algorithm_by_name(key.algorithm).to_jwk(key.private))
    return found | {"kid": "leaked"}


@pytest.mark.parametrize(
    "row",
    [
        symmetric("shared", b"x" * 32),
        private(EC),
        private(ED),
        private(RSA),
        EC.jwk(kid=None),
        EC.jwk(kid=""),
        EC.jwk(kid=7),
        EC.jwk(kid="k" * 257),
        EC.jwk(use="enc"),
        EC.jwk(key_ops=["sign"]),
        EC.jwk(alg="RS256"),
        EC.jwk(alg="HS256"),
        EC.jwk(kty="RSA"),
        EC.jwk(kty="oct"),
        EC.jwk(kty=None),
        EC.jwk(x="AAAA"),
        EC.jwk(crv="P-384"),
        ED.jwk(crv="X25519"),
        RSA.jwk(n="AQAB"),
        SigningKey("small", "RS256").jwk(e="AQ"),
        "text",
        7,
        None,
        [],
        {},
    ],
)
def test_unusable_key_of_a_set_is_skipped_and_the_other_key_is_used(row: Any) -> None:
    assert [key.kid for key in parse_jwks(key_set(row, ED))] == ["ed"]


ALL_PUBLIC: Final = [name for name in ALGORITHMS if not name.startswith("HS")]


@pytest.mark.parametrize("algorithm", ALL_PUBLIC)
def test_a_token_of_every_algorithm_is_verified_with_a_key_of_a_set(algorithm: str) -> None:
    rig, key = TokensRig(), SigningKey("k", algorithm)
    rig.fetch(key)
    assert rig.fault(key.token()) == ""
    assert rig.fault(SigningKey("k", algorithm).token()) == "bad_signature"


@pytest.mark.parametrize(
    ("algorithm", "usual"),
    [
        ("RS256", "RS256"),
        ("RS512", "RS256"),
        ("PS256", "RS256"),
        ("ES256", "ES256"),
        ("ES384", "ES384"),
        ("ES512", "ES512"),
        ("EdDSA", "EdDSA"),
    ],
)
def test_key_without_alg_has_the_usual_algorithm_of_its_type_and_curve(algorithm: str, usual: str) -> None:
    key = SigningKey("k", algorithm)
    for row in (key.jwk(alg=None), key.jwk() | {"alg": None}):
        (found,) = parse_jwks(key_set(row))
        assert found.algorithm == usual


def test_the_token_does_not_choose_the_algorithm_of_a_key_without_alg() -> None:
    rig, key = TokensRig(), SigningKey("k", "PS256")
    rig.tokens.renew_fetched(parse_jwks(key_set(key.jwk(alg=None))))
    assert rig.fault(key.token()) == "wrong_algorithm"


@pytest.mark.parametrize("member", ["alg", "use", "key_ops", "x5c", "x5u", "d", "oth", "ext"])
def test_a_member_of_a_key_that_is_null_counts_as_missing(member: str) -> None:
    for key in (EC, ED, RSA):
        (found,) = parse_jwks(key_set(key.jwk() | {member: None}))
        assert has_signed(found, key.token())


WEAK: Final = SigningKey("weak", "RS256", rsa_bits=1024)
PASSED_OVER: Final = {
    "a shared secret": (symmetric("odd", b"x" * 32), "its kty is not RSA, EC or OKP"),
    "a private key": (private(EC) | {"kid": "odd"}, "it is a private key, which must not be published"),
    "a weak key": (WEAK.jwk(kid="odd"), "RS256 needs an RSA public key of at least 2048 bits"),
    "a weak PS key": (
        WEAK.jwk(kid="odd", alg="PS256"),
        "PS256 needs an RSA public key of at least 2048 bits",
    ),
    "for encryption": (RSA.jwk(kid="odd", use="enc"), "its use is not sig"),
    "for RSA-OAEP": (
        RSA.jwk(kid="odd", alg="RSA-OAEP"),
        "its alg is not a supported algorithm with a public key",
    ),
    "to sign only": (EC.jwk(kid="odd", key_ops=["sign"]), "its key_ops do not contain verify"),
    "odd operations": (EC.jwk(kid="odd", key_ops=7), "its key_ops do not contain verify"),
    "another curve's alg": (EC.jwk(kid="odd", alg="ES384"), "it cannot be read"),
    "another type's alg": (EC.jwk(kid="odd", alg="RS256"), "it cannot be read"),
    "HS256 of a public key": (
        RSA.jwk(kid="odd", alg="HS256"),
        "its alg is not a supported algorithm with a public key",
    ),
    "secp256k1": (EC.jwk(kid="odd", crv="secp256k1", alg=None), "it cannot be read"),
    "X25519": (ED.jwk(kid="odd", crv="X25519"), "it cannot be read"),
    "half a point": (EC.jwk(kid="odd", x="AAAA"), "it cannot be read"),
}


@pytest.mark.parametrize("name", PASSED_OVER)
def test_skipped_key_has_a_cause_and_its_tokens_are_refused_as_final(name: str) -> None:
    row, why = PASSED_OVER[name]
    found = read_jwks(key_set(row, ED))
    assert [key.kid for key in found.keys] == ["ed"]
    ((kid, shown),) = found.passed_over
    assert kid == "odd"
    assert shown == why or (why == "it cannot be read" and " needs a" in shown)
    assert "odd" not in shown
    rig = TokensRig()
    rig.tokens.renew_fetched(*found)
    for _ in range(3):
        with pytest.raises(TokenError) as refused:
            rig.tokens.connection(EC.token(kid="odd"), time.time() + 1)
        assert refused.value.fault == "unusable_key"
        assert refused.value.reason == Reason.INVALID_TOKEN
        assert shown in refused.value.why
    assert rig.counts["unknown_key_ids_requested"] == 0, "the key has arrived, so no fetch helps"


def test_kid_of_a_usable_and_an_unusable_key_yields_the_usable_key() -> None:
    for rows in ((EC.jwk(use="enc"), EC), (EC, EC.jwk(use="enc"))):
        found = read_jwks(key_set(*rows))
        assert [key.kid for key in found.keys] == ["ec"]
        assert found.passed_over == ()


def test_tokens_of_a_key_are_accepted_only_while_the_key_is_usable() -> None:
    rig = TokensRig()
    rig.tokens.renew_fetched(*read_jwks(key_set(EC.jwk(use="enc"), ED)))
    assert rig.fault(EC.token()) == "unusable_key"
    rig.fetch(EC, ED)
    assert rig.fault(EC.token()) == ""
    rig.tokens.renew_fetched(*read_jwks(key_set(EC.jwk(use="enc"), ED)))
    assert rig.fault(EC.token()) == "unusable_key"


def test_set_without_usable_keys_is_still_awaited_and_its_unusable_kids_are_final() -> None:
    rig = TokensRig()
    rig.tokens.renew_fetched(*read_jwks(key_set(WEAK)))
    assert rig.tokens.is_awaiting
    assert rig.fault(EC.token(kid="weak")) == "unusable_key"
    assert rig.fault(EC.token()) == "awaited_key"


def test_rows_of_a_set_without_a_valid_kid_are_skipped_without_a_kid() -> None:
    found = read_jwks(key_set("text", 7, [], {}, EC.jwk(kid=None), EC.jwk() | {"kid": None}, EC.jwk(kid=7)))
    assert {each.kid for each in found.passed_over} == {None}
    assert len(found.passed_over) == 7
    assert all(str(each).startswith("a key without kid: ") for each in found.passed_over)


def test_first_of_two_keys_with_one_kid_is_used() -> None:
    other = SigningKey("ec")
    (key,) = parse_jwks(key_set(EC, other))
    assert has_signed(key, EC.token()) and not has_signed(key, other.token())


TOO_DEEP: Final = b'{"keys":' + b"[" * 100_000
TOO_MANY: Final = b'{"keys":[' + b"7," * 70 + b"7]}"


@pytest.mark.parametrize("document", [b"", b"[]", b"\xff", b"<html>", b'{"keys":7}', TOO_DEEP, TOO_MANY])
def test_malformed_key_set_raises_settings_error(document: bytes) -> None:
    with pytest.raises(SettingsError):
        parse_jwks(document)


def test_an_empty_set_has_no_keys_and_too_many_are_refused() -> None:
    assert parse_jwks(b"{}") == parse_jwks(b'{"keys":[]}') == ()
    with pytest.raises(SettingsError, match="more than 64"):
        parse_jwks(key_set(*[EC] * (KEYS_LIMIT + 1)))


def test_urls_in_a_key_are_not_fetched() -> None:
    url = "http://127.0.0.1:1/never"
    (key,) = parse_jwks(key_set(EC.jwk(x5u=url, jku=url, x5c=["AAAA"])))
    assert key.kid == "ec"


@pytest.mark.parametrize("token", ["", "x", "..", "e30.e30.", "a" * 9_000, "\u00fc.x.y"])
def test_a_token_that_names_no_key_has_no_kid(token: str) -> None:
    assert kid_of(token) is None
    assert kid_of(EC.token()) == "ec"


# --- in a shard -----------------------------------------------------------------------------------------


class TokensRig:
    """A shard's tokens."""

    def __init__(self, *, is_fetching: bool = True) -> None:
        self.counts: Counter[str] = Counter()
        self.tokens = Tokens(
            (make_key("own", "HS256", secret=b"s" * 32),),
            TokenPolicy(issuer=ISSUER),
            100,
            self._count,
            is_fetching=is_fetching,
        )

    def _count(self, name: str, amount: int) -> None:
        self.counts[name] += amount

    def fetch(self, *keys: SigningKey) -> None:
        self.tokens.renew_fetched(parse_jwks(key_set(*keys)))

    def fault(self, token: str) -> str:
        """Return the fault of a refused token, or an empty text."""
        try:
            self.tokens.connection(token, time.time() + 1)
        except TokenError as error:
            return error.fault
        return ""


EC_NOW_S: Final = time.time()


def test_unknown_kid_is_awaited_for_two_fetches_and_is_then_final() -> None:
    rig = TokensRig()
    assert rig.tokens.is_awaiting
    rig.fetch(ED)
    assert not rig.tokens.is_awaiting
    assert [rig.fault(EC.token()) for _ in range(3)] == ["awaited_key"] * 3
    assert rig.counts["unknown_key_ids_requested"] == 1, "the kid is requested once"
    rig.fetch(ED)
    assert rig.fault(EC.token()) == "awaited_key", "that fetch may have begun before the request"
    assert rig.counts["unknown_key_ids_requested"] == 2, "so the kid is requested again"
    rig.fetch(ED)
    assert rig.fault(EC.token()) == "unknown_key", "the key did not arrive"
    rig.fetch(ED)
    assert rig.fault(EC.token()) == "unknown_key"
    rig.fetch(ED, EC)
    assert rig.fault(EC.token()) == ""
    assert rig.counts["unknown_key_ids_requested"] == 2


def test_token_without_kid_is_awaited_before_the_first_key_set() -> None:
    """A set of one key verifies tokens without kid, so such a token is early and not wrong."""
    rig = TokensRig()
    rig.tokens.renew((), TokenPolicy(issuer=ISSUER), 100)
    nameless = EC.token(kid=None)
    assert kid_of(nameless) is None
    assert rig.fault(nameless) == "awaited_key"
    rig.fetch(EC)
    assert rig.fault(nameless) == ""
    rig.fetch(EC, ED)
    assert rig.fault(nameless) == "unknown_key", "with two keys a token must have a kid"


def test_channel_token_with_an_unknown_kid_is_awaited_like_a_connection_token() -> None:
    rig = TokensRig()
    token = EC.token(channel="chat:42")
    rig.fetch(ED)
    for _ in range(2):
        with pytest.raises(TokenError) as refused:
            rig.tokens.channel(token, "chat:42", "42", time.time() + 1)
        assert refused.value.is_awaited
    assert (rig.counts["unknown_key_ids_requested"], rig.counts["tokens_refused"]) == (1, 2)
    rig.fetch(ED, EC)
    assert rig.tokens.channel(token, "chat:42", "42", time.time() + 1).channel == "chat:42"


def test_unknown_kid_is_final_without_a_key_set_url() -> None:
    rig = TokensRig(is_fetching=False)
    assert not rig.tokens.is_awaiting
    assert rig.fault(EC.token()) == "unknown_key"
    assert rig.counts["unknown_key_ids_requested"] == 0


def test_number_of_remembered_unknown_kids_is_bounded() -> None:
    rig = TokensRig()
    for number in range(UNKNOWN_LIMIT + 50):
        key = SigningKey.__new__(SigningKey)
        key.kid, key.algorithm, key.private = f"kid-{number}", EC.algorithm, EC.private
        assert rig.fault(key.token()) == "awaited_key"
    assert len(rig.tokens._unknown) == UNKNOWN_LIMIT


def test_configured_key_takes_precedence_over_a_set_key_with_the_same_kid() -> None:
    rig = TokensRig()
    own = SigningKey("own")
    rig.fetch(own)
    assert rig.fault(own.token()) == "wrong_algorithm"


def test_the_same_kid_of_another_issuer_is_not_the_key() -> None:
    rig = TokensRig()
    rig.fetch(EC)
    assert rig.fault(EC.token(iss="https://other.example")) == "wrong_issuer"
    assert rig.fault(SigningKey("ec").token()) == "bad_signature"


def test_cached_tokens_of_a_key_that_left_the_set_are_refused() -> None:
    rig = TokensRig()
    rig.fetch(EC, ED)
    token = EC.token()
    assert [rig.fault(token), rig.fault(token)] == ["", ""]
    assert rig.counts["tokens_cached"] == 1
    rig.fetch(EC, ED)
    assert rig.fault(token) == "" and rig.counts["tokens_cached"] == 2
    rig.fetch(ED)
    assert rig.fault(token) in ("unknown_key", "awaited_key")


def test_revocation_refuses_older_tokens_of_the_user_and_accepts_newer_ones() -> None:
    rig = TokensRig()
    rig.fetch(EC)
    old, timeless = EC.token(iat=int(EC_NOW_S) - 100), EC.token(iat=None)
    fresh, other = EC.token(iat=int(EC_NOW_S)), EC.token("43", iat=int(EC_NOW_S) - 100)
    assert [rig.fault(each) for each in (old, timeless, fresh, other)] == [""] * 4
    rig.tokens.revoke("42", int(EC_NOW_S) - 50)
    assert [rig.fault(each) for each in (old, timeless, fresh, other)] == ["revoked", "revoked", "", ""]
    with pytest.raises(TokenError) as refused:
        rig.tokens.connection(old, EC_NOW_S)
    assert refused.value.is_expired, "a fresh token is accepted"


def test_number_of_revoked_users_is_bounded_and_forgotten_ones_are_counted() -> None:
    rig = TokensRig()
    for number in range(REVOKED_LIMIT + 3):
        rig.tokens.revoke(f"user-{number}", NOW_S)
    assert rig.tokens.revoked == REVOKED_LIMIT
    assert rig.counts["revocations_forgotten"] == 3
    assert rig.tokens.revoked_bytes < 20 * 1024 * 1024


def test_displaced_revocation_applies_to_all_users_and_to_cached_tokens(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("wsgate.shard.tokens.REVOKED_LIMIT", 2)
    rig = TokensRig()
    rig.tokens._log = Log("full")
    rig.fetch(EC)
    now_s = int(time.time())
    old, fresh = EC.token(iat=now_s - 100), EC.token(iat=now_s)
    assert [rig.fault(each) for each in (old, fresh, old, fresh)] == [""] * 4
    assert rig.counts["tokens_cached"] == 2
    for number in range(2):
        rig.tokens.revoke(f"user-{number}", now_s - 50 + number)
    assert [rig.fault(each) for each in (old, fresh)] == ["", ""]
    rig.tokens.revoke("user-2", now_s - 10)
    assert [rig.fault(each) for each in (old, fresh)] == ["revoked", ""]
    assert rig.fault(EC.token("user-0", iat=now_s - 51)) == "revoked", (
        "the revocation of the user is not lost"
    )
    assert rig.fault(EC.token("user-2", iat=now_s - 20)) == "revoked"
    (line,) = [record for record in caplog.records if record.message == "revocations_full"]
    assert vars(line)["fields"]["all_before_s"] == now_s - 50


def test_a_revocation_is_idempotent_and_keeps_the_latest_time() -> None:
    rig = TokensRig()
    rig.fetch(EC)
    now_s = int(time.time())
    for before_s in (now_s - 10, now_s - 1_000, now_s - 10):
        rig.tokens.revoke("42", before_s)
    assert rig.fault(EC.token(iat=now_s - 11)) == "revoked"
    assert rig.fault(EC.token(iat=now_s - 9)) == ""
    assert rig.tokens.revoked == 1


def test_revocation_is_forgotten_after_the_longest_life_of_a_token() -> None:
    rig = TokensRig()
    assert rig.tokens.revocation_ends_at_s(NOW_S) is None
    rig.tokens.revoke("42", NOW_S)
    rig.tokens.tick(NOW_S, 0.0)
    rig.tokens.tick(NOW_S + 1e9, 1e9)
    assert rig.tokens.revoked == 1, "tokens may live for any time"
    rig.tokens.renew((), TokenPolicy(issuer=ISSUER, token_max_life_s=3600, leeway_s=5), 100)
    assert rig.tokens.revocation_ends_at_s(NOW_S) == NOW_S + 3605
    rig.tokens.tick(NOW_S + 3605, 1e9)
    assert rig.tokens.revoked == 1
    rig.tokens.tick(NOW_S + 3605.5, 1e9 + 0.5)
    assert rig.tokens.revoked == 0
