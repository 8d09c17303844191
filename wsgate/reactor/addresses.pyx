"""Counts the connections and the rate of arrivals of every address, summed over all shards of a node.

Owns the layout of one block of shared memory, which is made before the shards are forked, and every access to
it. Contains neither the limits nor the responses for refused peers.

An address is 16 bytes; an IPv4 address is mapped into IPv6. Connections are counted for an IPv4 address or
for an IPv6 /64, because one customer usually gets a whole /64. In the tables it stands as a keyed hash, so
that no client can choose addresses that share a place.

There are two tables, each of rows of eight cells; a row is one cache line. A key has two rows and may be in
any of their sixteen cells. In a table that is half full, about 1 in 10^9 addresses finds no place; its
connection is admitted and counted in `addresses_uncounted`. A cell is one word and is changed only by
compare-and-swap. There is no lock, which a shard could hold when it is killed.

    counts      tag (40 bits), connections (24 bits); 0: free. Connections of two cells of one key add up.
    arrivals    tag (24 bits), when the bucket is full again (40 bits, microseconds); past: free

Each shard also keeps a journal, the key of each of its slots, from which the keeper removes what a shard that
died had counted. If a shard dies between counting a connection and noting it in the journal, that one
connection stays counted until the node ends.

Source: the time at which a bucket is full again is the theoretical arrival time of GCRA (ITU-T I.371), as in
gate.pyx.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from wsgate.reactor.siphash cimport siphash
from wsgate.reactor.structs cimport (
    ADDRESSES_UNCOUNTED, AddressTable, Core, HEAD_GROUPS, REFUSED_ADDRESS_CONNECTIONS, REFUSED_ADDRESS_RATE,
)

import mmap
import os

from wsgate.errors import InternalError, SettingsError

__all__ = ["SharedAddresses"]

cdef extern from * nogil:
    """
    static inline uint64_t word_get(uint64_t *word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }
    static inline void word_set(uint64_t *word, uint64_t value) { __atomic_store_n(word, value, __ATOMIC_RELEASE); }
    static inline int word_swap(uint64_t *word, uint64_t before, uint64_t after) {
        return __atomic_compare_exchange_n(word, &before, after, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
    }
    """
    uint64_t word_get(uint64_t *word)
    void word_set(uint64_t *word, uint64_t value)
    bint word_swap(uint64_t *word, uint64_t before, uint64_t after)

cdef extern from "<netinet/in.h>" nogil:
    ctypedef struct in_addr_t "struct in_addr":
        uint32_t s_addr
    ctypedef struct in6_addr_t "struct in6_addr":
        uint8_t s6_addr[16]
    ctypedef struct sockaddr_in_t "struct sockaddr_in":
        uint16_t sin_family
        in_addr_t sin_addr
    ctypedef struct sockaddr_in6_t "struct sockaddr_in6":
        in6_addr_t sin6_addr
    int AF_INET
    int AF_INET6

cdef enum:
    WAYS = 8                     # cells in a row, which is 64 bytes
    COUNT_BITS = 24
    TIME_BITS = 40
    TRIES = 64                   # attempts when other shards change the cell at the same time
    DEPTH_US = 1000000           # depth of an address's token bucket: one second
    # the most by which the clocks of two shards may differ; a shard that hangs has read its clock long ago
    SKEW_US = 60000000

cdef uint64_t COUNT_MASK = (<uint64_t>1 << COUNT_BITS) - 1
cdef uint64_t TIME_MASK = (<uint64_t>1 << TIME_BITS) - 1
cdef const uint8_t *MAPPED = b"\0\0\0\0\0\0\0\0\0\0\xff\xff"


cdef bint address_read(const void *peer, uint8_t *address) noexcept nogil:
    """Copy the 16 bytes of a socket address, IPv4 mapped; False if it is not a network address."""
    cdef uint16_t family = (<const sockaddr_in_t *>peer).sin_family
    if family == AF_INET:
        memcpy(address, MAPPED, 12)
        memcpy(address + 12, &(<const sockaddr_in_t *>peer).sin_addr, 4)
        return True
    if family == AF_INET6:
        memcpy(address, &(<const sockaddr_in6_t *>peer).sin6_addr, 16)
        return True
    return False


cdef bint address_is_trusted(Core *core, const uint8_t *address) noexcept nogil:
    """Whether an address lies in one of the networks of trusted proxies that the gate lists."""
    cdef uint32_t index, whole, rest
    cdef const uint8_t *network
    for index in range(core.gate.trusted_count):
        network = core.gate.trusted[index].address
        whole = core.gate.trusted[index].bits >> 3
        rest = core.gate.trusted[index].bits & 7
        if memcmp(address, network, whole):
            continue
        if rest == 0 or (address[whole] ^ network[whole]) >> (8 - rest) == 0:
            return True
    return False


cdef inline uint64_t key_of(Core *core, const uint8_t *address) noexcept nogil:
    """Return the keyed hash under which an address is counted, never 0; all of an IPv6 /64 has one key."""
    cdef uint64_t size = 16 if memcmp(address, MAPPED, 12) == 0 else 8
    return siphash(core.addresses.key, address, size) | <uint64_t>1 << 63


cdef inline uint64_t row_of(AddressTable *table, uint64_t key, int which) noexcept nogil:
    """Return the first cell of one of a key's two rows.

    The rows are taken from bits of the key that hardly overlap with each other or with the tags.
    """
    return ((key >> 20 if which else key) & table.mask) * WAYS


cdef int change_count(AddressTable *table, uint64_t key, int change, uint32_t limit) noexcept nogil:
    """Add one connection (1) to the count of a key, or remove one (-1).

    With a `limit` above 0, a connection is added only while the sum of all cells of the key is below it.

    Returns:
        1 if the count was changed, 0 if the limit is reached, -1 if the key has no cell and gets none.
    """
    cdef uint64_t tag = key >> COUNT_BITS << COUNT_BITS, word, found = 0, sum
    cdef uint64_t *cell
    cdef uint64_t *place
    cdef int which, way, tries
    for tries in range(TRIES):
        sum = found = 0
        place = NULL
        for which in range(2):
            cell = table.counts + row_of(table, key, which)
            if which and cell == table.counts + row_of(table, key, 0):
                break                         # both rows are the same one, whose cells count once
            for way in range(WAYS):
                word = word_get(cell + way)
                if word & ~COUNT_MASK == tag and word:
                    sum += word & COUNT_MASK
                    if found == 0:
                        place = cell + way
                        found = word
                elif word == 0 and place == NULL and change > 0:
                    place = cell + way
        if change > 0 and limit and sum >= limit:
            return 0
        if place == NULL or (found == 0 and change < 0):
            return -1
        if found == 0:
            word = tag | 1
        elif change < 0 and found & COUNT_MASK == 1:
            word = 0
        else:
            word = found + 1 if change > 0 else found - 1
        if word_swap(place, found, word):
            return 1
    return -1


cdef int take_arrival(AddressTable *table, uint64_t key, uint64_t now_us, uint64_t cost_us) noexcept nogil:
    """Take one arrival from the token bucket of a key, which is one second deep.

    Returns:
        1 if one was taken, 0 if the bucket is empty, -1 if there is no free cell for the key.
    """
    cdef uint64_t tag = key >> TIME_BITS << TIME_BITS, word, ahead, found = 0
    cdef uint64_t depth = max(cost_us, <uint64_t>DEPTH_US)
    cdef uint64_t *cell
    cdef uint64_t *place
    cdef int which, way, tries
    for tries in range(TRIES):
        place = NULL
        for which in range(2):
            cell = table.arrivals + row_of(table, key, which)
            for way in range(WAYS):
                word = word_get(cell + way)
                # A little beyond the depth: the clock of another shard is ahead of this one, and the bucket
                # is empty. Far beyond it: the word is days old and has passed.
                ahead = (word - now_us) & TIME_MASK
                if ahead > depth:
                    ahead = depth if ahead <= depth + SKEW_US else 0
                if word & ~TIME_MASK == tag and word:
                    place = cell + way
                    found = word
                    break
                if ahead == 0 and place == NULL:
                    place = cell + way
                    found = word
            else:
                continue
            break
        else:
            ahead = 0
        if place == NULL:
            return -1
        if ahead + cost_us > depth:
            return 0
        if word_swap(place, found, tag | ((now_us + ahead + cost_us) & TIME_MASK)):
            return 1
    return -1


cdef int address_take(Core *core, const uint8_t *address, uint64_t *key) noexcept nogil:
    """Check the limits of an address and count one connection for it.

    0, or the reason to refuse the connection. `key` becomes the key for `address_note` or `address_drop`, or
    0 if the connection was not counted.
    """
    cdef int outcome
    cdef uint64_t name
    key[0] = 0
    if core.addresses.counts == NULL or not (core.gate.per_address_connections or core.gate.per_address_rate_per_s):
        return 0
    name = key_of(core, address)
    if core.gate.per_address_connections:
        outcome = change_count(&core.addresses, name, 1, core.gate.per_address_connections)
        if outcome == 0:
            return REFUSED_ADDRESS_CONNECTIONS
        if outcome < 0:
            core.counters[<int>ADDRESSES_UNCOUNTED] += 1
        else:
            key[0] = name
    if core.gate.per_address_rate_per_s:
        outcome = take_arrival(
            &core.addresses, name, <uint64_t>core.now_ms * 1000, DEPTH_US // core.gate.per_address_rate_per_s
        )
        if outcome == 0:
            address_drop(core, key[0])
            key[0] = 0
            return REFUSED_ADDRESS_RATE
        if outcome < 0:
            core.counters[<int>ADDRESSES_UNCOUNTED] += 1
    return 0


cdef void address_note(Core *core, uint32_t slot, uint64_t key) noexcept nogil:
    """Write the key that `address_take` has counted into the journal, for the connection in `slot`.

    A slot beyond the journal cannot be noted; its connection is removed from the count again.
    """
    if key and slot < core.addresses.journal_slots:
        word_set(core.addresses.journal + slot, key)
    elif key:
        address_drop(core, key)
        core.counters[<int>ADDRESSES_UNCOUNTED] += 1


cdef void address_count(Core *core, uint32_t slot, const uint8_t *address) noexcept nogil:
    """Count the connection in `slot`, accepted before there was a limit, even if that exceeds the limit."""
    cdef uint64_t key = key_of(core, address)
    if slot >= core.addresses.journal_slots or core.addresses.journal[slot]:
        return
    if change_count(&core.addresses, key, 1, 0) > 0:
        address_note(core, slot, key)
    else:
        core.counters[<int>ADDRESSES_UNCOUNTED] += 1


cdef void address_drop(Core *core, uint64_t key) noexcept nogil:
    """Remove from the count of an address one connection that `address_take` has counted."""
    if key:
        change_count(&core.addresses, key, -1, 0)


cdef int address_claim(Core *core, uint32_t slot, const uint8_t *address) noexcept nogil:
    """Count a connection for the client address that its proxy named, and no longer for the proxy's.

    Returns:
        0, or the reason to refuse the connection.
    """
    cdef uint64_t key = 0
    cdef int reason
    address_leave(core, slot)  # its peer counts if it was not listed as a proxy when it connected
    reason = address_take(core, address, &key)
    if reason == 0:
        address_note(core, slot, key)
    return reason


cdef void address_leave(Core *core, uint32_t slot) noexcept nogil:
    """Remove the released connection in `slot` from the count of its address.

    The journal is cleared first. If the shard dies between the two steps, one connection too many stays
    counted.
    """
    cdef uint64_t key
    if slot >= core.addresses.journal_slots:
        return
    key = core.addresses.journal[slot]
    if key:
        word_set(core.addresses.journal + slot, 0)
        change_count(&core.addresses, key, -1, 0)


cdef inline uint64_t hash_of(Core *core, const uint8_t *address) noexcept nogil:
    """Return a keyed hash of an address, or of its /64; its key belongs to this reactor, not to the node."""
    cdef uint64_t size = 16 if memcmp(address, MAPPED, 12) == 0 else 8
    return siphash(core.channels.key, address, size)


cdef uint32_t address_group(Core *core, const uint8_t *address) noexcept nogil:
    """Return the group of incomplete request heads that an address belongs to.

    The hash is keyed, so that no client can choose addresses that share a group.
    """
    return <uint32_t>(hash_of(core, address) % HEAD_GROUPS)


cdef uint64_t address_origin(Core *core, uint32_t slot, const uint8_t *address) noexcept nogil:
    """Return a number for the address that the connection in `slot` counts for.

    Two addresses have the same number with a probability of 1 in 2^63.
    """
    if slot < core.addresses.journal_slots and core.addresses.journal[slot]:
        return core.addresses.journal[slot]   # it may stand for an address that a proxy named
    return hash_of(core, address) | <uint64_t>1 << 63


cdef class SharedAddresses:
    """The shared memory for the counts of connections by address; the interface is addresses.pyi."""

    def __init__(self, uint32_t shards, uint32_t connections, *, bytes key=None):
        cdef uint64_t rows = 64, journals
        if self.memory is not None:
            raise InternalError("SharedAddresses.__init__ was called a second time")
        key = os.urandom(16) if key is None else key
        if not 0 < shards <= 4096 or not 0 < connections <= 1 << 24:
            raise SettingsError("shards must be 1 to 4096, and connections 1 to 16777216")
        if len(key) != 16:
            raise SettingsError("key must be 16 bytes")
        # Make twice as many cells as there can be connections, except for the largest nodes.
        while rows * WAYS < <uint64_t>2 * shards * connections and rows < <uint64_t>1 << 22:
            rows <<= 1
        journals = <uint64_t>shards * connections
        self.memory = mmap.mmap(-1, (2 * rows * WAYS + journals) * 8)
        self.view = memoryview(self.memory)
        self.shards = shards
        self.table.counts = <uint64_t *>&self.view[0]
        self.table.arrivals = self.table.counts + rows * WAYS
        self.table.journal = self.table.arrivals + rows * WAYS
        self.table.journal_slots = connections
        self.table.mask = rows - 1
        memcpy(self.table.key, <const uint8_t *>key, 16)

    cdef uint64_t *journal_of(self, uint32_t shard):
        """Return the journal of one shard: the key under which each of its slots is counted."""
        return self.table.journal + <uint64_t>shard * self.table.journal_slots

    cdef AddressTable of_shard(self, uint32_t shard) except *:
        """Return the tables with the journal of one shard."""
        cdef AddressTable table = self.table
        if self.memory is None:
            raise InternalError("SharedAddresses.__init__ was not called")
        if shard >= self.shards:
            raise SettingsError(f"shard must be 0 to {self.shards - 1}, not {shard}")
        table.journal = self.journal_of(shard)
        return table

    def retire(self, uint32_t shard):
        """Remove the connections in an ended shard's journal from all counts and return how many."""
        cdef AddressTable table = self.of_shard(shard)
        cdef uint32_t slot, count = 0
        for slot in range(table.journal_slots):
            if table.journal[slot]:
                change_count(&table, table.journal[slot], -1, 0)
                word_set(table.journal + slot, 0)
                count += 1
        return count

    def connections(self):
        """Sum the connections of all addresses in the table; O(cells)."""
        cdef uint64_t index, sum = 0
        self.of_shard(0)
        for index in range((self.table.mask + 1) * WAYS):
            sum += self.table.counts[index] & COUNT_MASK
        return sum
