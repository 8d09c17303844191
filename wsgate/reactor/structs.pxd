"""The shared structs and numbers of the reactor: declarations only, no code.

Who owns what: the `Core` struct owns everything below it. A `Connection` owns its `Input`, its
`Outbox` and its subscription table; an `Entry` owns one reference to its `Frame`; a `Frame` made by
`publish` owns one reference to its `Channel`, so that a queued publication keeps its channel's
policy and name alive. Links between connections are slot numbers, never pointers.

The state of a connection is this one flat struct plus the byte ranges it owns (input, outbox,
subscriptions) and an opaque meta object; deadlines are absolute, in milliseconds of the reactor's
own clock. Handing a live connection to another process means writing exactly these down.

    FREE -> HEAD -> DECIDING -> OPEN -> FAILING -> CLOSING -> LINGERING -> GONE -> FREE

    HEAD       the request head is being collected
    DECIDING   the head was handed up; upgrade() or refuse() is awaited
    OPEN       frames both ways
    FAILING    a fault, or the peer's Close, was found; Close is queued at the next flush,
               after the answers to what the peer said before
    CLOSING    Close (or an HTTP refusal) is queued or sent; input is parsed only to find Close
    LINGERING  write side shut; input is discarded so that what was written can arrive
    GONE       descriptor closed; the `closed` event is still owed, the slot not yet free
    Every state may fall to GONE at once: end of stream, reset, a deadline.
"""

from cpython.ref cimport PyObject
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    NONE = 0xFFFFFFFF            # no slot, no channel, end of a list
    TICK_MS = 250                # one step of the timer wheel
    ORPHAN_MS = 1000             # the kernel gives a closed socket's unsent data up after so long without an answer
    ORPHAN_TICKS = 8             # ticks after which it certainly has: twice that time, because it looks seldom
    WHEEL_SLOTS = 512            # 128 s; later deadlines are looked at again when the wheel has turned
    RECEIVE_BYTES = 16384        # one recv reads at most this
    CHUNK_BITS = 10              # connections per slab of the table: 1,024 of 128 bytes
    CHUNK_SLOTS = 1024
    POOL_CLASSES = 12            # 32 bytes .. 64 KiB, powers of two
    POOL_SMALLEST = 32
    VARIANTS_MAX = 8
    TRUSTED_MAX = 64             # networks of proxies
    AWAITS_PROXY = 255           # as the variant of a connection in HEAD: a PROXY header comes first
    HEAD_GROUPS = 256            # of connections in HEAD, by a hash of their addresses
    DRAINS_MAX = 256             # refused sockets that may be drained at once, whatever is asked
    VISIT_FRAMES = 64            # one write takes at most this many frames
    VISIT_BYTES = 65536          # and this many bytes
    PONGS_MAX = 16               # pongs waiting for one connection
    PONG_BYTES = 968             # their bytes; with the counts the slot fills one 1 KiB buffer
    URGENT_SUBSCRIBERS = 64      # publications to at most this many are urgent
    WALKS_MAX = 64               # publications that may be on their way into large channels
    WALK_STEP = 1024             # subscribers taken at once of one that is
    WALK_AHEAD = 1024            # connections on the bulk list below which the next step is due
    GAP_BYTES = 64               # what a pending gap is charged at most
    CROWD_PART = 2               # more than half of all connections behind at once are a crowd,
    CROWD_END = 8                # until less than an eighth is,
    CROWD_STILL_MS = 1000        # or for so long none of them takes a byte
    CROWD_GRACES = 3             # as long as so many graces is the grace of one of a crowd
    CROWD_MS = 10000             # publications wait for crowds for so long at once,
    CROWD_REST = 4               # and afterwards this part of the time
    MOVING_MS = 1000             # publications wait for the few that are behind and take bytes for so long at once,
    MOVING_REST = 20             # and afterwards this part of the time
    KEEPS_UP_UNITS = 1024        # of 64 bytes: taken within one grace, they earn a blocked connection another
    PASS_MESSAGES = 256          # the read budget of one poll
    PASS_OPENS = 32
    PASS_BYTES = 1048576
    PASS_NS = 2000000
    TURN_MESSAGES = 64           # of which one connection may take this many before the next,
    TURN_MESSAGES_LEAST = 8      # and fewer the more are waiting
    TURN_FRAMES = 256
    MESSAGE_NS = 5000            # what a message is expected to cost the caller: a `ping`, 5 us,
    FRAME_NS = 100               # a frame to parse: 60 of a message's fragments, 100 of a ping and its pong
    BYTE_NS = 8                  # and a byte of it: JSON full of escapes is parsed at 117 MB/s
    QUANTUM_NS = 500000          # what a connection in debt may use in one round of those: one costly message
    COSTLY_NS = 100000             # a connection whose messages cost so much comes after those that cost less
    DEBT_LEAST_NS = 20000        # a turn that costs less is not charged
    DEBT_MOST_NS = 50000000
    DEBT_ROWS = 8192             # connections that may be in debt; a power of two
    DEBT_WAYS = 4                # places in which a row may be
    DEBT_OF_USER = 0x80000000    # in Debt.place: the rest is of a user's hash
    FORGIVEN_PART = 512          # of the time while nobody in debt waits: less than the share of one of 300 that flood
    RESERVE_PASSES = 4           # that serve nobody in debt, before one of those has a turn all the same
    LONG_NS = 200000             # a time so long may be another process's
    SLICE_NS = 2000000           # one flush
    STALL_MS = 2000              # a tick later than this is our own pause
    STALL_EVERY_MS = 60000       # forgiven at most this often
    ASK_MS = 5                   # epoll is asked at least this often, however long a round of turns is,
    ASK_INDEBTED_MS = 2          # and more often once somebody was in debt: who is not in debt must not wait
    REARM_SLOTS = 65536          # timers looked at in one tick after deadlines came nearer
    RUSH_STEP = 1000             # byes of one reason in one second that have the same rank
    PAUSE_MS = 1000              # between two calls: peers' bytes have gathered

