"""The gate: accepting, and refusing before a byte is read.

Accepts in batches of 32, judges each socket from counters alone, and either gives it a slot or
refuses it with the bytes it was told to. A refusal must arrive: it is answered, half-closed and read
to its end by one of a few drains (bounded in bytes, time and number). With every drain busy, a peer
whose whole head has already come is answered and closed at once, since nothing unread is left to
reset the answer away; any other is closed without a word and counted `refused_silent`.

Out of descriptors (EMFILE and its kin) the listener is taken out of the epoll set until the next
tick, so that a full process does not spin on a queue it cannot serve. The same when four times the rate of
handshakes is offered: refusing costs too, and who waits in the kernel's queue costs nothing.

A full shard is no full node: who finds no room here is handed to a sibling that has some, as it is, a
descriptor through a Unix socket. The caller says to whom, and takes in what siblings hand over (gate_accept_handover).
A shard that had room may be full meanwhile. It then passes the connection to the next shard in a ring, so that
every shard is tried before the connection is refused. Without the ring, two shards with outdated figures passed a
connection back and forth and never tried a third.

Whose address counts is the peer's own, or, for a listed proxy, whom it names in a PROXY header (head.pyx)
or in X-Forwarded-For (the caller's part): those are judged when they are known.
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
    EPOLLIN, EPOLL_CTL_DEL, TAG_DRAIN, TAG_LISTENER, epoll_ctl, seam_address, seam_orphan, seam_watch,
)
from wsgate.reactor.structs cimport (
    ACCEPTED, ACCEPTS_PAUSED, ACCEPT_EXHAUSTED, ACCEPT_FAILED, AWAITS_PROXY, Answer, CHUNK_BITS, Connection, Core,
    DRAINS_MAX, Drain, HANDED_OVER, HEAD_DISPLACED, IN_ATTENTION, Input, NONE, PASS_OPENS, RECEIVE_BYTES, REFUSED, REFUSED_ADDRESS_CONNECTIONS, REFUSED_ADDRESS_RATE,
    REFUSED_CONNECTIONS, REFUSED_DESCRIPTORS, REFUSED_HANDSHAKES,
    REFUSED_MEMORY, REFUSED_PARTIAL_BYTES, REFUSED_RATE, REFUSED_SILENT, REFUSED_UNDRAINED, STATE_DECIDING,
    STATE_FREE, STATE_GONE, STATE_HEAD, WATCHED,
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
    OFFERS_LEAST = 1000
    OFFERS_TIMES = 4
    DISPLACE_LOOKS = 64          # connections looked at for one newcomer
    COUNT_LOOKS = 8192           # slots looked at in one tick: 3 ms of it


cdef inline bint takes_one(int64_t *full_ns, int64_t now_ns, int64_t cost_ns, int64_t depth_ns) noexcept nogil:
    """Take one from a bucket so deep, kept as the time at which it would be full again."""
    if full_ns[0] < now_ns:
        full_ns[0] = now_ns
    if full_ns[0] + cost_ns > now_ns + depth_ns:
        return False
    full_ns[0] += cost_ns
    return True


cdef bint displace_head(Core *core) noexcept nogil:
    """End the oldest half-sent head of the address that has most, so that a newcomer has its place.

    A newcomer mostly brings a whole head. If it were refused instead, as many silent sockets as there may be
    handshakes would keep everybody else out. The address that has most gives way and not the oldest head of
    all: otherwise one address that keeps coming would displace the heads of every other. Addresses are told
    apart by a hash into groups: two that share a group share its place in this order, and no more.
    A head whose bytes wait for their turn is not displaced.

    Returns:
        False when no head of that address can give way.
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
    """0 to let in, else the reason not to. Counters only; the cheapest test first.

    With an `address` its owner is judged as well, before the rate of all: who asks too often is to cost the
    others nothing. `key` is what it was counted under.
    """
    cdef int64_t now_ns, cost
    cdef int reason
    if core.gate.descriptors and <uint32_t>fd >= core.gate.descriptors:
        # The kernel hands out the lowest free number: this one counts everything else that is open.
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
    return SECOND_NS // OFFERS_TIMES // core.gate.handshake_rate_per_s if core.gate.handshake_rate_per_s else 0


