"""Decide about each handshake: a complete request head in, 101 or a refusal out.

The cheap checks come first: path, origin, subprotocol. The token, which costs most, is verified last. A
refusal here is an HTTP response. A token that a browser carries (in the subprotocol or the query) is verified
after 101 instead, because a browser cannot see a 401 and would reconnect for ever.
"""

import random
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Final
from urllib.parse import parse_qs

from wsgate import handshake
from wsgate.admission import forwarded_for
from wsgate.auth import Identity, TokenError
from wsgate.auth.faults import CAUSES
from wsgate.deflate import ExtensionError, agree
from wsgate.dialects import Dialect, select
from wsgate.dialects.names import CHANNEL_LIMIT_BYTES
from wsgate.reactor import GateLimits, Reactor
from wsgate.reasons import Reason
from wsgate.shard.options import ShardOptions
from wsgate.shard.publication_encoder import variant_of
from wsgate.shard.tokens import Tokens

__all__ = ["Entry", "HandshakePolicy", "ProxyClaims", "spread_s"]

_UNKNOWN_PATH: Final = handshake.refusal(404, "unknown_path")
_FORBIDDEN_ORIGIN: Final = handshake.refusal(403, "forbidden_origin")
_ORIGIN_SETTING: Final = "server.allowed_origins"
_SHOWN_LIMIT: Final = 120
"""Characters of a header that a log line or an answer shows."""
_UNSHOWN: Final = re.compile(r"[^A-Za-z0-9._~:/\[\]%+-]")
_OTHERS_PATH: Final = (405, 426)
"""Statuses that explain how to request a WebSocket; on a path that does not exist, 404 is sent instead."""
_BAD_EXTENSIONS: Final = handshake.refusal(400, "bad_extensions")
_BAD_QUERY: Final = handshake.refusal(400, "bad_query")
_NO_COMMON_SUBPROTOCOL: Final = handshake.refusal(400, "no_common_subprotocol")
_INVALID_TOKEN: Final = handshake.refusal(
    401, "invalid_token", extra_headers=(("WWW-Authenticate", "Bearer"),)
)
# RFC 6750 section 3: the challenge may name the fault of the token. It does so in development mode only.
_CHALLENGES: Final = {
    name: f'Bearer error="invalid_token", error_description="{cause.text}"' for name, cause in CAUSES.items()
}
_INVALID_TOKENS: Final = {
    name: handshake.refusal(401, "invalid_token", extra_headers=(("WWW-Authenticate", challenge),))
    for name, challenge in _CHALLENGES.items()
}
_ADDRESS_REFUSALS: Final = {
    Reason.REFUSED_ADDRESS_CONNECTIONS: "address_connections",
    Reason.REFUSED_ADDRESS_RATE: "address_rate",
}
_BEARER: Final = "bearer"
AWAITED_MOST_S: Final = 5
"""Largest random part of Retry-After, for a token whose key is being fetched or that is not valid yet."""
QUERY_FIELDS_LIMIT: Final = 64
"""Fields of a query, because each may become a subscription; a query with more is refused."""
NAME_LIMIT: Final = CHANNEL_LIMIT_BYTES
POSITION_LIMIT: Final = 64
"""Longest name of a channel and longest position in a URL: longer names are not used, positions are cut."""


Claim = Callable[[handshake.Request], handshake.Refusal | None]
"""Counts a request for the address that its proxy names; returns a refusal if that has too many."""


@dataclass(slots=True)
class Entry:
    """A handshake that is accepted so far.

    Attributes:
        response: The 101 response that completes the handshake.
        dialect: The dialect that the client and the gateway have in common.
        variant: The reactor's number for the dialect and compression of the connection.
        identity: From the verified token in the header, or from a late token that `admit` has verified.
        header_token: A token in the header that is still to be verified.
        late_token: A token in the subprotocol or the query, whose refusal is sent after the 101.
        channels: The channels of `?ch=`, to be subscribed as if the client had sent `sub`.
        positions: The positions of `?from=`, by channel.
    """

    response: bytes
    dialect: Dialect
    variant: int
    identity: Identity | None = None
    header_token: str | None = field(default=None, repr=False)
    late_token: str | None = field(default=None, repr=False)
    channels: tuple[str, ...] = ()
    positions: Mapping[str, str] = field(default_factory=dict)


