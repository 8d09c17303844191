"""Verify the tokens of one shard's clients, and cache the result.

The keys come from the configuration and from a key set that the admin process fetches. Revocations are kept
here too. Everything is counted, and each refusal is logged with its cause, never with the token.
"""

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
"""Unknown key ids that are remembered; beyond them the oldest is dropped for each new one."""
SWEEP_TICKS = 60
"""Calls of `tick` in which the whole cache is searched for expired tokens once."""
REVOKED_LIMIT = 65_536
"""Users remembered as revoked, about 20 MiB a shard at most; then the earliest revocation holds for all."""


class Tokens:
    """Turns the text of a token into an identity, or raises the reason why the token is refused.

    Args:
        keys: All configured keys.
        policy: The claims that a token must have.
        cache_entries: How many verified tokens are cached; 0: none.
        count: Adds to a counter of the shard, by its name.
        cache_bytes: Memory that the cache may take, permission sets included, in bytes; 0: no limit.
        is_fetching: Whether more keys come from a key set that the admin process fetches.
        log: Records why a token was refused: one line for each cause and second, never the token.
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
        self._unusable: dict[str, str] = {}  # why a key of the set cannot be used, by kid
        self._fetches = 0
        self._unknown: dict[str, tuple[int, int]] = {}  # by kid: fetches at its last request, and requests
        self._revoked = RevokedUsers(REVOKED_LIMIT)
        # At the last tick: the time up to which revocations were forgotten, and the monotonic clock.
        self._passed: tuple[float, float] | None = None
        self.permissions = PermissionTable()
        self._cache: TokenCache | None = None
        self._cache_bytes = cache_bytes
        self.renew(keys, policy, cache_entries)

    def renew(self, keys: tuple[VerificationKey, ...], policy: TokenPolicy, cache_entries: int) -> None:
        """Use these keys and this policy from now on, and drop every cached token."""
        self._configured = keys
        self._policy = policy
        self._cache_entries = cache_entries
        self._make()

    def renew_fetched(
        self, keys: tuple[VerificationKey, ...], passed_over: Iterable[PassedOver] = ()
    ) -> None:
        """Use a key set that was fetched; where both have a kid, the key of the configuration is used.

        Args:
            keys: The keys of the set.
            passed_over: Keys of the set that cannot be used; a token that names one is refused as such.
        """
        self._fetches += 1
        self._unusable = {each.kid: each.why for each in passed_over if each.kid is not None}
        named = {(key.kid, key.algorithm) for key in self._fetched}
        self._fetched = keys
        if named != {(key.kid, key.algorithm) for key in keys}:
            self._make()
        else:  # the same kids, perhaps with other key material: cached tokens stay until their 5 minutes end
            self._verifier = self._verifier_now()

    def _make(self) -> None:
        """Make a verifier of the keys that are known now, and an empty cache."""
        self._verifier = self._verifier_now()
        self._renew_cache()

    def _renew_cache(self) -> None:
        """Start an empty cache, and release the permission sets of the former one."""
        if self._cache is not None:
            self._cache.clear()
        self._cache = None
        if self._cache_entries:
            self._cache = TokenCache(self._cache_entries, self.permissions, self._cache_bytes)

    def _verifier_now(self) -> Verifier:
        """Make a verifier of the configured keys and of the fetched ones with another kid."""
        ours = {key.kid for key in self._configured}
        fetched = (key for key in self._fetched if key.kid not in ours)
        ring = KeyRing((*self._configured, *fetched))
        return Verifier(ring, self._policy, self.permissions)

    def revoke(self, user: str, before_s: float) -> None:
        """Refuse from now on the tokens of one user that were issued before a time.

        Calls may be repeated and come in any order: of several times the latest counts. Beyond
        `REVOKED_LIMIT` users the earliest revocation holds for all users, see `wsgate.auth.revoked`.

        Args:
            user: The user.
            before_s: Seconds since 1970.
        """
        if not self._revoked.revoke(user, before_s):
            return
        self._count("revocations_forgotten", 1)
        # The cache does not know which of its tokens were issued before the time for all users.
        self._renew_cache()
        if self._log is not None:
            self._log.error(
                "revocations_full",
                users=REVOKED_LIMIT,
                all_before_s=int(self._revoked.all_before_s),
                why="too many users are revoked: every token issued before all_before_s is refused;"
                " tokens without iat of users that are no longer remembered are valid again;"
                " set auth.token_max_life",
            )

    def unrevoke(self, user: str) -> None:
        """Remove the revocation of a user, whatever its time."""
        self._revoked.forget(user)

    def revocation_ends_at_s(self, before_s: float) -> float | None:
        """Return the time until which a revocation has an effect; None: until it is removed.

        Args:
            before_s: Tokens that were issued before this time are revoked. Both times in seconds since 1970.
        """
        return self._policy.revocation_ends_at_s(before_s)

    def tick(self, now_s: float, clock_s: float) -> None:
        """Drop expired tokens from a part of the cache, and revocations that have no effect any more.

        Call this once a second.

        Args:
            now_s: Seconds since 1970.
            clock_s: A monotonic clock, in seconds.
        """
        # A wall clock that jumps ahead for a moment must not remove revocations, because nothing brings them
        # back soon. After a step that is right, revocations are kept longer by the step.
        passed_s = now_s if self._passed is None else self._passed[0] + clock_s - self._passed[1]
        self._passed = min(now_s, passed_s), clock_s
        if len(self._revoked) and (life_s := self._policy.revocation_ends_at_s(0.0)) is not None:
            self._revoked.forget_before(self._passed[0] - life_s)
        if self._cache is not None:
            self._cache.sweep(now_s, 1 + self._cache.buckets // SWEEP_TICKS)

    def shrink(self, size_bytes: int, now_s: float) -> int:
        """Evict the oldest tokens from the cache, because memory is short; return about how many bytes.

        Args:
            size_bytes: How many bytes are wanted.
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
        """Whether a key set is to be fetched, and no usable key has come from it yet."""
        return self._is_fetching and not self._fetched

    @property
    def cached_bytes(self) -> int:
        """Memory of the cached tokens without their permission sets, in bytes."""
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
        """Number of tokens in the cache."""
        return 0 if self._cache is None else len(self._cache)

    def knows(self, token: str, now_s: float) -> bool:
        """Return whether the cache has this token, so that verifying it costs almost nothing."""
        return self._cache is not None and self._cache.get(token, now_s) is not None

    def recall(self, token: str, now_s: float) -> Identity | None:
        """Return the identity of a connection token from the cache; None: the token must be verified.

        A cached token of a revoked user must be verified too.
        """
        identity = None if self._cache is None else self._cache.get(token, now_s)
        if identity is None or identity.user in self._revoked:
            return None
        self._count("tokens_cached", 1)
        return identity

    def connection(self, token: str, now_s: float) -> Identity:
        """Verify a connection token, unless the cache has it; return its identity.

        Raises:
            TokenError: The token is refused; the error has the cause.
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
        """Verify a token that opens one channel to one user; return what it grants. It is never cached.

        Raises:
            TokenError: The token is refused, or it is for another channel or user.
        """
        try:
            grant = self._verifier.verify_channel(
                token, channel=channel, user=user, now_s=now_s, revoked=self._revoked
            )
        except TokenError as error:
            raise self._refused(token, error) from None
        self._count("tokens_verified", 1)
        return grant

    def _refused(self, token: str, error: TokenError) -> TokenError:
        """Count and log a refused token; return the error to raise, which says if its key may be fetched."""
        if error.fault == "unknown_key":
            error = self._without_key(token, error)
        self._count("tokens_refused", 1)
        self._count(f"token_fault_{error.fault}", 1)
        if self._log is not None:
            self._log.info(f"token_refused_{error.cause}", fault=error.fault, why=error.why)
        return error

    def _without_key(self, token: str, error: TokenError) -> TokenError:
        """Return the error for a token whose key is not known: it may be fetched, is unusable or unknown."""
        kid = kid_of(token)
        if kid is not None and (why := self._unusable.get(kid)) is not None:
            return TokenError("unusable_key", detail=f"the key of the key set cannot be used: {why}")
        return TokenError("awaited_key") if self._is_wanted(kid) else error

    def _is_wanted(self, kid: str | None) -> bool:
        """Return whether the next fetch may bring an unknown key, and request a fetch at its first two tries.

        A key that is still missing after two fetches stays unknown: the first fetch may have begun before the
        key was requested. Before the first usable key set, a token without a kid waits for it too.
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
