"""The connect job: opens sockets from changing source addresses, sends the request, reads the response head.

Open loop: attempt i is due at start + i * interval, independent of the other attempts, and its latency is
measured from that time. Without a rate, `window` handshakes are kept under way, and the latency is measured
from connect(2).
"""

from libc.errno cimport EADDRNOTAVAIL, EAGAIN, EINPROGRESS, ENOMEM, errno
from libc.stdint cimport int64_t, uint32_t
from libc.stdio cimport snprintf
from libc.string cimport memcpy, memset

from loadtest.engine.core cimport (
    FAIL_BAD_HEAD,
    FAIL_NONE,
    FAIL_NO_SLOT,
    FAIL_SOURCE_EXHAUSTED,
    FLAG_SLOW,
    FLAG_WANT_OUT,
    PART_INDEX,
    PART_KEY,
    PART_LITERAL,
    PHASE_DONE,
    PHASE_RUNNING,
    STATE_OPEN,
    failure_t,
)
from loadtest.engine.digest cimport ACCEPT_BYTES, KEY_BYTES, accept_of, draw, key_of
from loadtest.engine.handshake cimport head_end, judge_upgrade, parse_status
from loadtest.engine.histogram cimport hist_record
from loadtest.engine.linux cimport (
    AF_INET,
    EPOLL_CTL_ADD,
    EPOLLIN,
    EPOLLOUT,
    IP_BIND_ADDRESS_NO_PORT,
    IPPROTO_IP,
    IPPROTO_TCP,
    SO_RCVBUF,
    SOCK_CLOEXEC,
    SOCK_NONBLOCK,
    SOCK_STREAM,
    SOL_SOCKET,
    TCP_NODELAY,
    c_bind,
    c_close,
    c_connect,
    c_send,
    c_socket,
    epoll_ctl,
    epoll_event,
    htonl,
    monotonic_ns,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    setsockopt,
    sockaddr,
    sockaddr_in,
)
from loadtest.engine.sending cimport set_interest
from loadtest.engine.table cimport (
    append_block,
    end,
    fail_connect,
    free_block,
    reset,
    set_state,
    slot_of,
    take_slot,
)

cdef enum:
    # Attempts between two polls of the sockets: at about 15 us each, 1 ms.
    _ATTEMPTS_PER_TICK = 64
    _HEAD_MOST = 16_384


cdef size_t build(
    const piece_t* pieces, size_t count, uint64_t key_seed, uint64_t index, const uint8_t* token, size_t
    token_size, uint8_t* out
) noexcept nogil:
    """Join the pieces of a request or payload; return the size. The caller guarantees the room."""
    cdef size_t i
    cdef uint8_t* at = out
    for i in range(count):
        if pieces[i].kind == PART_LITERAL:
            memcpy(at, pieces[i].data, pieces[i].size)
            at += pieces[i].size
        elif pieces[i].kind == PART_KEY:
            key_of(key_seed, at)
            at += KEY_BYTES
        elif pieces[i].kind == PART_INDEX:
            at += snprintf(<char*>at, 21, "%llu", <unsigned long long>index)
        elif token != NULL:
            memcpy(at, token, token_size)
            at += token_size
    return at - out


cdef size_t _build_request(core_t* core, uint64_t number, uint64_t key_seed) noexcept nogil:
    """Write the request of one attempt to the scratch buffer, and return its size."""
    cdef const uint8_t* token = NULL
    cdef size_t size = 0
    cdef uint64_t which, start
    if core.connect.token_count:
        which = number % core.connect.token_count
        start = core.connect.token_ends[which - 1] if which else 0
        token = core.connect.tokens + start
        size = core.connect.token_ends[which] - start
    return build(
        core.connect.pieces,
        core.connect.piece_count,
        key_seed,
        core.connect.first_index + number,
        token,
        size,
        core.scratch,
    )


