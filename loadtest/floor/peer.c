/* The peer process: it connects to the measured process, then reads, echoes, pongs or closes by its plan.
 *
 * It runs in a forked child and ends by its counts, by its deadline, or by the SIGKILL of the parent. */
#define _GNU_SOURCE
#include "floor.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    SOCKETS_PER_ADDRESS = 1000, /* one source address has 28,000 ports; far below that stays fast */
    READ_BYTES = 64 * 1024,
};

struct slot {
    uint32_t pending; /* bytes of an unfinished frame, or of pings not yet answered */
    uint32_t left;    /* echoes still to send */
};

struct crew {
    const struct peer_plan *plan;
    struct shared *shared;
    struct sockaddr_in address;
    struct slot *slots; /* by descriptor: all of this process are below SOCKETS_LIMIT + 100 */
    int *descriptors;
    int connected;
    int set;
    double deadline_us;
    uint64_t received;
    uint64_t ended;
    int idle_echoes; /* sockets that have not sent their first echo yet: next index */
};

static char read_buffer[READ_BYTES];
static const char masked_frame[MASKED_FRAME_BYTES];
static const char pong[PONG_BYTES] = {(char)0x8a, (char)0x80};

static _Noreturn void fail(struct shared *shared, int error) {
    atomic_store(&shared->failed, error != 0 ? error : EIO);
    _exit(1);
}

/* Connects from one address of 127.0.0.0/8 per 1,000 sockets. connect() chooses the port for each 4-tuple. */
static int connect_one(const struct crew *crew, int index) {
    uint32_t host = 0x7f010001u + (uint32_t)(index / SOCKETS_PER_ADDRESS);
    struct sockaddr_in source = {.sin_family = AF_INET, .sin_addr = {htonl(host)}};
    int descriptor = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int one = 1;
    if (descriptor < 0) {
        fail(crew->shared, errno);
    }
    if (setsockopt(descriptor, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one) != 0 ||
        bind(descriptor, (struct sockaddr *)&source, sizeof source) != 0 ||
        connect(descriptor, (const struct sockaddr *)&crew->address, sizeof crew->address) != 0) {
        fail(crew->shared, errno);
    }
    if (crew->plan->action != PEER_CLOSES) {
        /* Ends by a reset, which leaves no TIME_WAIT. A refused peer ends with a FIN, as real clients do. */
        struct linger reset = {.l_onoff = 1, .l_linger = 0};
        setsockopt(descriptor, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    }
    return descriptor;
}

static void send_all(const struct crew *crew, int descriptor, const void *data, size_t size) {
    if (send(descriptor, data, size, MSG_NOSIGNAL) != (ssize_t)size) {
        fail(crew->shared, errno);
    }
}

static void send_echo(struct crew *crew, int descriptor) {
    crew->slots[descriptor].left--;
    send_all(crew, descriptor, masked_frame, sizeof masked_frame);
}

static void on_bytes(struct crew *crew, int descriptor, uint32_t size) {
    struct slot *slot = &crew->slots[descriptor];
    slot->pending += size;
    switch (crew->plan->action) {
    case PEER_READS:
    case PEER_CLOSES:
        crew->received += size;
        break;
    case PEER_PONGS:
        while (slot->pending >= PING_BYTES) {
            slot->pending -= PING_BYTES;
            send_all(crew, descriptor, pong, sizeof pong);
            crew->received++;
        }
        break;
    case PEER_ECHOES:
        while (slot->pending >= FRAME_BYTES) {
            slot->pending -= FRAME_BYTES;
            crew->received++;
            if (slot->left > 0) {
                send_echo(crew, descriptor);
            } else if (crew->idle_echoes < crew->connected) {
                send_echo(crew, crew->descriptors[crew->idle_echoes++]);
            }
        }
        break;
    }
}

static void on_end(struct crew *crew, int descriptor) {
    close(descriptor); /* leaves the epoll set by itself: no other descriptor shares the file */
    crew->ended++;
}

static void read_ready(struct crew *crew, int timeout_ms) {
    struct epoll_event events[EVENTS_LIMIT];
    int count = epoll_wait(crew->set, events, EVENTS_LIMIT, timeout_ms);
    for (int i = 0; i < count; i++) {
        int descriptor = events[i].data.fd;
        ssize_t size = recv(descriptor, read_buffer, sizeof read_buffer, MSG_DONTWAIT);
        if (size > 0) {
            on_bytes(crew, descriptor, (uint32_t)size);
        } else if (size == 0 || errno != EAGAIN) {
            on_end(crew, descriptor);
        }
    }
    if (count > 0) {
        atomic_store(&crew->shared->received, crew->received);
        atomic_store(&crew->shared->ended, crew->ended);
    }
    if (now_us() > crew->deadline_us) {
        fail(crew->shared, ETIMEDOUT);
    }
}

static void add_connection(struct crew *crew) {
    const struct peer_plan *plan = crew->plan;
    int descriptor = connect_one(crew, crew->connected);
    struct epoll_event event = {.events = EPOLLIN, .data = {.fd = descriptor}};
    if (descriptor >= SOCKETS_LIMIT + 100) {
        fail(crew->shared, EMFILE);
    }
    crew->slots[descriptor] = (struct slot){.left = (uint32_t)plan->rounds};
    crew->descriptors[crew->connected] = descriptor;
    if (plan->request != NULL) {
        send_all(crew, descriptor, plan->request, plan->request_size);
    }
    if (epoll_ctl(crew->set, EPOLL_CTL_ADD, descriptor, &event) != 0) {
        fail(crew->shared, errno);
    }
    atomic_store(&crew->shared->connected, (uint64_t)++crew->connected);
}

/* Returns how many connects may be ahead of the server at present. */
static int connects_allowed(const struct crew *crew) {
    int served = (int)atomic_load(&crew->shared->served);
    if (crew->plan->burst > 0) {
        return (served / crew->plan->burst + 1) * crew->plan->burst;
    }
    return served + crew->plan->window;
}

void peer_run(const struct peer_plan *plan, struct shared *shared, struct sockaddr_in address) {
    struct crew crew = {
        .plan = plan,
        .shared = shared,
        .address = address,
        .slots = calloc(SOCKETS_LIMIT + 100, sizeof(struct slot)),
        .descriptors = calloc((size_t)plan->sockets, sizeof(int)),
        .set = epoll_create1(EPOLL_CLOEXEC),
        .deadline_us = now_us() + plan->timeout_s * 1e6,
    };
    if (crew.slots == NULL || crew.descriptors == NULL || crew.set < 0) {
        fail(shared, errno);
    }
    pin_to(plan->cpu);
    while (crew.connected < plan->sockets) {
        if (crew.connected < connects_allowed(&crew)) {
            add_connection(&crew);
            if (crew.connected % 16 == 0) {
                read_ready(&crew, 0);
            }
        } else {
            read_ready(&crew, 1);
        }
    }
    while (plan->action == PEER_ECHOES && atomic_load(&shared->go) == 0) {
        read_ready(&crew, 1);
    }
    while (plan->action == PEER_ECHOES && crew.idle_echoes < plan->window && crew.idle_echoes < crew.connected) {
        send_echo(&crew, crew.descriptors[crew.idle_echoes++]);
    }
    for (;;) { /* until the parent's SIGKILL or the deadline in read_ready */
        read_ready(&crew, 100);
    }
}