cdef enum State:
    STATE_FREE = 0
    STATE_HEAD
    STATE_DECIDING
    STATE_OPEN
    STATE_FAILING
    STATE_CLOSING
    STATE_LINGERING
    STATE_GONE
    STATES

cdef enum Flag:
    IN_ATTENTION = 1             # on the attention queue, or on the one of those in debt
    IN_FAILED = 2                # on the list of those whose Close the next flush queues
    IN_URGENT = 4                # on the urgent dirty list
    IN_BULK = 8                  # on the bulk dirty list
    WANT_IN = 16                 # registered for EPOLLIN
    WANT_OUT = 32                # registered for EPOLLOUT
    BLOCKED = 64                 # the socket said EAGAIN; charged what it holds, as `units`
    PAUSED_APP = 128             # pause_reading
    PAUSED_OUTBOX = 256          # outbox over half its limit
    OPENED = 512                 # the open event was given, so a closed event is owed
    ANNOUNCED = 1024             # failing or peer_closed was given
    CLOSE_QUEUED = 2048          # the last entry of the outbox ends the write side
    PEER_CLOSE_SEEN = 4096
    PING_SENT = 8192             # a ping is unanswered since heartbeat_ms
    WATCHED = 16384              # in the epoll set
    END_AFTER_WRITE = 32768      # do not wait for the peer's Close once everything is written

cdef enum:
    IS_WALL_TIME = 0x8000        # of application_code: application_ms is wall-clock time
    IS_FORGIVEN = 0x4000         # of application_code: it is on the reactor's clock; without both, on the caller's

cdef enum:
    SENT_SINCE = 1               # of units: more than pings was sent since the kernel was asked
    KERNEL_UNIT = 32             # the rest of them: what it held then

