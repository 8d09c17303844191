"""Makes the system calls on the sockets of connections, and reads the clocks."""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from wsgate.reactor.structs cimport Connection, Core

cdef extern from "<sys/uio.h>" nogil:
    ctypedef struct iovec "struct iovec":
        void *iov_base
        size_t iov_len

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        uint64_t u64
    ctypedef struct epoll_event "struct epoll_event":
        uint32_t events
        epoll_data_t data
    int epoll_ctl(int epoll, int operation, int fd, epoll_event *event)
    int EPOLL_CTL_ADD
    int EPOLL_CTL_DEL
    int EPOLL_CTL_MOD
    uint32_t EPOLLIN
    uint32_t EPOLLOUT
    uint32_t EPOLLERR
    uint32_t EPOLLHUP

cdef enum:
    SOCKET_AGAIN = -1              # the call would block: wait for epoll
    SOCKET_GONE = -2               # the socket failed and is of no more use
    TAG_LISTENER = 0xFFFFFFFE    # low half of the epoll tag of the listener; lower values are slots
    TAG_DRAIN = 0xFFFF0000       # plus the index of a drain: its low half

cdef int64_t socket_receive(Core *core, Connection *c, uint8_t *target, uint64_t size) noexcept nogil
cdef int64_t socket_send(Core *core, Connection *c, const uint8_t *data, uint64_t size) noexcept nogil
cdef int64_t socket_send_vector(Core *core, Connection *c, iovec *parts, int count) noexcept nogil
cdef bint socket_readable(Connection *c) noexcept nogil
cdef bint socket_writable(Connection *c) noexcept nogil
cdef int socket_watch(Core *core, int32_t fd, uint64_t tag, uint32_t events) noexcept nogil
cdef int socket_interest(Core *core, uint32_t slot, bint want_in, bint want_out) noexcept nogil
cdef void socket_shut_write(Connection *c) noexcept nogil
cdef void socket_close(Core *core, Connection *c, bint reset) noexcept nogil
cdef int64_t socket_queued(Connection *c) noexcept nogil
cdef bint socket_unsent(Connection *c) noexcept nogil
cdef bint socket_orphan(int32_t fd) noexcept nogil
cdef void socket_reset(int32_t fd) noexcept nogil
cdef bint socket_address(Connection *c, uint8_t *address) noexcept nogil
cdef str socket_peer(Connection *c)
