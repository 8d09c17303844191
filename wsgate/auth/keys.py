"""Make the keys that verify tokens: each key has one algorithm, and its material is checked when it is made.

This module decides which key material fits an algorithm. It uses no claims, settings files or key sets.

Rules:
- The algorithm belongs to the key. A token whose header names another algorithm is refused, so a public key
  can never be used as an HMAC secret (CVE-2017-11424, CVE-2022-29217), and `none` does not exist.
- Unsuitable material is refused at start, with the name of the key.
- No error text and no `repr` shows a secret. The `repr` of a `KeySource` shows its public key.
"""

from __future__ import annotations

from binascii import a2b_base64, a2b_hex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    SECP384R1,
    SECP521R1,
    EllipticCurve,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt import InvalidKeyError
from jwt.algorithms import Algorithm, HMACAlgorithm, get_default_algorithms

from wsgate.errors import SettingsError

__all__ = ["ALGORITHMS", "KeyRing", "KeySource", "VerificationKey", "make_key", "public_key_of"]

PublicKey: TypeAlias = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey

# RFC 7518 section 3.2: an HMAC key has at least the size of the hash.
_SECRET_MIN_BYTES: Final = {"HS256": 32, "HS384": 48, "HS512": 64}
_HMAC_HASHES: Final = {
    "HS256": HMACAlgorithm.SHA256,
    "HS384": HMACAlgorithm.SHA384,
    "HS512": HMACAlgorithm.SHA512,
}
_RSA: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
# RFC 7518 section 3.4: each of these belongs to one curve.
_CURVES: Final[dict[str, type[EllipticCurve]]] = {
    "ES256": SECP256R1,
    "ES384": SECP384R1,
    "ES512": SECP521R1,
}
_PUBLIC: Final = {
    **dict.fromkeys(_RSA, "an RSA public key of at least 2048 bits"),
    "ES256": "a public key on P-256",
    "ES384": "a public key on P-384",
    "ES512": "a public key on P-521",
    "EdDSA": "an Ed25519 public key",
}
_RSA_MIN_BITS: Final = 2048  # RFC 7518 section 3.3
_KIDS_SHOWN: Final = 8
_KID_SHOWN: Final = 64  # characters
_URL_SAFE: Final = bytes.maketrans(b"-_", b"+/")

ALGORITHMS: Final = (*_SECRET_MIN_BYTES, *_PUBLIC)
"""The names of all algorithms that a key may have."""

_ALGORITHM_OBJECTS: Final[dict[str, Algorithm]] = {
    name: known for name, known in get_default_algorithms().items() if name in ALGORITHMS
}


@dataclass(frozen=True, slots=True, eq=False)
class VerificationKey:
    """A key that verifies signatures with its one algorithm; `make_key` makes it.

    Attributes:
        kid: The id of the key in token headers; None: the key is for tokens without a kid.
        algorithm: One of `ALGORITHMS`.
    """

    kid: str | None
    algorithm: str
    _material: bytes | PublicKey = field(repr=False)

    def has_signed(self, signing_input: bytes, signature: bytes) -> bool:
        """Verify that a signature was made over these bytes with this key and its algorithm.

        `make_key` has prepared the material, so PyJWT's algorithm object verifies at once. PyJWT's own
        `decode` searches the secret for PEM, SSH, DER and JWK again for every token.

        Args:
            signing_input: The first two segments of a token in compact form, with the dot between them.
            signature: The decoded third segment; any bytes.
        """
        return _ALGORITHM_OBJECTS[self.algorithm].verify(signing_input, self._material, signature)


@dataclass(frozen=True, slots=True)
class KeySource:
    """The plain text that a key is made from, so that another process can make the same key."""

    kid: str | None
    algorithm: str
    secret: str = field(default="", repr=False)
    public_key: str = ""

    def make(self, *, is_checked: bool = False) -> VerificationKey:
        """Make the verification key from the secret or the public key of this source.

        Args:
            is_checked: The key was made from this source before, perhaps in another process, so a secret is
                used without further checks. The checks parse the secret in every form of a public key, and a
                shard that repeats them copies 0.4 MB of shared pages.

        Raises:
            SettingsError: As `make_key`.
        """
        secret = self.secret.encode()
        if is_checked and secret:
            return VerificationKey(self.kid, self.algorithm, secret)
        return make_key(self.kid, self.algorithm, secret=secret, public_key=self.public_key)


