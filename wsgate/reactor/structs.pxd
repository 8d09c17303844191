"""The structs, enumerations and constants that all modules of the reactor share; this file has no code.

Ownership: the `Core` struct owns every other struct. A `Connection` owns its `Input`, its `Outbox` and its
subscription table. An `Entry` owns one reference to its `Frame`. A `Frame` that `publish` made owns one
reference to its `Channel`, so that a queued publication keeps the policy and the name of its channel.
Connections refer to each other by slot number, never by pointer.

The whole state of a connection is the flat `Connection` struct, the buffers that it owns (input, outbox,
subscriptions) and one opaque meta object. Deadlines are absolute times in milliseconds of the reactor's own
clock. To hand an open connection over to another process, exactly this data would have to be copied.

    FREE -> HEAD -> DECIDING -> OPEN -> FAILING -> CLOSING -> LINGERING -> GONE -> FREE

    HEAD       the reactor collects the request head
    DECIDING   the caller has the head; the reactor waits for its upgrade() or refuse()
    OPEN       the connection sends and receives frames
    FAILING    a fault, or the peer's Close, was found; the next flush queues our Close, after the
               replies to the messages that the peer sent before
    CLOSING    our Close (or an HTTP response) is queued or sent; input is only searched for a Close
    LINGERING  our side of the stream is shut; input is discarded until the peer has read what we wrote
    GONE       the descriptor is closed; the `closed` event is still to be reported, then the slot is free
    Every state can change to GONE directly: at the end of the stream, a reset or a deadline.
"""

