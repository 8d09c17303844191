"""The seam: every system call on a client's socket.

Everything above asks here for bytes and never touches a descriptor, so that TLS or a socket handed
over from another process is a second implementation of these calls and of nothing else.
"""

from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from wsgate.reactor.addresses cimport address_read
from wsgate.reactor.structs cimport (
    BYTES_IN, BYTES_OUT, Connection, Core, ORPHAN_MS, PAUSED_APP, PAUSED_OUTBOX, RECEIVES, SENDS,
    SENDS_BLOCKED, WANT_IN, WANT_OUT, WATCHED,
)
from wsgate.reactor.table cimport at, handle_of

cdef extern from "<sys/socket.h>" nogil:
    ctypedef struct msghdr "struct msghdr":
        iovec *msg_iov
        size_t msg_iovlen
    ctypedef struct linger_t "struct linger":
        int l_onoff
        int l_linger
    ssize_t recv(int fd, void *buffer, size_t size, int flags)
    ssize_t send(int fd, const void *data, size_t size, int flags)
    ssize_t sendmsg(int fd, const msghdr *message, int flags)
    int shutdown(int fd, int how)
    int getsockopt(int fd, int level, int name, void *value, unsigned int *size)
    int setsockopt(int fd, int level, int name, const void *value, unsigned int size)
    int MSG_DONTWAIT
    int MSG_NOSIGNAL
    int MSG_PEEK
    int SHUT_WR
    int SOL_SOCKET
    int SO_LINGER

cdef extern from "<netdb.h>" nogil:
    ctypedef struct sockaddr "struct sockaddr":
        unsigned short sa_family
    ctypedef struct sockaddr_storage "struct sockaddr_storage":
        unsigned short ss_family
    int getpeername(int fd, sockaddr *address, unsigned int *size)
    int getnameinfo(
        sockaddr *address, unsigned int size, char *host, unsigned int host_size, char *port,
        unsigned int port_size, int flags
    )
    int AF_INET
    int AF_INET6
    int NI_NUMERICHOST
    int NI_NUMERICSERV

cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int fd, unsigned long request, int *value)

cdef extern from "<linux/sockios.h>" nogil:
    unsigned long SIOCOUTQ

cdef extern from "<netinet/tcp.h>" nogil:
    int TCP_USER_TIMEOUT

cdef extern from "<netinet/in.h>" nogil:
    int IPPROTO_TCP

cdef extern from "<unistd.h>" nogil:
    int close(int fd)

cdef extern from "<poll.h>" nogil:
    ctypedef struct pollfd "struct pollfd":
        int fd
        short events
        short revents
    int poll(pollfd *entries, unsigned long count, int timeout_ms)
    short POLLOUT


cdef enum:
    SO_MEMINFO = 55
    MEMINFO_RMEM_ALLOC = 0
    MEMINFO_WMEM_ALLOC = 2
    MEMINFO_WMEM_QUEUED = 5
    MEMINFO_VALUES = 9


cdef int64_t seam_receive(Core *core, Connection *c, uint8_t *target, uint64_t size) noexcept nogil:
    """Bytes read, 0 at the end of the stream, SEAM_AGAIN or SEAM_GONE."""
    cdef ssize_t count = recv(c.fd, target, size, MSG_DONTWAIT)
    core.counters[<int>RECEIVES] += 1
    if count >= 0:
        core.counters[<int>BYTES_IN] += count
        return count
    return SEAM_AGAIN if errno == EAGAIN or errno == EINTR else SEAM_GONE


cdef inline int64_t sent(Core *core, ssize_t count) noexcept nogil:
    core.counters[<int>SENDS] += 1
    if count >= 0:
        core.counters[<int>BYTES_OUT] += count
        return count
    if errno == EAGAIN or errno == EINTR:
        core.counters[<int>SENDS_BLOCKED] += 1
        return SEAM_AGAIN
    return SEAM_GONE


cdef int64_t seam_send(Core *core, Connection *c, const uint8_t *data, uint64_t size) noexcept nogil:
    """Bytes the socket took, SEAM_AGAIN or SEAM_GONE."""
    return sent(core, send(c.fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL))


cdef int64_t seam_send_vector(Core *core, Connection *c, iovec *parts, int count) noexcept nogil:
    """As `seam_send`, for several pieces in one call."""
    cdef msghdr message
    memset(&message, 0, sizeof(message))
    message.msg_iov = parts
    message.msg_iovlen = count
    return sent(core, sendmsg(c.fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL))


cdef bint seam_readable(Connection *c) noexcept nogil:
    """Whether a byte waits unread: asked once before a silent peer is given up."""
    cdef uint8_t byte
    return recv(c.fd, &byte, 1, MSG_DONTWAIT | MSG_PEEK) > 0


cdef bint seam_writable(Connection *c) noexcept nogil:
    """Whether the socket takes bytes now: asked once before a stalled peer is given up."""
    cdef pollfd asked
    asked.fd = c.fd
    asked.events = POLLOUT
    asked.revents = 0
    return poll(&asked, 1, 0) == 1 and (asked.revents & POLLOUT) != 0


cdef int seam_watch(Core *core, int32_t fd, uint64_t tag, uint32_t events) noexcept nogil:
    """Add a descriptor to the epoll set; 0 or -1."""
    cdef epoll_event event
    event.events = events
    event.data.u64 = tag
    return epoll_ctl(core.epoll, EPOLL_CTL_ADD, fd, &event)


