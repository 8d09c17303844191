"""The state of one engine, in C: connections, buffers, counters, jobs. Declarations only.

One thread owns a core. No field refers to a Python object. The Engine keeps the bytes to which jobs point
(request parts, tokens, payload templates) in memory until the job is taken.
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
    STATE_CLOSING  # either side has sent a Close or FIN; the deadline runs

cdef enum:
    FLAG_SLOW = 1  # not read when it becomes readable
    FLAG_WANT_OUT = 2  # EPOLLOUT is registered
    FLAG_ECHO = 4  # takes part in the echo job
    FLAG_CLOSE_SENT = 8
    FLAG_CLOSE_RECEIVED = 16
    FLAG_FIN_SENT = 32
    FLAG_CLOSE_JOB = 64  # the close job waits for its end
    FLAG_FRAGMENTED = 128  # the current message has more than one frame
    FLAG_SERVER_ENDED = 256  # the server of a slow reader has sent FIN

    NO_FRAME = 0xFF  # frame_opcode between two frames
    NO_SLOT = 0xFFFFFFFF
    WAKE_SLOT = 0xFFFFFFFE

    COUNTED_MOST = 8  # the same number as in plans.py
    CLOSE_CODES = 5_000
    STATUSES = 1_000
    ERRNOS = 256
    # The index of disconnects[] is an errno, but for these two entries.
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

# A connection has one only while a header, a control frame or a message has arrived in part.
ctypedef struct partial_t:
    partial_t* next
    uint32_t window_len
    uint16_t header_len
    uint16_t control_len
    uint8_t header[16]
    uint8_t control[128]
    uint8_t window[1]  # stamp_window bytes

# A connection has one only for unsent bytes that the socket did not accept, or (during the handshake) for the
# response head that has arrived until now.
ctypedef struct block_t:
    uint32_t start
    uint32_t end
    uint32_t capacity
    uint8_t data[1]

# 112 bytes; owned by the table, and never moved. The slot of an ended connection is reused, but not within
# the same batch of events, so that an event of the old connection cannot reach the new one.
ctypedef struct conn_t:
    int32_t fd
    uint16_t flags
    uint8_t state
    uint8_t frame_opcode
    uint8_t frame_is_final
    uint8_t message_opcode  # 0 between two messages
    uint32_t index  # the number in its plan; in a free slot, the next free slot
    uint64_t frame_left
    uint64_t message_bytes
    partial_t* partial
    block_t* output
    block_t* head
    tracker_t* trackers
    uint64_t deadline_ns
    uint64_t intended_ns  # when the handshake was due
    uint64_t key_seed
    uint32_t echo_total  # how many sequence numbers were used until now
    uint32_t echo_base  # the first sequence number of the current job
    uint32_t echo_in_flight
    uint32_t echo_ordinal  # the place in the job's rotation
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
    uint64_t counted[COUNTED_MOST]  # messages by their beginning
    uint64_t closes_received[CLOSE_CODES]
    uint64_t disconnects[ERRNOS]
    uint64_t faults[FAULTS]

cdef enum part_t:
    PART_LITERAL
    PART_KEY
    PART_TOKEN
    PART_INDEX
    PART_STAMP

# A piece of a request or payload; `size` is set for a literal only.
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
    double interval_ns  # 0: as fast as the window allows
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
    const uint8_t* subprotocols  # the comma-separated list that is offered, or NULL
    uint32_t subprotocols_size
    outcome_t outcome

ctypedef struct echo_job_t:
    phase_t phase
    uint32_t* members
    uint64_t member_count
    uint64_t cursor  # first pass over the members of a closed loop
    uint64_t start_ns
    uint64_t stop_ns  # UINT64_MAX without an end
    uint64_t drain_ns
    uint64_t drain_until_ns
    uint64_t progress_ns  # when the latest answer arrived
    uint64_t end_ns
    double interval_ns  # 0: a closed loop
    uint64_t due  # open loop: messages due until now, on all connections
    uint64_t per_connection  # limit, UINT64_MAX without one
    uint64_t in_flight  # limit, UINT64_MAX without one
    uint64_t live  # members whose connection is open
    uint64_t finished  # such members that have sent all their messages
    uint64_t sent
    uint64_t received
    uint64_t lost  # messages in flight on connections that ended
    uint64_t unsent  # messages due on connections that ended
    uint32_t payload_bytes  # size of the stamp with its padding
    uint8_t opcode
    piece_t* pieces
    uint32_t piece_count
    size_t most  # size of the largest message with its header
    const uint8_t* answer
    uint32_t answer_size  # 0: answers have the stamp

ctypedef struct close_job_t:
    phase_t phase
    int mode
    uint64_t left  # connections still to select
    uint32_t cursor
    uint64_t waiting
    uint64_t closed
    uint64_t timed_out
    uint64_t deadline_ns

ctypedef struct core_t:
    int epoll_fd
    conn_t* table
    uint32_t slots
    uint32_t fresh  # slots below this number were used at least once
    uint32_t free_head
    uint32_t free_taken_head  # slots freed during this batch of events
    uint32_t most_used
    uint32_t used
    uint64_t gauges[4]  # connections by state_t
    uint64_t slow
    uint64_t slow_timed  # slow readers with a rate

    uint8_t* read_buffer
    size_t read_bytes
    uint8_t* scratch
    size_t scratch_bytes
    uint32_t stamp_window
    partial_t* free_partials
    uint32_t free_partial_count
    uint64_t partials  # number in use
    uint64_t block_bytes  # bytes in use

    random_t random
    piece_t counted[COUNTED_MOST]  # texts; the settings own the bytes
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