from cpython.ref cimport PyObject
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    NONE = 0xFFFFFFFF            # no slot, no channel, or the end of a list
    TICK_MS = 250                # one step of the timer wheel
    ORPHAN_MS = 1000             # without an ACK for this time the kernel frees unsent data of closed sockets
    ORPHAN_TICKS = 8             # ticks until it has surely done so: twice the time
    WHEEL_SLOTS = 512            # 128 s; the timer of a later deadline is checked once per turn of the wheel
    RECEIVE_BYTES = 16384        # the most that one recv reads
    CHUNK_BITS = 10              # connections per slab of the table: 1,024 of 128 bytes
    CHUNK_SLOTS = 1024
    POOL_CLASSES = 12            # 32 bytes .. 64 KiB, powers of two
    POOL_SMALLEST = 32
    VARIANTS_MAX = 8
    TRUSTED_MAX = 64             # trusted networks of proxies
    AWAITS_PROXY = 255           # value of `variant` in HEAD: a PROXY header must come before the head
    HEAD_GROUPS = 256            # lists of connections in HEAD, by a hash of their addresses
    DRAINS_MAX = 256             # refused sockets drained at the same time, whatever the settings
    VISIT_FRAMES = 64            # the most frames that one write contains
    VISIT_BYTES = 65536          # the most bytes that one write contains
    PONGS_MAX = 16               # the most pongs that wait for one connection
    PONG_BYTES = 968             # the most bytes of these pongs: the slot fills a block of 1 KiB
    URGENT_SUBSCRIBERS = 64      # a publication to at most this many subscribers is urgent
    WALKS_MAX = 64               # publications that can be under way into large channels
    WALK_STEP = 1024             # entries that one step of such a delivery queues
    WALK_AHEAD = 1024            # a step starts only while fewer connections are on the bulk list
    GAP_BYTES = 64               # the most bytes that a pending gap counts for
    CROWD_PART = 2               # a crowd starts when more than 1/2 of the open connections are behind
    CROWD_END = 8                # and ends when less than 1/8 is behind
    CROWD_STILL_MS = 1000        # a crowd in which no connection takes a byte for this time is ignored
    CROWD_GRACES = 3             # factor by which a grace is longer in a crowd
    CROWD_MS = 10000             # publications wait at most this long for a crowd,
    CROWD_REST = 4               # and regain 1/4 of the time in which they did not wait
    MOVING_MS = 1000             # publications wait at most this long for single slow connections,
    MOVING_REST = 20             # and regain 1/20 of the time in which they did not wait
    KEEPS_UP_UNITS = 1024        # units of 64 bytes: taken in one grace, they earn another grace
    PASS_MESSAGES = 256          # the read budget of one poll: messages,
    PASS_OPENS = 32              # opens,
    PASS_BYTES = 1048576         # bytes,
    PASS_NS = 2000000            # nanoseconds
    TURN_MESSAGES = 64           # the most messages of one turn of a connection,
    TURN_MESSAGES_LEAST = 8      # reduced down to this number when many connections wait
    TURN_FRAMES = 256            # the most frames of one turn
    MESSAGE_NS = 5000            # expected cost of a message for the caller: 5 us, as of a `ping`
    FRAME_NS = 100               # cost of parsing a frame: 60 ns a fragment, 100 a ping with its pong
    BYTE_NS = 8                  # cost of a byte of a message: JSON full of escapes is parsed at 117 MB/s
    QUANTUM_NS = 500000          # what a connection in debt may use in one round: one costly message
    COSTLY_NS = 100000           # connections with messages of this cost have their turn after the others
    DEBT_LEAST_NS = 20000        # a turn that costs less than this is not charged
    DEBT_MOST_NS = 50000000      # a debt grows no further than this
    DEBT_ROWS = 8192             # debts that the table holds; a power of two
    DEBT_WAYS = 4                # places of the table where the row of a debtor can be
    DEBT_OF_USER = 0x80000000    # set in Debt.place when the other bits are from the hash of a user
    FORGIVEN_PART = 512          # 1/512 of the time reduces debts: less than 1 of 300 clients that flood uses
    RESERVE_PASSES = 4           # passes without a turn for costly connections before one gets a turn
    LONG_NS = 200000             # a longer measured time may include the time of another process
    SLICE_NS = 2000000           # the time budget of one flush
    STALL_MS = 2000              # a tick that is later than this is a stall of our own process
    STALL_EVERY_MS = 60000       # a stall is forgiven at most once in this time
    ASK_MS = 5                   # epoll is polled at least this often, however long a round of turns is,
    ASK_INDEBTED_MS = 2          # and this often once a connection was charged: others must not wait
    REARM_SLOTS = 65536          # slots that one tick checks after deadlines have come nearer
    RUSH_STEP = 1000             # the byes of one reason in one second that share a rank
    PAUSE_MS = 1000              # a longer pause between two calls lets bytes of peers gather

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
    IN_ATTENTION = 1             # on the attention queue or on the queue of indebted connections
    IN_FAILED = 2                # on the list of connections whose Close the next flush queues
    IN_URGENT = 4                # on the urgent dirty list
    IN_BULK = 8                  # on the bulk dirty list
    WANT_IN = 16                 # registered for EPOLLIN
    WANT_OUT = 32                # registered for EPOLLOUT
    BLOCKED = 64                 # the socket is full; `units` has what the kernel holds for it
    PAUSED_APP = 128             # the caller paused reading with pause_reading
    PAUSED_OUTBOX = 256          # reading pauses because the outbox is over half its limit
    OPENED = 512                 # the caller got the open event, so it must get a closed event
    ANNOUNCED = 1024             # the caller got the failing or peer_closed event
    CLOSE_QUEUED = 2048          # Close or an HTTP response is queued as the last entry of the outbox
    PEER_CLOSE_SEEN = 4096       # the peer's Close was received, or its input is of no more use
    PING_SENT = 8192             # a ping was sent at heartbeat_ms and no byte has come since
    WATCHED = 16384              # in the epoll set
    END_AFTER_WRITE = 32768      # when everything is written, do not wait for the peer's Close

cdef enum:
    IS_WALL_TIME = 0x8000        # flag in application_code: application_ms is wall-clock time
    IS_FORGIVEN = 0x4000         # flag in application_code: the reactor's clock; neither flag: the caller's

