"""Declarations of the system calls that the engine uses."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from posix.time cimport timespec
from posix.types cimport time_t

cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        uint32_t u32
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int flags)
    int epoll_ctl(int epfd, int op, int fd, epoll_event* event)
    # Timeouts in ns: an open loop at 50,000/s cannot use epoll_wait's milliseconds. glibc >= 2.35.
    int epoll_pwait2(int epfd, epoll_event* events, int most, const timespec* timeout, const void* sigmask)
    enum:
        EPOLLIN
        EPOLLOUT
        EPOLLERR
        EPOLLHUP
        EPOLLRDHUP
        EPOLL_CLOEXEC
        EPOLL_CTL_ADD
        EPOLL_CTL_MOD
        EPOLL_CTL_DEL

cdef extern from "<netinet/in.h>" nogil:
    struct in_addr:
        uint32_t s_addr
    struct sockaddr_in:
        uint16_t sin_family
        uint16_t sin_port
        in_addr sin_addr
    enum:
        IPPROTO_IP
        IPPROTO_TCP
        IP_BIND_ADDRESS_NO_PORT
    uint16_t htons(uint16_t value)
    uint32_t htonl(uint32_t value)

cdef extern from "<netinet/tcp.h>" nogil:
    enum:
        TCP_NODELAY

cdef extern from "<sys/socket.h>" nogil:
    struct sockaddr:
        pass
    struct linger_t "linger":
        int l_onoff
        int l_linger
    int c_socket "socket"(int domain, int kind, int protocol)
    int c_bind "bind"(int fd, const sockaddr* address, unsigned int length)
    int c_connect "connect"(int fd, const sockaddr* address, unsigned int length)
    int c_shutdown "shutdown"(int fd, int how)
    int setsockopt(int fd, int level, int option, const void* value, unsigned int length)
    int getsockopt(int fd, int level, int option, void* value, unsigned int* length)
    ssize_t c_recv "recv"(int fd, void* data, size_t size, int flags)
    ssize_t c_send "send"(int fd, const void* data, size_t size, int flags)
    enum:
        AF_INET
        SOCK_STREAM
        SOCK_NONBLOCK
        SOCK_CLOEXEC
        SOL_SOCKET
        SO_ERROR
        SO_LINGER
        SO_RCVBUF
        SHUT_WR
        MSG_NOSIGNAL
        MSG_DONTWAIT

cdef extern from "<unistd.h>" nogil:
    int c_close "close"(int fd)

cdef extern from "<sys/random.h>" nogil:
    ssize_t getrandom(void* data, size_t size, unsigned int flags)

cdef extern from "<sys/prctl.h>" nogil:
    int prctl(int option, unsigned long value, ...)
    enum:
        PR_SET_TIMERSLACK

cdef extern from "<time.h>" nogil:
    int clock_gettime(int clock, timespec* now)
    enum:
        CLOCK_MONOTONIC
        CLOCK_THREAD_CPUTIME_ID

cdef extern from "<string.h>" nogil:
    void* memmem(const void* haystack, size_t size, const void* needle, size_t needle_size)


cdef inline uint64_t clock_ns(int clock) noexcept nogil:
    """Return the time of a clock in ns. About 30 ns."""
    cdef timespec now
    clock_gettime(clock, &now)
    return <uint64_t>now.tv_sec * 1_000_000_000 + <uint64_t>now.tv_nsec


cdef inline uint64_t monotonic_ns() noexcept nogil:
    """Return CLOCK_MONOTONIC in ns: all plans, stamps and deadlines use this clock."""
    return clock_ns(CLOCK_MONOTONIC)
