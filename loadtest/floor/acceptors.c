/* Scenarios that only accept: epoll with accept4, and io_uring with multishot accept.
 *
 * Each exists in two forms: as they come (the server sleeps between two connects) and in bursts (512
 * connections wait in the queue before the server accepts). io_uring is used by its raw system calls, so
 * that the comparison needs no library. If the kernel refuses it, the result says so.
 *
 * Source: io_uring(7), io_uring_setup(2) and io_uring_enter(2); linux/io_uring.h. */
#define _GNU_SOURCE
#include "floor.h"

#include <errno.h>
#include <linux/io_uring.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum {
    BURST = 512,              /* far below the backlog, so that no SYN is dropped */
    SUBMISSIONS = 8,
    COMPLETIONS = 4096,       /* more than a burst, so that none overflows */
};

struct ring {
    int descriptor;
    void *queues; /* submission and completion ring share one mapping (IORING_FEAT_SINGLE_MMAP) */
    size_t queues_size;
    struct io_uring_sqe *entries;
    size_t entries_size;
    struct io_uring_params parameters;
};

struct gathering {
    const struct options *options;
    struct peer peer;
    int *descriptors;
    int accepted;
    double deadline_us;
    int set;
    struct ring ring;
    int (*take)(struct gathering *gathering, int limit); /* sleeps for and takes connections */
};

static uint32_t *ring_word(const struct ring *ring, uint32_t offset) {
    return (uint32_t *)(void *)((char *)ring->queues + offset);
}

static bool ring_open(struct ring *ring) {
    ring->parameters = (struct io_uring_params){
        /* Completions happen only inside io_uring_enter: otherwise a burst would be accepted, unmeasured,
         * in the next system call of any kind. Linux 6.1. */
        .flags = IORING_SETUP_CQSIZE | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
        .cq_entries = COMPLETIONS,
    };
    struct io_uring_params *parameters = &ring->parameters;
    ring->queues = ring->entries = MAP_FAILED;
    ring->descriptor = (int)syscall(SYS_io_uring_setup, SUBMISSIONS, parameters);
    if (ring->descriptor < 0) {
        return false;
    }
    size_t submission_size = parameters->sq_off.array + parameters->sq_entries * sizeof(uint32_t);
    ring->queues_size = parameters->cq_off.cqes + parameters->cq_entries * sizeof(struct io_uring_cqe);
    ring->queues_size = submission_size > ring->queues_size ? submission_size : ring->queues_size;
    ring->entries_size = parameters->sq_entries * sizeof(struct io_uring_sqe);
    ring->queues = mmap(NULL, ring->queues_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
                        ring->descriptor, IORING_OFF_SQ_RING);
    ring->entries = mmap(NULL, ring->entries_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
                         ring->descriptor, IORING_OFF_SQES);
    return ring->queues != MAP_FAILED && (void *)ring->entries != MAP_FAILED;
}

static void ring_close(struct ring *ring) {
    if (ring->queues != MAP_FAILED) {
        munmap(ring->queues, ring->queues_size);
    }
    if ((void *)ring->entries != MAP_FAILED) {
        munmap(ring->entries, ring->entries_size);
    }
    if (ring->descriptor >= 0) {
        close(ring->descriptor);
    }
}

/* Submits one entry that accepts until it is cancelled. */
static void ring_arm(struct ring *ring, int listener) {
    const struct io_sqring_offsets *offsets = &ring->parameters.sq_off;
    _Atomic uint32_t *tail = (_Atomic uint32_t *)ring_word(ring, offsets->tail);
    uint32_t at = atomic_load(tail);
    uint32_t index = at & *ring_word(ring, offsets->ring_mask);
    ring->entries[index] = (struct io_uring_sqe){
        .opcode = IORING_OP_ACCEPT,
        .fd = listener,
        .ioprio = IORING_ACCEPT_MULTISHOT,
        .accept_flags = SOCK_NONBLOCK | SOCK_CLOEXEC,
    };
    ring_word(ring, offsets->array)[index] = index;
    atomic_store(tail, at + 1);
}

static int ring_enter(struct ring *ring, unsigned submissions, unsigned wait_for) {
    struct __kernel_timespec timeout = {.tv_nsec = 100 * 1000 * 1000};
    struct io_uring_getevents_arg argument = {.ts = (uint64_t)(uintptr_t)&timeout};
    system_calls++;
    return (int)syscall(SYS_io_uring_enter, ring->descriptor, submissions, wait_for,
                        IORING_ENTER_GETEVENTS | IORING_ENTER_EXT_ARG, &argument, sizeof argument);
}