cdef enum:
    SENT_SINCE = 1               # flag in `units`: more than a ping was sent since the kernel was queried
    KERNEL_UNIT = 32             # unit of the other bits of `units`: what the kernel held then

# The numbers of wsgate/reasons.py; tests compare the last ones, and provoke each reason that is found here.
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

cdef enum Pace:                  # an open connection over half its limits that the limits do not end
    PACE_NONE = 0
    PACE_READER                  # not behind: publications wait for the connection
    PACE_BEHIND                  # behind, within its grace: publications wait only if there is a crowd
    PACE_MOVING                  # the same, and its socket took bytes lately: publications wait briefly
    PACES

cdef enum Policy:
    POLICY_CLOSE = 0
    POLICY_DROP_OLDEST
    POLICY_LATEST_ONLY

cdef enum EntryClass:
    CLASS_CONTROL = 0            # ping, bye, Close, loss notice, encoded gap: never dropped
    CLASS_REPLY                  # a message for this connection alone: never dropped
    CLASS_PUBLICATION            # dropped where the policy of the channel allows
    CLASS_RESPONSE               # an HTTP response: never dropped, and no pong is sent before it
    CLASS_GAP                    # takes the place of dropped publications; `item` is a Gap

# The accounts of memory by purpose. Every call of memory_take and memory_give names one.
cdef enum Kind:
    KIND_TABLE = 0               # slabs of connections
    KIND_FRAME                   # encoded frames; a shared frame counts once
    KIND_OUTBOX                  # outboxes, their entries, control slots, gaps
    KIND_PARTIAL                 # unfinished heads, frames and messages, and input not parsed yet
    KIND_CHANNEL                 # channels with their names and subscriber arrays
    KIND_SUBSCRIPTION            # the subscription tables of connections
    KIND_DEFLATE                 # the most that inflating one message takes; 0 without compression
    KIND_USER                    # the hash table of the user index
    KINDS

cdef enum Counter:
    ACCEPTED = 0                 # sockets that the listener accepted
    REFUSED                      # sockets that the gate refused with an HTTP response
    REFUSED_SILENT               # sockets that the gate closed without a response
    REFUSED_UNDRAINED            # refused with a response and closed at once: no drain was free
    ACCEPT_EXHAUSTED             # accept failed with EMFILE, ENFILE, ENOBUFS or ENOMEM
    ACCEPT_FAILED                # accept failed in another way, mostly because the peer has left
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
    DELIVERIES                   # entries queued in outboxes for publications
    SENDS_BLOCKED
    PINGS_IN
    PONGS_IN
    PINGS_OUT
    PONGS_OUT
    PONGS_DROPPED
    DROPPED_POLICY               # publications that the policy of their channel replaced by a gap
    DROPPED_CLOSING              # entries discarded because their connection was closing
    GAPS                         # gaps encoded as messages and written
    STALE                        # calls with the handle of a connection that no longer exists
    STALLS_FORGIVEN
    LINGERS_SKIPPED              # closed without lingering: too many connections linger already
    POOL_HITS
    POOL_MISSES
    POLLS
    TIMERS                       # connection timers that expired
    MESSAGES_INFLATED
    ADDRESSES_UNCOUNTED          # accepted without a count for the address: no cell or journal slot
    HANDED_OVER                  # accepted here and handed over to a sibling that has room
    ACCEPTS_PAUSED               # accepting stopped until the next tick: over four times the rate
    COUNTERS

ctypedef struct Pool:
    void *idle[POOL_CLASSES]     # freed blocks of each class, linked through their first word
    uint64_t idle_bytes
    uint64_t idle_limit_bytes
    int is_wanted                # the settings enable the pool
    int enabled                  # the settings enable the pool and memory is not short

ctypedef struct Frame:
    uint32_t references
    uint32_t length              # wire bytes in `data`
    uint32_t size                # bytes of the block, as passed to memory_take
    uint32_t channel             # the channel that this frame keeps from being released, or NONE
    int64_t position             # position of the publication in its channel; 0: it has none
    uint8_t data[1]