# The numbers of wsgate/reasons.py; a test holds the two together.
cdef enum Reason:
    REASON_NONE = 0
    REFUSED_DESCRIPTORS
    REFUSED_CONNECTIONS
    REFUSED_HANDSHAKES
    REFUSED_RATE
    REFUSED_PARTIAL_BYTES
    HEAD_TIMEOUT
    HEAD_TOO_LARGE
    HEAD_REFUSED
    UPGRADE_TIMEOUT
    PEER_CLOSED
    PEER_GONE
    PEER_RESET
    PROTOCOL_ERROR
    INVALID_UTF8
    MESSAGE_TOO_BIG
    TOO_MANY_FRAGMENTS
    CONTROL_RATE
    MESSAGE_TIMEOUT
    MESSAGE_RATE
    BYTE_RATE
    HEARTBEAT_TIMEOUT
    IDLE_TIMEOUT
    TOKEN_EXPIRED
    SLOW_CONSUMER
    OUTBOX_AGE
    WRITE_STALL
    APPLICATION
    PARTIAL_BYTES
    OUT_OF_MEMORY
    INTERNAL
    SHUTDOWN
    AUTH_TIMEOUT
    INVALID_TOKEN
    BAD_MESSAGES
    UNSUPPORTED_DATA
    DRAIN
    INVALID_DEFLATE
    REFUSED_MEMORY
    SHED
    KEY_AWAITED
    KICKED
    REFUSED_ADDRESS_CONNECTIONS
    REFUSED_ADDRESS_RATE
    BAD_PROXY_HEADER
    USER_CONNECTIONS
    REPLACED
    HEAD_DISPLACED
    TOKEN_NOT_YET_VALID
    REASONS

# The numbers of wsgate/reactor/event_kinds.py.
cdef enum EventKind:
    EVENT_TEXT = 1
    EVENT_BINARY
    EVENT_OPEN
    EVENT_FAILING
    EVENT_PEER_CLOSED
    EVENT_CLOSED

cdef enum Pace:                # of a connection that is open, over half its limits, and not judged by them
    PACE_NONE = 0
    PACE_READER                  # it is not behind: publications wait for it
    PACE_BEHIND                  # it is behind, in its grace: they wait for a crowd of such connections
    PACE_MOVING                  # likewise, and its socket took bytes lately: they wait for it a little
    PACES

cdef enum Policy:
    POLICY_CLOSE = 0
    POLICY_DROP_OLDEST
    POLICY_LATEST_ONLY

cdef enum EntryClass:
    CLASS_CONTROL = 0            # ping, bye, Close, an encoded gap: never dropped
    CLASS_REPLY                  # never dropped
    CLASS_PUBLICATION            # dropped where the channel's policy allows
    CLASS_RESPONSE               # an HTTP answer: nothing overtakes it, never dropped
    CLASS_GAP                    # stands where dropped publications stood; `item` is a Gap

# What bytes are held for. Every take and give names one.
cdef enum Kind:
    KIND_TABLE = 0               # slabs of connections
    KIND_FRAME                   # encoded frames, shared ones once
    KIND_OUTBOX                  # outboxes, their entries, control slots, gaps
    KIND_PARTIAL                 # unfinished heads, frames, messages; undelivered input
    KIND_CHANNEL                 # channels, their names and subscriber arrays
    KIND_SUBSCRIPTION            # the subscription tables of connections
    KIND_DEFLATE                 # what inflating or deflating one message may take; nothing without compression
    KIND_USER                    # the table of the index by user
    KINDS

cdef enum Counter:
    ACCEPTED = 0
    REFUSED                      # by the gate, answered
    REFUSED_SILENT               # by the gate, closed at once
    REFUSED_UNDRAINED            # answered, but no drain was free: closed at once
    ACCEPT_EXHAUSTED             # EMFILE, ENFILE, ENOBUFS, ENOMEM from accept
    ACCEPT_FAILED                # any other failure of accept, the peer's usually
    OPENS
    UPGRADES
    MESSAGES_IN
    MESSAGE_BYTES_IN
    FRAMES_IN
    BYTES_IN
    RECEIVES
    BYTES_OUT
    SENDS
    FRAMES_OUT
    PUBLICATIONS
    DELIVERIES                   # entries queued for publications
    SENDS_BLOCKED
    PINGS_IN
    PONGS_IN
    PINGS_OUT
    PONGS_OUT
    PONGS_DROPPED
    DROPPED_POLICY               # publications that gave way to a gap
    DROPPED_CLOSING              # entries discarded because the connection was closing
    GAPS                         # gaps written
    STALE                        # calls refused for a stale handle
    STALLS_FORGIVEN
    LINGERS_SKIPPED              # closed without lingering: too many at once
    POOL_HITS
    POOL_MISSES
    POLLS
    TIMERS                       # timers that came due
    MESSAGES_INFLATED
    ADDRESSES_UNCOUNTED          # no cell, or no slot in the journal: let in without a count
    HANDED_OVER                  # accepted here, and given to a sibling because here is no room
    ACCEPTS_PAUSED               # the listener left alone until the next tick: over four times the rate
    COUNTERS

