"""Cache the identities of verified tokens, so that a client that reconnects needs no second verification.

This module decides which tokens are cached and for how long. The rules for valid tokens are in
wsgate/auth/tokens.py.

An entry is one packed record without any Python object. Records are stored in buckets. A bucket is one
`bytes` object, which is searched for the token's digest. Linear hashing adds one bucket at a time: when there
are more than `_BUCKET_ENTRIES` entries a bucket, one bucket is split in two. So the table is never rehashed
as a whole, and `get` and `put` cost O(1).

    digest 16 | put at, s 4 | expires at, s 4 | issued at, s 8 | permission set 4 | length 1 | user

The records of a bucket are in the order of `put`, so old records are at the front. When the cache is full,
the oldest record of the new record's bucket is evicted: nearly first in, first out. When memory is short, the
oldest records of all buckets are evicted first.

All times are wall clock times, because `exp` is one. A step of the clock can make an entry useless, so that
its token is verified again. It cannot make an entry valid after `exp`, nor keep the entry's memory.

The digest is keyed with a random key of this cache. So an attacker cannot choose tokens that fall into one
bucket, or a user name that looks like a record, and a copy of the memory reveals no token.

Source: Litwin, "Linear hashing: a new tool for file and table addressing", 1980.
"""

from __future__ import annotations

from hashlib import blake2b
from secrets import token_bytes
from struct import Struct
from typing import Final

from wsgate.auth.permissions import PermissionNumbers, PermissionTable
from wsgate.auth.tokens import TOKEN_LIMIT_BYTES, Identity
from wsgate.errors import SettingsError

__all__ = ["AGE_LIMIT_S", "TokenCache"]

AGE_LIMIT_S: Final = 300
"""The longest use of an entry after `put`, in seconds, whatever the token's claims are. So a token of a
withdrawn key is not accepted longer, and idle connections keep no memory here. Longer than any reconnect
back-off."""

AGE_STEPS: Final = 6
"""`shrink` evicts entries older than a half, a quarter, ... of that age, and in the last step all entries."""
_DIGEST_BYTES: Final = 16
_KEY_BYTES: Final = 32

# Measured with 20,000 users of 10 bytes (records of 39, which have 43 now), tracemalloc and
# sys.getallocatedblocks, as entries a bucket: bytes an entry, blocks an entry, us a hit.
#     4: 49.1, 0.24, 1.47    8: 44.2, 0.13, 1.51    16: 41.7, 0.06, 1.63
# A dict from digests to identities takes 214 bytes and 4 blocks, and 0.7 us. A bucket of 8 mostly
# stays below 512 bytes, up to which Python's own allocator serves.
_BUCKET_ENTRIES: Final = 8

_FIELDS: Final = Struct("<IIdIB")
_USER_AT: Final = _DIGEST_BYTES + _FIELDS.size
_LENGTH_AT: Final = _USER_AT - 1
_TIME_END_S: Final = 2**32
_USER_END_BYTES: Final = 2**8
# Bytes of a bucket without records: its pointer, the header of `bytes`, and the rounding of the allocator to
# 16.
_BUCKET_BYTES: Final = 8 + 33 + 8