ctypedef struct Gap:
    int64_t first                # position of the first dropped publication, and of the last
    int64_t last
    uint32_t count
    uint32_t charge              # bytes that the gap counts for: at most those of the publication replaced

ctypedef struct Entry:           # 16 bytes
    void *item                   # Frame *, or Gap * for CLASS_GAP
    uint32_t channel
    uint16_t age                 # reactor's clock when the entry was queued, in steps of 64 ms, modulo 2^16
    uint8_t klass
    uint8_t spare

ctypedef struct ControlSlot:     # the pongs that wait for one connection, in order
    uint16_t used
    uint16_t written             # bytes of the first pong that are written
    uint8_t count
    uint8_t lengths[PONGS_MAX]
    uint8_t data[PONG_BYTES]

ctypedef struct Outbox:          # exists only while something waits to be written
    Entry *entries               # `inline_entries` or a pooled array
    uint32_t head                # index of the first entry
    uint32_t count
    uint32_t capacity
    uint32_t head_written        # bytes of the first entry already written
    uint64_t bytes               # unwritten bytes of all entries
    int64_t blocked_ms           # when the socket took bytes last
    ControlSlot *control
    uint64_t owed                # bytes to write until the connection is not behind any more; 0: it is not
    uint32_t grace_ms            # end of the grace, low 32 bits of the clock; 0: no grace, the limits apply
    uint16_t taken               # units of 64 bytes taken since the grace began, at most 65,535
    uint8_t pace                 # the `Pace` under which the connection counts in Core.paced
    uint8_t is_counted           # the connection counts in Core.behind: it is open and behind
    Entry inline_entries[4]

ctypedef struct Buffer:
    uint8_t *data
    uint32_t length
    uint32_t capacity

ctypedef struct Input:           # exists only while input of the connection is unfinished
    Buffer message               # the received part of the head or of the message
    Buffer backlog               # bytes received but not parsed, because the budget was used up
    uint32_t backlog_taken
    uint32_t scanned             # bytes of the head that are known not to contain its end
    uint64_t frame_length
    uint64_t frame_received
    int64_t started_ms           # when the first byte of the unfinished message arrived; 0: none has
    int64_t paused_ms            # when reading was paused last
    uint32_t fragments
    uint32_t utf8
    uint8_t header[14]
    uint8_t header_length
    uint8_t in_payload
    uint8_t opcode               # opcode of the frame in progress
    uint8_t final
    uint8_t message_opcode       # opcode of the message in progress; 0: there is none
    uint8_t mask[4]
    uint8_t control[125]
    uint8_t deflated             # the message in progress is compressed

ctypedef struct Subscription:
    uint32_t channel             # index of the channel; NONE: the cell is free
    uint32_t position            # index of this connection in the channel's array

ctypedef struct Connection:      # 128 bytes: two cache lines
    int32_t fd
    uint32_t generation
    uint8_t state
    uint8_t variant
    uint16_t flags
    uint32_t seen_ms             # when the last byte arrived, low 32 bits of the clock
    uint32_t message_ms          # when the last whole message arrived; LINGERING: when lingering began
    uint32_t heartbeat_ms        # when the last ping was sent; 0: none was. LINGERING: bytes discarded
    uint32_t wheel_next
    uint32_t wheel_previous
    uint32_t wheel_tick          # NONE: not on the wheel
    uint32_t dirty_next          # links of a dirty list; in HEAD of a group in `heads`
    uint32_t dirty_previous
    uint32_t attention_next      # link of the attention queue, the failed list or the indebted queue
    int64_t deadline_ms          # deadline of the state HEAD, DECIDING, CLOSING or LINGERING
    int64_t application_ms       # time set by set_deadline or set_expiry; 0: none
    Outbox *outbox
    Input *input
    Subscription *subscriptions  # open addressing by channel
    uint32_t subscription_count
    uint16_t application_code    # close code for application_ms, and flags that name its clock
    uint16_t close_code          # code of our Close; in HEAD the number of the group in `heads`
    uint8_t reason
    uint8_t subscription_bits    # log2 of the number of cells in `subscriptions`
    uint16_t units               # memory that the kernel held, in KERNEL_UNITs, and the flag SENT_SINCE
    uint32_t control_ms          # token buckets: theoretical arrival times
    int64_t message_ns
    int64_t byte_ns
    PyObject *meta               # owned reference or NULL

