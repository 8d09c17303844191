"""Channels: the directory of names, the array of each channel's subscribers, and each connection's table.

The subscribers of a channel are one array of slots, so that a publication walks over 4-byte numbers. The
subscriptions of a connection are a small open-addressing table from a channel to the connection's index in
that array. Both directions are O(1): subscribing appends to the array and fills a cell; unsubscribing moves
the last slot of the array into the hole and corrects the cell of that connection. Closing a connection is
O(cells of its table). Up to eight subscriptions fit into one 64-byte block.

A channel exists while it has subscribers, while queued frames or walks refer to it, and, with
`report_vacated`, until the caller has taken its name after the last subscriber left. A channel with up to two
subscribers and a name of up to 24 bytes is one cache line and nothing else, because most channels are the
inbox of one device. Clients choose the names, so the names are hashed with a secret key. Nothing here uses a
Python object.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset, memcmp

from wsgate.reactor.memory cimport memory_capacity, memory_give, memory_take
from wsgate.reactor.siphash cimport siphash
from wsgate.reactor.structs cimport (
    Channel, Connection, Core, KIND_CHANNEL, KIND_SUBSCRIPTION, NONE, Subscription, Walk,
)
from wsgate.reactor.table cimport at

cdef enum:
    FEW = 2                      # subscribers that are stored in the channel itself
    NAME_HERE = 24               # bytes of a name that are stored in the channel itself
    FIRST_BITS = 2               # 4 cells of 8 bytes, the smallest block of the pool
    FIRST_SUBSCRIBERS = 16
    FIRST_CHANNELS = 64
    FIRST_CELLS = 128


cdef const uint8_t *channel_name(const Channel *channel) noexcept nogil:
    """Return a pointer to the bytes of a channel's name, valid until the channel is released."""
    if channel.name_length <= NAME_HERE:
        return &channel.name.here[0]
    return channel.name.there


cdef uint32_t *channel_slots(Channel *channel) noexcept nogil:
    """Return a channel's array of subscribers, `count` slots.

    Valid until one joins or leaves or a channel is made.
    """
    if channel.capacity:
        return channel.slots.many
    return &channel.slots.few[0]


# --- the directory of channels ----------------------------------------------------------------------

cdef void channels_start(Core *core, const uint8_t *key) noexcept nogil:
    """Make an empty directory of channels; `key` is 16 secret bytes for the hash of names."""
    memset(&core.channels, 0, sizeof(core.channels))
    core.channels.free = core.channels.vacated = NONE
    memcpy(core.channels.key, key, 16)


cdef void channels_destroy(Core *core) noexcept nogil:
    """Free the directory of channels, from which every channel must have been released."""
    core.held[<int>KIND_CHANNEL] -= <uint64_t>core.channels.capacity * sizeof(Channel)
    if core.channels.cells != NULL:
        core.held[<int>KIND_CHANNEL] -= (<uint64_t>core.channels.cells_mask + 1) * 4
    free(core.channels.channels)
    free(core.channels.cells)
    core.channels.channels = NULL
    core.channels.cells = NULL
    core.channels.capacity = 0


cdef uint32_t *cell_of(Core *core, uint64_t hash, const uint8_t *name, uint32_t size) noexcept nogil:
    """Find the cell of the directory that holds a channel's name, or the free cell where the name belongs."""
    cdef uint32_t position = <uint32_t>hash & core.channels.cells_mask
    cdef Channel *channel
    while core.channels.cells[position] != NONE:
        channel = &core.channels.channels[core.channels.cells[position]]
        if (
            channel.hash == <uint32_t>hash and channel.name_length == size
            and memcmp(channel_name(channel), name, size) == 0
        ):
            break
        position = (position + 1) & core.channels.cells_mask
    return &core.channels.cells[position]


cdef int grow_cells(Core *core) noexcept nogil:
    """Double the hash index of channel names, so that it stays at most half full; -1 without memory."""
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
            cell_of(core, channel.hash, channel_name(channel), channel.name_length)[0] = old[index]
    free(old)
    return 0


cdef int grow_channels(Core *core) noexcept nogil:
    """Double the array of channels; -1 without memory.

    The new half is not written, so that it uses no memory until a channel is made in it.
    """
    cdef uint32_t old = core.channels.capacity
    cdef uint32_t capacity = FIRST_CHANNELS if old == 0 else old * 2
    cdef Channel *channels = <Channel *>realloc(
        core.channels.channels, <uint64_t>capacity * sizeof(Channel)
    )
    if channels == NULL:
        return -1
    core.held[<int>KIND_CHANNEL] += <uint64_t>(capacity - old) * sizeof(Channel)
    core.channels.channels = channels
    core.channels.capacity = capacity
    return 0


