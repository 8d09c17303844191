"""Debts: connections that have lately cost more than their share of the loop wait for the others.

The loop is shared by time and not by number of messages, because the cost of messages differs a hundredfold:
a `ping` takes 5 us, a token of 8 KiB that is refused takes 500 us. The method is deficit round robin in
nanoseconds. A connection is charged for a turn FRAME_NS for each frame and MESSAGE_NS for each message, which
is close to the measured time because small messages are all alike. It is also charged for the time that
inflating took, by the clock, and for the time that the caller reports for its messages (`Reactor.charge`). So
an ordinary turn does not read a clock.

    level_ns      the level of the reactor; when it rises, all debts fall by the same amount
    due_ns        of a connection; rises by the cost of its turns, starting at the level or above
    debt          due_ns - level_ns, if that is more than 0

    attention     connections that want a turn, in order; those found to be costly move to `indebted`
    indebted      costly connections that want a turn; those that owe two QUANTUM_NS at most have it

A connection is costly if it owes more than QUANTUM_NS, or if two of its recent messages cost COSTLY_NS or
more. A well-behaved connection uses less than that between two rises of the level, even when one of its
messages is slow by chance.

A pass serves `attention` first. Then it goes through `indebted` once. If all of them owe more than two
QUANTUM_NS, the level rises until the one that owes least owes one QUANTUM_NS. So no time is wasted, and a
connection that floods stays costly. A connection that costs little waits at most for the rest of a pass and
one costly turn, however many costly connections wait. So that those do not starve either, they have one turn
after every RESERVE_PASSES passes that served none of them.

The cost of a message is known only after it was handled. So each row also stores what a message of the
connection costs: a turn of a connection in debt takes at most as many messages as fit into QUANTUM_NS, but at
least one, and a pass ends when the expected cost of its messages reaches PASS_NS. A message is expected to
cost at least MESSAGE_NS and BYTE_NS for each of its bytes. When a message costs much more than expected,
other connections without a row may send more of the same kind. For some turns their messages are then
expected to cost as much (`unknown_ns`), at most QUANTUM_NS.

All connections of one user share one debt; a connection without a user has its own. The debt of a user
outlives its connections, so that reconnecting forgives nothing.

Debts are in one table of DEBT_ROWS rows of 16 bytes, which is made when the first connection is charged. A
row is searched in DEBT_WAYS places, beginning at the user's hash or the slot's number. A connection whose
turns cost less than DEBT_LEAST_NS has no row, so an idle or ordinary connection uses no memory, and no search
if there are only such connections. If all places are taken, the smallest debt is dropped. A debt is at most
DEBT_MOST_NS. While no connection in debt waits, the level rises by one FORGIVEN_PART of the caller's time, so
that old debts are forgiven.

Time by the clock may have gone to another process. So a long time is compared with the CPU time that
this thread has used since that was last read, and the smaller one is charged. The beginning of a pass reads
it at most once a millisecond. Otherwise a well-behaved client would pay for a busy machine.

Source: Shreedhar and Varghese, "Efficient fair queueing using deficit round robin", 1995.
"""

from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport calloc, free

from wsgate.reactor.clocks cimport thread_ns
from wsgate.reactor.structs cimport (
    Core, COSTLY_NS, DEBT_MOST_NS, DEBT_OF_USER, DEBT_ROWS, DEBT_WAYS, Debt, FORGIVEN_PART, KIND_TABLE,
    LONG_NS, QUANTUM_NS,
)
from wsgate.reactor.users cimport link_of

cdef enum:
    TABLE_BYTES = DEBT_ROWS * sizeof(Debt)
    MS_NS = 1000000
    SEEN_AGAIN = 1               # bit of Debt.message_ns: two recent messages were costly


cdef inline uint32_t debtor_of(Core *core, uint32_t slot) noexcept nogil:
    """Return the key of the debt that a connection's turns are charged to: its user's, or its own.

    Two users share a debt with a probability of 1 in 2^31.
    """
    cdef uint32_t user = link_of(core, slot).hash
    return user | DEBT_OF_USER if user else slot + 1


cdef Debt *find_row(Core *core, uint32_t place) noexcept nogil:
    """Find the row of a debtor in the table of debts, which must exist; NULL if it has none."""
    cdef uint32_t way
    cdef Debt *row
    for way in range(<uint32_t>DEBT_WAYS):
        row = core.debts + ((place + way) & (DEBT_ROWS - 1))
        if row.place == place:
            return row
    return NULL


cdef Debt *debts_row(Core *core, uint32_t slot) noexcept nogil:
    """Return the row that a connection's costs are charged to, or NULL if it has none."""
    return NULL if core.debts == NULL else find_row(core, debtor_of(core, slot))