class HandshakePolicy:
    """Accepts or refuses each handshake; pure apart from the token cache and the log.

    Args:
        options: Of the shard.
        tokens: Verifies a token.
        log: Writes a log line: the name of the event, and its fields.
    """

    def __init__(
        self, options: ShardOptions, tokens: Tokens, log: Callable[..., None] = lambda event, **fields: None
    ) -> None:
        """Accept handshakes by the options of one shard; without `log`, nothing is logged."""
        self._tokens = tokens
        self._log = log
        self.is_draining = False
        """Whether the shard ends, so that every newcomer is refused."""
        self.renew(options)

    def renew(self, options: ShardOptions) -> None:
        """Use these options from now on."""
        self._path = options.path
        self._origins = options.origins
        self._allow_query_token = options.allow_query_token
        self._is_compressing = options.is_compressing
        self._is_dev = options.is_dev
        self._unauthenticated_limit = options.unauthenticated_limit

    def judge(self, head: bytes, now_s: float, claim: Claim | None = None) -> Entry | handshake.Refusal:
        """Examine a request head and verify its token: `examine` and `verify` in one call.

        Args:
            head: The complete request head.
            now_s: Seconds since 1970, for tokens.
            claim: Counts a well-formed request for the address that its proxy names, before costly work is
                done for it; returns a refusal if that address has too many connections.

        Returns:
            The accepted handshake, or the refusal to send.
        """
        entry = self.examine(head, now_s, claim)
        return entry if isinstance(entry, handshake.Refusal) else self.verify(entry, now_s)

    def is_known(self, entry: Entry, now_s: float) -> bool:
        """Return whether a handshake needs no costly verification: it has no token or a cached one."""
        if entry.header_token is not None:
            return False
        return entry.late_token is None or self._tokens.knows(entry.late_token, now_s)

    def verify(self, entry: Entry, now_s: float) -> Entry | handshake.Refusal:
        """Verify the token in the header of an examined handshake, if it is not verified yet.

        Args:
            entry: The handshake; it receives the identity of the token.
            now_s: Seconds since 1970.

        Returns:
            The same handshake, or the refusal to send.
        """
        token, entry.header_token = entry.header_token, None
        if token is not None:
            try:
                entry.identity = self._tokens.connection(token, now_s)
            except TokenError as error:
                return _refusal_of(error, is_dev=self._is_dev)
        return entry

    def examine(self, head: bytes, now_s: float, claim: Claim | None = None) -> Entry | handshake.Refusal:
        """Check everything in a request head except a token that is not in the cache.

        Args:
            head: The complete request head.
            now_s: Seconds since 1970.
            claim: Counts the request for the address that its proxy names; see `judge`.

        Returns:
            The handshake, whose token may still be to be verified, or the refusal to send.
        """
        request = handshake.parse_head(head)
        if isinstance(request, handshake.Refusal):
            if request.status in _OTHERS_PATH and _path_asked(head) not in (self._path, None):
                return _UNKNOWN_PATH
            return request
        if claim is not None and (refused := claim(request)) is not None:
            return refused
        if request.path != self._path:
            return _UNKNOWN_PATH
        if not self._origins.allows(request.origin, request.host):
            return self._refuse_origin(request)
        selection = select(request.subprotocols)
        if selection is None:
            return _NO_COMMON_SUBPROTOCOL
        extensions, variant = None, selection.dialect.variant
        if self._is_compressing and request.extensions:
            try:
                agreement = agree(request.extensions)
            except ExtensionError:
                return _BAD_EXTENSIONS
            if agreement is not None:
                extensions = agreement.response
                variant = variant_of(selection.dialect, agreement.window_bits)
        upgrade = handshake.accept(request, subprotocol=selection.subprotocol, extensions=extensions)
        entry = Entry(upgrade.response, selection.dialect, variant, late_token=selection.token)
        if request.query and not self._read_query(request.query, entry):
            return _BAD_QUERY
        self._read_header(request, entry, now_s)
        return entry

    def admit(self, entry: Entry, now_s: float, unauthenticated: int) -> Entry | handshake.Refusal:
        """Refuse a handshake if the shard drains, or if too many of its connections have shown no token.

        Args:
            entry: The handshake, whose token in the header is verified.
            now_s: Seconds since 1970, for tokens.
            unauthenticated: How many upgraded connections of the shard have shown no token yet.
        """
        if self.is_draining:
            return handshake.refusal(503, "draining", retry_after_s=spread_s(5))
        if unauthenticated >= self._unauthenticated_limit and not self._has_valid_token(entry, now_s):
            return handshake.refusal(503, "too_many_unauthenticated", retry_after_s=spread_s(10))
        return entry

    def _has_valid_token(self, entry: Entry, now_s: float) -> bool:
        """Return whether the handshake carries a valid token; a late one is verified now."""
        if entry.identity is None and entry.late_token is not None:
            with suppress(TokenError):
                entry.identity = self._tokens.connection(entry.late_token, now_s)
                entry.late_token = None
        return entry.identity is not None

    def _refuse_origin(self, request: handshake.Request) -> handshake.Refusal:
        """Log which origin is refused and which setting allows it; in development the response says so too.

        A browser shows its page only the code 1006, so that an operator finds the cause in the log alone.
        """
        origin, host = _shown(request.origin or ""), _shown(request.host)
        self._log(
            "origin_refused",
            origin=origin,
            host=host,
            setting=_ORIGIN_SETTING,
            why=f"this origin is not listed in {_ORIGIN_SETTING}",
        )
        if not self._is_dev:
            return _FORBIDDEN_ORIGIN
        detail = (
            f"the origin {origin} may not connect. To allow it, list it in the setting {_ORIGIN_SETTING}."
        )
        return handshake.refusal(403, "forbidden_origin", detail=detail)

    def _read_query(self, query: str, entry: Entry) -> bool:
        """Read channels, positions and a token from the query of the URL; return False if it is not valid."""
        try:
            # Bytes that are not UTF-8 are kept, so that a channel with such a name is refused, not renamed.
            fields = parse_qs(query, max_num_fields=QUERY_FIELDS_LIMIT, errors="surrogateescape")
        except ValueError:
            return False
        # A name that is too long becomes the empty one: it is refused all the same, and needs no memory.
        entry.channels = tuple(name if len(name) <= NAME_LIMIT else "" for name in fields.get("ch", ()))
        if "from" in fields:
            # A position has no colon, a channel may have several.
            stood = (text.rpartition(":") for text in fields["from"])
            entry.positions = {
                channel: position[:POSITION_LIMIT]
                for channel, _, position in stood
                if 0 < len(channel) <= NAME_LIMIT
            }
        if self._allow_query_token and entry.late_token is None and fields.get("token"):
            entry.late_token = fields["token"][0]
        return True

    def _read_header(self, request: handshake.Request, entry: Entry, now_s: float) -> None:
        """Read a token from the Authorization header, which is used instead of any other token.

        Only programs can send this header, and they see a 401.
        """
        authorization = request.authorization
        if authorization is None:
            return
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != _BEARER:
            return  # the header may be meant for a proxy
        # "Bearer" without a token is a bad token: a client that means to show one is not anonymous.
        # Only spaces and tabs: str.strip would also remove 0x85 and 0xA0, which are part of the value.
        token = token.strip(" \t")
        entry.late_token = None
        entry.identity = self._tokens.recall(token, now_s)
        if entry.identity is None:
            entry.header_token = token


