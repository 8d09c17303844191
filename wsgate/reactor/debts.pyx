"""Debts: who has cost more of the loop than its share lately, and waits for its turn.

The loop is shared by time, not by number of messages, because messages differ a hundredfold in cost: a `ping`
takes 5 us, a token of 8 KiB that is refused 500 us. This is deficit round robin by nanoseconds. A turn of a
connection is charged FRAME_NS a frame and MESSAGE_NS a message, which are as good as measured because small
ones are all alike; what inflating took, by the clock; and what the caller says that handling its messages took
beyond that (`Reactor.charge`). So an ordinary turn needs no look at a clock.

    level_ns      rises, which forgives everybody the same amount
    due_ns        of a connection: rises by what its turns cost, from the level at least
    debt          due_ns - level_ns, when that is more than 0

    attention     connections that want a turn, in order; who is found to be costly there moves to `indebted`
    indebted      costly connections that want a turn; they have it when they owe two QUANTUM_NS at most

A connection is costly when it owes more than QUANTUM_NS, or when two messages of late cost COSTLY_NS or more.
A well-behaved connection uses less than that between two rises, even when one of its messages is slow by chance.

A pass serves `attention` first. Then it goes round `indebted` once. When everybody there owes more than two
QUANTUM_NS, the level rises until the one that owes least owes one QUANTUM_NS: no time is wasted, and a
connection that floods stays costly. So a connection that costs little waits for the rest of a pass and one costly
turn at most, however many costly connections wait. So that those do not starve either, they have one turn in
every RESERVE_PASSES passes that have served none of them.

What a message costs is known only after it was handled. So each row also remembers what a message of the
connection costs: a turn of a connection in debt takes no more messages than fit into QUANTUM_NS, and one
at least; a pass ends when what its messages are expected to cost is PASS_NS. A message of a connection that has
no row is expected to cost MESSAGE_NS, and BYTE_NS a byte. When a message was a surprise, more of its kind may
come from other connections that are not known yet: for some turns (`unknown_ns`) theirs are expected to cost
as much, QUANTUM_NS at most.

The connections of one user have one debt and one share, however many they are; a connection without a user has
its own. A user's debt outlives its connections, so that coming back forgives nothing.

Debts live in one table of DEBT_ROWS rows of 16 bytes, made when the first connection is charged. A row is
looked for in DEBT_WAYS places from the user's hash or the slot's number on. Whoever costs less than DEBT_LEAST_NS a turn has no
row, so an idle or ordinary connection costs no memory, and no look at the table when it is the only kind there
is. When all places are taken, the smallest debt is forgotten. A debt is at most DEBT_MOST_NS. While nobody in
debt waits, the level rises by one FORGIVEN_PART of the caller's time, so that an old debt is forgiven.

What the clock says may be the time of another process: long times are compared with the processor time of
this thread since it was asked last, once a millisecond, and the smaller one counts. Otherwise a well-behaved
client pays for a busy machine.

Source: Shreedhar and Varghese, "Efficient fair queueing using deficit round robin", 1995.
"""

from libc.stdint cimport int64_t, uint32_t
from libc.stdlib cimport calloc, free

from wsgate.reactor.clocks cimport thread_ns
from wsgate.reactor.structs cimport (
    Core, COSTLY_NS, DEBT_MOST_NS, DEBT_OF_USER, DEBT_ROWS, DEBT_WAYS, Debt, FORGIVEN_PART, KIND_TABLE, LONG_NS,
    QUANTUM_NS,
)
from wsgate.reactor.users cimport link_of

cdef enum:
    TABLE_BYTES = DEBT_ROWS * sizeof(Debt)
    MS_NS = 1000000
    SEEN_AGAIN = 1               # in Debt.message_ns: two messages of late were costly


cdef inline uint32_t debtor_of(Core *core, uint32_t slot) noexcept nogil:
    """Who owes what a connection costs, as `Debt.place` has it. Two users in 2^31 share a debt."""
    cdef uint32_t user = link_of(core, slot).hash
    return user | DEBT_OF_USER if user else slot + 1


cdef Debt *find_row(Core *core, uint32_t place) noexcept nogil:
    """The row of a debtor, or NULL. Only where there is a table."""
    cdef uint32_t way
    cdef Debt *row
    for way in range(<uint32_t>DEBT_WAYS):
        row = core.debts + ((place + way) & (DEBT_ROWS - 1))
        if row.place == place:
            return row
    return NULL