ctypedef struct Pool:
    void *idle[POOL_CLASSES]     # freed buffers, linked through their first word
    uint64_t idle_bytes
    uint64_t idle_limit_bytes
    int is_wanted                # as the settings say
    int enabled                  # and memory is not short

ctypedef struct Frame:
    uint32_t references
    uint32_t length              # wire bytes in `data`
    uint32_t size                # bytes of the block, as asked for
    uint32_t channel             # NONE, or a channel this frame keeps alive
    int64_t position             # of the publication; 0 without one
    uint8_t data[1]

ctypedef struct Gap:
    int64_t first                # positions of the dropped publications
    int64_t last
    uint32_t count
    uint32_t charge              # bytes it counts for: no more than the publication it stands for

ctypedef struct Entry:           # 16 bytes
    void *item                   # Frame *, or Gap * for CLASS_GAP
    uint32_t channel
    uint16_t age                 # reactor clock in 64 ms steps when it was queued, wrapping
    uint8_t klass
    uint8_t spare

ctypedef struct ControlSlot:     # pongs that wait, in order
    uint16_t used
    uint16_t written             # of the first pong
    uint8_t count
    uint8_t lengths[PONGS_MAX]
    uint8_t data[PONG_BYTES]

ctypedef struct Outbox:          # exists only while something waits
    Entry *entries               # `inline_entries` or a pooled array
    uint32_t head                # first entry
    uint32_t count
    uint32_t capacity
    uint32_t head_written        # bytes of the first entry already written
    uint64_t bytes               # unwritten bytes of all entries
    int64_t blocked_ms           # last progress of a blocked socket
    ControlSlot *control
    uint64_t owed                # bytes to be taken of what waited when the last write was short; 0: it is not behind
    uint32_t grace_ms            # low 32 bits of the clock when its grace ends; 0: it has none, its limits hold
    uint16_t taken               # 64 bytes each that it took since its grace began, up to the most that fits
    uint8_t pace                 # a `Pace`: how it is counted in Core.paced
    uint8_t is_counted           # in Core.behind: it is open, and owes something
    Entry inline_entries[4]

ctypedef struct Buffer:
    uint8_t *data
    uint32_t length
    uint32_t capacity

ctypedef struct Input:           # exists only while something is unfinished
    Buffer message               # the head, or the message, as far as it has come
    Buffer backlog               # received but not parsed: the pass was over, or 101 not yet sent
    uint32_t backlog_taken
    uint32_t scanned             # head: bytes known to hold no end
    uint64_t frame_length
    uint64_t frame_received
    int64_t started_ms           # first byte of the unfinished message
    int64_t paused_ms            # when reading was paused last
    uint32_t fragments
    uint32_t utf8
    uint8_t header[14]
    uint8_t header_length
    uint8_t in_payload
    uint8_t opcode               # of the frame in progress
    uint8_t final
    uint8_t message_opcode       # 0: no fragmented message in progress
    uint8_t mask[4]
    uint8_t control[125]
    uint8_t deflated             # the message in progress is compressed

ctypedef struct Subscription:
    uint32_t channel             # NONE: free cell
    uint32_t position            # index of this connection in the channel's array