ctypedef union ChannelName:      # `here` for names of up to NAME_HERE bytes, else a pooled block
    uint8_t here[24]
    uint8_t *there

ctypedef union ChannelSlots:     # `few` while the capacity of the channel is 0, else a pooled array
    uint32_t few[2]
    uint32_t *many

ctypedef struct Channel:         # 64 bytes, one cache line: two subscribers and a name of 24 bytes fit
    uint32_t hash                # lower half of the hash of the name
    uint32_t count
    uint32_t capacity            # of `slots.many`; 0: `slots.few` is used
    uint32_t frames              # queued frames and gaps that keep the channel from being released
    uint16_t name_length
    uint8_t policy
    uint8_t is_used
    uint8_t variants             # bit n: a connection of variant n has subscribed since the channel was made
    uint8_t is_vacated           # in the list of channels to report as vacated
    uint8_t walks                # walks that deliver to this channel, at most WALKS_MAX
    uint8_t is_uncounted         # subscriptions to it do not count against the limit of a connection
    uint32_t link                # next channel in the list of vacated channels
    uint32_t lost_round          # round of loss notices in which it lost publications last; 0: none
    ChannelSlots slots
    ChannelName name

ctypedef struct Walk:            # a publication that is delivered to a large channel in steps
    Walk *next
    uint32_t channel
    uint32_t left                # subscribers at the front of the channel's array that are still to be served
    uint64_t exclude
    Frame *frames[VARIANTS_MAX]

ctypedef struct ChannelTable:
    Channel *channels
    uint32_t capacity
    uint32_t count
    uint32_t made                # places ever used; the memory beyond them was never touched
    uint32_t free                # first free place, linked through Channel.count
    uint32_t vacated             # first vacated channel, linked through Channel.link; NONE: empty
    uint64_t name_bytes          # bytes of the names of all channels; the bus has to store the same names
    uint8_t report_vacated
    uint32_t *cells              # open addressing: channel indexes, NONE in a free cell
    uint32_t cells_mask
    uint8_t key[16]              # secret SipHash key, because clients choose the names

ctypedef struct UserLink:        # 16 bytes for each slot; see users.pyx
    uint32_t next                # next connection in the list of the user, or NONE
    uint32_t previous            # previous connection; NONE: this is the first of the list
    uint32_t hash                # hash of the user; 0: the connection is in no list
    uint32_t issued_s            # when the token was issued, seconds since 1970; 0: not known

ctypedef struct UserTable:
    uint32_t *cells              # open addressing: the first slot of each list, NONE in a free cell
    uint32_t mask                # number of cells - 1
    uint32_t count               # number of lists

ctypedef struct List:            # slots linked through a field of the connections
    uint32_t head
    uint32_t tail
    uint32_t count

ctypedef struct HeadGroup:       # the connections in HEAD whose addresses fall into one group
    List list                    # the oldest connection first, linked through the dirty links
    uint32_t since_ms            # when the oldest connection arrived, low 32 bits of the clock

ctypedef struct Wheel:
    int64_t base_ms              # time of step 0 on the reactor's clock
    uint32_t heads[WHEEL_SLOTS]
    int64_t tick                 # number of the last step that has passed
    int64_t done                 # number of the last step whose timers were all taken

ctypedef struct Drain:           # a refused socket whose input is read to its end and discarded
    int32_t fd
    uint32_t bytes
    int64_t deadline_ms

ctypedef struct Answer:          # an HTTP response; owns its bytes
    uint8_t *data
    uint32_t length

