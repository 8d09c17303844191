/* The parts that are not measured: the listener, the fork, and waiting for the other process. */
#define _GNU_SOURCE
#include "floor.h"

#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
    BACKLOG = 4096,
    BUFFER_BYTES = 16 * 1024, /* SO_SNDBUF and SO_RCVBUF of the gateway's listener, doubled by the kernel */
};

void pin_to(int cpu) {
    if (cpu >= 0) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET((size_t)cpu, &set);
        (void)sched_setaffinity(0, sizeof set, &set); /* one processor only: runs unpinned */
    }
}

bool raise_descriptor_limit(void) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) {
        return false;
    }
    limit.rlim_cur = limit.rlim_max;
    return setrlimit(RLIMIT_NOFILE, &limit) == 0;
}

/* Sets the options before `listen`, so that accepted sockets inherit them, as the gateway does. */
static int open_listener(struct sockaddr_in *address, int defer_accept_s) {
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int one = 1;
    int buffer = BUFFER_BYTES;
    socklen_t size = sizeof *address;
    if (listener < 0) {
        return -1;
    }
    *address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    if (setsockopt(listener, SOL_SOCKET, SO_SNDBUF, &buffer, sizeof buffer) != 0 ||
        setsockopt(listener, SOL_SOCKET, SO_RCVBUF, &buffer, sizeof buffer) != 0 ||
        setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) != 0 ||
        setsockopt(listener, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &buffer, sizeof buffer) != 0 ||
        (defer_accept_s > 0 && setsockopt(listener, IPPROTO_TCP, TCP_DEFER_ACCEPT, &defer_accept_s,
                                          sizeof defer_accept_s) != 0) ||
        bind(listener, (struct sockaddr *)address, sizeof *address) != 0 || listen(listener, BACKLOG) != 0 ||
        getsockname(listener, (struct sockaddr *)address, &size) != 0) {
        close(listener);
        return -1;
    }
    return listener;
}

bool peer_start(struct peer *peer, const struct peer_plan *plan, int defer_accept_s) {
    pid_t parent = getpid();
    peer->pid = -1;
    peer->listener = open_listener(&peer->address, defer_accept_s);
    peer->shared = mmap(NULL, sizeof *peer->shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (peer->listener < 0 || peer->shared == MAP_FAILED) {
        return false;
    }
    peer->pid = fork();
    if (peer->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* a peer must not outlive an interrupted probe */
        if (getppid() != parent) {
            _exit(1);
        }
        close(peer->listener);
        peer_run(plan, peer->shared, peer->address);
    }
    return peer->pid > 0;
}

void peer_stop(struct peer *peer) {
    if (peer->pid > 0) {
        kill(peer->pid, SIGKILL);
        waitpid(peer->pid, NULL, 0);
    }
    if (peer->listener >= 0) {
        close(peer->listener);
    }
    if (peer->shared != MAP_FAILED) {
        munmap(peer->shared, sizeof *peer->shared);
    }
}

bool peer_wait(const struct peer *peer, _Atomic uint64_t *counter, uint64_t target, double deadline_us) {
    const struct timespec nap = {.tv_nsec = 200 * 1000};
    while (atomic_load(counter) < target) {
        if (atomic_load(&peer->shared->failed) != 0 || now_us() > deadline_us) {
            return false;
        }
        nanosleep(&nap, NULL);
    }
    return true;
}

int accept_all(const struct peer *peer, int *descriptors, int count, double deadline_us) {
    int accepted = 0;
    while (accepted < count && now_us() < deadline_us && atomic_load(&peer->shared->failed) == 0) {
        int descriptor = accept4(peer->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (descriptor >= 0) {
            descriptors[accepted++] = descriptor;
            atomic_store(&peer->shared->served, (uint64_t)accepted);
        } else if (errno == EAGAIN) {
            poll(&(struct pollfd){.fd = peer->listener, .events = POLLIN}, 1, 10);
        } else {
            break;
        }
    }
    return accepted;
}

void close_all(const int *descriptors, int count) {
    for (int i = 0; i < count; i++) {
        if (descriptors[i] >= 0) {
            close(descriptors[i]);
        }
    }
}