cdef bint is_offered_too_much(Core *core) noexcept nogil:
    """Whether four times the rate of handshakes is used up: one more would be refused, and so would the next.

    Not twice: who waits in the kernel's queue is answered late. At two and a half times the rate for eight
    seconds the p99 of all answers was 3.3 s with twice, and is milliseconds with this: python -m loadtest overload
    A thousand are always looked at: refusing so few costs nothing worth saving.
    """
    cdef int64_t now_ns = core.now_ms * 1000000, cost = offer_cost(core)
    if cost == 0 or core.gate.offer_ns < now_ns:
        return False
    return core.gate.offer_ns + cost > now_ns + max(SECOND_NS, OFFERS_LEAST * cost)


cdef inline void note_offer(Core *core) noexcept nogil:
    """One more was accepted."""
    cdef int64_t cost = offer_cost(core)
    if cost:
        core.gate.offer_ns = max(core.gate.offer_ns, core.now_ms * 1000000) + cost


cdef Drain *free_drain(Core *core, uint32_t *index) noexcept nogil:
    cdef uint32_t place
    if core.drain_count >= core.gate.drains:
        return NULL
    for place in range(<uint32_t>DRAINS_MAX):
        if core.drains[place].fd < 0:
            index[0] = place
            return &core.drains[place]
    return NULL


cdef void answer(Core *core, int fd, int reason) noexcept nogil:
    cdef Answer *said = &core.gate.refusal
    if reason in (REFUSED_ADDRESS_CONNECTIONS, REFUSED_ADDRESS_RATE):
        said = &core.gate.too_many
    if said.length:
        send(fd, said.data, said.length, MSG_DONTWAIT | MSG_NOSIGNAL)
    shutdown(fd, SHUT_WR)


cdef inline bint ends_head(const uint8_t *data, int64_t size) noexcept nogil:
    return (
        size >= 4 and data[size - 4] == 13 and data[size - 3] == 10
        and data[size - 2] == 13 and data[size - 1] == 10
    )


cdef void refuse(Core *core, int fd, int reason) noexcept nogil:
    """Tell a peer no, in a way that arrives, as long as that is cheap."""
    cdef uint32_t index = 0
    cdef int64_t count
    cdef Drain *drain
    core.ended[reason] += 1
    count = recv(fd, core.receive_buffer, RECEIVE_BYTES, MSG_DONTWAIT)
    if count == 0 or (count < 0 and errno != EAGAIN):
        core.counters[<int>REFUSED_SILENT] += 1    # it is gone already
        close(fd)
        return
    drain = free_drain(core, &index)
    if drain == NULL:
        if ends_head(core.receive_buffer, count):
            answer(core, fd, reason)
            seam_orphan(fd)
            core.counters[<int>REFUSED] += 1
            core.counters[<int>REFUSED_UNDRAINED] += 1
        else:
            core.counters[<int>REFUSED_SILENT] += 1
        close(fd)
        return
    answer(core, fd, reason)
    core.counters[<int>REFUSED] += 1
    if seam_watch(core, fd, TAG_DRAIN + index, EPOLLIN) < 0:
        close(fd)
        return
    drain.fd = fd
    drain.bytes = <uint32_t>count if count > 0 else 0
    drain.deadline_ms = core.clock_ms + core.gate.drain_ms
    core.drain_count += 1


cdef void end_drain(Core *core, Drain *drain) noexcept nogil:
    seam_orphan(drain.fd)
    close(drain.fd)
    drain.fd = -1
    core.drain_count -= 1


cdef void gate_drain(Core *core, uint32_t index) noexcept nogil:
    """A refused socket has something to read: discard it, or end."""
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
    """End every drain now."""
    cdef uint32_t index
    for index in range(<uint32_t>DRAINS_MAX):
        if core.drains[index].fd >= 0:
            end_drain(core, &core.drains[index])