cdef Debt *row_for(Core *core, uint32_t slot, int64_t due_ns) noexcept nogil:
    """Return the row of a connection, making it if needed; NULL if greater debts take all its places.

    A debt is greater if it is due later than `due_ns`; of smaller ones the smallest is dropped.
    """
    cdef uint32_t way, place = debtor_of(core, slot)
    cdef Debt *row = debts_row(core, slot)
    cdef Debt *least = NULL
    if row != NULL:
        return row
    if core.debts == NULL:
        core.debts = <Debt *>calloc(DEBT_ROWS, sizeof(Debt))
        if core.debts == NULL:
            return NULL                       # without memory for the table no debts are kept
        core.held[<int>KIND_TABLE] += TABLE_BYTES
        core.level_ms = core.now_ms
    for way in range(<uint32_t>DEBT_WAYS):
        row = core.debts + ((place + way) & (DEBT_ROWS - 1))
        if row.place == 0:
            least = row
            break
        if least == NULL or row.due_ns < least.due_ns:
            least = row
    if least.place and least.due_ns > due_ns:
        return NULL
    least.place = place
    least.message_ns = 0
    least.due_ns = core.level_ns
    return least


cdef int64_t debts_of(Core *core, uint32_t slot) noexcept nogil:
    """Return what a connection owes, in nanoseconds; 0 if it owes nothing."""
    cdef Debt *row = debts_row(core, slot)
    return 0 if row == NULL else max(row.due_ns - core.level_ns, <int64_t>0)


cdef bint debts_is_costly(Core *core, const Debt *row) noexcept nogil:
    """Whether a connection with this row must wait for the turns of all that are not costly."""
    return row != NULL and (
        row.due_ns - core.level_ns > QUANTUM_NS
        or (row.message_ns >= COSTLY_NS and row.message_ns & SEEN_AGAIN)
    )


cdef void debts_charge(Core *core, uint32_t slot, int64_t cost_ns, uint32_t messages) noexcept nogil:
    """Add a cost to a connection's debt, and learn the cost of one of its messages from it.

    With 0 messages only the debt changes.
    """
    cdef Debt *row = row_for(core, slot, core.level_ns + cost_ns)
    cdef int64_t one_ns
    if row == NULL:
        return
    row.due_ns = min(max(row.due_ns, core.level_ns) + cost_ns, core.level_ns + DEBT_MOST_NS)
    if messages == 0:
        return
    one_ns = min(cost_ns // messages, <int64_t>DEBT_MOST_NS)
    if one_ns >= 2 * <int64_t>row.message_ns:
        core.unknown_ns = max(core.unknown_ns, <uint32_t>min(one_ns, <int64_t>QUANTUM_NS))
    # The stored cost rises at once and falls slowly with the turns, because cheap messages may come between
    # costly ones. One message that took long by chance does not make a connection costly; a second one does.
    if one_ns >= COSTLY_NS:
        row.message_ns = (max(row.message_ns, <uint32_t>one_ns) & ~<uint32_t>SEEN_AGAIN) | (
            SEEN_AGAIN if row.message_ns >= COSTLY_NS else 0
        )
    else:
        row.message_ns = max(row.message_ns, <uint32_t>one_ns & ~<uint32_t>SEEN_AGAIN)


cdef void debts_decay(Debt *row) noexcept nogil:
    """Lower the stored cost of a connection's messages by an eighth, after a turn with messages."""
    row.message_ns = ((row.message_ns - (row.message_ns >> 3)) & ~<uint32_t>SEEN_AGAIN) | (
        row.message_ns & SEEN_AGAIN
    )


cdef int64_t debts_measured(Core *core, int64_t wall_ns) noexcept nogil:
    """Return the part of a measured time that this thread itself has used.

    A time below LONG_NS is returned unchanged. For a longer one the thread's CPU time is read, which
    takes 0.6 us.
    """
    cdef int64_t now_ns
    if wall_ns < LONG_NS or core.is_exact:
        return wall_ns
    now_ns = thread_ns()
    wall_ns = min(wall_ns, now_ns - core.thread_ns)
    core.thread_ns = now_ns
    return wall_ns


cdef void debts_begin(Core *core) noexcept nogil:
    """Begin a pass: if no connection in debt waits, raise the level with the time that has passed."""
    cdef int64_t passed_ms = core.now_ms - core.level_ms
    if passed_ms == 0 or core.debts == NULL:
        return
    core.level_ms = core.now_ms
    core.thread_ns = thread_ns()
    if core.indebted.count == 0:
        core.level_ns += passed_ms * (MS_NS // FORGIVEN_PART)


cdef void debts_raise(Core *core, int64_t least_ns) noexcept nogil:
    """Raise the level so far that a debt of `least_ns`, the smallest of those that wait, is one quantum."""
    core.level_ns += least_ns - QUANTUM_NS


cdef void debts_forget_slot(Core *core, uint32_t slot) noexcept nogil:
    """Free the row of a slot, so that the next connection in it owes nothing; a user's row stays."""
    cdef Debt *row = find_row(core, slot + 1)
    if row != NULL:
        row.place = 0


cdef void debts_destroy(Core *core) noexcept nogil:
    """Free the table of debts and remove it from its account."""
    if core.debts != NULL:
        free(core.debts)
        core.debts = NULL
        core.held[<int>KIND_TABLE] -= TABLE_BYTES