ctypedef struct AddressTable:    # shared memory; see addresses.pyx
    uint64_t *counts
    uint64_t *arrivals
    uint64_t *journal            # for each slot of this shard the key of its address; 0: not counted
    uint64_t mask                # number of rows - 1
    uint32_t journal_slots
    uint8_t key[16]

ctypedef struct Network:         # an IPv6 network; an IPv4 network as IPv4-mapped addresses
    uint8_t address[16]
    uint32_t bits

ctypedef struct Gate:
    uint32_t descriptors
    uint32_t connections
    uint32_t handshakes
    uint32_t handshake_rate_per_s
    uint64_t partial_bytes
    uint64_t memory_bytes        # budget for the sum of all accounts; 0: no budget
    uint32_t connection_bytes    # bytes of a connection in addition to the accounts by kind
    uint32_t drains
    uint32_t drain_bytes
    uint32_t drain_ms
    uint32_t per_address_connections # limit for one address on the whole node
    uint32_t per_address_rate_per_s
    uint32_t trusted_count
    Network trusted[TRUSTED_MAX]
    int reads_proxy_header       # trusted peers must send a PROXY header
    int64_t accept_ns            # token bucket for handshake_rate_per_s
    int64_t offer_ns             # token bucket for four times that rate; counts refused sockets too
    Answer refusal               # response 503
    Answer too_many              # response 429 for an address over its limits

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

ctypedef struct Debt:            # 16 bytes for each user or connection that was charged lately; see debts.pyx
    uint32_t place               # debtor: DEBT_OF_USER and the hash of a user, or slot + 1; 0: free row
    uint32_t message_ns          # estimated cost of one message of the debtor
    int64_t due_ns               # the level at which the debt is 0

ctypedef struct Pass:            # the part of its budget that one poll has used
    uint32_t messages
    uint32_t messages_limit      # messages that the caller accepts from this poll, at most PASS_MESSAGES
    uint32_t opens
    bint has_waiting_heads       # a head that is not a newcomer's waits for the next pass
    uint64_t bytes
    uint32_t turn_messages       # messages that one turn may take
    uint32_t message_ns          # estimated cost of a message of the connection; 0: not known
    int64_t expected_ns          # expected cost of the messages taken until now
    int64_t inflate_ns           # measured time spent on inflating
    int64_t until_ns

ctypedef struct Bye:             # the message that is sent before a Close of the reactor itself
    uint16_t close_code
    uint8_t reason               # 0: for every reason of this close code that has no bye of its own
    uint8_t rank                 # used from the (rank * 1000 + 1)th Close of the reason in one second on
    Frame *frames[VARIANTS_MAX]