class ProxyClaims:
    """Counts connections that a trusted proxy brought for the client's address that the proxy names.

    Args:
        reactor: Counts connections by address.
        gate: The limits of the gate, which name the trusted proxies.
        count: Adds to a counter of the shard, by its name.
    """

    def __init__(self, reactor: Reactor, gate: GateLimits, count: Callable[[str, int], None]) -> None:
        self._reactor = reactor
        self._gate = gate
        self._count = count

    def of(self, conn: int) -> Claim | None:
        """Return how to count a connection of a trusted proxy; None: it is counted for its own address."""
        gate = self._gate
        if not gate.trusted_networks or gate.reads_proxy_header or not self._reactor.is_from_proxy(conn):
            return None
        return partial(self._claim, conn)

    def _claim(self, conn: int, request: handshake.Request) -> handshake.Refusal | None:
        """Count the connection for the address in X-Forwarded-For, and refuse it if that has too many."""
        address = forwarded_for(request.header("x-forwarded-for") or "", self._gate.trusted_networks)
        if address is None:
            self._count("addresses_unnamed", 1)
            return None
        reason = self._reactor.claim_address(conn, address)
        if not reason:
            return None
        return handshake.refusal(429, _ADDRESS_REFUSALS[Reason(reason)], retry_after_s=spread_s(10))


def spread_s(most_s: int) -> int:
    """Draw 1 to `most_s` seconds for Retry-After, so that refused clients do not come back together."""
    return random.randint(1, most_s)  # noqa: S311 - spreading, not secrecy


def _refusal_of(error: TokenError, *, is_dev: bool) -> handshake.Refusal:
    """Return the response for a refused token in the header.

    A fault that passes is a 503 with Retry-After: the same token is valid later, but clients take a 401 as
    final. In development mode the challenge names the cause.
    """
    spread_s = random.randint(1, AWAITED_MOST_S)  # noqa: S311 - spreading, not secrecy
    headers = (("WWW-Authenticate", _CHALLENGES[error.cause]),) if is_dev else ()
    if error.is_awaited:
        return handshake.refusal(503, "key_awaited", retry_after_s=spread_s, extra_headers=headers)
    if error.is_early:
        retry_after_s = int(error.retry_s) + spread_s
        return handshake.refusal(
            503, "token_not_yet_valid", retry_after_s=retry_after_s, extra_headers=headers
        )
    return _INVALID_TOKENS[error.cause] if is_dev else _INVALID_TOKEN


def _path_asked(head: bytes) -> str | None:
    """Return the path of an HTTP/1.1 request line, whatever its method; None if the line has no path."""
    _, _, rest = head[: head.find(b"\r\n")].partition(b" ")
    target, _, version = rest.rpartition(b" ")
    if version != b"HTTP/1.1" or not target.startswith(b"/") or b" " in target or not target.isascii():
        return None
    return target.partition(b"?")[0].decode("ascii")


def _shown(text: str) -> str:
    """Return the text of a header, shortened, with `?` for characters a shell, page or log could act on."""
    shown = _UNSHOWN.sub("?", text[:_SHOWN_LIMIT])
    return shown if len(text) <= _SHOWN_LIMIT else shown + "..."
