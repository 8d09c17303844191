"""Verify a JSON Web Token at a given time, and return an identity or a grant for one channel.

This module has every rule about the form, the header and the claims of a token. PyJWT's algorithm objects
verify the signature; msgspec parses header and claims once each. The module uses no sockets and no settings
file.

Rules:
- The cheapest check comes first: size, then the header alone, then the signature, and only then the claims.
- A token has exactly one valid form. Each segment must be exactly the base64url encoding of its bytes without
  padding: no `=`, no `+` or `/`, no white space, no bits set behind the last byte. Otherwise one token could
  be written in several ways, and each would be verified and cached as a token of its own.
- Every token that `jwt.decode` refuses is refused. tests/support/token_reference.py has the rules built on
  `jwt.decode`, and tests compare the two.
- The header is not trusted: it may select one of the configured keys, and nothing else in it counts, `typ`
  included. Critical extensions are refused because none is supported (RFC 7515 section 4.1.11,
  CVE-2026-32597).
- The peer gets one message for all faults except expiry, because a new token cures expiry. A token counts as
  expired only when it has no other fault. wsgate/auth/faults.py describes each fault in detail.
- A temporary fault has a temporary reason. A token whose key has not been fetched yet, or that is not valid
  yet, is refused with a reason that lets the client try again.
- `iat` gives a token's age and is no reason to refuse it (RFC 7519 section 4.1.6), because the clocks of
  issuer and gateway differ. Only an `iat` more than `IAT_AHEAD_S` ahead is refused, as not yet valid:
  otherwise a token from the future could never be revoked.
- If a claim name occurs twice, the last one counts, as in PyJWT; but each occurrence must have a valid type.

Source: RFC 7515, RFC 7519, RFC 8725; protocols/client/v1/spec.md, "Tokens".
"""

from __future__ import annotations

import json
import math
import re
from binascii import a2b_base64, b2a_base64
from dataclasses import dataclass
from typing import Annotated, Final, TypeAlias, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from wsgate.auth.faults import CAUSES, FAULTS, TokenError
from wsgate.auth.keys import ALGORITHMS, KeyRing, VerificationKey
from wsgate.auth.permissions import Permissions, PermissionTable, is_channel_name, is_pattern
from wsgate.auth.revoked import NOBODY, RevokedUsers
from wsgate.errors import SettingsError

__all__ = [
    "EXPIRY_LIMIT_S",
    "FAULTS",
    "NAMES_LIMIT",
    "TOKEN_LIMIT_BYTES",
    "USER_LIMIT_BYTES",
    "ChannelGrant",
    "Identity",
    "Member",
    "TokenError",
    "TokenPolicy",
    "Verifier",
    "kid_of",
]

TOKEN_LIMIT_BYTES: Final = 8 * 1024
"""The longest token; a longer one is refused without being read (S18). Half of the longest request head."""
_HEADER_LIMIT_BYTES: Final = 2 * 1024  # in base64; a header with kid and typ has fewer than 150 bytes
USER_LIMIT_BYTES: Final = 128
"""The most bytes of UTF-8 in the claim `sub`."""
NAMES_LIMIT: Final = 128
"""The most entries in each of the claims `channels`, `subscribe` and `publish`."""
EXPIRY_LIMIT_S: Final = 2**32 - 1
"""The latest expiry time, in the year 2106: a later `exp` is reduced to it, so that it fits 32 bits."""

IAT_AHEAD_S: Final = 60
"""How far `iat` may lie in the future, in seconds; a larger leeway counts instead."""
RETRY_LIMIT_S: Final = 3_600
"""The longest retry time, in seconds, in the refusal of a token."""

# Tables from base64url to base64 and back. "+" and "/" are not in the alphabet of base64url.
_FROM_URL_SAFE: Final = bytes.maketrans(b"-_+/", b"+/--")
_TO_URL_SAFE: Final = bytes.maketrans(b"+/", b"-_")
# msgspec skips a number of any length and nests deeper than `json.loads`, which gives up at 4,300 digits and
# at nearly 1,000 levels. JSON of this size has neither.
_PLAIN_JSON_BYTES: Final = 1024
_CONTROL: Final = frozenset(map(chr, (*range(0x20), *range(0x7F, 0xA0))))  # Unicode's category Cc