cdef bint _is_slow(core_t* core, uint64_t number) noexcept nogil:
    """Whether an attempt becomes a slow reader: the share, spread evenly over the attempts."""
    cdef double share = core.connect.slow_share
    return <uint64_t>(<double>(number + 1) * share + 1e-9) > <uint64_t>(<double>number * share + 1e-9)


cdef int _open_socket(core_t* core) noexcept nogil:
    """Return a socket with its options and source address set, or a negated errno."""
    cdef sockaddr_in source
    cdef int one = 1
    cdef int fd = c_socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
    if fd < 0:
        return -errno
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one))
    if core.connect.receive_buffer:
        # Before connect, because the window scale is negotiated in the SYN.
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &core.connect.receive_buffer, sizeof(int))
    if not core.connect.is_loopback:
        return fd
    # Without this option bind(2) reserves a port for this socket alone. With it, connect(2) chooses the port,
    # and only (source, port, server, port) must be unique. man 7 ip, since Linux 4.2.
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof(one))
    memset(&source, 0, sizeof(source))
    source.sin_family = AF_INET
    source.sin_addr.s_addr = htonl(core.first_source + <uint32_t>(core.next_source % core.source_count))
    core.next_source += 1
    if c_bind(fd, <sockaddr*>&source, sizeof(source)) < 0:
        one = errno
        c_close(fd)
        return -one
    return fd


cdef void _fail_early(core_t* core, conn_t* conn, int error) noexcept nogil:
    if error == EADDRNOTAVAIL:
        fail_connect(core, conn, FAIL_SOURCE_EXHAUSTED, 0)
    else:
        fail_connect(core, conn, FAIL_NONE, error)


cdef void _launch(core_t* core, uint64_t number, uint64_t intended_ns) noexcept nogil:
    """Start one attempt to connect.

    On loopback the connection is established when connect(2) returns, so the request is sent at once.
    """
    cdef conn_t* conn = take_slot(core)
    cdef epoll_event event
    cdef size_t size
    cdef ssize_t sent
    core.totals.attempted += 1
    core.connect.outcome.attempted += 1
    if conn == NULL:
        core.totals.failures[<int>FAIL_NO_SLOT] += 1
        core.connect.outcome.failures[<int>FAIL_NO_SLOT] += 1
        core.connect.settled += 1
        return
    conn.index = <uint32_t>(core.connect.first_index + number)
    conn.intended_ns = intended_ns
    conn.deadline_ns = monotonic_ns() + core.connect.timeout_ns
    conn.key_seed = draw(&core.random)
    if _is_slow(core, number):
        conn.flags |= FLAG_SLOW
        conn.slow_bytes_per_s = core.connect.slow_bytes_per_s
        core.slow += 1
        core.slow_timed += conn.slow_bytes_per_s > 0
    conn.fd = _open_socket(core)
    if conn.fd < 0:
        _fail_early(core, conn, -conn.fd)
        return
    if c_connect(conn.fd, <sockaddr*>&core.connect.server, sizeof(sockaddr_in)) < 0 and errno != EINPROGRESS:
        _fail_early(core, conn, errno)
        return
    size = _build_request(core, number, conn.key_seed)
    sent = c_send(conn.fd, core.scratch, size, MSG_NOSIGNAL | MSG_DONTWAIT)
    core.counters.send_calls += 1
    if sent < 0:
        if errno != EAGAIN:
            _fail_early(core, conn, errno)
            return
        sent = 0
    core.counters.bytes_sent += <uint64_t>sent
    event.data.u64 = 0
    event.data.u32 = slot_of(core, conn)
    event.events = EPOLLIN
    if <size_t>sent < size:
        core.counters.send_blocked += 1
        conn.flags |= FLAG_WANT_OUT
        event.events = EPOLLIN | EPOLLOUT
        if append_block(core, &conn.output, core.scratch + sent, size - sent) < 0:
            fail_connect(core, conn, FAIL_NONE, ENOMEM)
            return
    if epoll_ctl(core.epoll_fd, EPOLL_CTL_ADD, conn.fd, &event) < 0:
        fail_connect(core, conn, FAIL_NONE, errno)


