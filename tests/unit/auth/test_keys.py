"""Check which material makes a key for an algorithm, and which key a header selects (the key rows of S18)."""

import json
from base64 import b64encode, urlsafe_b64decode, urlsafe_b64encode

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from jwt.algorithms import RSAAlgorithm

from wsgate.auth import ALGORITHMS, KeyRing, make_key
from wsgate.errors import SettingsError

RSA_2048 = rsa.generate_private_key(65537, 2048)
RSA_1024 = rsa.generate_private_key(65537, 1024)
P256 = ec.generate_private_key(ec.SECP256R1())
P384 = ec.generate_private_key(ec.SECP384R1())
P521 = ec.generate_private_key(ec.SECP521R1())
K256 = ec.generate_private_key(ec.SECP256K1())
ED25519 = ed25519.Ed25519PrivateKey.generate()
ED448 = ed448.Ed448PrivateKey.generate()
DSA = dsa.generate_private_key(2048)
SECRET = bytes(range(64))
RSA_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")


def public_bytes(key: PublicKeyTypes, encoding: Encoding = Encoding.PEM) -> bytes:
    return key.public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo)


def pem(key: PublicKeyTypes) -> str:
    return public_bytes(key).decode()


def jwk(key: rsa.RSAPublicKey) -> str:
    return RSAAlgorithm.to_jwk(key, as_dict=False)


GOOD = [
    ("HS256", SECRET[:32], ""),
    ("HS384", SECRET[:48], ""),
    ("HS512", SECRET, ""),
    *((name, b"", pem(RSA_2048.public_key())) for name in RSA_ALGORITHMS),
    ("ES256", b"", pem(P256.public_key())),
    ("ES384", b"", pem(P384.public_key())),
    ("ES512", b"", pem(P521.public_key())),
    ("EdDSA", b"", pem(ED25519.public_key())),
]


@pytest.mark.parametrize(("algorithm", "secret", "public_key"), GOOD)
def test_suitable_material_makes_a_key_for_each_algorithm(
    algorithm: str, secret: bytes, public_key: str
) -> None:
    key = make_key("k1", algorithm, secret=secret, public_key=public_key)
    assert (key.kid, key.algorithm) == ("k1", algorithm)


def test_table_of_suitable_keys_covers_every_algorithm() -> None:
    assert tuple(row[0] for row in GOOD) == ALGORITHMS


@pytest.mark.parametrize(("algorithm", "least"), [("HS256", 32), ("HS384", 48), ("HS512", 64)])
def test_s18_a_short_or_empty_secret_is_refused(algorithm: str, least: int) -> None:
    make_key(None, algorithm, secret=SECRET[:least])
    for size in (0, 1, least - 1):
        with pytest.raises(SettingsError, match=f"at least {least} bytes"):
            make_key(None, algorithm, secret=SECRET[:size])


PUBLIC = RSA_2048.public_key()
KEY_TEXTS = {
    "pem": public_bytes(PUBLIC),
    "pem_indented": b"\n  " + public_bytes(PUBLIC),
    "pem_pkcs1": PUBLIC.public_bytes(Encoding.PEM, PublicFormat.PKCS1),
    "pem_p256": public_bytes(P256.public_key()),
    "pem_private": ED25519.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    "der": public_bytes(PUBLIC, Encoding.DER),
    "der_p256": public_bytes(P256.public_key(), Encoding.DER),
    "der_base64": b64encode(public_bytes(PUBLIC, Encoding.DER)),
    "der_base64_lines": b"\n".join(public_bytes(PUBLIC).splitlines()[1:-1]),
    "der_base64url": urlsafe_b64encode(public_bytes(P256.public_key(), Encoding.DER)).rstrip(b"="),
    "der_hexadecimal": public_bytes(PUBLIC, Encoding.DER).hex().encode(),
    "der_hexadecimal_pairs": public_bytes(PUBLIC, Encoding.DER).hex(" ").encode(),
    "jwk": jwk(PUBLIC).encode(),
    "jwk_spaced": b" \n" + jwk(PUBLIC).encode(),
    "jwk_set": json.dumps({"keys": [json.loads(jwk(PUBLIC))]}).encode(),
    "jwk_base64": b64encode(jwk(PUBLIC).encode()),
    "pem_base64": b64encode(public_bytes(PUBLIC)),
    "ssh": PUBLIC.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH),
}


@pytest.mark.parametrize("name", KEY_TEXTS)
def test_s18_text_of_a_key_is_refused_as_an_hmac_secret(name: str) -> None:
    assert len(KEY_TEXTS[name]) >= 64, "would be refused for its size"
    with pytest.raises(SettingsError, match="text of a key"):
        make_key("k1", "HS256", secret=KEY_TEXTS[name])


@pytest.mark.parametrize(
    "secret",
    [b"0" * 64, b"correct horse battery staple, and then some", b64encode(SECRET), SECRET.hex().encode()],
)
def test_other_long_text_is_accepted_as_an_hmac_secret(secret: bytes) -> None:
    assert make_key("k1", "HS256", secret=secret).algorithm == "HS256"