Number: TypeAlias = int | float
Names: TypeAlias = Annotated[list[str], msgspec.Meta(max_length=NAMES_LIMIT)]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPolicy:
    """The configured rules for the claims of a token, independent of the key that signed it.

    Args:
        audience: The claim `aud` must contain this value; "": `aud` is not checked.
        issuer: The claim `iss` must equal this value; "": `iss` is not checked.
        leeway_s: The allowed clock difference for `exp` and `nbf`, in seconds, >= 0; for `iat` at least
            `IAT_AHEAD_S`.
        require_exp: Whether a token for a connection must have `exp`; a token for a channel always must.
        token_max_life_s: The most seconds from `iat` to `exp`; a token must then have both. 0: no limit.

    Raises:
        SettingsError: The leeway or the life is negative.
    """

    audience: str = ""
    issuer: str = ""
    leeway_s: int = 0
    require_exp: bool = True
    token_max_life_s: int = 0

    def __post_init__(self) -> None:
        if self.leeway_s < 0:
            raise SettingsError("leeway must not be negative")
        if self.token_max_life_s < 0:
            raise SettingsError("token_max_life must not be negative")

    def revocation_ends_at_s(self, before_s: float) -> float | None:
        """Return the time from which a revocation has no effect, because all tokens it covers have expired.

        Args:
            before_s: The time of the revocation, in seconds of Unix time.

        Returns:
            Seconds of Unix time, or None: never, because the policy does not limit the life of tokens.
        """
        if not self.token_max_life_s:
            return None
        return before_s + self.token_max_life_s + self.leeway_s


class Member(msgspec.Struct, frozen=True, gc=False):
    """The user and the permissions of a connection: the part of its identity that is kept while it is open.

    To save memory on every connection, the struct has no garbage collector header, and the user id is kept as
    UTF-8: an id of 10 characters takes 48 bytes as `bytes` and 64 as `str`.

    Attributes:
        user_utf8: The claim `sub`, 1 to `USER_LIMIT_BYTES` bytes; empty: anonymous.
        permissions: The permissions; equal sets share one object.
    """

    user_utf8: bytes
    permissions: Permissions

    @property
    def user(self) -> str:
        """The user id as text; each access decodes it."""
        return self.user_utf8.decode()


class Identity(msgspec.Struct, frozen=True, gc=False):
    """The contents of a verified token: the user, the permissions, and until when the token is valid.

    Attributes:
        user: The claim `sub`, 1 to `USER_LIMIT_BYTES` bytes in UTF-8; empty: anonymous.
        permissions: The permissions; equal sets share one object.
        expires_at_s: `exp` in whole seconds since 1970, rounded down, without leeway; 0: never. Because of
            the leeway it may already lie in the past.
        issued_at_s: `iat` in seconds since 1970, with its fraction; 0: the token has no `iat`.
    """

    user: str
    permissions: Permissions
    expires_at_s: int
    issued_at_s: float = 0

    def member(self) -> Member:
        """Make the `Member` that the connection keeps: user and permissions, without the times."""
        return Member(self.user.encode(), self.permissions)


class ChannelGrant(msgspec.Struct, frozen=True, gc=False):
    """The contents of a verified channel token: one user may subscribe to one channel until it expires.

    Attributes:
        user: The claim `sub`.
        channel: The exact name of the channel.
        expires_at_s: `exp` as in `Identity`, but never 0.
    """

    user: str
    channel: str
    expires_at_s: int


_NULL: Final = msgspec.Raw(b"null")


class _Header(msgspec.Struct):
    """The members of a token's header that are read, not yet verified.

    A member that is null has a wrong type here: PyJWT refuses null as `kid` and as `crit`.
    """

    alg: str = ""
    kid: str | UnsetType = UNSET
    crit: msgspec.Raw | UnsetType = UNSET
    b64: bool = True


class _Claims(msgspec.Struct, gc=False):
    """The claims of a token's payload that are read. A claim that is null counts as absent.

    The exception is `channel`: a token that has this claim, even as null, is no token for connections. `aud`
    and `iss` are decoded only when the operator has configured a value; otherwise their types do not matter.
    """

    sub: str | None = None
    exp: Number | None = None
    nbf: Number | None = None
    iat: Number | None = None
    aud: msgspec.Raw = _NULL
    iss: msgspec.Raw = _NULL
    channel: str | UnsetType = UNSET
    channels: Names | None = None
    subscribe: Names | None = None
    publish: Names | None = None


