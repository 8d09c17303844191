"""Channels: names, subscriber arrays, and each connection's own table.

A channel's subscribers are one array of slots, so that a publication is a walk over 4-byte numbers.
A connection's subscriptions are a small open-addressing table from channel to the connection's index
in that array. Both ways are O(1): subscribe appends to the array and fills a cell; unsubscribe moves
the array's last slot into the hole and corrects that connection's cell; closing is O(its own
subscriptions). Up to eight subscriptions fill one 64-byte block.

A channel lives while it has subscribers or while queued frames refer to it; names are hashed with a
secret key because clients choose them. Nothing here touches a Python object.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset, memcmp

from wsgate.reactor.memory cimport memory_give, memory_take
from wsgate.reactor.siphash cimport siphash
from wsgate.reactor.structs cimport (
    Channel, Connection, Core, KIND_CHANNEL, KIND_SUBSCRIPTION, NONE, Subscription,
)
from wsgate.reactor.table cimport at

cdef enum:
    FIRST_BITS = 3               # 8 cells of 8 bytes: the smallest pooled block
    FIRST_SUBSCRIBERS = 16
    FIRST_CHANNELS = 64
    FIRST_CELLS = 128


# --- the directory of channels ----------------------------------------------------------------------

cdef void channels_start(Core *core, const uint8_t *key) noexcept nogil:
    """An empty directory; `key` is 16 secret bytes."""
    memset(&core.channels, 0, sizeof(core.channels))
    core.channels.free = NONE
    memcpy(core.channels.key, key, 16)


cdef void channels_destroy(Core *core) noexcept nogil:
    """Free the directory; every channel must be gone."""
    core.held[<int>KIND_CHANNEL] -= <uint64_t>core.channels.capacity * sizeof(Channel)
    if core.channels.cells != NULL:
        core.held[<int>KIND_CHANNEL] -= (<uint64_t>core.channels.cells_mask + 1) * 4
    free(core.channels.channels)
    free(core.channels.cells)
    core.channels.channels = NULL
    core.channels.cells = NULL
    core.channels.capacity = 0


cdef uint32_t *cell_of(Core *core, uint64_t hash, const uint8_t *name, uint32_t size) noexcept nogil:
    """The cell that holds this name, or the free cell where it would go."""
    cdef uint32_t position = <uint32_t>hash & core.channels.cells_mask
    cdef Channel *channel
    while core.channels.cells[position] != NONE:
        channel = &core.channels.channels[core.channels.cells[position]]
        if channel.hash == hash and channel.name_length == size and memcmp(channel.name, name, size) == 0:
            break
        position = (position + 1) & core.channels.cells_mask
    return &core.channels.cells[position]


cdef int grow_cells(Core *core) noexcept nogil:
    """Keep the index at most half full."""
    cdef uint32_t cells = FIRST_CELLS if core.channels.cells == NULL else (core.channels.cells_mask + 1) * 2
    cdef uint32_t *old = core.channels.cells
    cdef uint32_t old_cells = 0 if old == NULL else core.channels.cells_mask + 1
    cdef uint32_t *fresh
    cdef uint32_t index
    cdef Channel *channel
    fresh = <uint32_t *>realloc(NULL, <uint64_t>cells * 4)
    if fresh == NULL:
        return -1
    memset(fresh, 0xFF, <uint64_t>cells * 4)
    core.channels.cells = fresh
    core.channels.cells_mask = cells - 1
    core.held[<int>KIND_CHANNEL] += (<uint64_t>cells - old_cells) * 4
    for index in range(old_cells):
        if old[index] != NONE:
            channel = &core.channels.channels[old[index]]
            cell_of(core, channel.hash, channel.name, channel.name_length)[0] = old[index]
    free(old)
    return 0


cdef int grow_channels(Core *core) noexcept nogil:
    """Double the directory and link the new places as free."""
    cdef uint32_t old = core.channels.capacity
    cdef uint32_t capacity = FIRST_CHANNELS if old == 0 else old * 2
    cdef Channel *channels = <Channel *>realloc(
        core.channels.channels, <uint64_t>capacity * sizeof(Channel)
    )
    cdef uint32_t index
    if channels == NULL:
        return -1
    memset(channels + old, 0, <uint64_t>(capacity - old) * sizeof(Channel))
    for index in range(old, capacity):
        channels[index].count = index + 1 if index + 1 < capacity else core.channels.free
    core.held[<int>KIND_CHANNEL] += <uint64_t>(capacity - old) * sizeof(Channel)
    core.channels.channels = channels
    core.channels.capacity = capacity
    core.channels.free = old
    return 0


cdef uint32_t channel_find(Core *core, const uint8_t *name, uint32_t size) noexcept nogil:
    """The channel of this name, or NONE. One keyed hash, O(1)."""
    if core.channels.cells == NULL:
        return NONE
    return cell_of(core, siphash(core.channels.key, name, size), name, size)[0]


cdef uint32_t channel_open(Core *core, const uint8_t *name, uint32_t size, int policy) noexcept nogil:
    """The channel of this name, made with `policy` if there is none; NONE without memory."""
    cdef uint64_t hash = siphash(core.channels.key, name, size)
    cdef Channel *channel
    cdef uint32_t index, capacity = 0
    cdef uint32_t *cell
    if (
        core.channels.cells == NULL or core.channels.count * 2 >= core.channels.cells_mask
    ) and grow_cells(core) < 0:
        return NONE
    cell = cell_of(core, hash, name, size)
    if cell[0] != NONE:
        channel = &core.channels.channels[cell[0]]
        if channel.count == 0:
            channel.policy = <uint8_t>policy  # only queued frames kept it: it starts anew
        return cell[0]
    if core.channels.free == NONE and grow_channels(core) < 0:
        return NONE
    index = core.channels.free
    channel = &core.channels.channels[index]
    channel.name = <uint8_t *>memory_take(core, size if size else 1, KIND_CHANNEL, &capacity)
    if channel.name == NULL:
        return NONE
    core.channels.free = channel.count
    memcpy(channel.name, name, size)
    channel.name_length = size
    channel.hash = hash
    channel.count = channel.capacity = channel.frames = 0
    channel.subscribers = NULL
    channel.policy = <uint8_t>policy
    channel.used = 1
    cell[0] = index
    core.channels.count += 1
    return index


cdef inline uint32_t name_capacity(uint32_t size) noexcept nogil:
    """The pooled block a name of this size was given (see memory.pyx)."""
    cdef uint32_t room = 64
    while room < size:
        room <<= 1
    return room


cdef void channel_release(Core *core, uint32_t index) noexcept nogil:
    """Forget a channel that has neither subscribers nor queued frames; else nothing."""
    cdef Channel *channel = &core.channels.channels[index]
    cdef uint32_t hole, probe, home, mask = core.channels.cells_mask
    if channel.count or channel.frames or not channel.used:
        return
    # Close the hole, so that probing needs no tombstones.
    hole = <uint32_t>(cell_of(core, channel.hash, channel.name, channel.name_length) - core.channels.cells)
    probe = hole
    while True:
        probe = (probe + 1) & mask
        if core.channels.cells[probe] == NONE:
            break
        home = <uint32_t>core.channels.channels[core.channels.cells[probe]].hash & mask
        if ((probe - home) & mask) >= ((probe - hole) & mask):
            core.channels.cells[hole] = core.channels.cells[probe]
            hole = probe
    core.channels.cells[hole] = NONE
    if channel.subscribers != NULL:
        memory_give(core, channel.subscribers, channel.capacity * 4, KIND_CHANNEL)
    memory_give(core, channel.name, name_capacity(channel.name_length), KIND_CHANNEL)
    memset(channel, 0, sizeof(Channel))
    channel.count = core.channels.free
    core.channels.free = index
    core.channels.count -= 1


# --- a channel's array ------------------------------------------------------------------------------

cdef int resize_subscribers(Core *core, Channel *channel, uint32_t wanted) noexcept nogil:
    cdef uint32_t capacity = 0
    cdef uint32_t *fresh = <uint32_t *>memory_take(core, <uint64_t>wanted * 4, KIND_CHANNEL, &capacity)
    if fresh == NULL:
        return -1
    if channel.subscribers != NULL:
        memcpy(fresh, channel.subscribers, <uint64_t>channel.count * 4)
        memory_give(core, channel.subscribers, channel.capacity * 4, KIND_CHANNEL)
    channel.subscribers = fresh
    channel.capacity = capacity // 4
    return 0


# --- a connection's table ---------------------------------------------------------------------------

cdef inline uint32_t home_of(Core *core, uint32_t channel, uint32_t bits) noexcept nogil:
    """Where a channel's cell would be. Keyed, because a client chooses what it subscribes to."""
    cdef uint32_t key
    memcpy(&key, core.channels.key, 4)
    return (channel * (key | 1) * <uint32_t>0x9E3779B1) >> (32 - bits)


