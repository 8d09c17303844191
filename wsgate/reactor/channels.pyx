"""Channels: names, subscriber arrays, and each connection's own table.

A channel's subscribers are one array of slots, so that a publication is a walk over 4-byte numbers.
A connection's subscriptions are a small open-addressing table from channel to the connection's index
in that array. Both ways are O(1): subscribe appends to the array and fills a cell; unsubscribe moves
the array's last slot into the hole and corrects that connection's cell; closing is O(its own
subscriptions). Up to eight subscriptions fill one 64-byte block.

A channel lives while it has subscribers or while queued frames refer to it, and, where the owner asked
for it, until its owner has taken note that the last one left. A channel with up to two subscribers and
a name of up to 24 bytes is one cache line and nothing else: most are the inbox of one device. Names are
hashed with a secret key because clients choose them. Nothing here touches a Python object.
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
    FEW = 2                      # subscribers inside the channel itself
    NAME_HERE = 24               # bytes of a name inside the channel itself
    FIRST_BITS = 2               # 4 cells of 8 bytes: the smallest pooled block
    FIRST_SUBSCRIBERS = 16
    FIRST_CHANNELS = 64
    FIRST_CELLS = 128


cdef const uint8_t *channel_name(const Channel *channel) noexcept nogil:
    """Its name; valid until the channel is released."""
    if channel.name_length <= NAME_HERE:
        return &channel.name.here[0]
    return channel.name.there


cdef uint32_t *channel_slots(Channel *channel) noexcept nogil:
    """Its subscribers' slots, `count` of them; valid until one comes or goes, or a channel is made."""
    if channel.capacity:
        return channel.slots.many
    return &channel.slots.few[0]


# --- the directory of channels ----------------------------------------------------------------------

cdef void channels_start(Core *core, const uint8_t *key) noexcept nogil:
    """An empty directory; `key` is 16 secret bytes."""
    memset(&core.channels, 0, sizeof(core.channels))
    core.channels.free = core.channels.vacated = NONE
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
        if (
            channel.hash == <uint32_t>hash and channel.name_length == size
            and memcmp(channel_name(channel), name, size) == 0
        ):
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
            cell_of(core, channel.hash, channel_name(channel), channel.name_length)[0] = old[index]
    free(old)
    return 0


cdef int grow_channels(Core *core) noexcept nogil:
    """Double the directory. The new half is not touched, so that it costs nothing until it is used."""
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
    """A blank place in the directory, or NONE without memory."""
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
    memset(&core.channels.channels[index], 0, sizeof(Channel))
    core.channels.channels[index].count = core.channels.free
    core.channels.free = index


cdef uint32_t channel_find(Core *core, const uint8_t *name, uint32_t size) noexcept nogil:
    """The channel of this name, or NONE. One keyed hash, O(1)."""
    if core.channels.cells == NULL:
        return NONE
    return cell_of(core, siphash(core.channels.key, name, size), name, size)[0]


cdef uint32_t channel_open(Core *core, const uint8_t *name, uint32_t size, int policy) noexcept nogil:
    """The channel of this name, made with `policy` if there is none; NONE without memory."""
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
            channel.policy = <uint8_t>policy  # nobody is there: it starts anew
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
    """Forget a channel that has no subscriber, queued frame or walk and need not be reported; else nothing."""
    cdef Channel *channel = &core.channels.channels[index]
    cdef uint32_t hole, probe, home, mask = core.channels.cells_mask
    if channel.count or channel.frames or channel.walks or channel.is_vacated or not channel.is_used:
        return
    # Close the hole, so that probing needs no tombstones.
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


# --- channels that nobody is subscribed to any more ---------------------------------------------------

cdef void vacate(Core *core, uint32_t index) noexcept nogil:
    """Put a channel whose last subscriber left on the list of those to report, once."""
    cdef Channel *channel = &core.channels.channels[index]
    if channel.is_vacated or not core.channels.report_vacated:
        return
    give_back_slots(core, channel)
    channel.is_vacated = 1
    channel.link = core.channels.vacated
    core.channels.vacated = index


cdef uint32_t channel_take_vacated(Core *core) noexcept nogil:
    """The next channel of that list that still has no subscriber, or NONE. Release it after use."""
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


# --- a channel's array ------------------------------------------------------------------------------

cdef inline uint64_t slots_bytes(uint32_t count) noexcept nogil:
    return <uint64_t>count * sizeof(uint32_t)


cdef void give_back_slots(Core *core, Channel *channel) noexcept nogil:
    if channel.capacity:
        memory_give(core, channel.slots.many, slots_bytes(channel.capacity), KIND_CHANNEL)
        channel.capacity = 0


cdef int resize_subscribers(Core *core, Channel *channel, uint32_t wanted) noexcept nogil:
    """Move the slots to an array for at least `wanted`, or back into the channel when FEW suffice."""
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


cdef inline uint64_t cells_bytes(uint32_t bits) noexcept nogil:
    """Bytes of a connection's table with 2^bits cells."""
    return <uint64_t>sizeof(Subscription) << bits


cdef int grow_subscriptions(Core *core, Connection *c) noexcept nogil:
    """Double the connection's table."""
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
    if channel.count == (channel.capacity if channel.capacity else <uint32_t>FEW) and resize_subscribers(
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
    channel_slots(channel)[channel.count] = slot
    channel.count += 1
    channel.variants |= 1 << c.variant
    c.subscription_count += 1
    return 1


cdef bint is_subscribed(Core *core, Connection *c, uint32_t channel) noexcept nogil:
    """Whether a connection is subscribed to a channel; NONE is no channel. O(1)."""
    cdef Subscription *cell
    if channel == NONE:
        return False
    cell = subscription_of(core, c, channel)
    return cell != NULL and cell.channel == channel


cdef void move(Core *core, uint32_t index, uint32_t source, uint32_t target) noexcept nogil:
    """Move a subscriber within its channel's array."""
    cdef Channel *channel = &core.channels.channels[index]
    cdef uint32_t slot
    if source != target:
        slot = channel_slots(channel)[source]
        channel_slots(channel)[target] = slot
        subscription_of(core, at(core, slot), index).position = target


cdef uint32_t hand_hole_back(Core *core, uint32_t index, uint32_t position) noexcept nogil:
    """Keep those still to be served in front, in every walk, when one of them leaves; the hole then.

    The oldest walk has the shortest front, and each later one's holds it: every front is closed by its
    own last, so that nobody is served twice or not at all. O(walks).
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
    """Take the slot at `position` out of a channel: the last one moves into its place."""
    cdef Channel *channel = &core.channels.channels[index]
    if channel.walks:
        position = hand_hole_back(core, index, position)
    channel.count -= 1
    move(core, index, channel.count, position)
    # A quarter full: give half back, so that a crowd that left does not stay on the books.
    if channel.capacity and channel.count * 4 < channel.capacity:
        resize_subscribers(core, channel, channel.capacity // 2 if channel.count > FEW else FEW)
    if channel.count == 0:
        vacate(core, index)
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
        memory_give(core, c.subscriptions, cells_bytes(c.subscription_bits), KIND_SUBSCRIPTION)
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
    memory_give(core, table, cells_bytes(c.subscription_bits), KIND_SUBSCRIPTION)
    c.subscriptions = NULL
    c.subscription_bits = 0
    c.subscription_count = 0