_Part = TypeVar("_Part")

_CLAIM_PATH: Final = re.compile(r"at `\$\.([a-z]+)")
_SHOWN_ALGORITHMS: Final = frozenset({*ALGORITHMS, "none"})
_TIME_LIMIT_S: Final = 10**15  # the latest time in texts; a larger number is not meant as a time

_HEADERS: Final = msgspec.json.Decoder(_Header)
_CLAIMS: Final = msgspec.json.Decoder(_Claims)
_AUDIENCES: Final = msgspec.json.Decoder(str | list[str] | None)
_ISSUERS: Final = msgspec.json.Decoder(str | None)


class Verifier:
    """The verifier of all tokens, for connections and for channels, with a set of keys and a policy.

    Args:
        keys: All configured keys.
        policy: The rules for claims.
        permissions: The table in which equal permission sets become one object.
    """

    __slots__ = ("_keys", "_permissions", "_policy")

    def __init__(self, keys: KeyRing, policy: TokenPolicy, permissions: PermissionTable) -> None:
        self._keys = keys
        self._policy = policy
        self._permissions = permissions

    def verify_connection(
        self, token: str | bytes, *, now_s: float, revoked: RevokedUsers = NOBODY
    ) -> Identity:
        """Verify a token for a connection, and return its user, permissions and times.

        Args:
            token: The token from the peer: any text or bytes.
            now_s: The present time, in seconds since 1970.
            revoked: The revocations to check.

        Raises:
            TokenError: The token is not valid for a connection. A token with the claim `channel` never is.
        """
        claims = self._claims(token)
        if claims.channel is not UNSET:
            raise TokenError("channel_token")
        user = _user(claims)
        try:
            permissions = self._permissions.intern(
                claims.channels or (), claims.subscribe or (), claims.publish or ()
            )
        except ValueError:
            raise TokenError(_odd_names(claims)) from None
        self._check_parties(claims)
        expires_at_s = self._check_times(claims, now_s, needs_exp=self._policy.require_exp)
        _check_revoked(user, claims.iat, revoked)
        issued_at_s = 0 if claims.iat is None else max(0, claims.iat)
        return Identity(user, permissions, expires_at_s, issued_at_s)

    def verify_channel(
        self,
        token: str | bytes,
        *,
        channel: str,
        user: str | None,
        now_s: float,
        revoked: RevokedUsers = NOBODY,
    ) -> ChannelGrant:
        """Verify a token for one channel, and return the grant; its claims about other channels do not count.

        Args:
            token: The token from the peer: any text or bytes.
            channel: The exact name of the requested channel.
            user: The user of the connection; None: any `sub` is accepted.
            now_s: The present time, in seconds since 1970.
            revoked: The revocations to check.

        Raises:
            TokenError: The token is not valid for this channel and user. A token without the claim `channel`
                never is.
        """
        claims = self._claims(token)
        granted = claims.channel
        if granted is UNSET:
            raise TokenError("no_channel")
        if not is_channel_name(granted):
            raise TokenError("bad_channel")
        bearer = _user(claims)
        if granted != channel:
            raise TokenError("wrong_channel")
        if user is not None and bearer != user:
            raise TokenError("wrong_user")
        self._check_parties(claims)
        expires_at_s = self._check_times(claims, now_s, needs_exp=True)
        _check_revoked(bearer, claims.iat, revoked)
        return ChannelGrant(bearer, granted, expires_at_s)

    def _claims(self, token: str | bytes) -> _Claims:
        """Verify the form and the signature of a token, and decode its claims.

        About 6 us for a usual HS256 token.

        Raises:
            TokenError: The token is malformed, or its signature was not made with a configured key.
        """
        raw = _raw(token)
        header_segment, payload_segment, signature_segment = _segments(raw)
        key = self._key(_header(header_segment))
        payload, signature = _bytes_of(payload_segment), _bytes_of(signature_segment)
        if not key.has_signed(raw[: -len(signature_segment) - 1], signature):
            raise TokenError("bad_signature")
        try:
            return _parsed(_CLAIMS, payload)
        except msgspec.ValidationError as error:
            raise TokenError(_ill_typed(error)) from None
        except (ValueError, RecursionError):
            raise TokenError("malformed") from None

    def _key(self, header: _Header) -> VerificationKey:
        """Select the configured key that a header names; the header cannot select the algorithm."""
        if header.crit is not UNSET or not header.b64:
            raise TokenError("critical_header")
        key = self._keys.pick(None if header.kid is UNSET else header.kid)
        if key is None:
            if header.kid is UNSET:
                raise TokenError("no_kid")
            known = f"no key has the kid that the header names; known are {self._keys.kids_text()}"
            raise TokenError("unknown_key", detail=known)
        if header.alg != key.algorithm:
            said = header.alg if header.alg in _SHOWN_ALGORITHMS else "another one"
            raise TokenError(
                "wrong_algorithm", detail=f"the header's alg is {said}, the key's is {key.algorithm}"
            )
        return key

    def _check_parties(self, claims: _Claims) -> None:
        """Check `aud` and `iss` against the policy."""
        audience, issuer = self._policy.audience, self._policy.issuer
        if audience:
            named = _claim("bad_aud", _AUDIENCES, claims.aud)
            if named is None or audience not in ([named] if isinstance(named, str) else named):
                raise TokenError("wrong_audience", detail=f"aud does not contain the audience {audience}")
        if issuer and _claim("bad_iss", _ISSUERS, claims.iss) != issuer:
            raise TokenError("wrong_issuer", detail=f"iss is not the issuer {issuer}")

    def _check_times(self, claims: _Claims, now_s: float, *, needs_exp: bool) -> int:
        """Check the times of a token, and return its expiry time; 0: never.

        Expiry is the last of the checks of claims but for revocation, so that only a token without any other
        fault counts as expired.
        """
        leeway_s = self._policy.leeway_s
        max_life_s = self._policy.token_max_life_s
        if claims.exp is None and (needs_exp or max_life_s):
            raise TokenError("missing_exp")
        if max_life_s and claims.exp is not None:
            _check_life(claims.iat, claims.exp, max_life_s)
        if claims.nbf is not None:
            _check_start("nbf", claims.nbf, leeway_s, now_s)
        if claims.iat is not None:
            _check_start("iat", claims.iat, max(leeway_s, IAT_AHEAD_S), now_s)
        if claims.exp is None:
            return 0
        if claims.exp + leeway_s <= now_s:
            since = f"expired {_seconds(now_s - max(claims.exp, 0))} s ago (exp {_seconds(claims.exp)})"
            raise TokenError("expired", detail=since)
        return max(1, min(int(claims.exp), EXPIRY_LIMIT_S))


