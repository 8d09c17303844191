"""Verified tokens of one shard: the cache in front, the verifier behind, both counted."""

from collections.abc import Callable

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
)

__all__ = ["Tokens"]

PERMISSION_SETS = 4_096
"""Different permission sets that are shared; more than that are simply not shared."""


class Tokens:
    """Token text in, identity out.

    Args:
        keys: All keys in force.
        policy: What a token must say.
        cache_entries: How many verified tokens are remembered; 0: none.
        count: Adds to a counter by name.
    """

    def __init__(
        self,
        keys: tuple[VerificationKey, ...],
        policy: TokenPolicy,
        cache_entries: int,
        count: Callable[[str, int], None],
    ) -> None:
        self._verifier = Verifier(KeyRing(keys), policy, PermissionTable(PERMISSION_SETS))
        self._cache = TokenCache(cache_entries) if cache_entries else None
        self._count = count

    @property
    def cached(self) -> int:
        """Entries in the cache."""
        return 0 if self._cache is None else len(self._cache)

    def connection(self, token: str, now_s: float) -> Identity:
        """Whose connection this token opens.

        Raises:
            TokenError: It opens none; `is_expired` tells whether a fresh one would.
        """
        cache = self._cache
        if cache is not None and (identity := cache.get(token, now_s)) is not None:
            self._count("tokens_cached", 1)
            return identity
        try:
            identity = self._verifier.verify_connection(token, now_s=now_s)
        except TokenError:
            self._count("tokens_refused", 1)
            raise
        self._count("tokens_verified", 1)
        if cache is not None:
            cache.put(token, identity, now_s)
        return identity

    def channel(self, token: str, channel: str, user: str, now_s: float) -> ChannelGrant:
        """The channel this token opens to this user; raises TokenError when it does not."""
        try:
            grant = self._verifier.verify_channel(token, channel=channel, user=user, now_s=now_s)
        except TokenError:
            self._count("tokens_refused", 1)
            raise
        self._count("tokens_verified", 1)
        return grant
