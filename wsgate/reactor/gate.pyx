"""The gate accepts sockets, and refuses those that a limit excludes before their request is read.

It accepts at most 32 sockets at once and checks each of them from counters alone. A socket either gets a slot
or is refused with the HTTP response that the caller has set. That response must reach the peer. So the gate
sends it, shuts the write side, and keeps reading from the socket (a drain) until the peer ends the stream.
Drains are limited in bytes, time and number. When all drains are in use, a peer whose whole head has already
arrived receives the response and is closed at once: no unread input is left that would make the kernel reset
the connection. Any other peer is closed without a response and counted as `refused_silent`.

When accept fails for want of descriptors or memory (EMFILE, ENFILE, ENOBUFS, ENOMEM), the listener is taken
out of the epoll set until the next tick, so that a full process does not call accept in vain. The same is
done when four times the permitted rate of handshakes is offered: a refusal costs time, but a connection that
waits in the kernel's queue costs none.

A full shard is not a full node. A connection for which there is no room here is handed to a sibling shard
that has room: its descriptor is sent through a Unix socket. The caller chooses the sibling, and passes
connections from siblings to gate_accept_handover. The sibling may have become full meanwhile and then hands
the connection on to the next one in a ring, so that others are tried before it is refused; `max_handovers`
limits that. Before handovers followed a ring, two shards that each believed that the other had most room
passed a connection back and forth although a third one had room.

Limits for one address count the peer's own address. If the peer is a trusted proxy they count the client's
address, which comes in a PROXY header (head.pyx) or in X-Forwarded-For (read by the caller), and are checked
once that address is known.
"""

from libc.errno cimport EAGAIN, EBADF, EINVAL, ENOTSOCK, EMFILE, ENFILE, ENOBUFS, ENOMEM, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free

from wsgate.reactor.addresses cimport (
    address_count, address_drop, address_group, address_is_trusted, address_note, address_read, address_take,
)
from wsgate.reactor.closing cimport end_with
from wsgate.reactor.memory cimport memory_booked, memory_high, partial_fits
from wsgate.reactor.socket_io cimport (
    EPOLLIN, EPOLL_CTL_DEL, TAG_DRAIN, TAG_LISTENER, epoll_ctl, socket_address, socket_orphan, socket_watch,
)
from wsgate.reactor.structs cimport (
    ACCEPTED, ACCEPTS_PAUSED, ACCEPT_EXHAUSTED, ACCEPT_FAILED, AWAITS_PROXY, Answer, CHUNK_BITS, Connection,
    Core, DRAINS_MAX, Drain, HANDED_OVER, HEAD_DISPLACED, IN_ATTENTION, Input, NONE, PASS_OPENS,
    RECEIVE_BYTES, REFUSED, REFUSED_ADDRESS_CONNECTIONS, REFUSED_ADDRESS_RATE, REFUSED_CONNECTIONS,
    REFUSED_DESCRIPTORS, REFUSED_HANDSHAKES, REFUSED_MEMORY, REFUSED_PARTIAL_BYTES, REFUSED_RATE,
    REFUSED_SILENT, REFUSED_UNDRAINED, STATE_DECIDING, STATE_FREE, STATE_GONE, STATE_HEAD, WATCHED,
)
from wsgate.reactor.table cimport at, attention_push_newcomer, heads_largest, heads_push, table_open
from wsgate.reactor.wheel cimport wheel_arm