cdef int seam_interest(Core *core, uint32_t slot, bint want_in, bint want_out) noexcept nogil:
    """Say what epoll shall report of a connection; one system call, only on a change. 0 or -1.

    An accepted socket enters the set only when it has to be waited for: TCP_DEFER_ACCEPT brings the head
    with it, and a socket added while it is readable wakes the loop for what is read already (1 us of 20 a
    handshake). Entering is what can fail.
    """
    cdef Connection *c = at(core, slot)
    cdef epoll_event event
    cdef int operation = EPOLL_CTL_MOD if c.flags & WATCHED else EPOLL_CTL_ADD
    if (
        c.flags & WATCHED
        and ((c.flags & WANT_IN) != 0) == want_in and ((c.flags & WANT_OUT) != 0) == want_out
    ):
        return 0
    event.events = 0
    if want_in:
        event.events |= EPOLLIN
    if want_out:
        event.events |= EPOLLOUT
    event.data.u64 = handle_of(c, slot)
    if epoll_ctl(core.epoll, operation, c.fd, &event) < 0:
        return -1
    c.flags &= ~(WANT_IN | WANT_OUT)
    c.flags |= WATCHED | (WANT_IN if want_in else 0) | (WANT_OUT if want_out else 0)
    return 0


cdef void seam_shut_write(Connection *c) noexcept nogil:
    """End our side of the stream; the peer reads to its end."""
    shutdown(c.fd, SHUT_WR)


cdef bint unsent(int32_t fd) noexcept nogil:
    """Whether the kernel holds bytes that the peer has not acknowledged. An end of stream counts as one byte.

    The count alone stays what it was when the peer resets the connection, although the kernel has freed the data.
    """
    cdef uint32_t values[MEMINFO_VALUES]
    cdef unsigned int size = sizeof(values)
    cdef int count = 0
    if ioctl(fd, SIOCOUTQ, &count) < 0 or count <= 1:
        return False
    return getsockopt(fd, SOL_SOCKET, SO_MEMINFO, values, &size) < 0 or values[MEMINFO_WMEM_QUEUED] != 0


cdef bint seam_unsent(Connection *c) noexcept nogil:
    """Whether the kernel still holds bytes that were written and that the peer has not taken."""
    return unsent(c.fd)


cdef bint seam_orphan(int32_t fd) noexcept nogil:
    """Before a plain close: let the kernel keep unsent data for ORPHAN_MS at most; True if there is any.

    Without this it keeps the data until the listener's TCP_USER_TIMEOUT, and nobody counts it. A peer that is
    far away and reads still receives what was written.
    """
    cdef unsigned int timeout_ms = ORPHAN_MS
    return unsent(fd) and setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout_ms, sizeof(timeout_ms)) == 0


cdef void seam_reset(int32_t fd) noexcept nogil:
    """Have the next close reset the connection: the kernel then forgets what it still held for the peer."""
    cdef linger_t option
    option.l_onoff = 1
    option.l_linger = 0
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &option, sizeof(option))


cdef void seam_close(Core *core, Connection *c, bint reset) noexcept nogil:
    """Close the descriptor; with `reset` the kernel forgets what it still held for the peer."""
    if reset:
        seam_reset(c.fd)
    # A descriptor that was duplicated keeps the socket open, and the set would report it for ever.
    if c.flags & WATCHED:
        epoll_ctl(core.epoll, EPOLL_CTL_DEL, c.fd, NULL)
    close(c.fd)
    c.fd = -1


cdef int64_t seam_queued(Connection *c) noexcept nogil:
    """Bytes of memory the kernel holds for what was not taken, by the peer or by us; -1: it does not say.

    By us where we have paused; else what lies there is read in this very pass. With the page that a socket keeps for more. Source: socket(7), SO_MEMINFO; linux/sock_diag.h.
    """
    cdef uint32_t values[MEMINFO_VALUES]
    cdef unsigned int size = sizeof(values)
    cdef int64_t held
    if getsockopt(c.fd, SOL_SOCKET, SO_MEMINFO, values, &size) < 0 or size < sizeof(values):
        return -1
    held = <int64_t>max(values[MEMINFO_WMEM_ALLOC], values[MEMINFO_WMEM_QUEUED])
    if c.flags & (PAUSED_APP | PAUSED_OUTBOX):
        held += values[MEMINFO_RMEM_ALLOC]
    return held + 4096 if held else 0


cdef bint seam_address(Connection *c, uint8_t *address) noexcept nogil:
    """The 16 bytes of the peer's address, IPv4 mapped; False when it has none."""
    cdef sockaddr_storage peer
    cdef unsigned int size = sizeof(peer)
    return getpeername(c.fd, <sockaddr *>&peer, &size) == 0 and address_read(&peer, address)


cdef str seam_peer(Connection *c):
    """`host:port` or `[host]:port` of the peer; empty when it has no network address."""
    cdef sockaddr_storage address
    cdef unsigned int size = sizeof(address)
    cdef char host[64]
    cdef char port[8]
    if getpeername(c.fd, <sockaddr *>&address, &size) < 0 or address.ss_family not in (AF_INET, AF_INET6):
        return ""
    if getnameinfo(<sockaddr *>&address, size, host, 64, port, 8, NI_NUMERICHOST | NI_NUMERICSERV) != 0:
        return ""
    name = (<bytes>host).decode("ascii")
    return f"[{name}]:{(<bytes>port).decode('ascii')}" if ":" in name else f"{name}:{(<bytes>port).decode('ascii')}"
