"""The state of one engine, in C: connections, buffers, counters, jobs. Declarations only.

One thread owns a core. Nothing here refers to a Python object; byte ranges that jobs point into (request
parts, tokens, payload templates) are kept alive by the Engine until the job was taken.
"""

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t

from loadtest.engine.digest cimport random_t
from loadtest.engine.frames cimport FAULTS
from loadtest.engine.histogram cimport hist_t
from loadtest.engine.linux cimport sockaddr_in
from loadtest.engine.sequences cimport ledger_t, tracker_t

cdef enum state_t:
    STATE_FREE
    STATE_HANDSHAKE  # from SYN to the end of the response head
    STATE_OPEN
    STATE_CLOSING  # a Close or FIN was sent by either side; the deadline runs

cdef enum:
    FLAG_SLOW = 1  # never read by readiness
    FLAG_WANT_OUT = 2  # EPOLLOUT is registered
    FLAG_ECHO = 4  # member of the echo job
    FLAG_CLOSE_SENT = 8
    FLAG_CLOSE_RECEIVED = 16
    FLAG_FIN_SENT = 32
    FLAG_CLOSE_JOB = 64  # the close job waits for it
    FLAG_FRAGMENTED = 128  # the message under way has more than one frame
    FLAG_SERVER_ENDED = 256  # a slow reader's server has sent FIN

    NO_FRAME = 0xFF  # frame_opcode between frames
    NO_SLOT = 0xFFFFFFFF
    WAKE_SLOT = 0xFFFFFFFE

    COUNTED_MOST = 8  # as in plans.py
    CLOSE_CODES = 5_000
    STATUSES = 1_000
    ERRNOS = 256
    # disconnects[] is by errno; these two entries have no errno.
    GONE_EOF = 0
    GONE_NO_ANSWER = 255

cdef enum failure_t:
    FAIL_NONE
    FAIL_TIMEOUT
    FAIL_EOF
    FAIL_BAD_HEAD
    FAIL_BAD_ACCEPT
    FAIL_BAD_UPGRADE
    FAIL_BAD_SUBPROTOCOL
    FAIL_BAD_EXTENSION
    FAIL_NO_SLOT
    FAIL_SOURCE_EXHAUSTED
    FAILURES

# Borrowed by a connection only while a header, a control frame or a message is there in part.
ctypedef struct partial_t:
    partial_t* next
    uint32_t window_len
    uint16_t header_len
    uint16_t control_len
    uint8_t header[16]
    uint8_t control[128]
    uint8_t window[1]  # stamp_window bytes

# Borrowed only while the socket does not take all: unsent bytes, or (in a handshake) the response head so
# far.
ctypedef struct block_t:
    uint32_t start
    uint32_t end
    uint32_t capacity
    uint8_t data[1]

# 112 bytes; owned by the table, never moves. Slots that ended are reused, but not within the batch of events
# they ended in, so an event can never reach a successor.
ctypedef struct conn_t:
    int32_t fd
    uint16_t flags
    uint8_t state
    uint8_t frame_opcode
    uint8_t frame_is_final
    uint8_t message_opcode  # 0 between messages
    uint32_t index  # of its plan; in a free slot, the next free one
    uint64_t frame_left
    uint64_t message_bytes
    partial_t* partial
    block_t* output
    block_t* head
    tracker_t* trackers
    uint64_t deadline_ns
    uint64_t intended_ns  # of the handshake
    uint64_t key_seed
    uint32_t echo_total  # sequences used so far
    uint32_t echo_base  # of the current job
    uint32_t echo_in_flight
    uint32_t echo_ordinal  # place in the job's rotation
    uint32_t slow_bytes_per_s

ctypedef struct outcome_t:
    uint64_t attempted
    uint64_t opened
    uint32_t refused[STATUSES]
    uint32_t errnos[ERRNOS]
    uint32_t failures[FAILURES]

ctypedef struct counters_t:
    uint64_t bytes_received
    uint64_t bytes_sent
    uint64_t frames_received
    uint64_t messages
    uint64_t message_bytes
    uint64_t stamped
    uint64_t text_messages
    uint64_t fragmented_messages
    uint64_t pings_answered
    uint64_t pongs_received
    uint64_t pongs_dropped
    uint64_t messages_sent
    uint64_t echoes_sent
    uint64_t echoes_received
    uint64_t misrouted
    uint64_t closes_sent
    uint64_t close_timeouts
    uint64_t ended_clean
    uint64_t slow_server_ended
    uint64_t receive_calls
    uint64_t send_calls
    uint64_t send_blocked
    uint64_t wakes
    uint64_t counted[COUNTED_MOST]  # messages by how they begin
    uint64_t closes_received[CLOSE_CODES]
    uint64_t disconnects[ERRNOS]
    uint64_t faults[FAULTS]