static int take_uring(struct gathering *gathering, int limit) {
    struct ring *ring = &gathering->ring;
    const struct io_cqring_offsets *offsets = &ring->parameters.cq_off;
    _Atomic uint32_t *head = (_Atomic uint32_t *)ring_word(ring, offsets->head);
    _Atomic uint32_t *tail = (_Atomic uint32_t *)ring_word(ring, offsets->tail);
    uint32_t mask = *ring_word(ring, offsets->ring_mask);
    const struct io_uring_cqe *completions = (const void *)((char *)ring->queues + offsets->cqes);
    uint32_t at = atomic_load(head);
    int taken = 0;
    if (at == atomic_load(tail)) {
        ring_enter(ring, 0, 1);
    }
    while (at != atomic_load(tail) && taken < limit) {
        const struct io_uring_cqe *completion = &completions[at++ & mask];
        if (completion->res < 0) {
            atomic_store(head, at);
            return completion->res;
        }
        gathering->descriptors[gathering->accepted++] = completion->res;
        taken++;
        if ((completion->flags & IORING_CQE_F_MORE) == 0) {
            ring_arm(ring, gathering->peer.listener); /* the kernel ended the multishot: arm again */
            ring_enter(ring, 1, 0);
        }
    }
    atomic_store(head, at);
    return taken;
}

static int take_epoll(struct gathering *gathering, int limit) {
    struct epoll_event events[1];
    int taken = 0;
    if (counted_epoll_wait(gathering->set, events, 1, 100) <= 0) {
        return 0;
    }
    while (taken < limit) {
        int descriptor = counted_accept4(gathering->peer.listener);
        if (descriptor < 0) {
            return errno == EAGAIN ? taken : -errno;
        }
        gathering->descriptors[gathering->accepted++] = descriptor;
        taken++;
    }
    return taken;
}

/* Accepts connections until there are `target` in total; this is the measured section. */
static bool take_until(struct gathering *gathering, int target) {
    while (gathering->accepted < target && now_us() < gathering->deadline_us) {
        if (gathering->take(gathering, target - gathering->accepted) < 0 ||
            atomic_load(&gathering->peer.shared->failed) != 0) {
            return false;
        }
        atomic_store(&gathering->peer.shared->served, (uint64_t)gathering->accepted);
    }
    return gathering->accepted >= target;
}

static void gather(struct gathering *gathering, int burst, struct result *result) {
    int sockets = gathering->options->sockets;
    int step = burst > 0 ? burst : sockets;
    struct usage sum = {0};
    for (int target = 0; target < sockets;) {
        target = target + step < sockets ? target + step : sockets;
        if (burst > 0 && !peer_wait(&gathering->peer, &gathering->peer.shared->connected, (uint64_t)target,
                                    gathering->deadline_us)) {
            break;
        }
        struct usage from = usage_now();
        bool is_done = take_until(gathering, target);
        struct usage until = usage_now();
        usage_add(&sum, &from, &until);
        if (!is_done) {
            break;
        }
    }
    if (gathering->accepted < sockets) {
        result_fail(result, "not all connections were accepted");
    }
    result_add_usage(result, &sum, gathering->accepted, "cpu_us_per_accept");
    result_add(result, "connections", sockets);
    result_add(result, "accepted", gathering->accepted);
    result_add(result, "burst", burst);
}

static bool prepare(struct gathering *gathering, bool use_uring, struct result *result) {
    if (!use_uring) {
        gathering->take = take_epoll;
        return counted_epoll_add(gathering->set, gathering->peer.listener, EPOLLIN) == 0;
    }
    gathering->take = take_uring;
    if (!ring_open(&gathering->ring)) {
        snprintf(result->unavailable, sizeof result->unavailable, "io_uring is refused by the kernel: %s",
                 strerror(errno));
        return false;
    }
    ring_arm(&gathering->ring, gathering->peer.listener);
    if (ring_enter(&gathering->ring, 1, 0) != 1) {
        snprintf(result->unavailable, sizeof result->unavailable, "multishot accept is refused: %s",
                 strerror(errno));
        return false;
    }
    return true;
}

static void run_acceptor(const struct options *options, struct result *result, bool use_uring, int burst) {
    struct peer_plan plan = {
        .action = PEER_READS,
        .sockets = options->sockets,
        .window = options->window,
        .burst = burst,
        .timeout_s = options->timeout_s,
        .cpu = options->peer_cpu,
    };
    struct gathering gathering = {
        .options = options,
        .descriptors = calloc((size_t)options->sockets, sizeof(int)),
        .deadline_us = now_us() + options->timeout_s * 1e6,
        .set = epoll_create1(EPOLL_CLOEXEC),
        .ring = {.descriptor = -1, .queues = MAP_FAILED, .entries = MAP_FAILED},
    };
    if (gathering.descriptors == NULL || gathering.set < 0 || !peer_start(&gathering.peer, &plan, 0)) {
        result_fail(result, "cannot start the peer");
    } else {
        if (prepare(&gathering, use_uring, result)) {
            gather(&gathering, burst, result);
        } else if (result->unavailable[0] == '\0') {
            result_fail(result, "cannot watch the listener");
        }
        ring_close(&gathering.ring);
        peer_stop(&gathering.peer);
    }
    close_all(gathering.descriptors, gathering.accepted);
    close(gathering.set);
    free(gathering.descriptors);
}

void run_accept_epoll(const struct options *options, struct result *result) {
    run_acceptor(options, result, false, 0);
}

void run_accept_epoll_burst(const struct options *options, struct result *result) {
    run_acceptor(options, result, false, BURST);
}

void run_accept_uring(const struct options *options, struct result *result) {
    run_acceptor(options, result, true, 0);
}

void run_accept_uring_burst(const struct options *options, struct result *result) {
    run_acceptor(options, result, true, BURST);
}