def _check_life(iat: Number | None, exp: Number, max_life_s: int) -> None:
    """Refuse a token whose `exp` is too far behind its `iat`, or that has no `iat` for this check."""
    if iat is None:
        raise TokenError("missing_iat")
    if exp > iat + max_life_s:
        times = f"iat {_seconds(iat)}, exp {_seconds(exp)}"
        raise TokenError("long_life", detail=f"the token lives longer than {max_life_s} s ({times})")


def _check_start(claim: str, start_s: Number, leeway_s: int, now_s: float) -> None:
    """Refuse a token as not yet valid when its `nbf` or `iat` lies more than the leeway in the future."""
    if start_s - leeway_s <= now_s:
        return
    start_s = min(start_s, _TIME_LIMIT_S)  # an integer of 300 digits cannot be subtracted from a float
    retry_s = min(start_s - leeway_s - now_s, RETRY_LIMIT_S)
    ahead = f"{claim} is {_seconds(start_s - now_s)} s ahead ({claim} {_seconds(start_s)})"
    raise TokenError("not_yet_valid", detail=ahead, retry_s=retry_s)


def _check_revoked(user: str, iat: Number | None, revoked: RevokedUsers) -> None:
    """Refuse a token that a revocation covers, with its times in the detail."""
    if not revoked.is_revoked(user, iat):
        return
    if iat is None:
        raise TokenError("revoked", detail="the user's tokens were revoked, and this one has no iat")
    before_s = max(revoked.before_s(user) or 0.0, revoked.all_before_s)
    times = f"iat {_seconds(iat)}, revoked before {_seconds(before_s)}"
    raise TokenError("revoked", detail=f"the token was issued before the revocation ({times})")