cdef Subscription *subscription_of(Core *core, Connection *c, uint32_t channel) noexcept nogil:
    """The cell of this channel, the free cell where it would go, or NULL in a full table."""
    cdef uint32_t mask, position, step
    if c.subscriptions == NULL:
        return NULL
    mask = (1 << c.subscription_bits) - 1
    position = home_of(core, channel, c.subscription_bits)
    for step in range(mask + 1):
        if c.subscriptions[position].channel in (channel, NONE):
            return &c.subscriptions[position]
        position = (position + 1) & mask
    return NULL


cdef int grow_subscriptions(Core *core, Connection *c) noexcept nogil:
    """Double the connection's table."""
    cdef Subscription *old = c.subscriptions
    cdef uint32_t old_cells = 0 if old == NULL else 1 << c.subscription_bits
    cdef uint32_t bits = FIRST_BITS if old == NULL else c.subscription_bits + 1
    cdef uint32_t capacity = 0, index
    cdef Subscription *fresh = <Subscription *>memory_take(
        core, <uint64_t>sizeof(Subscription) << bits, KIND_SUBSCRIPTION, &capacity
    )
    if fresh == NULL:
        return -1
    memset(fresh, 0xFF, <uint64_t>sizeof(Subscription) << bits)
    c.subscriptions = fresh
    c.subscription_bits = <uint8_t>bits
    for index in range(old_cells):
        if old[index].channel != NONE:
            subscription_of(core, c, old[index].channel)[0] = old[index]
    if old != NULL:
        memory_give(core, old, table_capacity(old_cells), KIND_SUBSCRIPTION)
    return 0