cdef Debt *debts_row(Core *core, uint32_t slot) noexcept nogil:
    """The row that a connection is charged to, or NULL."""
    return NULL if core.debts == NULL else find_row(core, debtor_of(core, slot))


cdef Debt *row_for(Core *core, uint32_t slot, int64_t due_ns) noexcept nogil:
    """The row of a connection, made if there is none; NULL when all its places are taken by greater debts."""
    cdef uint32_t way, place = debtor_of(core, slot)
    cdef Debt *row = debts_row(core, slot)
    cdef Debt *least = NULL
    if row != NULL:
        return row
    if core.debts == NULL:
        core.debts = <Debt *>calloc(DEBT_ROWS, sizeof(Debt))
        if core.debts == NULL:
            return NULL                       # without memory nobody owes anything
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
    """What a connection owes, in nanoseconds; 0: nothing."""
    cdef Debt *row = debts_row(core, slot)
    return 0 if row == NULL else max(row.due_ns - core.level_ns, <int64_t>0)


cdef bint debts_is_costly(Core *core, const Debt *row) noexcept nogil:
    """Whether a connection with this row, or with none, comes after those that are not costly."""
    return row != NULL and (
        row.due_ns - core.level_ns > QUANTUM_NS or (row.message_ns >= COSTLY_NS and row.message_ns & SEEN_AGAIN)
    )


cdef void debts_charge(Core *core, uint32_t slot, int64_t cost_ns, uint32_t messages) noexcept nogil:
    """Add a cost to a connection's debt, and learn from it what its messages cost."""
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
    # Up at once, and down slowly with its turns: between costly messages there may be cheap ones. One message that
    # took long by chance makes nobody costly; a second one does.
    if one_ns >= COSTLY_NS:
        row.message_ns = (max(row.message_ns, <uint32_t>one_ns) & ~<uint32_t>SEEN_AGAIN) | (
            SEEN_AGAIN if row.message_ns >= COSTLY_NS else 0
        )
    else:
        row.message_ns = max(row.message_ns, <uint32_t>one_ns & ~<uint32_t>SEEN_AGAIN)


cdef void debts_decay(Debt *row) noexcept nogil:
    """A turn with messages is over: what a message of the connection costs may be less from now on."""
    row.message_ns = ((row.message_ns - (row.message_ns >> 3)) & ~<uint32_t>SEEN_AGAIN) | (
        row.message_ns & SEEN_AGAIN
    )


cdef int64_t debts_measured(Core *core, int64_t wall_ns) noexcept nogil:
    """So much of a time that passed was this thread's own. Long times are asked about; that takes 0.6 us."""
    cdef int64_t now_ns
    if wall_ns < LONG_NS or core.is_exact:
        return wall_ns
    now_ns = thread_ns()
    wall_ns = min(wall_ns, now_ns - core.thread_ns)
    core.thread_ns = now_ns
    return wall_ns


cdef void debts_begin(Core *core) noexcept nogil:
    """A pass begins: while nobody in debt waits, time forgives."""
    cdef int64_t passed_ms = core.now_ms - core.level_ms
    if passed_ms == 0 or core.debts == NULL:
        return
    core.level_ms = core.now_ms
    core.thread_ns = thread_ns()
    if core.indebted.count == 0:
        core.level_ns += passed_ms * (MS_NS // FORGIVEN_PART)


cdef void debts_raise(Core *core, int64_t least_ns) noexcept nogil:
    """All who wait owe `least_ns` or more, and that is too much: forgive all but a quantum of it."""
    core.level_ns += least_ns - QUANTUM_NS


cdef void debts_forget_slot(Core *core, uint32_t slot) noexcept nogil:
    """Free the row that is of this slot and not of a user; whoever comes next owes nothing."""
    cdef Debt *row = find_row(core, slot + 1)
    if row != NULL:
        row.place = 0


cdef void debts_destroy(Core *core) noexcept nogil:
    """Give the table back."""
    if core.debts != NULL:
        free(core.debts)
        core.debts = NULL
        core.held[<int>KIND_TABLE] -= TABLE_BYTES