cdef extern from * nogil:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <sys/socket.h>
    #include <string.h>
    #include <sys/uio.h>
    static inline int send_descriptor(int channel, int fd, unsigned char byte) {
        char control[CMSG_SPACE(sizeof(int))];
        struct iovec part = {&byte, 1};
        struct msghdr message;
        struct cmsghdr *header;
        memset(&message, 0, sizeof(message));
        memset(control, 0, sizeof(control));
        message.msg_iov = &part;
        message.msg_iovlen = 1;
        message.msg_control = control;
        message.msg_controllen = sizeof(control);
        header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(header), &fd, sizeof(int));
        return sendmsg(channel, &message, MSG_DONTWAIT | MSG_NOSIGNAL) == 1;
    }
    """
    bint send_descriptor(int channel, int fd, unsigned char byte)
    int getpeername(int fd, void *address, unsigned int *size)
    ctypedef struct sockaddr_storage "struct sockaddr_storage":
        unsigned short ss_family
    int accept4(int fd, void *address, void *size, int flags)
    ssize_t recv(int fd, void *buffer, size_t size, int flags)
    ssize_t send(int fd, const void *data, size_t size, int flags)
    int shutdown(int fd, int how)
    int SOCK_NONBLOCK
    int SOCK_CLOEXEC
    int MSG_DONTWAIT
    int MSG_NOSIGNAL
    int SHUT_WR

cdef extern from "<unistd.h>" nogil:
    int close(int fd)

cdef enum:
    SECOND_NS = 1000000000
    # See is_offered_too_much for these two.
    OFFERS_LEAST = 1000
    OFFERS_TIMES = 4
    DISPLACE_LOOKS = 64          # connections examined to make room for one new one
    COUNT_LOOKS = 8192           # slots examined in one tick, which takes 3 ms


cdef inline bint takes_one(int64_t *full_ns, int64_t now_ns, int64_t cost_ns, int64_t depth_ns) noexcept nogil:
    """Take one from a token bucket, which is stored as the time at which it would be full.

    False if it is empty.
    """
    if full_ns[0] < now_ns:
        full_ns[0] = now_ns
    if full_ns[0] + cost_ns > now_ns + depth_ns:
        return False
    full_ns[0] += cost_ns
    return True


cdef bint displace_head(Core *core) noexcept nogil:
    """Close the oldest incomplete request head of the address with the most, to admit a new socket.

    A new socket mostly brings a whole head. If new sockets were refused instead, as many silent sockets as
    there may be handshakes would exclude all other clients. The address with the most incomplete heads gives
    way, not the oldest head of all: otherwise one address that keeps connecting would displace the heads of
    all others. Addresses are grouped by a hash; two addresses in one group are treated as one here, without
    other effect. A connection that waits for its turn to be read is not displaced.

    Returns:
        False if none of the first DISPLACE_LOOKS heads of that group may be displaced.
    """
    cdef uint32_t slot = core.heads[heads_largest(core)].list.head, looks
    cdef Connection *c
    for looks in range(<uint32_t>DISPLACE_LOOKS):
        if slot == NONE:
            return False
        c = at(core, slot)
        if c.flags & WATCHED and not c.flags & IN_ATTENTION:
            if core.head_timeout != NULL:
                core.head_timeout.references += 1
            end_with(core, slot, core.head_timeout, HEAD_DISPLACED)
            return True
        slot = c.dirty_next
    return False


cdef int judge(Core *core, int fd, const uint8_t *address, uint64_t *key) noexcept nogil:
    """Decide from counters whether to admit a socket: 0, or the reason to refuse it.

    The cheapest tests come first. If the limit of handshakes is reached, an incomplete head may be displaced.

    With an `address`, the limits of that address are checked as well, and before the rate of all connections,
    so that an address which connects too often does not use up the rate of the others. `key`, 0 before the
    call, becomes the key under which the connection was counted.
    """
    cdef int64_t now_ns, cost
    cdef int reason
    if core.gate.descriptors and <uint32_t>fd >= core.gate.descriptors:
        # The kernel assigns the lowest free number, so this number tells how many descriptors are open.
        return REFUSED_DESCRIPTORS
    if core.connections >= core.limits.max_connections or (
        core.gate.connections and core.connections >= core.gate.connections
    ):
        return REFUSED_CONNECTIONS
    if core.gate.handshakes and (
        core.states[<int>STATE_HEAD] + core.states[<int>STATE_DECIDING] >= core.gate.handshakes
    ) and not displace_head(core):
        return REFUSED_HANDSHAKES
    if core.refuses_newcomers:
        return REFUSED_MEMORY
    if core.gate.memory_bytes and (core.is_short or memory_booked(core) >= memory_high(core)):
        core.is_short = 1
        return REFUSED_MEMORY
    if not partial_fits(core, 0, sizeof(Input)):
        return REFUSED_PARTIAL_BYTES
    if address != NULL:
        reason = address_take(core, address, key)
        if reason:
            return reason
    if core.gate.handshake_rate_per_s:
        now_ns = core.now_ms * 1000000
        cost = SECOND_NS // core.gate.handshake_rate_per_s
        if not takes_one(&core.gate.accept_ns, now_ns, cost, SECOND_NS):
            address_drop(core, key[0])
            return REFUSED_RATE
    return 0


cdef inline int64_t offer_cost(Core *core) noexcept nogil:
    """Return the time that one accepted connection takes from the bucket of offers.

    0 without a rate limit.
    """
    return SECOND_NS // OFFERS_TIMES // core.gate.handshake_rate_per_s if core.gate.handshake_rate_per_s else 0


cdef bint is_offered_too_much(Core *core) noexcept nogil:
    """Whether four times the permitted rate of handshakes is offered, so that accepting should pause.

    The factor is not two, because a connection in the kernel's queue is answered late. When two and a half
    times the rate was offered for eight seconds, the p99 of all responses was 3.3 s with a factor of two;
    with four it is milliseconds: python -m loadtest overload
    At least a thousand sockets a second are accepted and checked, because refusing so few costs little.
    """
    cdef int64_t now_ns = core.now_ms * 1000000, cost = offer_cost(core)
    if cost == 0 or core.gate.offer_ns < now_ns:
        return False
    return core.gate.offer_ns + cost > now_ns + max(SECOND_NS, OFFERS_LEAST * cost)


cdef inline void note_offer(Core *core) noexcept nogil:
    """Count one accepted connection in the bucket of offers."""
    cdef int64_t cost = offer_cost(core)
    if cost:
        core.gate.offer_ns = max(core.gate.offer_ns, core.now_ms * 1000000) + cost


cdef Drain *free_drain(Core *core, uint32_t *index) noexcept nogil:
    """Find a place for a drain and store its index; NULL if the limit of drains is reached."""
    cdef uint32_t place
    if core.drain_count >= core.gate.drains:
        return NULL
    for place in range(<uint32_t>DRAINS_MAX):
        if core.drains[place].fd < 0:
            index[0] = place
            return &core.drains[place]
    return NULL


cdef void answer(Core *core, int fd, int reason) noexcept nogil:
    """Send the HTTP response for a reason to a refused socket and shut the write side."""
    cdef Answer *said = &core.gate.refusal
    if reason in (REFUSED_ADDRESS_CONNECTIONS, REFUSED_ADDRESS_RATE):
        said = &core.gate.too_many
    if said.length:
        send(fd, said.data, said.length, MSG_DONTWAIT | MSG_NOSIGNAL)
    shutdown(fd, SHUT_WR)


cdef inline bint ends_head(const uint8_t *data, int64_t size) noexcept nogil:
    """Whether bytes end with the empty line that ends a request head."""
    return (
        size >= 4 and data[size - 4] == 13 and data[size - 3] == 10
        and data[size - 2] == 13 and data[size - 1] == 10
    )


cdef void refuse(Core *core, int fd, int reason) noexcept nogil:
    """Refuse a socket with an HTTP response that reaches the peer, if a drain or a whole head allows that."""
    cdef uint32_t index = 0
    cdef int64_t count
    cdef Drain *drain
    core.ended[reason] += 1
    count = recv(fd, core.receive_buffer, RECEIVE_BYTES, MSG_DONTWAIT)
    if count == 0 or (count < 0 and errno != EAGAIN):
        core.counters[<int>REFUSED_SILENT] += 1    # the peer has ended or reset the stream
        close(fd)
        return
    drain = free_drain(core, &index)
    if drain == NULL:
        # The whole head has been read, so the close does not make the kernel reset the connection.
        if ends_head(core.receive_buffer, count):
            answer(core, fd, reason)
            socket_orphan(fd)
            core.counters[<int>REFUSED] += 1
            core.counters[<int>REFUSED_UNDRAINED] += 1
        else:
            core.counters[<int>REFUSED_SILENT] += 1
        close(fd)
        return
    answer(core, fd, reason)
    core.counters[<int>REFUSED] += 1
    if socket_watch(core, fd, TAG_DRAIN + index, EPOLLIN) < 0:
        close(fd)
        return
    drain.fd = fd
    drain.bytes = <uint32_t>count if count > 0 else 0
    drain.deadline_ms = core.clock_ms + core.gate.drain_ms
    core.drain_count += 1


cdef void end_drain(Core *core, Drain *drain) noexcept nogil:
    """Close a socket that was drained and free its place."""
    socket_orphan(drain.fd)
    close(drain.fd)
    drain.fd = -1
    core.drain_count -= 1


cdef void gate_drain(Core *core, uint32_t index) noexcept nogil:
    """Read and discard input of a refused socket.

    Close it at the end of the stream or at the limit of bytes.
    """
    cdef Drain *drain
    cdef int64_t count
    if index >= DRAINS_MAX or core.drains[index].fd < 0:
        return
    drain = &core.drains[index]
    count = recv(drain.fd, core.receive_buffer, RECEIVE_BYTES, MSG_DONTWAIT)
    if count > 0:
        drain.bytes += <uint32_t>count
        if drain.bytes <= core.gate.drain_bytes:
            return
    elif count < 0 and errno == EAGAIN:
        return
    end_drain(core, drain)


cdef void gate_close_drains(Core *core) noexcept nogil:
    """Close all refused sockets that are being drained."""
    cdef uint32_t index
    for index in range(<uint32_t>DRAINS_MAX):
        if core.drains[index].fd >= 0:
            end_drain(core, &core.drains[index])


cdef void gate_answers_free(Core *core) noexcept nogil:
    """Free the HTTP responses for refused peers."""
    free(core.gate.refusal.data)
    free(core.gate.too_many.data)
    core.gate.refusal.data = core.gate.too_many.data = NULL
    core.gate.refusal.length = core.gate.too_many.length = 0


cdef void gate_mute(Core *core, bint mute) noexcept nogil:
    """Take the listener out of the epoll set, or put it back."""
    if core.listener < 0 or core.listener_muted == mute:
        return
    if mute:
        epoll_ctl(core.epoll, EPOLL_CTL_DEL, core.listener, NULL)
    elif socket_watch(core, core.listener, TAG_LISTENER, EPOLLIN) < 0:
        return
    core.listener_muted = mute


cdef void count_earlier(Core *core) noexcept nogil:
    """Count connections under their address that were accepted before a limit for addresses was set.

    Examines at most COUNT_LOOKS slots and continues in the next tick. Connections of trusted proxies are left
    out, because the address of the client is no longer known.
    """
    cdef uint32_t slots = core.chunk_count << CHUNK_BITS, looks
    cdef uint8_t address[16]
    cdef Connection *c
    for looks in range(<uint32_t>COUNT_LOOKS):
        if core.uncounted_slot >= slots:
            core.uncounted_slot = NONE
            return
        c = at(core, core.uncounted_slot)
        if c.state not in (STATE_FREE, STATE_GONE) and socket_address(c, address) and not address_is_trusted(
            core, address
        ):
            address_count(core, core.uncounted_slot, address)
        core.uncounted_slot += 1


cdef void gate_tick(Core *core) noexcept nogil:
    """Close drains that are over their time and put a muted listener back; called every 250 ms."""
    cdef uint32_t index
    if core.drain_count:
        for index in range(<uint32_t>DRAINS_MAX):
            if core.drains[index].fd >= 0 and core.drains[index].deadline_ms <= core.clock_ms:
                end_drain(core, &core.drains[index])
    if core.listener_muted:
        gate_mute(core, False)
    if core.uncounted_slot != NONE and core.gate.per_address_connections:
        count_earlier(core)


cdef int gate_open(Core *core, int fd, uint32_t *slot, uint32_t group) noexcept nogil:
    """Give a socket a slot in state HEAD and start the deadline for its request head; -1 without a free slot.

    `group` is the group of its address (address_group), 0 if the address is not known.

    The socket is not in the epoll set yet: its first turn reads it, and adds it if more input must be
    awaited.
    """
    cdef Connection *c = table_open(core, fd, slot)
    if c == NULL:
        return -1
    c.seen_ms = c.message_ms = <uint32_t>core.clock_ms
    c.control_ms = <uint32_t>core.now_ms << 4    # a full bucket of control frames; see messages.pyx
    heads_push(core, slot[0], group)
    c.deadline_ms = core.clock_ms + core.limits.head_timeout_ms
    wheel_arm(core, slot[0], c.deadline_ms)
    return 0


cdef bint hand_over(Core *core, int fd, int reason, uint8_t handovers) noexcept nogil:
    """Send a socket for which there is no room here to a sibling; False if no sibling takes it.

    `handovers` is the number of handovers that the socket has passed already.
    """
    cdef int sibling = core.relief_next if handovers else core.relief
    if sibling < 0 or reason not in (REFUSED_DESCRIPTORS, REFUSED_CONNECTIONS, REFUSED_MEMORY):
        return False
    if handovers >= core.max_handovers or not send_descriptor(sibling, fd, handovers + 1):
        return False
    close(fd)                                 # the message in the Unix socket keeps it open
    core.counters[<int>HANDED_OVER] += 1
    return True


cdef inline bint looks_at_addresses(Core *core) noexcept nogil:
    """Whether a limit or the proxy settings need the peer's address of each accepted socket."""
    return (
        core.gate.per_address_connections or core.gate.per_address_rate_per_s or core.gate.reads_proxy_header
        or core.gate.handshakes
    )


