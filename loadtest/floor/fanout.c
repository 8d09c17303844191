/* Scenarios of fan-out: one frame, or several together, to each of N sockets whose peer reads them. */
#define _GNU_SOURCE
#include "floor.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>

enum { FRAMES_LIMIT = 64 };

static char text_frames[FRAMES_LIMIT][FRAME_BYTES];

int floor_send_round(const int *descriptors, int count, const char *frames, int frames_each) {
    struct iovec parts[FRAMES_LIMIT];
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = (size_t)frames_each};
    int written = 0;
    if (frames_each < 1 || frames_each > FRAMES_LIMIT) {
        return -1;
    }
    for (int i = 0; i < frames_each; i++) {
        parts[i] = (struct iovec){(void *)(uintptr_t)(frames + i * FRAME_BYTES), FRAME_BYTES};
    }
    for (int i = 0; i < count; i++) {
        ssize_t size = frames_each == 1 ? counted_send(descriptors[i], frames, FRAME_BYTES)
                                        : counted_sendmsg(descriptors[i], &message);
        written += size == (ssize_t)frames_each * FRAME_BYTES;
    }
    return written;
}

static void pause_until(double at_us) {
    double left_us = at_us - now_us();
    if (left_us > 0) {
        struct timespec nap = {(time_t)(left_us / 1e6), (long)((uint64_t)left_us % 1000000) * 1000};
        nanosleep(&nap, NULL);
    }
}

/* Runs one unmeasured round and then the measured ones. A round begins when the peer has read the last
 * one. */
static void run_rounds(struct peer *peer, const int *descriptors, const struct options *options, int frames,
                       struct result *result, double deadline_us) {
    struct usage sum = {0};
    uint64_t deliveries = 0;
    uint64_t expected = 0;
    for (int round = 0; round <= options->rounds; round++) {
        double began_us = now_us();
        struct usage from = usage_now();
        int written = floor_send_round(descriptors, options->sockets, text_frames[0], frames);
        struct usage until = usage_now();
        expected += (uint64_t)written * (uint64_t)frames * FRAME_BYTES;
        if (written != options->sockets) {
            result_fail(result, "a socket did not accept the whole round");
            return;
        }
        if (round > 0) {
            usage_add(&sum, &from, &until);
            deliveries += (uint64_t)written * (uint64_t)frames;
        }
        if (!peer_wait(peer, &peer->shared->received, expected, deadline_us) || now_us() > deadline_us) {
            result_fail(result, "the peer did not read the round in time");
            return;
        }
        pause_until(began_us + options->interval_ms * 1e3);
    }
    result_add_usage(result, &sum, (double)deliveries, "cpu_us_per_delivery");
    result_add(result, "deliveries", (double)deliveries);
    result_add(result, "received_frames", (double)(atomic_load(&peer->shared->received) / FRAME_BYTES));
}

static void fanout(const struct options *options, struct result *result, int frames) {
    struct peer_plan plan = {
        .action = PEER_READS,
        .sockets = options->sockets,
        .window = options->window,
        .timeout_s = options->timeout_s,
        .cpu = options->peer_cpu,
    };
    double deadline_us = now_us() + options->timeout_s * 1e6;
    int *descriptors = calloc((size_t)options->sockets, sizeof *descriptors);
    struct peer peer;
    if (descriptors == NULL || !peer_start(&peer, &plan, 0)) {
        result_fail(result, "cannot start the peer");
        free(descriptors);
        return;
    }
    for (int i = 0; i < FRAMES_LIMIT; i++) {
        memcpy(text_frames[i], "\x81\x7e\x00\x82", 4); /* text, 130 bytes of payload */
    }
    result_add(result, "sockets", options->sockets);
    result_add(result, "rounds", options->rounds);
    result_add(result, "frames_per_write", frames);
    int accepted = accept_all(&peer, descriptors, options->sockets, deadline_us);
    if (accepted == options->sockets) {
        run_rounds(&peer, descriptors, options, frames, result, deadline_us);
    } else {
        result_fail(result, "not all connections were accepted");
    }
    peer_stop(&peer);
    close_all(descriptors, accepted);
    free(descriptors);
}

void run_fanout(const struct options *options, struct result *result) {
    fanout(options, result, 1);
}

void run_coalesced16(const struct options *options, struct result *result) {
    fanout(options, result, 16);
}

void run_coalesced64(const struct options *options, struct result *result) {
    fanout(options, result, 64);
}