ctypedef struct Core:
    int epoll
    int listener                 # listening socket; -1: none
    int relief                   # Unix socket to the sibling shard with the most room; -1: none has room
    int relief_next              # Unix socket to the next sibling in the ring of those with room
    int max_handovers            # how many times a connection can be handed over before it is refused
    int listener_muted           # the listener is out of the epoll set until the next tick
    int64_t now_ms               # the caller's clock at the last call
    int64_t forgiven_ms          # sum of the forgiven stalls
    int64_t clock_ms             # the reactor's clock, now_ms - forgiven_ms: for deadlines that apply to a peer
    int64_t wall_offset_ms       # wall clock - now_ms, for expiries
    uint32_t rearm_slot          # timers from this slot on are to be checked again; NONE: no timer is
    int64_t last_tick_ms         # caller's clock at the last tick
    int64_t last_stall_ms
    int64_t pause_ms             # length of the last pause of over PAUSE_MS between two calls
    int64_t pause_until_ms       # until then token buckets are credited with this pause
    Limits limits
    Gate gate
    AddressTable addresses       # `counts` is NULL: addresses are not counted
    uint32_t uncounted_slot      # slots from here on are not counted by address yet; NONE: all are
    Drain drains[DRAINS_MAX]
    uint32_t drain_count
    Pool pool
    uint64_t held[KINDS]
    uint64_t counters[COUNTERS]
    uint64_t ended[REASONS]      # number of refusals and closes by reason
    uint32_t states[STATES]      # number of connections by state
    uint32_t blocked
    uint32_t paced[PACES]        # number of connections by `Pace`, except PACE_NONE
    uint32_t behind              # number of open connections that are behind
    bint is_crowd                # there is a crowd: most open connections are behind; see outbox.pyx
    int64_t moved_ms             # when a connection that was behind took bytes last
    int64_t crowd_us             # how long publications may still wait for a crowd; see outbox.pyx
    int64_t moving_us            # how long they may still wait for connections that are moving
    uint64_t queued_bytes        # memory that the kernel held for all connections when it was queried
    uint64_t queued_in[STATES]   # the same by state of the connection
    uint64_t orphan_bytes        # kernel memory of sockets that were closed with unsent data
    uint64_t orphans[ORPHAN_TICKS]   # the same by the tick in which they were closed
    uint32_t orphan_tick         # index of the present tick in `orphans`
    int is_short                 # memory is, or lately was, over the high mark: newcomers are refused
    int is_shedding              # memory is, or lately was, over the budget: connections are shed
    int refuses_newcomers        # the caller has a reason, beyond the accounts, to refuse newcomers
    uint64_t outside_bytes       # memory that the caller holds outside of this reactor
    uint32_t shed_slot           # slot where the next search for connections to shed starts
    Connection **chunks
    uint32_t chunk_count
    uint32_t chunk_limit
    uint32_t free_slot           # first free slot, linked through attention_next
    uint32_t connections         # number of slots in use
    HeadGroup heads[HEAD_GROUPS] # the connections in HEAD by group; see gate.pyx
    List attention
    List indebted                # costly connections that wait for a turn; linked through attention_next
    Debt *debts                  # table of DEBT_ROWS, made at the first charge; NULL: no charge yet
    int64_t level_ns             # a debt is `due_ns` minus this level; see debts.pyx
    int64_t level_ms             # caller's clock when passed time last reduced the debts
    int64_t thread_ns            # CPU time of this thread when it was last queried
    uint32_t unknown_ns          # estimated cost of a message of a debtor without a row in the table
    int is_exact                 # for tests: charges are not checked by a clock, and inflating is free
    uint32_t passes_without      # passes since a costly connection had a turn, while one waited
    uint32_t newcomers           # connections at the head of the queue that have had no turn yet
    uint32_t newcomer_last       # the last of these connections
    bint is_older_first          # newcomers had most of the last pass: the others are first in the next one
    uint32_t turns_to_wait       # turns until epoll is polled again: one round of the queues
    int64_t asked_ms             # caller's clock when epoll was last polled
    List failed
    List urgent
    List bulk
    Wheel wheel
    ChannelTable channels
    UserTable users
    Walk *walks                  # the oldest walk first
    Walk *last_walk
    uint32_t walk_count
    uint32_t variants
    uint8_t variant_opcodes[VARIANTS_MAX]
    uint8_t variant_deflated[VARIANTS_MAX]   # clients of this variant use permessage-deflate
    Bye *byes
    uint32_t bye_count
    int64_t rush_second          # the second of the reactor's clock that `rush` counts
    uint32_t rush[REASONS]       # Closes of the reactor itself queued in this second, by reason
    Frame *ping                  # a ping frame of two bytes, shared by all connections
    Frame *page                  # the HTTP response of answer_page, stored once
    Frame *head_timeout
    Frame *head_too_large
    Frame *upgrade_timeout
    void *gap_encoder            # PyObject *, borrowed from the Reactor; NULL: gaps are not sent
    int gap_failed               # a gap was not encoded: close the connection that is being written to
    int report_meta              # closed events contain the meta object
    int busy                     # inside poll, flush or tick: other calls are refused
    uint8_t receive_buffer[RECEIVE_BYTES]