MISFITS = [
    *((name, pem(RSA_1024.public_key())) for name in RSA_ALGORITHMS),
    *((name, pem(P256.public_key())) for name in (*RSA_ALGORITHMS, "ES384", "ES512")),
    *((name, pem(P384.public_key())) for name in ("ES256", "ES512", "EdDSA")),
    *((name, pem(P521.public_key())) for name in ("ES256", "ES384", "PS512")),
    *((name, pem(RSA_2048.public_key())) for name in ("ES384", "ES512", "EdDSA")),
    ("RS256", pem(ED25519.public_key())),
    ("RS256", pem(DSA.public_key())),
    ("ES256", pem(K256.public_key())),
    ("ES256", pem(RSA_2048.public_key())),
    ("EdDSA", pem(ED448.public_key())),
    ("EdDSA", pem(P256.public_key())),
]


@pytest.mark.parametrize(("algorithm", "public_key"), MISFITS)
def test_s18_a_public_key_of_another_kind_is_refused(algorithm: str, public_key: str) -> None:
    with pytest.raises(SettingsError, match=f"key 'k1': {algorithm} needs"):
        make_key("k1", algorithm, public_key=public_key)


@pytest.mark.parametrize("algorithm", ["RS256", "PS512", "ES256", "ES512", "EdDSA"])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "secret",
        "-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n",
        jwk(PUBLIC),
        "\ud800",
        RSA_2048.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
        ED25519.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
    ],
)
def test_text_that_is_no_pem_of_a_public_key_is_refused(algorithm: str, text: str) -> None:
    with pytest.raises(SettingsError, match="not the PEM text of a public key"):
        make_key(None, algorithm, public_key=text)


def test_public_key_for_hmac_and_secret_for_other_algorithms_are_refused() -> None:
    with pytest.raises(SettingsError, match="HS256 takes a secret, no public_key"):
        make_key("k1", "HS256", secret=SECRET, public_key=pem(PUBLIC))
    for algorithm in (*RSA_ALGORITHMS, "ES256", "ES384", "ES512", "EdDSA"):
        with pytest.raises(SettingsError, match=f"{algorithm} takes a public_key, no secret"):
            make_key("k1", algorithm, secret=SECRET, public_key=pem(PUBLIC))


@pytest.mark.parametrize(
    "algorithm", ["none", "None", "nOnE", "", "hs256", "HS1", "ps256", "ES256K", "RS1", "RSA-OAEP", "Ed25519"]
)
def test_s18_unsupported_algorithm_raises_settings_error(algorithm: str) -> None:
    with pytest.raises(SettingsError, match="algorithm must be one of HS256"):
        make_key("k1", algorithm, secret=SECRET)


def test_an_empty_kid_is_refused() -> None:
    with pytest.raises(SettingsError, match="kid must not be empty"):
        make_key("", "HS256", secret=SECRET)


def test_repr_and_error_messages_contain_no_secret() -> None:
    secret = b"a canary that nobody may ever see in a log"
    key = make_key("k1", "HS256", secret=secret)
    assert "canary" not in repr(key)
    assert "canary" not in repr(KeyRing([key]))
    with pytest.raises(SettingsError) as refusal:
        make_key("k1", "HS512", secret=secret)
    assert "canary" not in str(refusal.value)
    with pytest.raises(SettingsError) as refusal:
        make_key("k1", "RS256", public_key=secret.decode())
    assert "canary" not in str(refusal.value)


def test_a_key_is_frozen() -> None:
    key = make_key("k1", "HS256", secret=SECRET)
    with pytest.raises(AttributeError):
        key.algorithm = "HS512"  # type: ignore[misc]


def test_has_signed_is_true_only_for_the_exact_input_signature_and_key() -> None:
    signing_input, _, encoded = jwt.encode({"sub": "42"}, SECRET, "HS256").encode().rpartition(b".")
    signature = urlsafe_b64decode(encoded + b"==")
    assert make_key(None, "HS256", secret=SECRET).has_signed(signing_input, signature)
    assert not make_key(None, "HS256", secret=SECRET[::-1]).has_signed(signing_input, signature)
    assert not make_key(None, "HS512", secret=SECRET).has_signed(signing_input, signature)
    assert not make_key(None, "HS256", secret=SECRET).has_signed(signing_input + b"A", signature)
    for other in (b"", signature[:-1], signature + b"\0", bytes(32)):
        assert not make_key(None, "HS256", secret=SECRET).has_signed(signing_input, other)


def test_a_kid_picks_only_its_own_key() -> None:
    one, two = (make_key(kid, "HS256", secret=SECRET) for kid in ("one", "two"))
    ring = KeyRing([one, two])
    assert ring.pick("one") is one
    assert ring.pick("two") is two
    assert ring.pick("three") is None
    assert ring.pick("") is None
    assert len(ring) == 2


def test_without_kid_the_nameless_key_is_picked_or_the_only_one() -> None:
    one, two, nameless = (make_key(kid, "HS256", secret=SECRET) for kid in ("one", "two", None))
    assert KeyRing([one]).pick(None) is one
    assert KeyRing([one, nameless]).pick(None) is nameless
    assert KeyRing([one, two]).pick(None) is None
    assert KeyRing([]).pick(None) is None


def test_a_kid_never_falls_back_to_the_nameless_key() -> None:
    assert KeyRing([make_key(None, "HS256", secret=SECRET)]).pick("one") is None


@pytest.mark.parametrize("kid", ["one", None])
def test_two_keys_of_one_kid_are_refused(kid: str | None) -> None:
    with pytest.raises(SettingsError, match="exists twice"):
        KeyRing([make_key(kid, "HS256", secret=SECRET), make_key(kid, "RS256", public_key=pem(PUBLIC))])
