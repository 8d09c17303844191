"""Checks the accounts of a reactor by recomputing them from its structures, for tests.

The reactor keeps sums while it works: bytes by kind, connections by state, reference counts, lengths of
lists. A wrong sum is a defect long before the process crashes, so tests compare all sums with the structures
after every step. This file calls none of the functions that keep the sums, and rounds block sizes with its
own code, so that a fault in those functions cannot hide itself here.

Every check that fails adds a line of text to the list of faults: the account, its value, and the value that
was found. Cost: O(slots + channels + queued entries). The gateway never imports this module.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from wsgate.reactor.audit_lists cimport ListAudit
from wsgate.reactor.inflate cimport ZLIB_BYTES
from wsgate.reactor.loop cimport Reactor
from wsgate.reactor.structs cimport (
    BLOCKED, CHUNK_SLOTS, CLASS_GAP, CLASS_PUBLICATION, Channel, Connection, ControlSlot, Core,
    DEBT_OF_USER, DEBT_ROWS, DRAINS_MAX, Debt, Entry, Frame, Gap, IN_BULK, Input, KIND_CHANNEL,
    KIND_DEFLATE, KIND_FRAME, KIND_OUTBOX, KIND_PARTIAL, KIND_SUBSCRIPTION, KIND_TABLE, KIND_USER, KINDS,
    NONE, ORPHAN_TICKS, Outbox, PACES, PACE_BEHIND, PACE_MOVING, PACE_NONE, PACE_READER, PAUSED_OUTBOX,
    POOL_CLASSES, STATES, STATE_FREE, STATE_GONE, STATE_OPEN, Subscription, UserLink, VARIANTS_MAX, WATCHED,
    Walk,
)

from wsgate.reactor.metric_names import KIND_NAMES, STATE_NAMES

__all__ = ["audit", "tamper"]

cdef enum:
    NAME_HERE = 24               # as in channels.pyx; a longer name has a block of its own
    FEW = 2                      # as in channels.pyx; more subscribers have a block of their own


def audit(Reactor reactor not None):
    """Recompute all accounts of a reactor and return the faults as lines of text; see audit.pyi."""
    if reactor.core.epoll < 0:
        return []
    return _Audit(reactor).run()


cdef uint64_t rounded(uint64_t size):
    """Return the bytes that a block of this size is charged as.

    A power of two from 32 bytes to 64 KiB, above that whole pages.
    """
    if size > 65536:
        return (size + 4095) // 4096 * 4096
    return max(32, 1 << (<object>size - 1).bit_length()) if size > 1 else 32


cdef class _Audit(ListAudit):
    """One run of the audit: the sums found until now, and the faults."""

    cdef Reactor reactor
    cdef dict frames                 # address of a frame -> references found
    cdef dict channel_frames         # channel -> frames and gaps that keep it
    cdef dict walks                  # channel -> walks under way
    cdef list members                # for each channel: subscribers found in the connections' tables
    cdef uint64_t held[KINDS]

    def __init__(self, Reactor reactor):
        cdef int kind
        self.reactor = reactor
        self.begin(reactor.core)
        self.frames = {}
        self.channel_frames = {}
        self.walks = {}
        self.members = [0] * self.core.channels.made
        for kind in range(<int>KINDS):
            self.held[kind] = 0

    cdef run(self):
        """Run all checks in order and return the list of faults."""
        self.look_at_connections()
        self.look_at_walks_and_byes()
        self.look_at_frames()
        self.look_at_channels()
        self.look_at_lists()
        self.look_at_wheel()
        self.look_at_users()
        self.look_at_pool()
        self.look_at_the_rest()
        self.compare_held()
        return self.faults

    # --- connections and what they own -------------------------------------------------------------------

    cdef look_at_connections(self):
        """Check the counts of connections, states and kernel memory, and what each connection owns."""
        cdef uint32_t slot, used = 0, blocked = 0
        cdef list paced = [0] * PACES
        cdef uint32_t behind = 0
        cdef Connection *c
        cdef list states = [0] * STATES
        cdef list queued = [0] * STATES
        cdef int state
        for slot in range(self.used):
            c = self.at(slot)
            states[c.state] += 1
            if c.state == STATE_FREE:
                self.look_at_nothing(slot, c, "a free slot")
                if c.meta != NULL:
                    self.faults.append(f"slot {slot}: a free slot has a meta object")
                continue
            used += 1
            if c.state == STATE_GONE:
                self.look_at_nothing(slot, c, "a closed connection")
            if c.fd < 0 and c.state != STATE_GONE and c.flags & WATCHED:
                self.faults.append(f"slot {slot}: watched without a descriptor")
            blocked += (c.flags & BLOCKED) != 0
            paced[self.pace_of(c)] += 1
            behind += c.outbox != NULL and c.state == STATE_OPEN and c.outbox.owed != 0
            queued[c.state] += (c.units >> 1) * 32
            self.look_at_outbox(slot, c)
            self.look_at_input(slot, c)
            self.look_at_subscriptions(slot, c)
        self.expect("connections", self.core.connections, used)
        self.expect("blocked", self.core.blocked, blocked)
        self.expect(
            "connections over half their limits that are not behind",
            self.core.paced[<int>PACE_READER], paced[<int>PACE_READER]
        )
        self.expect(
            "connections over half their limits that are behind",
            self.core.paced[<int>PACE_BEHIND], paced[<int>PACE_BEHIND]
        )
        self.expect("connections behind", self.core.behind, behind)
        self.expect(
            "connections over half their limits that are behind and moving",
            self.core.paced[<int>PACE_MOVING], paced[<int>PACE_MOVING]
        )
        for state in range(1, <int>STATES):
            self.expect("connections in state " + STATE_NAMES[state], self.core.states[state], states[state])
            self.expect(
                "kernel bytes in state " + STATE_NAMES[state], self.core.queued_in[state], queued[state]
            )
        self.expect("kernel bytes", self.core.queued_bytes, sum(queued))
        self.held[<int>KIND_TABLE] = <uint64_t>self.slots() * (sizeof(Connection) + sizeof(UserLink))
        if self.core.debts != NULL:
            self.held[<int>KIND_TABLE] += DEBT_ROWS * sizeof(Debt)

    cdef int pace_of(self, Connection *c):
        """Return the pace under which a connection should be counted, as outbox.pyx defines it."""
        if c.outbox == NULL or c.state != STATE_OPEN or not c.flags & PAUSED_OUTBOX:
            return PACE_NONE
        if c.outbox.owed == 0:
            return PACE_READER
        if not c.outbox.grace_ms:
            return PACE_NONE
        # A connection that no longer takes bytes is counted as moving until its timer expires.
        if c.outbox.pace == PACE_MOVING and self.core.limits.blocked_moving_ms:
            return PACE_MOVING
        return PACE_MOVING if self.core.clock_ms < c.outbox.blocked_ms + self.core.limits.blocked_moving_ms else PACE_BEHIND

    cdef look_at_nothing(self, uint32_t slot, Connection *c, str what):
        """Check that a free slot or a closed connection owns nothing; `what` names it in the fault."""
        if c.outbox != NULL or c.input != NULL or c.subscriptions != NULL or c.subscription_count:
            self.faults.append(f"slot {slot}: {what} owns memory")
        if c.wheel_tick != NONE and c.state == STATE_GONE:
            self.faults.append(f"slot {slot}: {what} is on the timer wheel")
        if c.fd >= 0:
            self.faults.append(f"slot {slot}: {what} has descriptor {c.fd}")
        if self.link(slot).hash:
            self.faults.append(f"slot {slot}: {what} is in the index by user")

    cdef look_at_outbox(self, uint32_t slot, Connection *c):
        """Check the entries, bytes and pace of one connection's outbox, and collect its frames and gaps."""
        cdef Outbox *outbox = c.outbox
        cdef Entry *entry
        cdef uint32_t index
        cdef uint64_t size = 0
        if outbox == NULL:
            return
        self.held[<int>KIND_OUTBOX] += rounded(sizeof(Outbox))
        if outbox.entries != outbox.inline_entries:
            self.held[<int>KIND_OUTBOX] += rounded(<uint64_t>outbox.capacity * sizeof(Entry))
        elif outbox.capacity != 4:
            self.faults.append(f"slot {slot}: an inline outbox of {outbox.capacity} entries")
        if outbox.count == 0 and outbox.control == NULL:
            self.faults.append(f"slot {slot}: an outbox in which nothing waits")
        if outbox.head + outbox.count > outbox.capacity:
            self.faults.append(
                f"slot {slot}: {outbox.count} entries from {outbox.head} on in {outbox.capacity} places"
            )
            return
        for index in range(outbox.count):
            entry = outbox.entries + outbox.head + index
            if entry.klass == CLASS_GAP:
                self.held[<int>KIND_OUTBOX] += rounded(sizeof(Gap))
                size += (<Gap *>entry.item).charge
                self.keep_channel(entry.channel)
            else:
                size += (<Frame *>entry.item).length
                self.refer(<Frame *>entry.item)
                if entry.klass == CLASS_PUBLICATION and (<Frame *>entry.item).channel != entry.channel:
                    self.faults.append(f"slot {slot}: entry {index} and its frame name different channels")
        if outbox.count and outbox.head_written:
            entry = outbox.entries + outbox.head
            if entry.klass == CLASS_GAP or outbox.head_written >= (<Frame *>entry.item).length:
                self.faults.append(
                    f"slot {slot}: {outbox.head_written} bytes of the first entry are counted as written"
                )
            size -= outbox.head_written
        elif outbox.head_written:
            self.faults.append(f"slot {slot}: bytes are counted as written, but there is no entry")
        self.expect(f"slot {slot}: outbox bytes", outbox.bytes, size)
        self.expect(f"slot {slot}: its pace", outbox.pace, self.pace_of(c))
        if c.flags & BLOCKED and c.state == STATE_OPEN and outbox.owed == 0:
            self.faults.append(f"slot {slot}: its socket is full, but it is not behind")
        if outbox.grace_ms and outbox.owed == 0:
            self.faults.append(f"slot {slot}: it has a grace, but it is not behind")
        self.look_at_control_slot(slot, outbox.control)

    cdef look_at_control_slot(self, uint32_t slot, ControlSlot *control):
        """Check the bytes of the pongs that wait in an outbox, and how many of the first are written."""
        cdef uint32_t pong, used = 0
        if control == NULL:
            return
        self.held[<int>KIND_OUTBOX] += rounded(sizeof(ControlSlot))
        for pong in range(control.count):
            used += control.lengths[pong]
        self.expect(f"slot {slot}: bytes of pongs", control.used, used)
        if control.count == 0 or control.written >= control.lengths[0]:
            self.faults.append(
                f"slot {slot}: {control.count} pongs, {control.written} bytes of the first written"
            )

    cdef look_at_input(self, uint32_t slot, Connection *c):
        """Check that a connection's unfinished input stays within its buffers, and add up their bytes."""
        cdef Input *input = c.input
        if input == NULL:
            return
        self.held[<int>KIND_PARTIAL] += rounded(sizeof(Input))
        if input.message.data != NULL:
            self.held[<int>KIND_PARTIAL] += rounded(input.message.capacity)
        if input.backlog.data != NULL:
            self.held[<int>KIND_PARTIAL] += rounded(input.backlog.capacity)
        if input.message.length > input.message.capacity or input.backlog.length > input.backlog.capacity:
            self.faults.append(f"slot {slot}: its unfinished input is longer than the buffer")
        if input.backlog_taken > input.backlog.length:
            self.faults.append(f"slot {slot}: more was taken from its backlog than the backlog holds")

    cdef look_at_subscriptions(self, uint32_t slot, Connection *c):
        """Check that each subscription of a connection points to its place in the channel's array."""
        cdef uint32_t cell, found = 0
        cdef Subscription *subscription
        cdef Channel *channel
        cdef uint32_t *slots
        if c.subscriptions == NULL:
            self.expect(f"slot {slot}: subscriptions", c.subscription_count, 0)
            return
        self.held[<int>KIND_SUBSCRIPTION] += rounded(<uint64_t>sizeof(Subscription) << c.subscription_bits)
        for cell in range(<uint32_t>1 << c.subscription_bits):
            subscription = &c.subscriptions[cell]
            if subscription.channel == NONE:
                continue
            found += 1
            if subscription.channel >= self.core.channels.made:
                self.faults.append(
                    f"slot {slot}: subscribed to channel {subscription.channel}, which was never made"
                )
                continue
            channel = &self.core.channels.channels[subscription.channel]
            self.members[subscription.channel] += 1
            slots = channel.slots.many if channel.capacity else channel.slots.few
            if (
                not channel.is_used or subscription.position >= channel.count
                or slots[subscription.position] != slot
            ):
                self.faults.append(
                    f"slot {slot}: channel {subscription.channel} does not have it at the place that it names"
                )
            if not channel.variants & (1 << c.variant):
                self.faults.append(
                    f"slot {slot}: channel {subscription.channel} lacks the bit of its variant"
                )
        self.expect(f"slot {slot}: subscriptions", c.subscription_count, found)

    # --- frames -------------------------------------------------------------------------------------------

    cdef refer(self, Frame *frame):
        """Count one reference to a frame that was found."""
        if frame != NULL:
            self.frames[<size_t>frame] = self.frames.get(<size_t>frame, 0) + 1

    cdef keep_channel(self, uint32_t channel):
        """Count one queued frame or gap that keeps a channel."""
        self.channel_frames[channel] = self.channel_frames.get(channel, 0) + 1

    cdef look_at_walks_and_byes(self):
        """Check the list of walks, and count the frames of walks, byes and the shared responses."""
        cdef Walk *walk = self.core.walks
        cdef uint32_t count = 0, index
        cdef int variant
        while walk != NULL:
            count += 1
            self.held[<int>KIND_OUTBOX] += rounded(sizeof(Walk))
            self.walks[walk.channel] = self.walks.get(walk.channel, 0) + 1
            for variant in range(VARIANTS_MAX):
                self.refer(walk.frames[variant])
            if walk.left > self.core.channels.channels[walk.channel].count:
                self.faults.append(
                    f"walk in channel {walk.channel}: it has more to serve than the channel has subscribers"
                )
            if walk.next == NULL and walk != self.core.last_walk:
                self.faults.append("walks: last_walk is not the last one")
            walk = walk.next
        self.expect("walks", self.core.walk_count, count)
        for index in range(self.core.bye_count):
            for variant in range(VARIANTS_MAX):
                self.refer(self.core.byes[index].frames[variant])
        self.refer(self.core.ping)
        self.refer(self.core.page)
        self.refer(self.core.head_timeout)
        self.refer(self.core.head_too_large)
        self.refer(self.core.upgrade_timeout)

    cdef look_at_frames(self):
        """Compare the reference count of each frame that was found with the references that were found."""
        cdef Frame *frame
        cdef size_t address
        for address, found in self.frames.items():
            frame = <Frame *>address
            self.held[<int>KIND_FRAME] += rounded(frame.size)
            if frame.references != found:
                self.faults.append(
                    f"a frame of {frame.length} bytes: {frame.references} references, {found} found"
                )
            if <uint64_t>frame.length + 24 > frame.size:
                self.faults.append(f"a frame of {frame.length} bytes in a block of {frame.size}")
            if frame.channel != NONE:
                self.keep_channel(frame.channel)

    # --- channels -----------------------------------------------------------------------------------------

    cdef look_at_channels(self):
        """Check the counts and bytes of all channels, and the lists of free and vacated ones."""
        cdef uint32_t index, used = 0, in_cells = 0, vacated = 0, free_places = 0
        cdef uint64_t name_bytes = 0
        cdef Channel *channel
        cdef Core *core = self.core
        self.held[<int>KIND_CHANNEL] = <uint64_t>core.channels.capacity * sizeof(Channel)
        if core.channels.cells != NULL:
            self.held[<int>KIND_CHANNEL] += (<uint64_t>core.channels.cells_mask + 1) * 4
            for index in range(core.channels.cells_mask + 1):
                in_cells += core.channels.cells[index] != NONE
        for index in range(core.channels.made):
            channel = &core.channels.channels[index]
            if not channel.is_used:
                if self.members[index]:
                    self.faults.append(f"channel {index}: it has subscribers, but it is not in use")
                continue
            used += 1
            name_bytes += channel.name_length
            vacated += channel.is_vacated
            if channel.name_length > NAME_HERE:
                self.held[<int>KIND_CHANNEL] += rounded(channel.name_length)
            if channel.capacity:
                self.held[<int>KIND_CHANNEL] += rounded(<uint64_t>channel.capacity * 4)
            if channel.count > (channel.capacity if channel.capacity else <uint32_t>FEW):
                self.faults.append(
                    f"channel {index}: {channel.count} subscribers in {channel.capacity} places"
                )
            if not self.is_reachable(index, channel.hash):
                self.faults.append(f"channel {index}: the index does not find it by its name")
            if channel.is_uncounted > 1:
                self.faults.append(f"channel {index}: is_uncounted is {channel.is_uncounted}, not 0 or 1")
            self.expect(f"channel {index}: subscribers", channel.count, self.members[index])
            self.expect(f"channel {index}: frames", channel.frames, self.channel_frames.pop(index, 0))
            self.expect(f"channel {index}: walks", channel.walks, self.walks.pop(index, 0))
            if channel.count == 0 and not (channel.frames or channel.walks or channel.is_vacated):
                self.faults.append(f"channel {index}: nothing refers to it, but it was not released")
        for index in (*self.channel_frames, *self.walks):
            self.faults.append(f"channel {index}: frames or walks refer to a channel that is not in use")
        self.expect("channels", core.channels.count, used)
        self.expect("bytes of channel names", core.channels.name_bytes, name_bytes)
        self.expect("channels in the directory", in_cells, used)
        index = core.channels.free
        while index != NONE and free_places <= core.channels.made:
            free_places += 1
            index = core.channels.channels[index].count
        self.expect("free places for channels", core.channels.made - used, free_places)
        index = core.channels.vacated
        while index != NONE and vacated <= core.channels.made:
            if not core.channels.channels[index].is_vacated:
                self.faults.append(f"channel {index}: it is on the list of vacated channels without the mark")
                break
            vacated -= 1
            index = core.channels.channels[index].link
        self.expect("channels marked as vacated that are not on the list", vacated, 0)

    cdef bint is_reachable(self, uint32_t index, uint32_t hash):
        """Whether probing from a channel's home cell finds the channel before a free cell."""
        cdef uint32_t place = hash & self.core.channels.cells_mask, looks
        for looks in range(self.core.channels.cells_mask + 1):
            if self.core.channels.cells[place] == index:
                return True
            if self.core.channels.cells[place] == NONE:
                return False
            place = (place + 1) & self.core.channels.cells_mask
        return False

    # --- lists --------------------------------------------------------------------------------------------

    cdef look_at_users(self):
        """Check the table and the lists of the index by user."""
        cdef uint32_t place, cell, slot, previous, lists = 0, linked = 0, marked = 0
        cdef UserLink *link
        cdef set hashes = set()
        if self.core.users.cells != NULL:
            self.held[<int>KIND_USER] = (<uint64_t>self.core.users.mask + 1) * 4
            for cell in range(self.core.users.mask + 1):
                slot, previous = self.core.users.cells[cell], NONE
                if slot == NONE:
                    continue
                lists += 1
                hashes.add(self.link(slot).hash)
                place = self.link(slot).hash & self.core.users.mask
                while place != cell and self.core.users.cells[place] != NONE:
                    place = (place + 1) & self.core.users.mask
                if place != cell:
                    self.faults.append(f"slot {slot}: the index by user does not find it")
                while slot != NONE and linked <= self.slots():
                    link = self.link(slot)
                    linked += 1
                    if link.previous != previous or link.hash != self.link(self.core.users.cells[cell]).hash:
                        self.faults.append(f"slot {slot}: its place in its user's list is wrong")
                    previous = slot
                    slot = link.next
        for slot in range(self.used):
            marked += self.link(slot).hash != 0
        self.expect("connections with a user", marked, linked)
        self.expect("users", self.core.users.count, lists)
        self.expect("users with one list", lists, len(hashes))

    # --- memory pool, kernel memory, debts and sums -------------------------------------------------------

    cdef look_at_pool(self):
        """Check the idle bytes of the memory pool against its lists of free blocks."""
        cdef int index
        cdef uint64_t idle = 0
        cdef void *block
        for index in range(POOL_CLASSES):
            block = self.core.pool.idle[index]
            while block != NULL and idle <= self.core.pool.idle_bytes:
                idle += <uint64_t>32 << index
                block = (<void **>block)[0]
        self.expect("idle bytes of the pool", self.core.pool.idle_bytes, idle)

    cdef look_at_the_rest(self):
        """Check orphaned sockets, drains and debts, and add up the memory for compression."""
        cdef uint32_t index, drains = 0
        cdef uint64_t orphans = 0
        for index in range(<uint32_t>ORPHAN_TICKS):
            orphans += self.core.orphans[index]
        self.expect("kernel bytes of closed sockets", self.core.orphan_bytes, orphans)
        for index in range(<uint32_t>DRAINS_MAX):
            drains += self.core.drains[index].fd >= 0
        self.expect("drains", self.core.drain_count, drains)
        if self.core.debts != NULL:
            for index in range(<uint32_t>DEBT_ROWS):
                if self.core.debts[index].place and not self.core.debts[index].place & DEBT_OF_USER and (
                    self.core.debts[index].place > self.used
                    or self.at(self.core.debts[index].place - 1).state == STATE_FREE
                ):
                    self.faults.append(f"debt {index}: it belongs to a free slot")
        for index in range(self.core.variants):
            if self.core.variant_deflated[index]:
                self.held[<int>KIND_DEFLATE] = self.core.limits.max_message_bytes + ZLIB_BYTES

    cdef compare_held(self):
        """Compare the bytes charged to each kind with the sums of this run."""
        cdef int kind
        for kind in range(<int>KINDS):
            self.expect("bytes of kind " + KIND_NAMES[kind], self.core.held[kind], self.held[kind])


