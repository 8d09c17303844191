"""Verified tokens of one shard: the cache in front, the verifier behind, both counted."""

from collections.abc import Callable, Iterable, Mapping

from wsgate.auth import (
    ChannelGrant,
    Identity,
    KeyRing,
    PermissionTable,
    TokenCache,
    TokenError,
    TokenPolicy,
    VerificationKey,
    Verifier,
    kid_of,
)
from wsgate.auth.jwks import PassedOver
from wsgate.auth.revoked import RevokedUsers
from wsgate.log import Log

__all__ = ["Tokens"]

UNKNOWN_LIMIT = 256
"""Unknown kids remembered: whoever makes up more of them is told to come back, and gets no more fetches."""
SWEEP_TICKS = 60
"""Calls of `tick` in which the whole cache is looked at."""
REVOKED_LIMIT = 65_536
"""Users remembered as revoked, about 20 MiB a shard at most; then the earliest revocation holds for all."""


class Tokens:
    """Token text in, identity out.

    Args:
        keys: All configured keys.
        policy: What a token must say.
        cache_entries: How many verified tokens are remembered; 0: none.
        count: Adds to a counter by name.
        cache_bytes: Memory that those may take, their permission sets included; 0: no limit.
        is_fetching: Whether more keys come from a key set that somebody fetches.
        log: Where operators read why a token was refused: one line per cause and second, never the token.
    """

    def __init__(
        self,
        keys: tuple[VerificationKey, ...],
        policy: TokenPolicy,
        cache_entries: int,
        count: Callable[[str, int], None],
        *,
        cache_bytes: int = 0,
        is_fetching: bool = False,
        log: Log | None = None,
    ) -> None:
        self._count = count
        self._log = log
        self._is_fetching = is_fetching
        self._fetched: tuple[VerificationKey, ...] = ()
        self._unusable: dict[str, str] = {}  # kid: why
        self._fetches = 0
        self._unknown: dict[str, tuple[int, int]] = {}  # kid: fetches when it was asked for, how often
        self._revoked = RevokedUsers(REVOKED_LIMIT)
        self.permissions = PermissionTable()
        self._cache: TokenCache | None = None
        self._cache_bytes = cache_bytes
        self.renew(keys, policy, cache_entries)

    def renew(self, keys: tuple[VerificationKey, ...], policy: TokenPolicy, cache_entries: int) -> None:
        """Other keys, another policy: nothing is remembered of what was verified by the former."""
        self._configured = keys
        self._policy = policy
        self._cache_entries = cache_entries
        self._make()

    def renew_fetched(
        self, keys: tuple[VerificationKey, ...], passed_over: Iterable[PassedOver] = ()
    ) -> None:
        """Take over a key set that was fetched. A kid of the configuration outranks one of the set.

        Args:
            keys: The keys of the set.
            passed_over: Keys of the set that cannot be used. Tokens that name one are refused for good.
        """
        self._fetches += 1
        self._unusable = {each.kid: each.why for each in passed_over if each.kid is not None}
        named = {(key.kid, key.algorithm) for key in self._fetched}
        self._fetched = keys
        if named != {(key.kid, key.algorithm) for key in keys}:
            self._make()
        else:  # the same again, perhaps with other material: what is remembered stays for its 5 minutes
            self._verifier = self._verifier_now()

    def _make(self) -> None:
        self._verifier = self._verifier_now()
        self._renew_cache()

    def _renew_cache(self) -> None:
        """Start an empty cache; what the former one held is released."""
        if self._cache is not None:
            self._cache.clear()
        self._cache = None
        if self._cache_entries:
            self._cache = TokenCache(self._cache_entries, self.permissions, self._cache_bytes)

    def _verifier_now(self) -> Verifier:
        ours = {key.kid for key in self._configured}
        fetched = (key for key in self._fetched if key.kid not in ours)
        ring = KeyRing((*self._configured, *fetched))
        return Verifier(ring, self._policy, self.permissions)

    def revoke(self, user: str, before_s: float) -> None:
        """From now on refuse tokens of this user that were issued before a time.

        May be called repeatedly and in any order: of several times the latest counts. Beyond
        `REVOKED_LIMIT` users the earliest revocation becomes one for all, see `wsgate.auth.revoked`.
        """
        if not self._revoked.revoke(user, before_s):
            return
        self._count("revocations_forgotten", 1)
        # Which of the cached tokens were issued before the time for all is not known.
        self._renew_cache()
        if self._log is not None:
            self._log.error(
                "revocations_full",
                users=REVOKED_LIMIT,
                all_before_s=int(self._revoked.all_before_s),
                why="too many users are revoked: everybody's tokens issued before all_before_s are refused;"
                " tokens without iat of users no longer remembered are valid again; set auth.token_max_life",
            )

    def unrevoke(self, user: str) -> None:
        """Take the revocation of a user back, whatever its time."""
        self._revoked.forget(user)

    def revocation_ends_at_s(self, before_s: float) -> float | None:
        """Until when a revocation of tokens issued before a time matters; None: until it is removed."""
        return self._policy.revocation_ends_at_s(before_s)

    def tick(self, now_s: float) -> None:
        """Forget cached tokens and revocations that are over; called once a second.

        Args:
            now_s: Seconds since 1970.
        """
        if len(self._revoked) and (life_s := self._policy.revocation_ends_at_s(0.0)) is not None:
            self._revoked.forget_before(now_s - life_s)
        if self._cache is not None:
            self._cache.sweep(now_s, 1 + self._cache.buckets // SWEEP_TICKS)

    def shrink(self, size_bytes: int, now_s: float) -> int:
        """Give memory back because it is short, and count the entries; about how many bytes.

        The oldest entries of the cache go. Revocations stay.

        Args:
            size_bytes: How much is wanted.
            now_s: Seconds since 1970.
        """
        if self._cache is None or not len(self._cache):
            return 0
        before = len(self._cache)
        freed = self._cache.shrink(size_bytes, now_s)
        self._count("tokens_evicted", before - len(self._cache))
        return freed

    @property
    def is_awaiting(self) -> bool:
        """Whether keys are to be fetched and none that can be used have been."""
        return self._is_fetching and not self._fetched

    @property
    def cached_bytes(self) -> int:
        """What the cache holds, without the permission sets."""
        return 0 if self._cache is None else self._cache.records_bytes

    @property
    def revoked_bytes(self) -> int:
        """Estimated memory of all revocations, in bytes."""
        return self._revoked.bytes_estimate

    @property
    def revocations(self) -> Mapping[str, float]:
        """The revoked users, each with the time before which its tokens are refused; a live view."""
        return self._revoked.users

    @property
    def revoked(self) -> int:
        """Number of users whose tokens are revoked."""
        return len(self._revoked)

    @property
    def cached(self) -> int:
        """Entries in the cache."""
        return 0 if self._cache is None else len(self._cache)

    def knows(self, token: str, now_s: float) -> bool:
        """Whether the cache holds this token, so that to verify it costs next to nothing."""
        return self._cache is not None and self._cache.get(token, now_s) is not None

    def recall(self, token: str, now_s: float) -> Identity | None:
        """Whose connection this token opens, if that is known from before; None: verify it."""
        identity = None if self._cache is None else self._cache.get(token, now_s)
        if identity is None or identity.user in self._revoked:
            return None
        self._count("tokens_cached", 1)
        return identity

    def connection(self, token: str, now_s: float) -> Identity:
        """Whose connection this token opens.

        Raises:
            TokenError: It opens none; `is_expired` tells whether a fresh one would.
        """
        if (known := self.recall(token, now_s)) is not None:
            return known
        try:
            identity = self._verifier.verify_connection(token, now_s=now_s, revoked=self._revoked)
        except TokenError as error:
            raise self._refused(token, error) from None
        self._count("tokens_verified", 1)
        if self._cache is not None:
            self._cache.put(token, identity, now_s)
        return identity

    def channel(self, token: str, channel: str, user: str, now_s: float) -> ChannelGrant:
        """The channel this token opens to this user; raises TokenError when it does not."""
        try:
            grant = self._verifier.verify_channel(
                token, channel=channel, user=user, now_s=now_s, revoked=self._revoked
            )
        except TokenError as error:
            raise self._refused(token, error) from None
        self._count("tokens_verified", 1)
        return grant

    def _refused(self, token: str, error: TokenError) -> TokenError:
        """Count a refusal. What is raised: another error when the key may still be fetched."""
        if error.fault == "unknown_key":
            error = self._without_key(token, error)
        self._count("tokens_refused", 1)
        self._count(f"token_fault_{error.fault}", 1)
        if self._log is not None:
            self._log.info(f"token_refused_{error.cause}", fault=error.fault, why=error.why)
        return error

    def _without_key(self, token: str, error: TokenError) -> TokenError:
        """Why the token's key is not there: it may still come, or it is there and cannot be used."""
        kid = kid_of(token)
        if kid is not None and (why := self._unusable.get(kid)) is not None:
            return TokenError("unusable_key", detail=f"the key set's key cannot be used: {why}")
        return TokenError("awaited_key") if self._is_wanted(kid) else error

    def _is_wanted(self, kid: str | None) -> bool:
        """Whether the next fetch may bring an unknown key; if so, ask for a fetch.

        A key that is still missing two fetches later is unknown for good: the first fetch may have been under
        way already when the key was asked for. Before the first fetch any key may come, also the one for
        tokens that name none.
        """
        if not self._is_fetching:
            return False
        if kid is None:
            return self.is_awaiting
        fetches, asked = self._unknown.get(kid, (-1, 0))
        if fetches == self._fetches:
            return True
        if asked == 2:
            return False
        if not asked and len(self._unknown) >= UNKNOWN_LIMIT:
            self._unknown.pop(next(iter(self._unknown)))
        self._unknown[kid] = self._fetches, asked + 1
        self._count("unknown_key_ids_requested", 1)
        return True