cdef inline uint32_t table_capacity(uint32_t cells) noexcept nogil:
    """What memory_take booked: 64 bytes and powers of two above are classes, pages beyond."""
    return cells * sizeof(Subscription)


cdef void clear_cell(Core *core, Connection *c, Subscription *cell) noexcept nogil:
    """Empty a cell and close the hole."""
    cdef uint32_t mask = (1 << c.subscription_bits) - 1
    cdef uint32_t hole = <uint32_t>(cell - c.subscriptions)
    cdef uint32_t probe = hole, home, step
    for step in range(mask):
        probe = (probe + 1) & mask
        if c.subscriptions[probe].channel == NONE:
            break
        home = home_of(core, c.subscriptions[probe].channel, c.subscription_bits)
        if ((probe - home) & mask) >= ((probe - hole) & mask):
            c.subscriptions[hole] = c.subscriptions[probe]
            hole = probe
    c.subscriptions[hole].channel = NONE


cdef int channel_subscribe(Core *core, uint32_t slot, uint32_t index) noexcept nogil:
    """1 when subscribed, 0 when it was already, -1 without memory. O(1), growth apart."""
    cdef Connection *c = at(core, slot)
    cdef Channel *channel = &core.channels.channels[index]
    cdef Subscription *cell = subscription_of(core, c, index)
    cdef uint32_t cells
    if cell != NULL and cell.channel == index:
        return 0
    if channel.count == channel.capacity and resize_subscribers(
        core, channel, channel.capacity * 2 if channel.capacity else FIRST_SUBSCRIBERS
    ) < 0:
        return -1
    cells = 0 if c.subscriptions == NULL else 1 << c.subscription_bits
    # Eight cells may be full (a scan of one cache line); larger tables stay at three quarters.
    if cells == 0 or (c.subscription_count >= cells if cells <= 8 else c.subscription_count * 4 >= cells * 3):
        if grow_subscriptions(core, c) < 0:
            return -1
        cell = subscription_of(core, c, index)
    cell.channel = index
    cell.position = channel.count
    channel.subscribers[channel.count] = slot
    channel.count += 1
    c.subscription_count += 1
    return 1


cdef void leave(Core *core, uint32_t index, uint32_t position) noexcept nogil:
    """Take the slot at `position` out of a channel: the last one moves into its place."""
    cdef Channel *channel = &core.channels.channels[index]
    cdef uint32_t moved
    channel.count -= 1
    if position != channel.count:
        moved = channel.subscribers[channel.count]
        channel.subscribers[position] = moved
        subscription_of(core, at(core, moved), index).position = position
    # A quarter full: give half back, so that a crowd that left does not stay on the books.
    if channel.capacity > FIRST_SUBSCRIBERS * 4 and channel.count * 4 < channel.capacity:
        resize_subscribers(core, channel, channel.capacity // 2)
    channel_release(core, index)


cdef int channel_unsubscribe(Core *core, uint32_t slot, uint32_t index) noexcept nogil:
    """1 when unsubscribed, 0 when it was not subscribed. O(1)."""
    cdef Connection *c = at(core, slot)
    cdef Subscription *cell = subscription_of(core, c, index)
    cdef uint32_t position
    if cell == NULL or cell.channel != index:
        return 0
    position = cell.position
    clear_cell(core, c, cell)
    c.subscription_count -= 1
    if c.subscription_count == 0:
        memory_give(core, c.subscriptions, table_capacity(1 << c.subscription_bits), KIND_SUBSCRIPTION)
        c.subscriptions = NULL
        c.subscription_bits = 0
    leave(core, index, position)
    return 1


cdef void channel_unsubscribe_all(Core *core, uint32_t slot) noexcept nogil:
    """Leave every channel. O(cells of the connection's table)."""
    cdef Connection *c = at(core, slot)
    cdef uint32_t cells, step
    cdef Subscription *table = c.subscriptions
    if table == NULL:
        return
    cells = 1 << c.subscription_bits
    for step in range(cells):
        if table[step].channel != NONE:
            leave(core, table[step].channel, table[step].position)
    memory_give(core, table, table_capacity(cells), KIND_SUBSCRIPTION)
    c.subscriptions = NULL
    c.subscription_bits = 0
    c.subscription_count = 0
