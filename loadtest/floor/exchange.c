/* Scenarios of messages: the server's cost of an echo, and of a ping with its pong. */
#define _GNU_SOURCE
#include "floor.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

struct stage {
    const struct options *options;
    struct peer peer;
    int *descriptors;
    int accepted;
    int set;
    double deadline_us;
};

static bool stage_open(struct stage *stage, const struct options *options, enum peer_action action) {
    struct peer_plan plan = {
        .action = action,
        .sockets = options->sockets,
        .window = options->window,
        .rounds = options->rounds,
        .timeout_s = options->timeout_s,
        .cpu = options->peer_cpu,
    };
    *stage = (struct stage){.options = options, .deadline_us = now_us() + options->timeout_s * 1e6};
    stage->descriptors = calloc((size_t)options->sockets, sizeof *stage->descriptors);
    stage->set = epoll_create1(EPOLL_CLOEXEC);
    if (stage->descriptors == NULL || stage->set < 0 || !peer_start(&stage->peer, &plan, 0)) {
        return false;
    }
    stage->accepted = accept_all(&stage->peer, stage->descriptors, options->sockets, stage->deadline_us);
    for (int i = 0; i < stage->accepted; i++) {
        if (counted_epoll_add(stage->set, stage->descriptors[i], EPOLLIN) != 0) {
            return false;
        }
    }
    return stage->accepted == options->sockets;
}

static void stage_close(struct stage *stage) {
    peer_stop(&stage->peer);
    close_all(stage->descriptors, stage->accepted);
    close(stage->set);
    free(stage->descriptors);
}

/* Reads what has arrived, and answers each frame if `answer_size` is not 0. Returns the bytes read; -1 if
 * a peer has ended. */
static long read_ready(const struct stage *stage, size_t answer_size) {
    static char buffer[16 * 1024];
    static const char answer[FRAME_BYTES] = {(char)0x81, 126, 0, 130};
    struct epoll_event events[EVENTS_LIMIT];
    int count = counted_epoll_wait(stage->set, events, EVENTS_LIMIT, 100);
    long received = 0;
    for (int i = 0; i < count; i++) {
        ssize_t size = counted_recv(events[i].data.fd, buffer, sizeof buffer);
        if (size == 0 || (size < 0 && errno != EAGAIN)) {
            return -1;
        }
        received += size > 0 ? size : 0;
        /* The peer has one echo in flight per socket, so a read is one whole frame. */
        if (answer_size > 0 && size > 0 &&
            counted_send(events[i].data.fd, answer, answer_size) != (ssize_t)answer_size) {
            return -1;
        }
    }
    return received;
}

void run_echo(const struct options *options, struct result *result) {
    struct stage stage;
    uint64_t expected = (uint64_t)options->sockets * (uint64_t)options->rounds;
    uint64_t received = 0;
    if (!stage_open(&stage, options, PEER_ECHOES)) {
        result_fail(result, "not all connections were accepted");
    } else {
        struct usage sum = {0};
        struct usage from = usage_now();
        atomic_store(&stage.peer.shared->go, 1);
        while (received < expected * MASKED_FRAME_BYTES && now_us() < stage.deadline_us) {
            long size = read_ready(&stage, FRAME_BYTES);
            if (size < 0) {
                result_fail(result, "a peer ended its connection");
                break;
            }
            received += (uint64_t)size;
        }
        struct usage until = usage_now();
        usage_add(&sum, &from, &until);
        if (!peer_wait(&stage.peer, &stage.peer.shared->received, expected, stage.deadline_us)) {
            result_fail(result, "the peer did not receive every echo");
        }
        result_add(result, "sockets", options->sockets);
        result_add(result, "rounds", options->rounds);
        result_add_usage(result, &sum, (double)(received / MASKED_FRAME_BYTES), "cpu_us_per_echo");
        result_add(result, "echoes", (double)(received / MASKED_FRAME_BYTES));
        result_add(result, "received_frames", (double)atomic_load(&stage.peer.shared->received));
    }
    stage_close(&stage);
}

/* Sends a batch of `count` pings and reads their pongs, as a heartbeat tick does. */
static uint64_t ping_batch(const struct stage *stage, int first, int count) {
    static const char ping[PING_BYTES] = {(char)0x89, 0};
    uint64_t received = 0;
    for (int i = 0; i < count; i++) {
        if (counted_send(stage->descriptors[first + i], ping, sizeof ping) != PING_BYTES) {
            return received;
        }
    }
    while (received < (uint64_t)count * PONG_BYTES && now_us() < stage->deadline_us) {
        long size = read_ready(stage, 0);
        if (size < 0) {
            break;
        }
        received += (uint64_t)size;
    }
    return received;
}

void run_ping(const struct options *options, struct result *result) {
    struct stage stage;
    uint64_t received = 0;
    if (!stage_open(&stage, options, PEER_PONGS)) {
        result_fail(result, "not all connections were accepted");
    } else {
        struct usage sum = {0};
        struct usage from = usage_now();
        for (int round = 0; round < options->rounds; round++) {
            for (int first = 0; first < options->sockets; first += options->window) {
                int left = options->sockets - first;
                received += ping_batch(&stage, first, left < options->window ? left : options->window);
            }
        }
        struct usage until = usage_now();
        uint64_t expected = (uint64_t)options->sockets * (uint64_t)options->rounds * PONG_BYTES;
        usage_add(&sum, &from, &until);
        if (received != expected) {
            result_fail(result, "not every ping was answered in time");
        }
        result_add(result, "sockets", options->sockets);
        result_add(result, "rounds", options->rounds);
        result_add_usage(result, &sum, (double)(received / PONG_BYTES), "cpu_us_per_ping");
        result_add(result, "pings", (double)(received / PONG_BYTES));
    }
    stage_close(&stage);
}
