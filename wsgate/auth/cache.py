"""Tokens that were verified before, so that a client that returns is not verified again.

Owns what is remembered and for how long. Must not know why a token is valid.

One entry is one packed record: no Python object belongs to it. Records lie in buckets, and a bucket is
one `bytes`, searched for the token's digest. Buckets are added one at a time by linear hashing: when
there are more than `_BUCKET_ENTRIES` entries a bucket, one bucket is split in two. So nothing is ever
rehashed as a whole, and get and put cost O(1).

    digest 16 | put at, s 4 | expires at, s 4 | issued at, s 4 | permission set 4 | length 1 | user

Records of a bucket are in the order in which they were put, so what is too old is at the front. When
the cache is full, the oldest of the newcomer's bucket goes: nearly first in, first out. When memory is
short, the oldest of all go first.

Time is the wall clock, because `exp` is. A step of the clock can make an entry useless, so that its token
is verified again. It cannot make an entry serve past `exp`, nor keep its memory.

The digest is keyed with a random key of this cache. Nobody can choose tokens that meet in one bucket,
or a user name that looks like a record; a copy of the memory gives no token away.

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
"""An entry serves at most this long after it was put, whatever the token says: a key that is withdrawn
works no longer, and idle connections keep no memory here. Longer than any reconnect back-off."""

AGE_STEPS: Final = 6
"""Under pressure what is older than a half, a quarter, ... of that age goes, then everything."""
_DIGEST_BYTES: Final = 16
_KEY_BYTES: Final = 32

# Measured with 20,000 users of 10 bytes (records of 39), tracemalloc and sys.getallocatedblocks, as
# entries a bucket: bytes an entry, blocks an entry, us a hit.
#     4: 49.1, 0.24, 1.47    8: 44.2, 0.13, 1.51    16: 41.7, 0.06, 1.63
# A dict from digests to identities takes 214 bytes and 4 blocks, and 0.7 us. A bucket of 8 mostly
# stays below 512 bytes, up to which Python's own allocator serves.
_BUCKET_ENTRIES: Final = 8

_FIELDS: Final = Struct("<IIIIB")
_USER_AT: Final = _DIGEST_BYTES + _FIELDS.size
_LENGTH_AT: Final = _USER_AT - 1
_TIME_END_S: Final = 2**32
_USER_END_BYTES: Final = 2**8
# A bucket's pointer, the header of its bytes, and what the allocator adds to get to 16.
_BUCKET_BYTES: Final = 8 + 33 + 8


class TokenCache:
    """Identities by token, for at most `AGE_LIMIT_S` and never past the token's expiry.

    Args:
        limit_entries: Most tokens remembered, >= 0; 0: none.
        permissions: Where the permission sets are held, which connections share.
        limit_bytes: Most memory, permission sets included; 0: no limit.

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
        self._mask = 0  # of a digest: reaches every bucket
        self._hand = 0  # where the sweep is
        self._entries = 0
        self._bytes = 0

    def __len__(self) -> int:
        return self._entries

    @property
    def buckets(self) -> int:
        """How many buckets there are, for `sweep`."""
        return len(self._buckets)

    def bytes_estimate(self) -> int:
        """Bytes held, permission sets included (each once, even if it is held elsewhere too). O(1)."""
        return self.records_bytes + self._numbers.bytes_held

    @property
    def records_bytes(self) -> int:
        """Bytes held without the permission sets, which are on the account of their table. O(1)."""
        return self._bytes + len(self._buckets) * _BUCKET_BYTES

    def get(self, token: str | bytes, now_s: float) -> Identity | None:
        """Whose token this is, if it was put and still serves.

        Args:
            token: Any text or bytes.
            now_s: Seconds since 1970, on the clock of `put`.

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
        # A clock that was set back makes an entry from the future: verify again.
        if not put_s <= now_s < put_s + AGE_LIMIT_S or 0 < expires_at_s <= now_s:
            return None
        at += _USER_AT
        user = bucket[at : at + length].decode()
        return Identity(user, self._numbers[number], expires_at_s, issued_at_s)

    def put(self, token: str | bytes, identity: Identity, now_s: float) -> None:
        """Remember a token that was verified just now; at the limit, another one is forgotten.

        What does not fit a record (`expires_at_s`, `issued_at_s` or `now_s` outside 32 bits, a user of more
        than 255 bytes) and what is longer than a token may be is not remembered.
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
        """Forget what is too old in the next few buckets; called again and again, in all of them.

        Without it, memory of old entries is given back only when new ones come.

        Args:
            now_s: Seconds since 1970.
            buckets: How many to look at; each costs about 0.2 us, and 0.4 us an entry it forgets.
        """
        for _ in range(min(buckets, len(self._buckets))):
            self._hand = (self._hand + 1) % len(self._buckets)
            self._drop_old(self._hand, now_s)
        if not self._entries:
            self._buckets, self._mask, self._hand = [b""], 0, 0

    def clear(self) -> None:
        """Forget everything. Later entries are kept again."""
        self._numbers.clear()
        self._buckets, self._mask, self._hand = [b""], 0, 0
        self._entries = self._bytes = 0

    def shrink(self, size_bytes: int, now_s: float) -> int:
        """Forget the oldest entries, because memory is short; the bytes given back.

        Verifying a token again costs 10 us, while a newcomer that is refused for want of memory is lost. Half
        of the ages go at a time, so that the cache is walked at most `AGE_STEPS` times.

        Args:
            size_bytes: How much is to be given back. A permission set that connections share as well frees
                nothing yet, so that it may be less.
            now_s: Seconds since 1970.
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
        # A token in text that is not ASCII is never valid, but may be asked for.
        raw = token if isinstance(token, bytes) else token.encode("utf-8", "surrogatepass")
        return blake2b(raw, digest_size=_DIGEST_BYTES, key=self._key).digest()

    def _place(self, digest: bytes) -> int:
        """The bucket of a digest. Those from the count to the mask are not split off yet."""
        place = int.from_bytes(digest[:4], "little") & self._mask
        return place if place < len(self._buckets) else place & (self._mask >> 1)

    def _drop(self, place: int, at: int) -> None:
        """Forget the record that starts at a byte of a bucket."""
        bucket = self._buckets[place]
        _, _, _, number, length = _FIELDS.unpack_from(bucket, at + _DIGEST_BYTES)
        end = at + _USER_AT + length
        self._buckets[place] = bucket[:at] + bucket[end:]
        self._entries -= 1
        self._bytes -= end - at
        self._numbers.release(number)

    def _drop_old(self, place: int, now_s: float) -> None:
        """Forget the entries at a bucket's front that serve no more.

        An entry from the future was put before the machine's clock was set back. No lookup accepts
        it. If it stayed, the entries behind it would stay too, until the clock reaches that time again.
        """
        while bucket := self._buckets[place]:
            put_s, _, _, _, _ = _FIELDS.unpack_from(bucket, _DIGEST_BYTES)
            if put_s <= now_s < put_s + AGE_LIMIT_S:
                return
            self._drop(place, 0)

    def _evict(self, place: int) -> None:
        """Forget one entry: the oldest here, or in the next bucket that has any."""
        while not self._buckets[place]:
            place = (place + 1) % len(self._buckets)
        self._drop(place, 0)

    def _split(self) -> None:
        """One bucket more: half of the records of one bucket, by one more bit of their digests."""
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
