"""Checks the lists of a reactor: the part of an audit that follows links from connection to connection.

Like audit.pyx, this file calls none of the functions that keep the lists.
"""

from libc.stdint cimport uint32_t

from wsgate.reactor.structs cimport (
    CHUNK_SLOTS, Connection, Core, HEAD_GROUPS, HeadGroup, IN_ATTENTION, IN_BULK, IN_FAILED, IN_URGENT, List, NONE,
    STATE_CLOSING, STATE_DECIDING, STATE_FREE, STATE_GONE, STATE_HEAD, STATE_LINGERING, STATE_OPEN, TICK_MS,
    UserLink, WHEEL_SLOTS,
)

from wsgate.reactor.metric_names import STATE_NAMES


cdef class ListAudit:
    """Checks the lists of connections and the timer wheel of one reactor, and collects the faults."""

    cdef begin(self, Core *core):
        """Name the reactor, and find the last slot that was ever used."""
        self.core = core
        self.faults = []
        # Slots behind the last used one are blank. Without them an audit after every step of a fuzzer is
        # affordable.
        self.used = self.slots()
        while self.used and self.is_blank(self.at(self.used - 1)):
            self.used -= 1

    cdef bint is_blank(self, Connection *c):
        """Whether a slot was never used by a connection."""
        return c.state == STATE_FREE and c.generation == 1 and c.flags == 0 and c.outbox == NULL and c.fd < 0

    cdef expect(self, str account, object says, object found):
        """Add a fault if an account differs from the value that was found."""
        if says != found:
            self.faults.append(f"{account}: the account is {says}, but {found} was found")

    cdef Connection *at(self, uint32_t slot):
        """Return the connection in a slot without the functions of table.pxd."""
        return self.core.chunks[slot // CHUNK_SLOTS] + slot % CHUNK_SLOTS

    cdef UserLink *link(self, uint32_t slot):
        """Return the link of a slot in the index by user, which stands behind the connections of a slab."""
        return <UserLink *>(self.core.chunks[slot // CHUNK_SLOTS] + CHUNK_SLOTS) + slot % CHUNK_SLOTS

    cdef uint32_t slots(self):
        """Return the number of slots in all slabs."""
        return self.core.chunk_count * CHUNK_SLOTS

    cdef look_at_list(self, str name, List *queue, int flag, bint is_double, List *other=NULL):
        """Check that a list of connections and the marks of its members agree.

        `other` is a second list whose members have the same mark.
        """
        cdef uint32_t slot = queue.head, previous = NONE, count = 0, marked = 0
        cdef Connection *c
        while slot != NONE and count <= self.slots():
            c = self.at(slot)
            count += 1
            if not c.flags & flag:
                self.faults.append(f"slot {slot}: it is on the list {name} without the mark")
            if c.state == STATE_FREE:
                self.faults.append(f"slot {slot}: it is free, but on the list {name}")
            if is_double and c.dirty_previous != previous:
                self.faults.append(f"slot {slot}: its link back in the list {name} is wrong")
            previous = slot
            slot = c.dirty_next if is_double else c.attention_next
        if count and queue.tail != previous:
            self.faults.append(f"list {name}: its tail is not the last connection")
        for slot in range(self.used):
            c = self.at(slot)
            marked += (c.flags & flag) != 0
            if c.state == STATE_FREE and c.flags & flag:
                self.faults.append(f"slot {slot}: it is free, but marked for the list {name}")
        self.expect(f"list {name}", queue.count, count)
        # Two lists may share a mark, because a connection is on only one of them.
        self.expect(f"marks of the list {name}", marked, count if other == NULL else count + other.count)

    cdef look_at_heads(self):
        """Check that each connection in HEAD is in the group of incomplete heads that it names."""
        cdef uint32_t number, slot, previous, count, sum = 0
        cdef HeadGroup *group
        cdef Connection *c
        for number in range(<uint32_t>HEAD_GROUPS):
            group = &self.core.heads[number]
            slot, previous, count = group.list.head, NONE, 0
            while slot != NONE and count <= self.slots():
                c = self.at(slot)
                count += 1
                if c.state != STATE_HEAD or c.close_code != number or c.dirty_previous != previous:
                    self.faults.append(f"slot {slot}: its place in group {number} of the heads is wrong")
                previous = slot
                slot = c.dirty_next
            if count and group.since_ms != self.at(group.list.head).message_ms:
                self.faults.append(
                    f"group {number} of the heads: its time is not that of the oldest connection"
                )
            if group.list.tail != previous:
                self.faults.append(f"group {number} of the heads: its tail is not the last connection")
            self.expect(f"group {number} of the heads", group.list.count, count)
            sum += count
        self.expect("connections in the groups of heads", sum, self.core.states[<int>STATE_HEAD])

    cdef look_at_lists(self):
        """Check the attention queue, the dirty lists, the other lists of connections, and the free slots."""
        cdef uint32_t slot = self.core.free_slot, count = 0
        self.look_at_list("attention", &self.core.attention, IN_ATTENTION, False, &self.core.indebted)
        self.look_at_list("indebted", &self.core.indebted, IN_ATTENTION, False, &self.core.attention)
        self.look_at_newcomers()
        self.look_at_list("failed", &self.core.failed, IN_FAILED, False)
        self.look_at_list("urgent", &self.core.urgent, IN_URGENT, True)
        self.look_at_list("bulk", &self.core.bulk, IN_BULK, True)
        self.look_at_heads()
        while slot != NONE and count <= self.slots():
            if self.at(slot).state != STATE_FREE:
                self.faults.append(f"slot {slot}: it is on the list of free slots, but not free")
            count += 1
            slot = self.at(slot).attention_next
        self.expect("free slots", self.slots() - self.core.connections, count)

    cdef look_at_newcomers(self):
        """Check that new connections are first on the attention queue, and that the last is known."""
        cdef uint32_t slot = self.core.attention.head, last = NONE, count = 0
        while count < self.core.newcomers and slot != NONE:
            last, slot = slot, self.at(slot).attention_next
            count += 1
        self.expect("new connections on the attention queue", self.core.newcomers, count)
        if count and last != self.core.newcomer_last:
            self.faults.append("newcomer_last is not the last new connection on the attention queue")

    cdef look_at_wheel(self):
        """Check the links of the timer wheel, and that each state which needs a timer has one in time."""
        cdef uint32_t place, slot, previous, linked = 0, armed = 0
        cdef Connection *c
        for place in range(<uint32_t>WHEEL_SLOTS):
            slot, previous = self.core.wheel.heads[place], NONE
            while slot != NONE and linked <= self.slots():
                c = self.at(slot)
                linked += 1
                if c.wheel_tick == NONE or c.wheel_tick % WHEEL_SLOTS != place:
                    self.faults.append(f"slot {slot}: armed for step {c.wheel_tick}, linked at place {place}")
                if c.wheel_previous != previous:
                    self.faults.append(f"slot {slot}: its link back in the timer wheel is wrong")
                if c.state in (STATE_FREE, STATE_GONE):
                    self.faults.append(f"slot {slot}: on the timer wheel in state {STATE_NAMES[c.state]}")
                previous = slot
                slot = c.wheel_next
        for slot in range(self.used):
            c = self.at(slot)
            if c.state in (STATE_FREE, STATE_GONE):
                continue
            armed += c.wheel_tick != NONE
            if c.wheel_tick == NONE and c.state in (
                STATE_HEAD, STATE_DECIDING, STATE_OPEN, STATE_CLOSING, STATE_LINGERING,
            ):
                self.faults.append(f"slot {slot}: no timer in state {STATE_NAMES[c.state]}")
            if c.wheel_tick != NONE and c.state in (STATE_HEAD, STATE_DECIDING, STATE_CLOSING, STATE_LINGERING):
                due = max((c.deadline_ms - self.core.wheel.base_ms + TICK_MS - 1) // TICK_MS, self.core.wheel.tick + 1)
                # The wheel promises that a timer expires at most one step after its deadline.
                if c.wheel_tick > min(due, self.core.wheel.tick + WHEEL_SLOTS) + 1:
                    self.faults.append(
                        f"slot {slot}: its timer is due at step {c.wheel_tick}, its deadline at {due}"
                    )
        self.expect("timers", armed, linked)