class KeyRing:
    """All configured keys, from which a token's header selects one.

    Args:
        keys: The keys in any order. Without any key, no token is valid.

    Raises:
        SettingsError: Two keys have the same kid, or two keys have none.
    """

    __slots__ = ("_keys",)

    def __init__(self, keys: Iterable[VerificationKey]) -> None:
        self._keys: dict[str | None, VerificationKey] = {}
        for key in keys:
            if key.kid in self._keys:
                raise SettingsError(f"{_name(key.kid)} exists twice")
            self._keys[key.kid] = key

    def __len__(self) -> int:
        return len(self._keys)

    def kids_text(self) -> str:
        """List the first kids of the ring for a log line; a text from a token is never among them."""
        kids = [kid for kid in self._keys if kid is not None]
        shown = ", ".join(kid[:_KID_SHOWN] for kid in kids[:_KIDS_SHOWN]) or "none"
        return shown if len(kids) <= _KIDS_SHOWN else f"{shown} and {len(kids) - _KIDS_SHOWN} more"

    def pick(self, kid: str | None) -> VerificationKey | None:
        """Select the one key that may have signed a token with this kid.

        Args:
            kid: The kid in the token's header; None: the header has none.

        Returns:
            For a kid, only the key with that kid. For None, the key without a kid, or the only key of the
            ring.
            None: there is no such key. Keys are never tried one after the other, because a token names its
                key.
        """
        found = self._keys.get(kid)
        if found is None and kid is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return found


def make_key(
    kid: str | None, algorithm: str, *, secret: bytes = b"", public_key: str = ""
) -> VerificationKey:
    """Check key material, and make a verification key for one algorithm.

    Args:
        kid: The id of the key in token headers, not empty; None: the key is for tokens without a kid.
        algorithm: One of `ALGORITHMS`.
        secret: The secret for HS256, HS384 or HS512, with at least 32, 48 or 64 bytes.
        public_key: The PEM text for the other algorithms: RSA of at least 2048 bits for RS and PS, P-256,
            P-384 and P-521 for ES256, ES384 and ES512, Ed25519 for EdDSA.

    Raises:
        SettingsError: The kid is empty, the algorithm is unknown, or the material is missing, of the other
            kind, too short, or does not fit the algorithm. A
            secret that is the text of a public key (PEM, DER, JWK, SSH, also in base64 or hexadecimal) is
            refused, because a public key is no secret.

    Source: RFC 8725 sections 3.1, 3.2, 3.5.
    """
    if kid == "":
        raise SettingsError("a key's kid must not be empty")
    if algorithm in _SECRET_MIN_BYTES and not public_key:
        return VerificationKey(kid, algorithm, _secret(_name(kid), algorithm, secret))
    if algorithm in _PUBLIC and not secret:
        return VerificationKey(kid, algorithm, _public(_name(kid), algorithm, public_key))
    if algorithm in ALGORITHMS:
        right = "a secret, no public_key" if algorithm in _SECRET_MIN_BYTES else "a public_key, no secret"
        raise SettingsError(f"{_name(kid)}: {algorithm} takes {right}")
    raise SettingsError(f"{_name(kid)}: algorithm must be one of {', '.join(ALGORITHMS)}")


def _name(kid: str | None) -> str:
    return "the key without kid" if kid is None else f"key {kid!r}"


def _secret(name: str, algorithm: str, secret: bytes) -> bytes:
    """Check a secret for an HMAC algorithm: its size, and that it is no text of a key."""
    least = _SECRET_MIN_BYTES[algorithm]
    if len(secret) < least:
        raise SettingsError(f"{name}: {algorithm} needs a secret of at least {least} bytes")
    judge = HMACAlgorithm(_HMAC_HASHES[algorithm])
    try:
        for form in _forms(secret):
            judge.prepare_key(form)
    except InvalidKeyError:
        # CVE-2022-29217, CVE-2026-48526.
        raise SettingsError(f"{name}: the secret is the text of a key, certificate or JWK") from None
    return secret


def _forms(secret: bytes) -> Iterator[bytes]:
    """Yield the secret as it is, and decoded from base64 and from hexadecimal where that is possible."""
    yield secret
    base64, hexadecimal = secret.translate(_URL_SAFE) + b"==", b"".join(secret.split())
    for decode, text in ((a2b_base64, base64), (a2b_hex, hexadecimal)):
        try:
            form = decode(text)
        except ValueError:
            continue
        if form:
            yield form


def _public(name: str, algorithm: str, public_key: str) -> PublicKey:
    """Parse the PEM text of a public key, and check that the key fits the algorithm."""
    try:
        key = load_pem_public_key(public_key.encode())
    except (TypeError, ValueError, UnsupportedAlgorithm):
        raise SettingsError(f"{name}: public_key is not the PEM text of a public key") from None
    try:
        return public_key_of(algorithm, key)
    except SettingsError as error:
        raise SettingsError(f"{name}: {error}") from None


def public_key_of(algorithm: str, key: object) -> PublicKey:
    """Return a public key if it fits the algorithm; else raise SettingsError with the kind of key needed."""
    if algorithm in _RSA and isinstance(key, RSAPublicKey) and key.key_size >= _RSA_MIN_BITS:
        return key
    curve = _CURVES.get(algorithm)
    if curve is not None and isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, curve):
        return key
    if algorithm == "EdDSA" and isinstance(key, Ed25519PublicKey):
        return key
    raise SettingsError(f"{algorithm} needs {_PUBLIC[algorithm]}")