cdef uint32_t take_place(Core *core) noexcept nogil:
    """Return the index of a blank channel, reused or new; NONE without memory."""
    cdef uint32_t index = core.channels.free
    if index != NONE:
        core.channels.free = core.channels.channels[index].count
    elif core.channels.made < core.channels.capacity or grow_channels(core) == 0:
        index = core.channels.made
        core.channels.made += 1
    else:
        return NONE
    memset(&core.channels.channels[index], 0, sizeof(Channel))
    return index


cdef void give_place(Core *core, uint32_t index) noexcept nogil:
    """Blank a channel and put its index on the list of free ones."""
    memset(&core.channels.channels[index], 0, sizeof(Channel))
    core.channels.channels[index].count = core.channels.free
    core.channels.free = index


cdef uint32_t channel_find(Core *core, const uint8_t *name, uint32_t size) noexcept nogil:
    """Return the index of the channel with this name, or NONE. One keyed hash, O(1)."""
    if core.channels.cells == NULL:
        return NONE
    return cell_of(core, siphash(core.channels.key, name, size), name, size)[0]


cdef uint32_t channel_open(Core *core, const uint8_t *name, uint32_t size, int policy) noexcept nogil:
    """Return the index of the channel with this name, made with `policy` if it does not exist.

    NONE without memory.
    """
    cdef uint64_t hash = siphash(core.channels.key, name, size)
    cdef Channel *channel
    cdef uint32_t index
    cdef uint32_t *cell
    if (
        core.channels.cells == NULL or core.channels.count * 2 >= core.channels.cells_mask
    ) and grow_cells(core) < 0:
        return NONE
    cell = cell_of(core, hash, name, size)
    if cell[0] != NONE:
        channel = &core.channels.channels[cell[0]]
        if channel.count == 0:
            channel.policy = <uint8_t>policy  # without subscribers the channel starts anew
            channel.variants = 0
        return cell[0]
    index = take_place(core)
    if index == NONE:
        return NONE
    channel = &core.channels.channels[index]
    if size > NAME_HERE:
        channel.name.there = <uint8_t *>memory_take(core, size, KIND_CHANNEL)
        if channel.name.there == NULL:
            give_place(core, index)
            return NONE
    channel.name_length = <uint16_t>size
    memcpy(<void *>channel_name(channel), name, size)
    channel.hash = <uint32_t>hash
    channel.policy = <uint8_t>policy
    channel.is_used = 1
    cell[0] = index
    core.channels.count += 1
    core.channels.name_bytes += size
    return index


cdef void channel_release(Core *core, uint32_t index) noexcept nogil:
    """Remove a channel from the directory if nothing refers to it any more; otherwise do nothing.

    A channel stays while it has a subscriber, a queued frame or a walk, or while its name waits to be
    reported.
    """
    cdef Channel *channel = &core.channels.channels[index]
    cdef uint32_t hole, probe, home, mask = core.channels.cells_mask
    if channel.count or channel.frames or channel.walks or channel.is_vacated or not channel.is_used:
        return
    # Close the hole in the index, so that probing needs no tombstones.
    hole = <uint32_t>(
        cell_of(core, channel.hash, channel_name(channel), channel.name_length) - core.channels.cells
    )
    probe = hole
    while True:
        probe = (probe + 1) & mask
        if core.channels.cells[probe] == NONE:
            break
        home = core.channels.channels[core.channels.cells[probe]].hash & mask
        if ((probe - home) & mask) >= ((probe - hole) & mask):
            core.channels.cells[hole] = core.channels.cells[probe]
            hole = probe
    core.channels.cells[hole] = NONE
    give_back_slots(core, channel)
    if channel.name_length > NAME_HERE:
        memory_give(core, channel.name.there, channel.name_length, KIND_CHANNEL)
    core.channels.name_bytes -= channel.name_length
    give_place(core, index)
    core.channels.count -= 1


# --- channels without subscribers, to be reported -----------------------------------------------------

cdef void vacate(Core *core, uint32_t index) noexcept nogil:
    """Put a channel without subscribers on the list of vacated ones, once, if the settings want it."""
    cdef Channel *channel = &core.channels.channels[index]
    if channel.is_vacated or not core.channels.report_vacated:
        return
    give_back_slots(core, channel)
    channel.is_vacated = 1
    channel.link = core.channels.vacated
    core.channels.vacated = index


