"""Parse a JSON Web Key Set into verification keys. Pure: this module fetches nothing.

Rules:
- Only public keys for signatures are used: RSA, P-256, P-384, P-521 and Ed25519. A key that cannot be used is
  passed over with a reason, so that the operator can read why and tokens that name the key can be refused for
  good. Passed over are symmetric and private keys, keys for encryption or other operations, weak keys, and
  keys without a kid, because a token names its key.
- The algorithm belongs to the key: it is the key's `alg`, or follows from its type and curve. An `alg` that
  does not fit the key makes it unusable.
- A member that is null counts as one that is not there.
- One bad key spoils no other. Nothing in a key is fetched: `x5u` and `jku` are text.

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
_SHOWN_CHARACTERS: Final = 64  # of a kid, for people


class PassedOver(NamedTuple):
    """A key of a set that cannot verify tokens."""

    kid: str | None  # None: it has none that a token could name
    why: str  # a clause about the key, without any text of the set

    def __str__(self) -> str:
        kid = "a key without kid" if self.kid is None else self.kid[:_SHOWN_CHARACTERS]
        return f"{kid}: {self.why}"


class KeySet(NamedTuple):
    """The usable keys of a key set, and the keys that cannot be used."""

    keys: tuple[VerificationKey, ...]
    passed_over: tuple[PassedOver, ...]


class _Document(msgspec.Struct):
    keys: list[msgspec.Raw] = []


_SETS: Final = msgspec.json.Decoder(_Document)
_ROWS: Final = msgspec.json.Decoder(dict[str, Any])


def parse_jwks(document: bytes) -> tuple[VerificationKey, ...]:
    """The keys of a set that can verify tokens; see `read_jwks`."""
    return read_jwks(document).keys


def read_jwks(document: bytes) -> KeySet:
    """The keys of a set that can verify tokens, and the others with why they cannot.

    Args:
        document: JSON; the caller has bounded its size.

    Returns:
        Of two usable keys with one kid the first is taken. A kid is passed over only if no key has it.

    Raises:
        SettingsError: It is no key set, or has more than `KEYS_LIMIT` keys.
    """
    try:
        rows = _SETS.decode(document).keys
    except (ValueError, RecursionError):
        raise SettingsError("this is no JSON Web Key Set") from None
    if len(rows) > KEYS_LIMIT:
        raise SettingsError(f"a key set of more than {KEYS_LIMIT} keys")
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
    """One key, or why it cannot be used."""
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
        raise SettingsError("its key_ops do not hold verify")
    algorithm = row.get("alg", usual)
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS or algorithm.startswith("HS"):
        raise SettingsError("its alg is no algorithm with a public key that is supported")
    return algorithm


def _usual_algorithm(row: dict[str, Any]) -> str:
    """The algorithm of a key without `alg`; empty for a type that has none."""
    kind, curve = row.get("kty"), row.get("crv")
    if kind == "RSA":
        return "RS256"
    if kind == "EC":
        return {"P-384": "ES384", "P-521": "ES512"}.get(curve, "ES256") if isinstance(curve, str) else "ES256"
    return "EdDSA" if kind == "OKP" else ""