class TokenCache:
    """A cache of identities by token, each for at most `AGE_LIMIT_S` and never after the token's expiry.

    Args:
        limit_entries: The most tokens, >= 0; 0: the cache is off.
        permissions: The table of permission sets, shared with connections; None: a table of its own.
        limit_bytes: The most memory in bytes, permission sets included; 0: no limit.

    Raises:
        SettingsError: The limit is negative.
    """

    __slots__ = (
        "_buckets",
        "_bytes",
        "_entries",
        "_hand",
        "_key",
        "_limit",
        "_limit_bytes",
        "_mask",
        "_numbers",
    )

    def __init__(
        self, limit_entries: int, permissions: PermissionTable | None = None, limit_bytes: int = 0
    ) -> None:
        if limit_entries < 0:
            raise SettingsError("token_cache must not be negative")
        self._limit = limit_entries
        self._limit_bytes = limit_bytes
        self._key = token_bytes(_KEY_BYTES)
        self._numbers = PermissionNumbers(PermissionTable() if permissions is None else permissions)
        self._buckets = [b""]
        self._mask = 0  # selects the bits of a digest that number the buckets
        self._hand = 0  # the bucket that `sweep` visited last
        self._entries = 0
        self._bytes = 0

    def __len__(self) -> int:
        return self._entries

    @property
    def buckets(self) -> int:
        """The number of buckets, which `sweep` visits in turn."""
        return len(self._buckets)

    def bytes_estimate(self) -> int:
        """Estimate the memory in bytes, with the permission sets, also those that are shared. O(1)."""
        return self.records_bytes + self._numbers.bytes_held

    @property
    def records_bytes(self) -> int:
        """The memory of records and buckets in bytes; the table of permission sets counts the sets. O(1)."""
        return self._bytes + len(self._buckets) * _BUCKET_BYTES

    def get(self, token: str | bytes, now_s: float) -> Identity | None:
        """Look up the identity of a token that was put and is still usable.

        Args:
            token: Any text or bytes.
            now_s: The present time in seconds since 1970, from the same clock as in `put`.

        Returns:
            An identity equal to the one that was put; None: verify the token.
        """
        if len(token) > TOKEN_LIMIT_BYTES:
            return None
        digest = self._digest(token)
        bucket = self._buckets[self._place(digest)]
        at = bucket.find(digest)
        if at < 0:
            return None
        put_s, expires_at_s, issued_at_s, number, length = _FIELDS.unpack_from(bucket, at + _DIGEST_BYTES)
        # The clock was set back if the entry is from the future: verify the token again.
        if not put_s <= now_s < put_s + AGE_LIMIT_S or 0 < expires_at_s <= now_s:
            return None
        at += _USER_AT
        user = bucket[at : at + length].decode()
        return Identity(user, self._numbers[number], expires_at_s, issued_at_s)

    def put(self, token: str | bytes, identity: Identity, now_s: float) -> None:
        """Cache a token that was verified just now; at a limit, other entries are evicted.

        Nothing is cached if the identity does not fit a record (`expires_at_s`, `issued_at_s` or `now_s`
        outside 32 bits, a user of more than 255 bytes), or if the token is longer than `TOKEN_LIMIT_BYTES`.
        """
        user = identity.user.encode()
        is_short = len(token) <= TOKEN_LIMIT_BYTES and len(user) < _USER_END_BYTES
        times_s = (now_s, identity.expires_at_s, identity.issued_at_s)
        is_timely = all(0 <= each < _TIME_END_S for each in times_s)
        if not (self._limit and is_short and is_timely):
            return
        digest = self._digest(token)
        place = self._place(digest)
        self._drop_old(place, now_s)
        at = self._buckets[place].find(digest)
        if at >= 0:
            self._drop(place, at)
        if self._entries >= self._limit:
            self._evict(place)
        number = self._numbers.hold(identity.permissions)
        fields = _FIELDS.pack(int(now_s), identity.expires_at_s, identity.issued_at_s, number, len(user))
        self._buckets[place] += digest + fields + user
        self._entries += 1
        self._bytes += _USER_AT + len(user)
        if self._entries > len(self._buckets) * _BUCKET_ENTRIES:
            self._split()
        while self._limit_bytes and self._entries and self.bytes_estimate() > self._limit_bytes:
            self._evict((place + 1) % len(self._buckets))

    def sweep(self, now_s: float, buckets: int) -> None:
        """Drop entries that are too old in the next few buckets; repeated calls visit all buckets in turn.

        Without these calls the memory of old entries is freed only when new entries arrive.

        Args:
            now_s: The present time in seconds since 1970.
            buckets: How many buckets to visit; each costs about 0.2 us, and each dropped entry 0.4 us.
        """
        for _ in range(min(buckets, len(self._buckets))):
            self._hand = (self._hand + 1) % len(self._buckets)
            self._drop_old(self._hand, now_s)
        if not self._entries:
            self._buckets, self._mask, self._hand = [b""], 0, 0

    def clear(self) -> None:
        """Drop all entries; tokens put afterwards are cached again."""
        self._numbers.clear()
        self._buckets, self._mask, self._hand = [b""], 0, 0
        self._entries = self._bytes = 0

    def shrink(self, size_bytes: int, now_s: float) -> int:
        """Evict the oldest entries to free memory, and return how many bytes this freed.

        Verifying a token again costs 10 us, which is better than refusing a new connection for lack of
        memory. Each step halves the age that is kept, so the cache is walked at most `AGE_STEPS` times.

        Args:
            size_bytes: The bytes to free. A permission set that connections share is counted as freed
                although it stays in memory, so the real gain may be smaller.
            now_s: The present time in seconds since 1970.
        """
        before = self.bytes_estimate()
        for step in range(AGE_STEPS):
            left_s = AGE_LIMIT_S >> (step + 1) if step + 1 < AGE_STEPS else -1
            for place in range(len(self._buckets)):
                while bucket := self._buckets[place]:
                    put_s = _FIELDS.unpack_from(bucket, _DIGEST_BYTES)[0]
                    if before - self.bytes_estimate() >= size_bytes or 0 <= now_s - put_s <= left_s:
                        break
                    self._drop(place, 0)
        if not self._entries:
            self.clear()
        return before - self.bytes_estimate()

    def _digest(self, token: str | bytes) -> bytes:
        """Compute the keyed digest of a token, which identifies its record."""
        # A text that is not ASCII is never a valid token, but `get` accepts any text.
        raw = token if isinstance(token, bytes) else token.encode("utf-8", "surrogatepass")
        return blake2b(raw, digest_size=_DIGEST_BYTES, key=self._key).digest()

    def _place(self, digest: bytes) -> int:
        """Return the number of a digest's bucket; a bucket that is not split off yet maps to its source."""
        place = int.from_bytes(digest[:4], "little") & self._mask
        return place if place < len(self._buckets) else place & (self._mask >> 1)

    def _drop(self, place: int, at: int) -> None:
        """Remove the record that starts at offset `at` of a bucket."""
        bucket = self._buckets[place]
        _, _, _, number, length = _FIELDS.unpack_from(bucket, at + _DIGEST_BYTES)
        end = at + _USER_AT + length
        self._buckets[place] = bucket[:at] + bucket[end:]
        self._entries -= 1
        self._bytes -= end - at
        self._numbers.release(number)

    def _drop_old(self, place: int, now_s: float) -> None:
        """Remove the entries at the front of a bucket that are too old, or from the future.

        An entry from the future was put before the machine's clock was set back. No lookup accepts it. If it
        stayed, the entries behind it would stay too, until the clock reaches that time again.
        """
        while bucket := self._buckets[place]:
            put_s, _, _, _, _ = _FIELDS.unpack_from(bucket, _DIGEST_BYTES)
            if put_s <= now_s < put_s + AGE_LIMIT_S:
                return
            self._drop(place, 0)

    def _evict(self, place: int) -> None:
        """Remove one entry: the oldest of this bucket, or of the next bucket that is not empty."""
        while not self._buckets[place]:
            place = (place + 1) % len(self._buckets)
        self._drop(place, 0)

    def _split(self) -> None:
        """Add one bucket, and move into it the records of one other bucket whose next digest bit is set."""
        self._buckets.append(b"")
        added = len(self._buckets) - 1
        self._mask = (1 << added.bit_length()) - 1
        source = added & (self._mask >> 1)
        bucket, parts, at = self._buckets[source], {source: b"", added: b""}, 0
        while at < len(bucket):
            end = at + _USER_AT + bucket[at + _LENGTH_AT]
            parts[self._place(bucket[at : at + _DIGEST_BYTES])] += bucket[at:end]
            at = end
        self._buckets[source], self._buckets[added] = parts[source], parts[added]
