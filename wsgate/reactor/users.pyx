"""The user index: finds all connections of a user, whatever they are subscribed to.

This module owns a list of connections for each user, linked through one `UserLink` for each slot, and a hash
table from the hash of a user to the first connection of the list. A connection is entered when its user is
known, and removed when it is released. No command of a client changes the index, so a backend's disconnect,
revoke and refresh also find a connection that has left its inbox or waits for its welcome.

The key of a list is 32 bits of a keyed hash of the user id. Two users can share a list (once in about 2^32 /
users), so a caller must compare the user of each connection in a list with the user it wants. The user id
itself is in the caller's meta object and is not stored a second time here. The hash has a secret key because
clients choose their ids.

The table uses open addressing with linear probing and is at most three quarters full. It stores slot numbers
only: the hash of an entry is in the link of its slot. Entering, removing and finding are O(1); reading a list
is O(connections of the user).
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from wsgate.reactor.siphash cimport siphash
from wsgate.reactor.structs cimport Core, KIND_USER, NONE, UserLink

cdef enum:
    FIRST_CELLS = 64


cdef uint32_t user_hash(Core *core, const uint8_t *user, uint64_t size) noexcept nogil:
    """Return the 32-bit hash that is the key of a user's list; never 0, which stands for "no user"."""
    cdef uint32_t hash = <uint32_t>(siphash(core.channels.key, user, size) >> 32)
    return hash if hash else 1


cdef inline uint32_t *cell_of(Core *core, uint32_t hash) noexcept nogil:
    """Return the cell of `hash`, or the free cell where it belongs. The table always has a free cell."""
    cdef uint32_t position = hash & core.users.mask
    while core.users.cells[position] != NONE and link_of(core, core.users.cells[position]).hash != hash:
        position = (position + 1) & core.users.mask
    return &core.users.cells[position]


cdef int grow(Core *core) noexcept nogil:
    """Double the hash table, or create it; return 0, or -1 without memory. O(cells)."""
    cdef uint32_t *old = core.users.cells
    cdef uint32_t old_count = core.users.mask + 1 if old != NULL else 0
    cdef uint32_t count = old_count * 2 if old_count else FIRST_CELLS
    cdef uint32_t *fresh = <uint32_t *>malloc(<uint64_t>count * sizeof(uint32_t))
    cdef uint32_t index
    if fresh == NULL:
        return -1
    memset(fresh, 0xFF, <uint64_t>count * sizeof(uint32_t))
    core.users.cells = fresh
    core.users.mask = count - 1
    core.held[<int>KIND_USER] += <uint64_t>(count - old_count) * sizeof(uint32_t)
    for index in range(old_count):
        if old[index] != NONE:
            cell_of(core, link_of(core, old[index]).hash)[0] = old[index]
    free(old)
    return 0


cdef void close_hole(Core *core, uint32_t hole) noexcept nogil:
    """Free a cell and close the hole with later entries of its probe sequence, so no tombstone is needed."""
    cdef uint32_t mask = core.users.mask, probe = hole, home
    while True:
        probe = (probe + 1) & mask
        if core.users.cells[probe] == NONE:
            break
        home = link_of(core, core.users.cells[probe]).hash & mask
        # An entry can move only if the hole is between its home cell and its present cell.
        if ((probe - home) & mask) >= ((probe - hole) & mask):
            core.users.cells[hole] = core.users.cells[probe]
            hole = probe
    core.users.cells[hole] = NONE


cdef int user_enter(Core *core, uint32_t slot, uint32_t hash) noexcept nogil:
    """Move a connection to the head of the list of `hash`, off its former list; 0, or -1 without memory."""
    cdef UserLink *link = link_of(core, slot)
    cdef uint32_t *cell
    if link.hash == hash:
        return 0
    user_leave(core, slot)
    if (core.users.cells == NULL or core.users.count * 4 >= core.users.mask * 3) and grow(core) < 0:
        return -1
    cell = cell_of(core, hash)
    link.hash = hash
    link.previous = NONE
    link.next = cell[0]
    if cell[0] == NONE:
        core.users.count += 1
    else:
        link_of(core, cell[0]).previous = slot
    cell[0] = slot
    return 0


cdef void user_leave(Core *core, uint32_t slot) noexcept nogil:
    """Remove a connection from the list of its user, if it is in one."""
    cdef UserLink *link = link_of(core, slot)
    cdef uint32_t *cell
    if link.hash == 0:
        return
    if link.previous != NONE:
        link_of(core, link.previous).next = link.next
    else:
        cell = cell_of(core, link.hash)
        if link.next != NONE:
            cell[0] = link.next
        else:
            close_hole(core, <uint32_t>(cell - core.users.cells))
            core.users.count -= 1
    if link.next != NONE:
        link_of(core, link.next).previous = link.previous
    link.hash = 0


cdef uint32_t user_first(Core *core, uint32_t hash) noexcept nogil:
    """Return the first slot in the list of a user, or NONE; continue with `link_of(core, slot).next`."""
    return NONE if core.users.cells == NULL else cell_of(core, hash)[0]


cdef void users_destroy(Core *core) noexcept nogil:
    """Free the hash table of the user index; every list must be empty."""
    if core.users.cells != NULL:
        core.held[<int>KIND_USER] -= (<uint64_t>core.users.mask + 1) * sizeof(uint32_t)
        free(core.users.cells)
    core.users.cells = NULL
    core.users.mask = core.users.count = 0