cdef void _refuse(core_t* core, conn_t* conn, int status) noexcept nogil:
    """Count a refusal and end the connection without waiting for the body."""
    core.totals.refused[status] += 1
    core.connect.outcome.refused[status] += 1
    core.connect.settled += 1
    if core.connect.is_refusal_reset:
        reset(core, conn)
    else:
        end(core, conn)


cdef int _judge_head(
    core_t* core, conn_t* conn, const uint8_t* head, size_t size, uint64_t now
) noexcept nogil:
    """Open the connection if the response head is valid; otherwise count the cause, end it and return -1."""
    cdef uint8_t key[KEY_BYTES]
    cdef uint8_t accept[ACCEPT_BYTES]
    cdef failure_t failure
    cdef int status = parse_status(head, size)
    if status < 0:
        fail_connect(core, conn, FAIL_BAD_HEAD, 0)
        return -1
    if status != 101:
        _refuse(core, conn, status)
        return -1
    key_of(conn.key_seed, key)
    accept_of(key, accept)
    failure = judge_upgrade(head, size, accept, core.connect.subprotocols, core.connect.subprotocols_size)
    if failure != FAIL_NONE:
        fail_connect(core, conn, failure, 0)
        return -1
    hist_record(&core.connect_latency, <int64_t>(now - conn.intended_ns), 1)
    core.totals.opened += 1
    core.connect.outcome.opened += 1
    core.connect.settled += 1
    set_state(core, conn, STATE_OPEN)
    if conn.flags & FLAG_SLOW:
        set_interest(core, conn)
    return 0


cdef ssize_t feed_head(
    core_t* core, conn_t* conn, const uint8_t* data, size_t size, uint64_t now
) noexcept nogil:
    """Process bytes of the response head.

    Returns how many of the bytes belong to it (all while it is incomplete), or -1 if the connection ended.
    """
    cdef size_t held = 0 if conn.head == NULL else conn.head.end
    cdef int length
    if held == 0:
        length = head_end(data, size)
        if length:
            return -1 if _judge_head(core, conn, data, length, now) < 0 else length
    if held + size > _HEAD_MOST or append_block(core, &conn.head, data, size) < 0:
        fail_connect(core, conn, FAIL_BAD_HEAD, 0)
        return -1
    length = head_end(conn.head.data, conn.head.end)
    if length == 0:
        return <ssize_t>size
    if _judge_head(core, conn, conn.head.data, length, now) < 0:
        return -1
    free_block(core, &conn.head)
    return length - <ssize_t>held


cdef uint64_t tick_connect(core_t* core, uint64_t now) noexcept nogil:
    """Start the attempts that are due; return when the next is due (ns; UINT64_MAX: at no fixed time)."""
    cdef int budget = _ATTEMPTS_PER_TICK
    cdef uint64_t due_ns = 0
    cdef uint64_t offset_ns, at
    if core.connect.phase != PHASE_RUNNING:
        return <uint64_t>-1
    while core.connect.launched < core.connect.count and budget > 0:
        if core.connect.interval_ns > 0:
            offset_ns = <uint64_t>(<double>core.connect.launched * core.connect.interval_ns)
            due_ns = core.connect.start_ns + offset_ns
            at = monotonic_ns()
            if due_ns > at:
                return due_ns
            hist_record(&core.connect_lag, <int64_t>(at - due_ns), 1)
        else:
            if core.connect.launched - core.connect.settled >= core.connect.window:
                return <uint64_t>-1
            due_ns = monotonic_ns()
        core.connect.launched += 1
        _launch(core, core.connect.launched - 1, due_ns)
        budget -= 1
    if core.connect.settled == core.connect.count:
        core.connect.end_ns = now
        core.connect.phase = PHASE_DONE
        core.is_job_over = True
        return now
    return now if core.connect.launched < core.connect.count else <uint64_t>-1
