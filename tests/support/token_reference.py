"""Implement the rules about tokens again with `jwt.decode`, as an oracle for wsgate/auth/tokens.py.

This code is slow and simple on purpose. It shares only the grammar of channel names with the verifier.
The verifier must accept nothing that the oracle refuses. It may refuse more, for the reasons in `STRICTER`.
"""

import json
from base64 import urlsafe_b64decode
from dataclasses import dataclass
from typing import Any

import jwt
from jwt.types import Options

from wsgate.auth.permissions import is_channel_name, is_pattern

__all__ = ["STRICTER", "Oracle", "Refused"]

STRICTER = {
    "a segment ends with `=`": "RFC 7515 section 2 has no padding, and a token has one spelling",
    "NaN or Infinity": "no JSON by RFC 8259",
    "a byte order mark or UTF-16": "no JSON by RFC 8259 section 8.1",
    "half a surrogate pair": "no text: it cannot be written to a log, a header or the bus",
    "bytes of half a surrogate pair": "no UTF-8",
    "a member that is there twice, first with a wrong type": "msgspec checks both; the last one counts",
    "the header member b64 is no boolean": "RFC 7797 section 3 wants a boolean",
}
"""Tokens that the verifier refuses although `jwt.decode` accepts them, and the reasons."""

_ONLY_THE_SIGNATURE: Options = {
    "verify_exp": False,
    "verify_nbf": False,
    "verify_iat": False,
    "verify_aud": False,
    "verify_iss": False,
    "verify_sub": False,
    "verify_jti": False,
}


class Refused(Exception):
    """The oracle does not accept this token."""


@dataclass(frozen=True)
class Oracle:
    """The policy and the one key of the verifier under test."""

    secret: bytes
    algorithm: str = "HS256"
    audience: str = ""
    issuer: str = ""
    leeway_s: int = 0
    require_exp: bool = True

    def connection(self, token: bytes, now_s: float) -> tuple[str, set[str], set[str], set[str], int]:
        """Return user, channels, subscribe, publish and expiry of a connection token, or raise Refused."""
        claims = self._claims(token)
        self._need("channel" not in claims, "a channel token")
        user = self._user(claims)
        names = [self._names(claims, name) for name in ("channels", "subscribe", "publish")]
        self._need(all(is_channel_name(name) and "*" not in name for name in names[0]), "channels")
        self._need(all(is_pattern(name) for name in (*names[1], *names[2])), "patterns")
        expires_at_s = self._times(claims, now_s, needs_exp=self.require_exp)
        return user, set(names[0]), set(names[1]), set(names[2]), expires_at_s

    def channel(self, token: bytes, channel: str, now_s: float) -> tuple[str, int]:
        """Return user and expiry of a token for this channel; raise Refused otherwise."""
        claims = self._claims(token)
        self._need(claims.get("channel") == channel and is_channel_name(channel), "another channel")
        return self._user(claims), self._times(claims, now_s, needs_exp=True)

    def _claims(self, token: bytes) -> dict[str, Any]:
        self._need(len(token) <= 8 * 1024, "size")
        try:
            found: dict[str, Any] = jwt.decode(
                token, self.secret, [self.algorithm], options=_ONLY_THE_SIGNATURE
            )
            header = json.loads(urlsafe_b64decode(token.split(b".")[0] + b"=="))
        except (jwt.PyJWTError, ValueError, RecursionError) as error:
            raise Refused(str(error)) from None
        self._need("crit" not in header and header.get("b64", True) is not False, "critical extension")
        self._need("kid" not in header, "no key has a kid")
        return found

    def _user(self, claims: dict[str, Any]) -> str:
        user = claims.get("sub")
        self._need(isinstance(user, str) and user != "", "sub")
        assert isinstance(user, str)
        try:
            self._need(len(user.encode()) <= 128, "sub is too long")
        except UnicodeEncodeError:
            raise Refused("half a surrogate pair") from None
        self._need(all(ord(each) >= 0x20 and not 0x7F <= ord(each) < 0xA0 for each in user), "sub")
        return user

    def _names(self, claims: dict[str, Any], name: str) -> list[str]:
        found = claims.get(name)
        if found is None:
            return []
        self._need(isinstance(found, list) and len(found) <= 128, name)
        self._need(all(isinstance(each, str) for each in found), name)
        return list(found)

    def _times(self, claims: dict[str, Any], now_s: float, *, needs_exp: bool) -> int:
        if self.audience:
            said = claims.get("aud")
            self._need(isinstance(said, str | list), "aud")
            named: list[Any] = said if isinstance(said, list) else [said]
            self._need(all(isinstance(each, str) for each in named) and self.audience in named, "aud")
        self._need(not self.issuer or claims.get("iss") == self.issuer, "iss")
        claims = {name: value for name, value in claims.items() if value is not None}
        for name in ("exp", "nbf", "iat"):
            is_number = isinstance(claims.get(name, 0), int | float)
            self._need(is_number and not isinstance(claims.get(name), bool), name)
        self._need(claims.get("nbf", 0) <= now_s + self.leeway_s, "nbf")
        self._need(claims.get("iat", 0) <= now_s + max(self.leeway_s, 60), "iat")
        if "exp" not in claims:
            self._need(not needs_exp, "exp")
            return 0
        self._need(claims["exp"] + self.leeway_s > now_s, "exp")
        return max(1, int(min(claims["exp"], 2**32 - 1)))

    @staticmethod
    def _need(is_so: bool, text: str) -> None:
        if not is_so:
            raise Refused(text)