ctypedef struct Connection:      # 128 bytes: two cache lines
    int32_t fd
    uint32_t generation
    uint8_t state
    uint8_t variant
    uint16_t flags
    uint32_t seen_ms             # last inbound byte, low 32 bits of the clock
    uint32_t message_ms          # last whole message, likewise
    uint32_t heartbeat_ms        # the last ping, likewise; 0: none yet. LINGERING: the bytes that were discarded
    uint32_t wheel_next
    uint32_t wheel_previous
    uint32_t wheel_tick          # NONE: not on the wheel
    uint32_t dirty_next          # in HEAD these two link a group of `heads` instead
    uint32_t dirty_previous
    uint32_t attention_next      # also links the failed list and those in debt
    int64_t deadline_ms          # of the state: head, decision, closing, linger
    int64_t application_ms       # set_deadline, set_expiry; the flags of application_code name its clock; 0: none
    Outbox *outbox
    Input *input
    Subscription *subscriptions  # open addressing by channel
    uint32_t subscription_count
    uint16_t application_code    # the close code, and the flags of application_ms
    uint16_t close_code          # of our Close; in HEAD the number of its group in `heads`
    uint8_t reason
    uint8_t subscription_bits    # log2 of the table's cells
    uint16_t units               # SENT_SINCE, and KERNEL_UNIT each that the kernel held
    uint32_t control_ms          # token buckets: theoretical arrival times
    int64_t message_ns
    int64_t byte_ns
    PyObject *meta               # owned reference or NULL

ctypedef union ChannelName:      # `here` up to NAME_HERE bytes, else a pooled block
    uint8_t here[24]
    uint8_t *there

ctypedef union ChannelSlots:     # `few` while the channel's capacity is 0, else a pooled array
    uint32_t few[2]
    uint32_t *many

ctypedef struct Channel:         # 64 bytes, one cache line: an inbox of one device needs no more
    uint32_t hash                # lower half
    uint32_t count
    uint32_t capacity            # of `slots.many`; 0: `slots.few`
    uint32_t frames              # queued frames that keep it alive
    uint16_t name_length
    uint8_t policy
    uint8_t is_used
    uint8_t variants             # bit n: somebody of variant n has subscribed since it was made
    uint8_t is_vacated           # in the list of channels to report
    uint8_t walks                # publications on their way into it, at most WALKS_MAX
    uint8_t is_uncounted         # its subscriptions do not count against a connection's limit
    uint32_t link                # of that list
    uint32_t lost_round          # the round of notices in which it lost publications last; 0: none
    ChannelSlots slots
    ChannelName name

ctypedef struct Walk:            # a publication on its way into the outboxes of a large channel
    Walk *next
    uint32_t channel
    uint32_t left                # so many at the front of the channel's array are still to be served
    uint64_t exclude
    Frame *frames[VARIANTS_MAX]

ctypedef struct ChannelTable:
    Channel *channels
    uint32_t capacity
    uint32_t count
    uint32_t made                # places ever used; beyond it the memory was never touched
    uint32_t free                # linked through Channel.count
    uint32_t vacated             # linked through Channel.link; NONE: empty
    uint64_t name_bytes          # of all channels: what the bus is made to keep, too
    uint8_t report_vacated
    uint32_t *cells              # open addressing: channel indexes, NONE when free
    uint32_t cells_mask
    uint8_t key[16]              # SipHash key: clients choose the names

ctypedef struct UserLink:        # 16 bytes, of one slot; see users.pyx
    uint32_t next                # the next connection of the same user, or NONE
    uint32_t previous            # NONE: the first of its list
    uint32_t hash                # of the user; 0: no user, on no list
    uint32_t issued_s            # when the token was issued, seconds since 1970; 0: not known

ctypedef struct UserTable:
    uint32_t *cells              # open addressing: the first slot of each list, NONE when free
    uint32_t mask                # cells - 1
    uint32_t count               # lists

ctypedef struct List:            # slots linked through a field of the connection
    uint32_t head
    uint32_t tail
    uint32_t count

ctypedef struct HeadGroup:       # connections in HEAD whose addresses have the same hash
    List list                    # the oldest first; linked through the dirty links
    uint32_t since_ms            # when the oldest came, low 32 bits of the clock

ctypedef struct Wheel:
    int64_t base_ms              # step 0 on the reactor's clock: steps fall on the caller's ticks
    uint32_t heads[WHEEL_SLOTS]
    int64_t tick                 # the last step that has passed
    int64_t done                 # the last one whose timers were all taken

ctypedef struct Drain:           # a refused socket read to its end
    int32_t fd
    uint32_t bytes
    int64_t deadline_ms