def tamper(Reactor reactor not None, str account, int64_t by, uint64_t conn=0):
    """Change one account of a reactor, and nothing that it counts; see audit.pyi."""
    cdef Core *core = reactor.core
    cdef uint32_t slot = <uint32_t>conn
    cdef Connection *c = NULL
    if slot < core.chunk_count * CHUNK_SLOTS:
        c = core.chunks[slot // CHUNK_SLOTS] + slot % CHUNK_SLOTS
    if account in KIND_NAMES:
        core.held[<int>KIND_NAMES.index(account)] += by
    elif account in STATE_NAMES:
        core.states[<int>STATE_NAMES.index(account)] += <uint32_t>by
    elif account == "connections":
        core.connections += <uint32_t>by
    elif account == "blocked":
        core.blocked += <uint32_t>by
    elif account == "pacing":
        core.paced[<int>PACE_READER] += <uint32_t>by
    elif account == "pace":
        c.outbox.pace += <uint8_t>by
    elif account == "kernel":
        core.queued_bytes += by
    elif account == "orphans":
        core.orphan_bytes += by
    elif account == "pool":
        core.pool.idle_bytes += by
    elif account == "channels":
        core.channels.count += <uint32_t>by
    elif account == "names":
        core.channels.name_bytes += by
    elif account == "users":
        core.users.count += <uint32_t>by
    elif account == "walks":
        core.walk_count += <uint32_t>by
    elif account == "drains":
        core.drain_count += <uint32_t>by
    elif account == "bulk":
        core.bulk.count += <uint32_t>by
    elif account == "attention":
        core.attention.count += <uint32_t>by
    elif account == "indebted":
        core.indebted.count += <uint32_t>by
    elif account == "heads":
        core.heads[0].list.count += <uint32_t>by
    elif account == "references":
        core.ping.references += <uint32_t>by
    elif account == "outbox_bytes":
        c.outbox.bytes += by
    elif account == "subscriptions":
        c.subscription_count += <uint32_t>by
    elif account == "subscribers":
        core.channels.channels[c.subscriptions[first_cell(c)].channel].count += <uint32_t>by
    elif account == "position":
        c.subscriptions[first_cell(c)].position += <uint32_t>by
    elif account == "hash":
        core.channels.channels[c.subscriptions[first_cell(c)].channel].hash += <uint32_t>by
    elif account == "uncounted":
        core.channels.channels[c.subscriptions[first_cell(c)].channel].is_uncounted += <uint8_t>(2 * by)
    elif account == "frames":
        core.channels.channels[c.subscriptions[first_cell(c)].channel].frames += <uint32_t>by
    elif account == "wheel":
        c.wheel_tick += <uint32_t>by
    elif account == "mark":
        c.flags ^= IN_BULK
    elif account == "user_link":
        (<UserLink *>(core.chunks[slot // CHUNK_SLOTS] + CHUNK_SLOTS))[slot % CHUNK_SLOTS].hash += <uint32_t>by
    else:
        raise ValueError(account)


cdef uint32_t first_cell(Connection *c):
    """Return the first used cell in a connection's table of subscriptions."""
    cdef uint32_t cell = 0
    while c.subscriptions[cell].channel == NONE:
        cell += 1
    return cell