cdef void gate_answers_free(Core *core) noexcept nogil:
    """Give back what refused peers are told."""
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
    elif seam_watch(core, core.listener, TAG_LISTENER, EPOLLIN) < 0:
        return
    core.listener_muted = mute


cdef void count_earlier(Core *core) noexcept nogil:
    """Put those on an address's count who came before it had a limit; who came by a proxy is not known any more."""
    cdef uint32_t slots = core.chunk_count << CHUNK_BITS, looks
    cdef uint8_t address[16]
    cdef Connection *c
    for looks in range(<uint32_t>COUNT_LOOKS):
        if core.uncounted_slot >= slots:
            core.uncounted_slot = NONE
            return
        c = at(core, core.uncounted_slot)
        if c.state not in (STATE_FREE, STATE_GONE) and seam_address(c, address) and not address_is_trusted(
            core, address
        ):
            address_count(core, core.uncounted_slot, address)
        core.uncounted_slot += 1


cdef void gate_tick(Core *core) noexcept nogil:
    """Every 250 ms: end drains that are over their time, and try a muted listener again."""
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
    """Give a socket a slot in state HEAD, its deadline running; 0, or -1 when there is none.

    `group` is that of its address (address_group), 0 when the address is not known.

    It is not in the epoll set yet: its first turn reads it, and puts it there if there is more to wait for.
    """
    cdef Connection *c = table_open(core, fd, slot)
    if c == NULL:
        return -1
    c.seen_ms = c.message_ms = <uint32_t>core.clock_ms
    c.control_ms = <uint32_t>core.now_ms << 4    # a full bucket; see messages.pyx
    heads_push(core, slot[0], group)
    c.deadline_ms = core.clock_ms + core.limits.head_timeout_ms
    wheel_arm(core, slot[0], c.deadline_ms)
    return 0


cdef bint hand_over(Core *core, int fd, int reason, uint8_t handovers) noexcept nogil:
    """Give a socket for which there is no room here to a sibling; False: nobody takes it."""
    cdef int sibling = core.relief_next if handovers else core.relief
    if sibling < 0 or reason not in (REFUSED_DESCRIPTORS, REFUSED_CONNECTIONS, REFUSED_MEMORY):
        return False
    if handovers >= core.max_handovers or not send_descriptor(sibling, fd, handovers + 1):
        return False
    close(fd)                                 # the message holds it now
    core.counters[<int>HANDED_OVER] += 1
    return True


cdef inline bint looks_at_addresses(Core *core) noexcept nogil:
    return (
        core.gate.per_address_connections or core.gate.per_address_rate_per_s or core.gate.reads_proxy_header
        or core.gate.handshakes
    )


cdef void gate_accept_handover(Core *core, int fd, uint8_t handovers) noexcept nogil:
    """Judge an accepted socket, by its peer's address where that counts; it is this reactor's from now on.

    It came through so many handovers, 0: those of the kernel.
    """
    cdef sockaddr_storage peer
    cdef unsigned int size = sizeof(peer)
    cdef bint is_known = looks_at_addresses(core) and getpeername(fd, <void *>&peer, &size) == 0
    take_in(core, fd, <void *>&peer if is_known else NULL, handovers)


cdef void take_in(Core *core, int fd, const void *peer, uint8_t handovers) noexcept nogil:
    cdef uint32_t slot = 0
    cdef uint64_t key = 0
    cdef uint8_t address[16]
    cdef bint is_counted = peer != NULL and address_read(peer, address)
    cdef bint is_trusted = is_counted and core.gate.trusted_count and address_is_trusted(core, address)
    cdef int reason = judge(core, fd, address if is_counted and not is_trusted else NULL, &key)
    if reason not in (REFUSED_ADDRESS_CONNECTIONS, REFUSED_ADDRESS_RATE):
        note_offer(core)                      # one address that is over its own limits shuts nobody else out
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
    """Accept a batch; 1 when the queue may hold more."""
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
                gate_mute(core, True)         # somebody shut the listener: no use in asking again at once
                return 0
            continue                          # the peer gave up while it waited
        core.counters[<int>ACCEPTED] += 1
        take_in(core, fd, into, 0)
    return 1