ctypedef struct Answer:          # an HTTP answer, owned
    uint8_t *data
    uint32_t length

ctypedef struct AddressTable:    # shared memory; see addresses.pyx
    uint64_t *counts
    uint64_t *arrivals
    uint64_t *journal            # this shard's: the key each slot is counted under; 0: not counted
    uint64_t mask                # rows - 1
    uint32_t journal_slots
    uint8_t key[16]

ctypedef struct Network:         # 16 bytes, IPv4 mapped
    uint8_t address[16]
    uint32_t bits

ctypedef struct Gate:
    uint32_t descriptors
    uint32_t connections
    uint32_t handshakes
    uint32_t handshake_rate_per_s
    uint64_t partial_bytes
    uint64_t memory_bytes        # of everything on the books; 0: no budget
    uint32_t connection_bytes    # what a connection costs beside what is booked by kind
    uint32_t drains
    uint32_t drain_bytes
    uint32_t drain_ms
    uint32_t per_address_connections # of one address on the whole node
    uint32_t per_address_rate_per_s
    uint32_t trusted_count
    Network trusted[TRUSTED_MAX]
    int reads_proxy_header       # from those; from nobody else
    int64_t accept_ns            # token bucket of handshake_rate_per_s
    int64_t offer_ns             # and of four times as many, let in or not
    Answer refusal               # 503
    Answer too_many              # 429

ctypedef struct Limits:
    uint32_t head_limit_bytes
    uint32_t head_timeout_ms
    uint32_t upgrade_timeout_ms
    uint64_t max_message_bytes
    uint32_t max_fragments
    uint32_t message_timeout_ms
    uint32_t control_rate_per_s
    uint32_t control_burst
    uint32_t message_rate_per_s
    uint32_t byte_rate_per_s
    uint64_t outbox_bytes
    uint32_t outbox_frames
    uint32_t outbox_age_ms
    uint32_t blocked_grace_ms
    uint32_t blocked_moving_ms
    uint32_t write_timeout_ms
    uint32_t send_buffer_bytes
    uint32_t ping_interval_ms
    uint32_t pong_timeout_ms
    uint32_t idle_timeout_ms
    uint32_t linger_timeout_ms
    uint32_t linger_limit_bytes
    uint32_t linger_limit_sockets
    uint32_t max_connections
    uint32_t max_subscriptions
    uint32_t walk_at_once

ctypedef struct Debt:            # 16 bytes, of a connection that was costly lately; see debts.pyx
    uint32_t place               # whose: DEBT_OF_USER and a user's hash, or a slot + 1; 0: a free row
    uint32_t message_ns          # what a message of it costs
    int64_t due_ns               # the level at which it may have its turn

ctypedef struct Pass:            # what one poll has used of its budget
    uint32_t messages
    uint32_t messages_limit      # what the caller can handle at once, at most PASS_MESSAGES
    uint32_t opens
    uint64_t bytes
    uint32_t turn_messages       # what one turn may take
    uint32_t message_ns          # what a message of the connection is known to cost; 0: not known
    int64_t expected_ns          # what the messages taken so far are expected to cost
    int64_t inflate_ns           # what inflating has taken, by the clock
    int64_t until_ns

ctypedef struct Bye:             # what goes before a Close the reactor itself sends
    uint16_t close_code
    uint8_t reason               # 0: before any Close with this code that has none of its own
    uint8_t rank                 # for those whom a rush of so many thousand has preceded in this second
    Frame *frames[VARIANTS_MAX]

