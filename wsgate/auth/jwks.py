"""A JSON Web Key Set in, verification keys out. Pure: who fetched it, and from where, is not known here.

Rules:
- Only public keys for signatures: RSA (RS256), P-256 (ES256), Ed25519 (EdDSA). A symmetric key, a private
  one, one for encryption or for other operations is passed over; so is one without a kid, because a token
  names its key.
- The algorithm belongs to the key and follows from its type; an `alg` that says otherwise makes it none.
- One bad key spoils no other. Nothing in it is fetched: `x5u` and `jku` are text.

Source: RFC 7517, RFC 7518 section 6, RFC 8037.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from jwt import PyJWK, PyJWTError

from wsgate.auth.keys import VerificationKey, public_key_of
from wsgate.errors import SettingsError

__all__ = ["KEYS_LIMIT", "KID_LIMIT_BYTES", "parse_jwks"]

KEYS_LIMIT: Final = 64
KID_LIMIT_BYTES: Final = 256
_ALGORITHMS: Final = {"RSA": "RS256", "EC": "ES256", "OKP": "EdDSA"}


class _KeySet(msgspec.Struct):
    keys: list[msgspec.Raw] = []


_SETS: Final = msgspec.json.Decoder(_KeySet)
_ROWS: Final = msgspec.json.Decoder(dict[str, Any])


def parse_jwks(document: bytes) -> tuple[VerificationKey, ...]:
    """The keys of a set that can verify tokens; of two with one kid the first.

    Args:
        document: JSON; the caller has bounded its size.

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
    for row in rows:
        key = _key(row)
        if key is not None:
            found.setdefault(key.kid, key)
    return tuple(found.values())


def _key(raw: msgspec.Raw) -> VerificationKey | None:
    try:
        row = _ROWS.decode(raw)
        kid, algorithm = row.get("kid"), _ALGORITHMS.get(row["kty"], "")
        if not isinstance(kid, str) or not 1 <= len(kid.encode()) <= KID_LIMIT_BYTES:
            return None
        if not algorithm:
            return None
        if row.get("use", "sig") != "sig" or "verify" not in row.get("key_ops", ["verify"]):
            return None
        if row.get("alg", algorithm) != algorithm:
            return None
        return VerificationKey(kid, algorithm, public_key_of(kid, algorithm, PyJWK(row, algorithm).key))
    except (PyJWTError, SettingsError, ValueError, TypeError, KeyError, RecursionError):
        return None
