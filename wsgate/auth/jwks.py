"""Parse a JSON Web Key Set into verification keys. Pure: this module fetches nothing.

Rules:
- Only public keys for signatures are used: RSA, P-256, P-384, P-521 and Ed25519. An unusable key is skipped
  with a reason, so that the operator can read the reason, and a token that names the key is refused
  permanently. Symmetric and private keys, keys for encryption or other operations, weak keys, and keys
  without a kid are unusable. A key needs a kid because a token names its key.
- The algorithm belongs to the key: it is the key's `alg`, or follows from its type and curve. A key whose
  `alg` does not fit its type is unusable.
- A member that is null counts as absent.
- An unusable key does not affect the others. URLs in a key (`x5u`, `jku`) are never fetched.

Source: RFC 7517, RFC 7518 section 6, RFC 8037.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec
from jwt import PyJWK, PyJWTError

from wsgate.auth.keys import ALGORITHMS, VerificationKey, public_key_of
from wsgate.errors import SettingsError

__all__ = ["KEYS_LIMIT", "KID_LIMIT_BYTES", "KeySet", "PassedOver", "parse_jwks", "read_jwks"]

KEYS_LIMIT: Final = 64
KID_LIMIT_BYTES: Final = 256
_SHOWN_CHARACTERS: Final = 64  # the most characters of a kid in a text for operators


class PassedOver(NamedTuple):
    """A key of a key set that cannot verify tokens, with the reason."""

    kid: str | None  # None: the key has no valid kid
    why: str  # a clause about the key, without any text from the set

    def __str__(self) -> str:
        kid = "a key without kid" if self.kid is None else self.kid[:_SHOWN_CHARACTERS]
        return f"{kid}: {self.why}"


class KeySet(NamedTuple):
    """The usable keys of a key set, and the keys that cannot be used."""

    keys: tuple[VerificationKey, ...]
    passed_over: tuple[PassedOver, ...]


class _Document(msgspec.Struct):
    """The members of a key set that are read: the list of keys, each still encoded."""

    keys: list[msgspec.Raw] = []


_SETS: Final = msgspec.json.Decoder(_Document)
_ROWS: Final = msgspec.json.Decoder(dict[str, Any])


def parse_jwks(document: bytes) -> tuple[VerificationKey, ...]:
    """Parse a key set, and return only the keys that can verify tokens; see `read_jwks`."""
    return read_jwks(document).keys


def read_jwks(document: bytes) -> KeySet:
    """Parse a key set into usable keys, and unusable keys with the reason for each.

    Args:
        document: The JSON text; the caller has bounded its size.

    Returns:
        The usable keys; of two with the same kid only the first. The unusable keys whose kid no usable key
        has.

    Raises:
        SettingsError: The document is no key set, or has more than `KEYS_LIMIT` keys.
    """
    try:
        rows = _SETS.decode(document).keys
    except (ValueError, RecursionError):
        raise SettingsError("the document is not a JSON Web Key Set") from None
    if len(rows) > KEYS_LIMIT:
        raise SettingsError(f"the key set has more than {KEYS_LIMIT} keys")
    found: dict[str | None, VerificationKey] = {}
    passed_over = []
    for row in rows:
        key = _key(row)
        if isinstance(key, PassedOver):
            passed_over.append(key)
        else:
            found.setdefault(key.kid, key)
    return KeySet(tuple(found.values()), tuple(each for each in passed_over if each.kid not in found))


def _key(raw: msgspec.Raw) -> VerificationKey | PassedOver:
    """Convert one key of a set into a verification key, or into the reason why it is unusable."""
    kid = None
    try:
        row = {name: value for name, value in _ROWS.decode(raw).items() if value is not None}
        kid = _kid(row)
        algorithm = _algorithm(row)
        return VerificationKey(kid, algorithm, public_key_of(algorithm, PyJWK(row, algorithm).key))
    except SettingsError as error:
        return PassedOver(kid, str(error))
    except (PyJWTError, ValueError, TypeError, KeyError, RecursionError):
        return PassedOver(kid, "it cannot be read")


def _kid(row: dict[str, Any]) -> str:
    """Return the kid of a key; raise SettingsError if it is missing, empty or too long."""
    kid = row.get("kid")
    if not isinstance(kid, str) or not 1 <= len(kid.encode()) <= KID_LIMIT_BYTES:
        raise SettingsError(f"a kid must be a string of 1 to {KID_LIMIT_BYTES} bytes")
    return kid


def _algorithm(row: dict[str, Any]) -> str:
    """Return the algorithm that a key verifies; raise SettingsError if it is not meant to verify tokens."""
    usual = _usual_algorithm(row)
    if not usual:
        raise SettingsError("its kty is not RSA, EC or OKP")
    if "d" in row:
        raise SettingsError("it is a private key, which must not be published")
    if row.get("use", "sig") != "sig":
        raise SettingsError("its use is not sig")
    operations = row.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        raise SettingsError("its key_ops do not contain verify")
    algorithm = row.get("alg", usual)
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS or algorithm.startswith("HS"):
        raise SettingsError("its alg is not a supported algorithm with a public key")
    return algorithm


def _usual_algorithm(row: dict[str, Any]) -> str:
    """Return the algorithm for a key type and curve, used without `alg`; "" for an unsupported type."""
    kind, curve = row.get("kty"), row.get("crv")
    if kind == "RSA":
        return "RS256"
    if kind == "EC":
        return {"P-384": "ES384", "P-521": "ES512"}.get(curve, "ES256") if isinstance(curve, str) else "ES256"
    return "EdDSA" if kind == "OKP" else ""