def kid_of(token: str | bytes) -> str | None:
    """Return the `kid` in the header of a token, unverified; None when it has none or is malformed."""
    try:
        kid = _header(_segments(_raw(token))[0]).kid
    except TokenError:
        return None
    return None if kid is UNSET else kid


def _raw(token: str | bytes) -> bytes:
    """Convert a token to bytes, and refuse one that is too long before reading it."""
    if len(token) > TOKEN_LIMIT_BYTES:
        raise TokenError("too_large")
    if isinstance(token, bytes):
        return token
    if not token.isascii():
        raise TokenError("malformed")
    return token.encode("ascii")


def _segments(token: bytes) -> list[bytes]:
    """Split a token into the encoded header, payload and signature."""
    segments = token.split(b".", 3)
    if len(segments) != 3:
        raise TokenError("malformed")
    return segments


def _bytes_of(segment: bytes) -> bytes:
    """Decode a segment; refuse a segment that is not the canonical encoding of its bytes."""
    try:
        decoded = a2b_base64(segment.translate(_FROM_URL_SAFE) + b"==")
    except ValueError:
        raise TokenError("malformed") from None
    if b2a_base64(decoded, newline=False).rstrip(b"=").translate(_TO_URL_SAFE) != segment:
        raise TokenError("malformed")
    return decoded


def _header(segment: bytes) -> _Header:
    """Decode the header segment of a token; the signature is not verified at this time."""
    if len(segment) > _HEADER_LIMIT_BYTES:
        raise TokenError("too_large")
    try:
        return _parsed(_HEADERS, _bytes_of(segment))
    except msgspec.ValidationError:
        raise TokenError("bad_header") from None
    except (ValueError, RecursionError):
        raise TokenError("malformed") from None


def _parsed(decoder: msgspec.json.Decoder[_Part], raw: bytes) -> _Part:
    """Decode JSON; raise ValueError or RecursionError when msgspec or `json.loads` would refuse it."""
    if not raw.isascii():
        raw.decode()  # msgspec does not check the UTF-8 of members that it skips
    if len(raw) > _PLAIN_JSON_BYTES:
        json.loads(raw)
    return decoder.decode(raw)


def _user(claims: _Claims) -> str:
    """Return the claim `sub`, 1 to `USER_LIMIT_BYTES` bytes without control characters; else refuse."""
    user = claims.sub
    if not user:
        raise TokenError("missing_sub" if user is None else "bad_sub")
    if user.isascii() and user.isprintable() and len(user) <= USER_LIMIT_BYTES:
        return user
    if len(user.encode()) > USER_LIMIT_BYTES or not _CONTROL.isdisjoint(user):
        raise TokenError("bad_sub")
    return user


def _claim(cause: str, decoder: msgspec.json.Decoder[_Part], raw: msgspec.Raw) -> _Part:
    """Decode `aud` or `iss`, which only some policies check; a wrong type raises TokenError(cause)."""
    try:
        return decoder.decode(raw)
    except ValueError:
        raise TokenError(cause) from None


# --- causes and details for operators -----------------------------------------------------------------


def _ill_typed(error: msgspec.ValidationError) -> str:
    """Return the cause for a claim of a wrong type. The path in msgspec's text has only known claim names."""
    found = _CLAIM_PATH.search(str(error))
    cause = f"bad_{found[1]}" if found else "bad_claims"
    return cause if cause in CAUSES else "bad_claims"


def _odd_names(claims: _Claims) -> str:
    """Return the cause for the first of `channels`, `subscribe`, `publish` that has an invalid entry."""
    if not all("*" not in name and is_channel_name(name) for name in claims.channels or ()):
        return "bad_channels"
    return "bad_publish" if all(map(is_pattern, claims.subscribe or ())) else "bad_subscribe"


def _seconds(time_s: float) -> str:
    """Format a time for a log line, in whole seconds, at most 17 characters long."""
    return f"{math.floor(min(max(time_s, -_TIME_LIMIT_S), _TIME_LIMIT_S))}"
