"""Makes the system calls on the sockets of connections, and reads the clocks.

Modules that read and write use these functions and never a descriptor, so that TLS would be a second
implementation of this module alone. Sockets that are accepted, refused or drained have no connection:
gate.pyx makes most of their calls itself.
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


cdef int64_t socket_receive(Core *core, Connection *c, uint8_t *target, uint64_t size) noexcept nogil:
    """Receive up to `size` bytes; return the number, 0 at the end of the stream, SOCKET_AGAIN or SOCKET_GONE."""
    cdef ssize_t count = recv(c.fd, target, size, MSG_DONTWAIT)
    core.counters[<int>RECEIVES] += 1
    if count >= 0:
        core.counters[<int>BYTES_IN] += count
        return count
    return SOCKET_AGAIN if errno == EAGAIN or errno == EINTR else SOCKET_GONE


cdef inline int64_t sent(Core *core, ssize_t count) noexcept nogil:
    """Count a send by its result `count`; return the bytes, SOCKET_AGAIN or SOCKET_GONE by errno."""
    core.counters[<int>SENDS] += 1
    if count >= 0:
        core.counters[<int>BYTES_OUT] += count
        return count
    if errno == EAGAIN or errno == EINTR:
        core.counters[<int>SENDS_BLOCKED] += 1
        return SOCKET_AGAIN
    return SOCKET_GONE


cdef int64_t socket_send(Core *core, Connection *c, const uint8_t *data, uint64_t size) noexcept nogil:
    """Send one piece of data; return how many bytes the socket took, SOCKET_AGAIN or SOCKET_GONE."""
    return sent(core, send(c.fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL))


cdef int64_t socket_send_vector(Core *core, Connection *c, iovec *parts, int count) noexcept nogil:
    """Send several pieces of data in one system call; return values as `socket_send`."""
    cdef msghdr message
    memset(&message, 0, sizeof(message))
    message.msg_iov = parts
    message.msg_iovlen = count
    return sent(core, sendmsg(c.fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL))


cdef bint socket_readable(Connection *c) noexcept nogil:
    """Return whether a byte waits unread; checked before a silent peer fails its heartbeat."""
    cdef uint8_t byte
    return recv(c.fd, &byte, 1, MSG_DONTWAIT | MSG_PEEK) > 0


cdef bint socket_writable(Connection *c) noexcept nogil:
    """Return whether the socket takes bytes now; checked before a stalled connection is reset."""
    cdef pollfd asked
    asked.fd = c.fd
    asked.events = POLLOUT
    asked.revents = 0
    return poll(&asked, 1, 0) == 1 and (asked.revents & POLLOUT) != 0


cdef int socket_watch(Core *core, int32_t fd, uint64_t tag, uint32_t events) noexcept nogil:
    """Add a descriptor with its tag to the epoll set; return 0, or -1 on failure."""
    cdef epoll_event event
    event.events = events
    event.data.u64 = tag
    return epoll_ctl(core.epoll, EPOLL_CTL_ADD, fd, &event)


cdef int socket_interest(Core *core, uint32_t slot, bint want_in, bint want_out) noexcept nogil:
    """Set whether epoll reports a connection as readable and as writable; return 0, or -1 on failure.

    Makes one system call, and none if nothing changes. An accepted socket is added to the set only when more
    input has to be awaited: with TCP_DEFER_ACCEPT the head has mostly arrived already, and a socket that is
    added while it is readable would wake the loop for bytes that are read by then (1 us of 20 a handshake).
    Only this first addition can fail.
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


cdef void socket_shut_write(Connection *c) noexcept nogil:
    """Shut our side of the stream, so that the peer sees its end after the bytes sent before."""
    shutdown(c.fd, SHUT_WR)


cdef bint unsent(int32_t fd) noexcept nogil:
    """Return whether the kernel holds bytes that the peer has not acknowledged, for any descriptor.

    The end of the stream counts as one byte, which is not data. SIOCOUTQ alone is not enough: when the peer
    has reset the connection it still reports data that the kernel has freed.
    """
    cdef uint32_t values[MEMINFO_VALUES]
    cdef unsigned int size = sizeof(values)
    cdef int count = 0
    if ioctl(fd, SIOCOUTQ, &count) < 0 or count <= 1:
        return False
    return getsockopt(fd, SOL_SOCKET, SO_MEMINFO, values, &size) < 0 or values[MEMINFO_WMEM_QUEUED] != 0


cdef bint socket_unsent(Connection *c) noexcept nogil:
    """Return whether the kernel holds bytes written to a connection that its peer has not acknowledged."""
    return unsent(c.fd)


cdef bint socket_orphan(int32_t fd) noexcept nogil:
    """Limit to ORPHAN_MS how long the kernel keeps unsent data after a close; return True if there is any.

    Call it before a close without reset. Without it the kernel keeps the data until the TCP_USER_TIMEOUT of
    the listener, on no account. A peer that is far away and reads still receives the data.
    """
    cdef unsigned int timeout_ms = ORPHAN_MS
    return unsent(fd) and setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout_ms, sizeof(timeout_ms)) == 0


cdef void socket_reset(int32_t fd) noexcept nogil:
    """Make the next close of the descriptor a reset, with which the kernel discards all unsent data."""
    cdef linger_t option
    option.l_onoff = 1
    option.l_linger = 0
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &option, sizeof(option))


cdef void socket_close(Core *core, Connection *c, bint reset) noexcept nogil:
    """Close the descriptor of a connection; with `reset` discard unsent data and reset the peer."""
    if reset:
        socket_reset(c.fd)
    # If the descriptor was duplicated, the socket stays open and the epoll set would report it for ever.
    if c.flags & WATCHED:
        epoll_ctl(core.epoll, EPOLL_CTL_DEL, c.fd, NULL)
    close(c.fd)
    c.fd = -1


cdef int64_t socket_queued(Connection *c) noexcept nogil:
    """Return the bytes of kernel memory for a connection's buffered data; -1 if it does not report it.

    Data received but not read counts only while reading is paused, because otherwise it is read in this pass.
    One page is added to any other amount, because the socket keeps it for more data.

    Source: socket(7), SO_MEMINFO; linux/sock_diag.h.
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


cdef bint socket_address(Connection *c, uint8_t *address) noexcept nogil:
    """Write the 16 bytes of the peer's IP address, IPv4-mapped, to `address`; return False if it has none."""
    cdef sockaddr_storage peer
    cdef unsigned int size = sizeof(peer)
    return getpeername(c.fd, <sockaddr *>&peer, &size) == 0 and address_read(&peer, address)


cdef str socket_peer(Connection *c):
    """Return the peer's address as `host:port` or `[host]:port`; empty if it has no IP address."""
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