cdef uint32_t channel_take_vacated(Core *core) noexcept nogil:
    """Take the next channel without subscribers off the list of vacated ones; NONE if there is none.

    The caller releases the channel after use.
    """
    cdef uint32_t index
    cdef Channel *channel
    while core.channels.vacated != NONE:
        index = core.channels.vacated
        channel = &core.channels.channels[index]
        core.channels.vacated = channel.link
        channel.is_vacated = 0
        if channel.count == 0:
            return index
    return NONE


# --- a channel's array of subscribers ---------------------------------------------------------------

cdef inline uint64_t slots_bytes(uint32_t count) noexcept nogil:
    """Return the bytes of an array of this many slots."""
    return <uint64_t>count * sizeof(uint32_t)


cdef void give_back_slots(Core *core, Channel *channel) noexcept nogil:
    """Release a channel's array of subscribers, if it is a block of its own."""
    if channel.capacity:
        memory_give(core, channel.slots.many, slots_bytes(channel.capacity), KIND_CHANNEL)
        channel.capacity = 0


cdef int resize_subscribers(Core *core, Channel *channel, uint32_t wanted) noexcept nogil:
    """Move a channel's subscribers to an array of `wanted` slots or more, or into the channel itself.

    They are in the channel itself if `wanted` is at most FEW. Returns -1 without memory; then the array is
    unchanged.
    """
    cdef uint32_t capacity = <uint32_t>(memory_capacity(slots_bytes(wanted)) // sizeof(uint32_t))
    cdef uint32_t few[FEW]
    cdef uint32_t *fresh
    if wanted <= FEW:
        memcpy(few, channel_slots(channel), <uint64_t>channel.count * 4)
        give_back_slots(core, channel)
        memcpy(channel.slots.few, few, sizeof(few))
        return 0
    fresh = <uint32_t *>memory_take(core, slots_bytes(capacity), KIND_CHANNEL)
    if fresh == NULL:
        return -1
    memcpy(fresh, channel_slots(channel), <uint64_t>channel.count * 4)
    give_back_slots(core, channel)
    channel.slots.many = fresh
    channel.capacity = capacity
    return 0


# --- a connection's table of subscriptions ----------------------------------------------------------

cdef inline uint32_t home_of(Core *core, uint32_t channel, uint32_t bits) noexcept nogil:
    """Return the cell where probing for a channel starts in a connection's table.

    The hash is keyed, because a client chooses its channels.
    """
    cdef uint32_t key
    memcpy(&key, core.channels.key, 4)
    return (channel * (key | 1) * <uint32_t>0x9E3779B1) >> (32 - bits)


cdef Subscription *subscription_of(Core *core, Connection *c, uint32_t channel) noexcept nogil:
    """Find a channel's cell in a connection's table, or the free cell for it.

    NULL if the table is full or missing.
    """
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


cdef inline uint64_t cells_bytes(uint32_t bits) noexcept nogil:
    """Return the bytes of a connection's table with 2^bits cells."""
    return <uint64_t>sizeof(Subscription) << bits


cdef int grow_subscriptions(Core *core, Connection *c) noexcept nogil:
    """Double a connection's table of subscriptions, or make it; -1 without memory."""
    cdef Subscription *old = c.subscriptions
    cdef uint32_t old_cells = 0 if old == NULL else 1 << c.subscription_bits
    cdef uint32_t bits = FIRST_BITS if old == NULL else c.subscription_bits + 1
    cdef uint32_t index
    cdef Subscription *fresh = <Subscription *>memory_take(core, cells_bytes(bits), KIND_SUBSCRIPTION)
    if fresh == NULL:
        return -1
    memset(fresh, 0xFF, cells_bytes(bits))
    c.subscriptions = fresh
    c.subscription_bits = <uint8_t>bits
    for index in range(old_cells):
        if old[index].channel != NONE:
            subscription_of(core, c, old[index].channel)[0] = old[index]
    if old != NULL:
        memory_give(core, old, cells_bytes(bits - 1), KIND_SUBSCRIPTION)
    return 0


cdef void clear_cell(Core *core, Connection *c, Subscription *cell) noexcept nogil:
    """Empty a cell of a connection's table and move later entries forward, where probing finds them."""
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
    """Subscribe the connection in `slot` to a channel: 1 when done, 0 if it was already, -1 without memory.

    O(1), except when an array or a table grows.
    """
    cdef Connection *c = at(core, slot)
    cdef Channel *channel = &core.channels.channels[index]
    cdef Subscription *cell = subscription_of(core, c, index)
    cdef uint32_t cells
    if cell != NULL and cell.channel == index:
        return 0
    if channel.count == (channel.capacity if channel.capacity else <uint32_t>FEW) and resize_subscribers(
        core, channel, channel.capacity * 2 if channel.capacity else FIRST_SUBSCRIBERS
    ) < 0:
        return -1
    cells = 0 if c.subscriptions == NULL else 1 << c.subscription_bits
    # A table of eight cells may be full, because it is scanned in one cache line; larger ones stay at three
    # quarters.
    if cells == 0 or (c.subscription_count >= cells if cells <= 8 else c.subscription_count * 4 >= cells * 3):
        if grow_subscriptions(core, c) < 0:
            return -1
        cell = subscription_of(core, c, index)
    cell.channel = index
    cell.position = channel.count
    channel_slots(channel)[channel.count] = slot
    channel.count += 1
    channel.variants |= 1 << c.variant
    c.subscription_count += 1
    return 1


cdef bint is_subscribed(Core *core, Connection *c, uint32_t channel) noexcept nogil:
    """Whether a connection is subscribed to a channel; False for NONE. O(1)."""
    cdef Subscription *cell
    if channel == NONE:
        return False
    cell = subscription_of(core, c, channel)
    return cell != NULL and cell.channel == channel


cdef void move(Core *core, uint32_t index, uint32_t source, uint32_t target) noexcept nogil:
    """Move a subscriber to another place of its channel's array and correct the subscriber's table."""
    cdef Channel *channel = &core.channels.channels[index]
    cdef uint32_t slot
    if source != target:
        slot = channel_slots(channel)[source]
        channel_slots(channel)[target] = slot
        subscription_of(core, at(core, slot), index).position = target


cdef uint32_t hand_hole_back(Core *core, uint32_t index, uint32_t position) noexcept nogil:
    """Fill the hole of a leaving subscriber so that each walk still has its unserved ones in front.

    Return the hole. Each walk has yet to serve the first `left` places of the array. The oldest walk has the
    fewest, and those of a later walk include them. In each walk, the last unserved place moves into the hole,
    so that no subscriber is served twice or left out. O(walks).
    """
    cdef Walk *walk = core.walks
    while walk != NULL:
        if walk.channel == index and position < walk.left:
            walk.left -= 1
            move(core, index, walk.left, position)
            position = walk.left
        walk = walk.next
    return position


cdef void leave(Core *core, uint32_t index, uint32_t position) noexcept nogil:
    """Remove the subscriber at `position` from a channel; the last subscriber moves into its place."""
    cdef Channel *channel = &core.channels.channels[index]
    if channel.walks:
        position = hand_hole_back(core, index, position)
    channel.count -= 1
    move(core, index, channel.count, position)
    # When only a quarter is in use, release half, so that the array shrinks after many subscribers have left.
    if channel.capacity and channel.count * 4 < channel.capacity:
        resize_subscribers(core, channel, channel.capacity // 2 if channel.count > FEW else FEW)
    if channel.count == 0:
        vacate(core, index)
    channel_release(core, index)


cdef int channel_unsubscribe(Core *core, uint32_t slot, uint32_t index) noexcept nogil:
    """Unsubscribe the connection in `slot` from a channel: 1 when done, 0 if it was not subscribed. O(1)."""
    cdef Connection *c = at(core, slot)
    cdef Subscription *cell = subscription_of(core, c, index)
    cdef uint32_t position
    if cell == NULL or cell.channel != index:
        return 0
    position = cell.position
    clear_cell(core, c, cell)
    c.subscription_count -= 1
    if c.subscription_count == 0:
        memory_give(core, c.subscriptions, cells_bytes(c.subscription_bits), KIND_SUBSCRIPTION)
        c.subscriptions = NULL
        c.subscription_bits = 0
    leave(core, index, position)
    return 1


cdef void channel_unsubscribe_all(Core *core, uint32_t slot) noexcept nogil:
    """Remove a connection from all its channels and free its table of subscriptions.

    O(cells of its table).
    """
    cdef Connection *c = at(core, slot)
    cdef uint32_t cells, step
    cdef Subscription *table = c.subscriptions
    if table == NULL:
        return
    cells = 1 << c.subscription_bits
    for step in range(cells):
        if table[step].channel != NONE:
            leave(core, table[step].channel, table[step].position)
    memory_give(core, table, cells_bytes(c.subscription_bits), KIND_SUBSCRIPTION)
    c.subscriptions = NULL
    c.subscription_bits = 0
    c.subscription_count = 0
