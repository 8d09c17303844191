/* Scenarios of opening: accept and answer 101, and accept and refuse.
 *
 * The listener has TCP_DEFER_ACCEPT, as the gateway's has: the request is usually there when accept4
 * returns. A request that arrives later is answered from the epoll loop. */
#define _GNU_SOURCE
#include "floor.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char request[] =
    "GET /ws HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
static const char switching[] =
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
static const char refusal[] =
    "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 10\r\n"
    "Content-Type: text/plain\r\nContent-Length: 0\r\n\r\n";

enum answer { ANSWER_UPGRADE, ANSWER_REFUSE, ANSWER_REFUSE_AT_ONCE };

struct door {
    enum answer answer;
    struct peer peer;
    int set;
    int *descriptors; /* upgraded ones, held until the end */
    int held;
    uint64_t finished; /* upgraded, or closed */
    uint64_t late;     /* the request was not there at accept */
    uint64_t resets;   /* the peer reset instead of reading to the end */
};

static void finish(struct door *door, int descriptor) {
    counted_close(descriptor);
    door->finished++;
}

/* Answers a request with 101 or 503. `is_watched`: the socket is in the epoll set already. */
static void answer(struct door *door, int descriptor, bool is_watched) {
    bool is_upgrade = door->answer == ANSWER_UPGRADE;
    const char *text = is_upgrade ? switching : refusal;
    size_t size = is_upgrade ? sizeof switching - 1 : sizeof refusal - 1;
    if (counted_send(descriptor, text, size) != (ssize_t)size) {
        door->resets++;
        finish(door, descriptor);
    } else if (door->answer == ANSWER_REFUSE_AT_ONCE) {
        finish(door, descriptor);
    } else {
        if (!is_upgrade) {
            counted_shutdown(descriptor);
        }
        if (!is_watched && counted_epoll_add(door->set, descriptor, EPOLLIN) != 0) {
            finish(door, descriptor);
        } else if (is_upgrade) {
            door->descriptors[door->held++] = descriptor;
            door->finished++;
        }
    }
}

static void accept_some(struct door *door) {
    char head[1024];
    for (int i = 0; i < ACCEPT_LIMIT; i++) {
        int descriptor = counted_accept4(door->peer.listener);
        if (descriptor < 0) {
            return;
        }
        if (counted_recv(descriptor, head, sizeof head) > 0) {
            answer(door, descriptor, false);
        } else {
            door->late++;
            counted_epoll_add(door->set, descriptor, EPOLLIN);
        }
    }
}

/* Handles a socket of the epoll set: a late request, or the end of a refused peer. */
static void on_ready(struct door *door, int descriptor) {
    char head[1024];
    ssize_t size = counted_recv(descriptor, head, sizeof head);
    if (size > 0) {
        answer(door, descriptor, true);
    } else if (size == 0 || errno != EAGAIN) {
        door->resets += size < 0;
        finish(door, descriptor);
    }
}

static void serve(struct door *door, uint64_t count, double deadline_us) {
    struct epoll_event events[EVENTS_LIMIT];
    counted_epoll_add(door->set, door->peer.listener, EPOLLIN);
    while (door->finished < count && now_us() < deadline_us && atomic_load(&door->peer.shared->failed) == 0) {
        int ready = counted_epoll_wait(door->set, events, EVENTS_LIMIT, 100);
        for (int i = 0; i < ready; i++) {
            if (events[i].data.fd == door->peer.listener) {
                accept_some(door);
            } else {
                on_ready(door, events[i].data.fd);
            }
        }
        atomic_store(&door->peer.shared->served, door->finished);
    }
}

/* Checks that every peer has read the whole answer: if a reset had discarded it, the peer would not be
 * refused. */
static void check_answers(struct door *door, uint64_t count, struct result *result, double deadline_us) {
    struct shared *shared = door->peer.shared;
    size_t size = door->answer == ANSWER_UPGRADE ? sizeof switching - 1 : sizeof refusal - 1;
    if (door->finished < count || !peer_wait(&door->peer, &shared->received, count * size, deadline_us)) {
        result_fail(result, "not every connection was answered in time");
    }
    result_add(result, "connections", (double)count);
    result_add(result, "answered", (double)(atomic_load(&shared->received) / size));
    result_add(result, "late_requests", (double)door->late);
    result_add(result, "resets", (double)door->resets);
}

static void run_door(const struct options *options, struct result *result, enum answer kind) {
    struct peer_plan plan = {
        .action = kind == ANSWER_UPGRADE ? PEER_READS : PEER_CLOSES,
        .request = request,
        .request_size = sizeof request - 1,
        .sockets = options->sockets,
        .window = options->window,
        .timeout_s = options->timeout_s,
        .cpu = options->peer_cpu,
    };
    struct door door = {.answer = kind, .set = epoll_create1(EPOLL_CLOEXEC)};
    double deadline_us = now_us() + options->timeout_s * 1e6;
    uint64_t count = (uint64_t)options->sockets;
    door.descriptors = calloc((size_t)options->sockets, sizeof *door.descriptors);
    if (door.descriptors == NULL || door.set < 0 || !peer_start(&door.peer, &plan, 1)) {
        result_fail(result, "cannot start the peer");
    } else {
        struct usage sum = {0};
        struct usage from = usage_now();
        serve(&door, count, deadline_us);
        struct usage until = usage_now();
        usage_add(&sum, &from, &until);
        result_add_usage(result, &sum, (double)door.finished, "cpu_us_per_accept");
        check_answers(&door, count, result, deadline_us);
        peer_stop(&door.peer);
    }
    close_all(door.descriptors, door.held);
    close(door.set);
    free(door.descriptors);
}

void run_accept(const struct options *options, struct result *result) {
    run_door(options, result, ANSWER_UPGRADE);
}

void run_refuse(const struct options *options, struct result *result) {
    run_door(options, result, ANSWER_REFUSE);
}

void run_refuse_at_once(const struct options *options, struct result *result) {
    run_door(options, result, ANSWER_REFUSE_AT_ONCE);
}