cdef void gate_accept_handover(Core *core, int fd, uint8_t handovers) noexcept nogil:
    """Check a socket that a sibling accepted; the reactor owns the socket from now on.

    `handovers` is the number of handovers that it has passed, at least 1.
    """
    cdef sockaddr_storage peer
    cdef unsigned int size = sizeof(peer)
    cdef bint is_known = looks_at_addresses(core) and getpeername(fd, <void *>&peer, &size) == 0
    take_in(core, fd, <void *>&peer if is_known else NULL, handovers)


cdef void take_in(Core *core, int fd, const void *peer, uint8_t handovers) noexcept nogil:
    """Admit an accepted socket, hand it to a sibling, or refuse it; `peer` is its socket address or NULL."""
    cdef uint32_t slot = 0
    cdef uint64_t key = 0
    cdef uint8_t address[16]
    cdef bint is_counted = peer != NULL and address_read(peer, address)
    cdef bint is_trusted = is_counted and core.gate.trusted_count and address_is_trusted(core, address)
    cdef int reason = judge(core, fd, address if is_counted and not is_trusted else NULL, &key)
    if reason not in (REFUSED_ADDRESS_CONNECTIONS, REFUSED_ADDRESS_RATE):
        note_offer(core)  # an address over its own limits must not use up the offers of the others
    if reason:
        if not hand_over(core, fd, reason, handovers):
            refuse(core, fd, reason)
    elif gate_open(core, fd, &slot, address_group(core, address) if is_counted else 0) < 0:
        address_drop(core, key)
        refuse(core, fd, REFUSED_CONNECTIONS)
    else:
        if key:
            address_note(core, slot, key)
        if is_trusted and core.gate.reads_proxy_header:
            at(core, slot).variant = AWAITS_PROXY
        attention_push_newcomer(core, slot)


cdef int gate_accept(Core *core) noexcept nogil:
    """Accept up to PASS_OPENS sockets from the listener; 1 if its queue may hold more."""
    cdef int fd, index
    cdef unsigned int size
    cdef sockaddr_storage peer
    cdef bint looks = looks_at_addresses(core)
    cdef void *into = <void *>&peer if looks else NULL
    for index in range(PASS_OPENS):
        if is_offered_too_much(core):
            core.counters[<int>ACCEPTS_PAUSED] += 1
            gate_mute(core, True)
            return 0
        size = sizeof(peer)
        fd = accept4(core.listener, into, &size if looks else NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)
        if fd < 0:
            if errno == EAGAIN:
                return 0
            if errno in (EMFILE, ENFILE, ENOBUFS, ENOMEM):
                core.counters[<int>ACCEPT_EXHAUSTED] += 1
                gate_mute(core, True)
                return 0
            core.counters[<int>ACCEPT_FAILED] += 1
            if errno in (EBADF, EINVAL, ENOTSOCK):
                gate_mute(core, True)         # the listener was shut, so accept would fail again at once
                return 0
            continue                          # the peer gave up while its connection waited
        core.counters[<int>ACCEPTED] += 1
        take_in(core, fd, into, 0)
    return 1