cdef enum part_t:
    PART_LITERAL
    PART_KEY
    PART_TOKEN
    PART_INDEX
    PART_STAMP

# A piece of a request or payload; size is the literal's.
ctypedef struct piece_t:
    part_t kind
    uint32_t size
    const uint8_t* data

cdef enum phase_t:
    PHASE_IDLE
    PHASE_RUNNING
    PHASE_DRAINING
    PHASE_DONE

ctypedef struct connect_job_t:
    phase_t phase
    uint64_t count
    uint64_t launched
    uint64_t settled
    uint64_t window
    uint64_t start_ns
    uint64_t end_ns
    double interval_ns  # 0 is as fast as the window allows
    uint64_t timeout_ns
    sockaddr_in server
    bint is_loopback
    int receive_buffer
    double slow_share
    uint32_t slow_bytes_per_s
    bint is_refusal_reset
    uint32_t first_index
    piece_t* pieces
    uint32_t piece_count
    const uint8_t* tokens
    uint64_t* token_ends
    uint64_t token_count
    const uint8_t* subprotocols  # comma list as offered, or NULL
    uint32_t subprotocols_size
    outcome_t outcome

ctypedef struct echo_job_t:
    phase_t phase
    uint32_t* members
    uint64_t member_count
    uint64_t cursor  # first pump of a closed loop
    uint64_t start_ns
    uint64_t stop_ns  # UINT64_MAX without an end
    uint64_t drain_ns
    uint64_t drain_until_ns
    uint64_t progress_ns  # of the latest answer
    uint64_t end_ns
    double interval_ns  # 0 is a closed loop
    uint64_t due  # open loop: messages due so far, all connections
    uint64_t per_connection  # limit, UINT64_MAX without one
    uint64_t in_flight  # limit, UINT64_MAX without one
    uint64_t live  # members still there
    uint64_t finished  # live members that sent their limit
    uint64_t sent
    uint64_t received
    uint64_t lost  # in flight on connections that ended
    uint64_t unsent  # owed by connections that ended
    uint32_t payload_bytes  # of the stamp with its padding
    uint8_t opcode
    piece_t* pieces
    uint32_t piece_count
    size_t most  # largest message with its header
    const uint8_t* answer
    uint32_t answer_size  # 0: answers carry the stamp

ctypedef struct close_job_t:
    phase_t phase
    int mode
    uint64_t left  # still to pick
    uint32_t cursor
    uint64_t waiting
    uint64_t closed
    uint64_t timed_out
    uint64_t deadline_ns

ctypedef struct core_t:
    int epoll_fd
    conn_t* table
    uint32_t slots
    uint32_t fresh  # slots below were used at least once
    uint32_t free_head
    uint32_t free_taken_head  # freed in this batch of events
    uint32_t most_used
    uint32_t used
    uint64_t gauges[4]  # connections by state_t
    uint64_t slow
    uint64_t slow_timed  # slow readers that read at a rate

    uint8_t* read_buffer
    size_t read_bytes
    uint8_t* scratch
    size_t scratch_bytes
    uint32_t stamp_window
    partial_t* free_partials
    uint32_t free_partial_count
    uint64_t partials  # lent
    uint64_t block_bytes  # lent

    random_t random
    piece_t counted[COUNTED_MOST]  # beginnings; the bytes are the settings'
    uint32_t counted_count
    uint32_t stream_nonce
    uint32_t first_source
    uint32_t source_count
    uint64_t next_source
    uint64_t close_timeout_ns
    uint64_t start_ns
    uint64_t sweep_ns  # next sweep
    uint64_t swept_ns  # last one

    bint is_job_over
    connect_job_t connect
    echo_job_t echo
    close_job_t closing

    ledger_t ledger
    counters_t counters
    outcome_t totals
    hist_t connect_latency
    hist_t connect_lag
    hist_t echo_latency
    hist_t delivery_latency
    hist_t send_lag
    uint64_t cpu_ns
    uint64_t loop_ns