ctypedef struct Core:
    int epoll
    int listener                 # -1: none
    int relief                   # a socket to the sibling that has most room; -1: none has
    int relief_next              # and to the next in a ring of those that have some
    int max_handovers               # through which one connection may go
    int listener_muted           # out of descriptors: looked at again at the next tick
    int64_t now_ms               # the caller's clock
    int64_t forgiven_ms          # stalls that deadlines did not count
    int64_t clock_ms             # now_ms - forgiven_ms: every deadline but an expiry is on this clock
    int64_t wall_offset_ms       # wall clock - now_ms; what expiries are measured with
    uint32_t rearm_slot          # timers from this slot on are looked at again; NONE: none is
    int64_t last_tick_ms         # caller's clock
    int64_t last_stall_ms
    int64_t pause_ms             # the last time nobody called for over a second: so long, and
    int64_t pause_until_ms       # until when buckets count what filled them meanwhile
    Limits limits
    Gate gate
    AddressTable addresses       # counts is NULL: nobody counts
    uint32_t uncounted_slot      # from here on nobody was looked at since the limit was set; NONE: all were
    Drain drains[DRAINS_MAX]
    uint32_t drain_count
    Pool pool
    uint64_t held[KINDS]
    uint64_t counters[COUNTERS]
    uint64_t ended[REASONS]      # refusals and closes by reason
    uint32_t states[STATES]      # connections by state
    uint32_t blocked
    uint32_t paced[PACES]        # connections by `Pace`, PACE_NONE apart
    uint32_t behind              # open connections that owe something
    bint is_crowd                # so many that it is not their fault
    int64_t moved_ms             # when one of them took bytes last
    int64_t crowd_us             # for so long publications may still wait for a crowd; see outbox.pyx
    int64_t moving_us            # and for connections that are behind and take bytes
    uint64_t queued_bytes        # the kernel holds for all, as far as it was asked
    uint64_t queued_in[STATES]   # of that, by state
    uint64_t orphan_bytes        # of sockets that were closed with unsent data, until the kernel has given it up
    uint64_t orphans[ORPHAN_TICKS]   # of that, by the tick in which they were closed
    uint32_t orphan_tick         # place of this tick in it
    int is_short                 # the books are, or lately were, over the high mark: no newcomers
    int is_shedding              # they are, or lately were, over the budget: some are being cut
    int refuses_newcomers               # the caller knows of something that the books do not: no newcomers
    uint64_t outside_bytes       # what the caller holds beside this reactor
    uint32_t shed_slot           # where the next look for somebody to cut begins
    Connection **chunks
    uint32_t chunk_count
    uint32_t chunk_limit
    uint32_t free_slot           # linked through attention_next
    uint32_t connections         # slots in use
    HeadGroup heads[HEAD_GROUPS] # connections in HEAD; see gate.pyx
    List attention
    List indebted                # connections in debt that want a turn; linked through attention_next
    Debt *debts                  # DEBT_ROWS, made with the first charge; NULL: nobody was ever charged
    int64_t level_ns             # see debts.pyx
    int64_t level_ms             # caller's clock: when time was last looked at to forgive debts
    int64_t thread_ns            # this thread's processor time when it was asked last
    uint32_t unknown_ns          # what a message of a connection without a row may cost, from late surprises
    int is_exact                 # for tests: charges are believed as they are, and inflating costs nothing
    uint32_t passes_without      # passes since one in debt had a turn, while some waited
    uint32_t newcomers           # at the head of the queue: accepted, and without a turn so far
    uint32_t newcomer_last       # the last of them
    uint32_t turns_to_wait       # until epoll is asked again: one round of the attention queue
    int64_t asked_ms             # caller's clock: when epoll was asked last
    List failed
    List urgent
    List bulk
    Wheel wheel
    ChannelTable channels
    UserTable users
    Walk *walks                  # the oldest first
    Walk *last_walk
    uint32_t walk_count
    uint32_t variants
    uint8_t variant_opcodes[VARIANTS_MAX]
    uint8_t variant_deflated[VARIANTS_MAX]   # its clients agreed to permessage-deflate
    Bye *byes
    uint32_t bye_count
    int64_t rush_second          # of the reactor's clock: which second `rush` is about
    uint32_t rush[REASONS]       # byes queued in it, by reason
    Frame *ping                  # two bytes, shared by all
    Frame *page                  # an HTTP answer many may ask for, held once
    Frame *head_timeout
    Frame *head_too_large
    Frame *upgrade_timeout
    void *gap_encoder            # PyObject *, borrowed from the Reactor; NULL: no gap is sent
    int gap_failed               # the encoder raised: the connection being visited is to be closed
    int report_meta              # closed events bring the meta object along
    int busy                     # inside poll, flush or tick: no call may come in from below
    uint8_t receive_buffer[RECEIVE_BYTES]
