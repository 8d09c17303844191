/* Clocks, counting wrappers of system calls, and results of the measured process. */
#define _GNU_SOURCE
#include "floor.h"

#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

uint64_t system_calls;

static double clock_us(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

double now_us(void) {
    return clock_us(CLOCK_MONOTONIC);
}

struct usage usage_now(void) {
    struct rusage resources;
    getrusage(RUSAGE_SELF, &resources);
    return (struct usage){
        .cpu_us = clock_us(CLOCK_PROCESS_CPUTIME_ID), /* getrusage rounds to the tick on some kernels */
        .wall_us = now_us(),
        .calls = system_calls,
        .voluntary_switches = resources.ru_nvcsw,
        .involuntary_switches = resources.ru_nivcsw,
    };
}

void usage_add(struct usage *sum, const struct usage *from, const struct usage *until) {
    sum->cpu_us += until->cpu_us - from->cpu_us;
    sum->wall_us += until->wall_us - from->wall_us;
    sum->calls += until->calls - from->calls;
    sum->voluntary_switches += until->voluntary_switches - from->voluntary_switches;
    sum->involuntary_switches += until->involuntary_switches - from->involuntary_switches;
}

void result_add(struct result *result, const char *name, double value) {
    if (result->count < (int)(sizeof result->metrics / sizeof result->metrics[0])) {
        result->metrics[result->count++] = (struct metric){name, value};
    }
}

void result_fail(struct result *result, const char *what) {
    if (result->error[0] == '\0') {
        snprintf(result->error, sizeof result->error, "%s", what);
    }
}

/* The names are literals of the callers, so that grep finds every key of the output. */
void result_add_usage(struct result *result, const struct usage *sum, double units, const char *per) {
    if (units <= 0) {
        result_fail(result, "nothing was measured");
        return;
    }
    result_add(result, per, sum->cpu_us / units);
    result_add(result, "wall_us_each", sum->wall_us / units);
    result_add(result, "system_calls_each", (double)sum->calls / units);
    result_add(result, "voluntary_switches_each", (double)sum->voluntary_switches / units);
    result_add(result, "involuntary_switches_each", (double)sum->involuntary_switches / units);
}

int counted_epoll_wait(int set, struct epoll_event *events, int limit, int timeout_ms) {
    system_calls++;
    return epoll_wait(set, events, limit, timeout_ms);
}

int counted_epoll_add(int set, int descriptor, uint32_t events) {
    struct epoll_event event = {.events = events, .data = {.fd = descriptor}};
    system_calls++;
    return epoll_ctl(set, EPOLL_CTL_ADD, descriptor, &event);
}

int counted_epoll_delete(int set, int descriptor) {
    system_calls++;
    return epoll_ctl(set, EPOLL_CTL_DEL, descriptor, NULL);
}

int counted_accept4(int listener) {
    system_calls++;
    return accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
}

ssize_t counted_send(int descriptor, const void *data, size_t size) {
    system_calls++;
    return send(descriptor, data, size, MSG_NOSIGNAL | MSG_DONTWAIT);
}

ssize_t counted_sendmsg(int descriptor, const struct msghdr *message) {
    system_calls++;
    return sendmsg(descriptor, message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

ssize_t counted_recv(int descriptor, void *data, size_t size) {
    system_calls++;
    return recv(descriptor, data, size, MSG_DONTWAIT);
}

int counted_shutdown(int descriptor) {
    system_calls++;
    return shutdown(descriptor, SHUT_WR);
}

int counted_close(int descriptor) {
    system_calls++;
    return close(descriptor);
}
