"""Who comes from where: connections and arrivals of every address, summed over all shards of a node.

Owns the layout of one block of shared memory, made before the shards are forked, and every access to it.
Knows neither what the limits are for nor what a refusal says.

An address is 16 bytes, an IPv4 one mapped; a peer is an IPv4 address or an IPv6 /64, because that is what
one customer gets. It is known here by a keyed hash: nobody can choose addresses that share a place.

Two tables of rows of eight cells, one cache line each. A key has two rows and may be in any of their
sixteen cells, so at half load an address that finds no place is a matter of 1 in 10^9; it is let in and
counted (`addresses_uncounted`). A cell is one word, changed by compare-and-swap and nothing else: no lock
that a shard could die with.

    counts      tag (40 bits), connections (24 bits); 0: free. Connections of two cells of one key add up.
    arrivals    tag (24 bits), when the bucket is full again (40 bits, microseconds); past: free

A shard also keeps a journal, the key of every slot, so that the keeper can take back what a shard that
died had counted. Between a count and its note a death leaves one connection counted until the node ends.

Source: the theoretical arrival time is that of GCRA (ITU-T I.371), as in the gate.
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
    WAYS = 8                     # cells of a row: 64 bytes
    COUNT_BITS = 24
    TIME_BITS = 40
    TRIES = 64                   # another shard changed the cell meanwhile: again, but not for ever
    DEPTH_US = 1000000           # of an address's bucket: one second
    SKEW_US = 60000000           # shards look at the clock at different moments, a hung one long ago

cdef uint64_t COUNT_MASK = (<uint64_t>1 << COUNT_BITS) - 1
cdef uint64_t TIME_MASK = (<uint64_t>1 << TIME_BITS) - 1
cdef const uint8_t *MAPPED = b"\0\0\0\0\0\0\0\0\0\0\xff\xff"


cdef bint address_read(const void *peer, uint8_t *address) noexcept nogil:
    """The 16 bytes of a socket address; False when it is no network address."""
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
    """Whether it lies in one of the listed networks."""
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
    """The peer an address stands for; never 0."""
    cdef uint64_t size = 16 if memcmp(address, MAPPED, 12) == 0 else 8
    return siphash(core.addresses.key, address, size) | <uint64_t>1 << 63


cdef inline uint64_t row_of(AddressTable *table, uint64_t key, int which) noexcept nogil:
    """One of its two rows; of bits that hardly overlap with each other or the tags."""
    return ((key >> 20 if which else key) & table.mask) * WAYS


cdef int change_count(AddressTable *table, uint64_t key, int change, uint32_t limit) noexcept nogil:
    """Count one more (1) or one less (-1): 1 done, 0 over the limit, -1 no cell for it."""
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
                break                         # both rows are one: its cells count once
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
    """One arrival from a bucket one second deep: 1 done, 0 it is empty, -1 no cell for it."""
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
                # A little beyond the depth: another shard's clock is ahead of ours, and the bucket is empty.
                # Far beyond it: the word is days old, and past.
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
    """Let a connection of this address in and count it, or the reason not to.

    `key` is what it was counted under, for `address_note` or `address_drop`; 0 when it was not.
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
    """The connection in `slot` is what `address_take` counted."""
    if key and slot < core.addresses.journal_slots:
        word_set(core.addresses.journal + slot, key)
    elif key:
        address_drop(core, key)
        core.counters[<int>ADDRESSES_UNCOUNTED] += 1


cdef void address_count(Core *core, uint32_t slot, const uint8_t *address) noexcept nogil:
    """Count the connection in `slot`, which came when there was no limit, whatever the limit is now."""
    cdef uint64_t key = key_of(core, address)
    if slot >= core.addresses.journal_slots or core.addresses.journal[slot]:
        return
    if change_count(&core.addresses, key, 1, 0) > 0:
        address_note(core, slot, key)
    else:
        core.counters[<int>ADDRESSES_UNCOUNTED] += 1


cdef void address_drop(Core *core, uint64_t key) noexcept nogil:
    """Take back what `address_take` counted."""
    if key:
        change_count(&core.addresses, key, -1, 0)


cdef int address_claim(Core *core, uint32_t slot, const uint8_t *address) noexcept nogil:
    """Count an accepted connection for whom a proxy names, and for nobody else; 0, or the reason to refuse it."""
    cdef uint64_t key = 0
    cdef int reason
    address_leave(core, slot)                 # its peer may have counted, before it was listed as a proxy
    reason = address_take(core, address, &key)
    if reason == 0:
        address_note(core, slot, key)
    return reason


cdef void address_leave(Core *core, uint32_t slot) noexcept nogil:
    """The connection in `slot` is gone: one less of its address. The note first: dying between leaves one too many."""
    cdef uint64_t key
    if slot >= core.addresses.journal_slots:
        return
    key = core.addresses.journal[slot]
    if key:
        word_set(core.addresses.journal + slot, 0)
        change_count(&core.addresses, key, -1, 0)


cdef inline uint64_t hash_of(Core *core, const uint8_t *address) noexcept nogil:
    cdef uint64_t size = 16 if memcmp(address, MAPPED, 12) == 0 else 8
    return siphash(core.channels.key, address, size)


cdef uint32_t address_group(Core *core, const uint8_t *address) noexcept nogil:
    """The group of half-sent heads that an address belongs to; nobody can choose addresses of one group."""
    return <uint32_t>(hash_of(core, address) % HEAD_GROUPS)


cdef uint64_t address_origin(Core *core, uint32_t slot, const uint8_t *address) noexcept nogil:
    """A number for whom a connection counts as; two addresses have the same one once in 2^63."""
    if slot < core.addresses.journal_slots and core.addresses.journal[slot]:
        return core.addresses.journal[slot]   # perhaps of an address that a proxy named
    return hash_of(core, address) | <uint64_t>1 << 63


cdef class SharedAddresses:
    """The shared memory; see addresses.pyi."""

    def __init__(self, uint32_t shards, uint32_t connections, *, bytes key=None):
        cdef uint64_t rows = 64, journals
        if self.memory is not None:
            raise InternalError("shared addresses are initialised once")
        key = os.urandom(16) if key is None else key
        if not 0 < shards <= 4096 or not 0 < connections <= 1 << 24:
            raise SettingsError("there are 1 to 4096 shards of 1 to 16777216 connections")
        if len(key) != 16:
            raise SettingsError("key must be 16 bytes")
        # Twice as many cells as there can be connections, but for the very largest nodes.
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
        return self.table.journal + <uint64_t>shard * self.table.journal_slots

    cdef AddressTable of_shard(self, uint32_t shard) except *:
        cdef AddressTable table = self.table
        if self.memory is None:
            raise InternalError("shared addresses were not initialised")
        if shard >= self.shards:
            raise SettingsError(f"there is no shard {shard}")
        table.journal = self.journal_of(shard)
        return table

    def retire(self, uint32_t shard):
        """Take back everything a dead shard had counted; see addresses.pyi."""
        cdef AddressTable table = self.of_shard(shard)
        cdef uint32_t slot, count = 0
        for slot in range(table.journal_slots):
            if table.journal[slot]:
                change_count(&table, table.journal[slot], -1, 0)
                word_set(table.journal + slot, 0)
                count += 1
        return count

    def connections(self):
        """Connections counted now, of all addresses together; O(cells)."""
        cdef uint64_t index, sum = 0
        self.of_shard(0)
        for index in range((self.table.mask + 1) * WAYS):
            sum += self.table.counts[index] & COUNT_MASK
        return sum
