/* The floor probe: what this machine's kernel charges for the work a gateway cannot avoid.
 *
 * Owns nothing of wsgate and links nothing but libc: straight-line loops around the system calls, so
 * that every result of the gateway can be given as a share of them, measured in the same run.
 *
 * Rules:
 * - The measured process is the parent ("server"); every peer lives in a forked child. Only the
 *   parent's CPU clock is read.
 * - A loop ends by a count or by the deadline, never by hope.
 * - Every system call of a measured section goes through a counting wrapper (below).
 */
#ifndef FLOOR_H
#define FLOOR_H

#include <netinet/in.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/types.h>

enum {
    FRAME_BYTES = 134,       /* a text frame of 130 payload bytes, unmasked: 4 bytes of header */
    MASKED_FRAME_BYTES = 138, /* the same from a client: 4 bytes of mask more */
    PING_BYTES = 2,
    PONG_BYTES = 6,          /* an empty pong from a client: 2 bytes of header, 4 of mask */
    EVENTS_LIMIT = 1024,     /* events taken by one epoll_wait */
    ACCEPT_LIMIT = 64,       /* accepts between two epoll_waits */
    SOCKETS_LIMIT = 19900,   /* descriptors a process has here (20,000), less a reserve */
};

/* ---- options ---------------------------------------------------------------------------------- */

struct options {
    int sockets;       /* connections of a scenario */
    int rounds;        /* fan-outs, or exchanges per connection */
    int interval_ms;   /* pause between two rounds, at least until all is read */
    int window;        /* connects, or echoes, in flight */
    int timeout_s;     /* deadline of one scenario */
    int server_cpu;    /* processor to pin to; -1: not pinned */
    int peer_cpu;
    bool json;
};

/* ---- results ---------------------------------------------------------------------------------- */

struct metric {
    const char *name; /* carries its unit */
    double value;
};

struct result {
    struct metric metrics[24];
    int count;
    char error[128];       /* empty: the scenario ran to its end */
    char unavailable[128]; /* not empty: the kernel refuses what the scenario needs; no failure */
};

void result_add(struct result *result, const char *name, double value);
void result_fail(struct result *result, const char *what);

/* ---- clocks and counters of the measured process ---------------------------------------------- */

extern uint64_t system_calls; /* counted by the wrappers; this process is single-threaded */

struct usage {
    double cpu_us;
    double wall_us;
    uint64_t calls;
    long voluntary_switches;
    long involuntary_switches;
};

double now_us(void);
struct usage usage_now(void);
void usage_add(struct usage *sum, const struct usage *from, const struct usage *until);
/* Adds cpu_us, wall_us, system_calls, voluntary and involuntary switches, each `per unit`. */
void result_add_usage(struct result *result, const struct usage *sum, double units, const char *per);

int counted_epoll_wait(int set, struct epoll_event *events, int limit, int timeout_ms);
int counted_epoll_add(int set, int descriptor, uint32_t events);
int counted_epoll_delete(int set, int descriptor);
int counted_accept4(int listener);
ssize_t counted_send(int descriptor, const void *data, size_t size);
ssize_t counted_sendmsg(int descriptor, const struct msghdr *message);
ssize_t counted_recv(int descriptor, void *data, size_t size);
int counted_shutdown(int descriptor);
int counted_close(int descriptor);

/* ---- the peer process ------------------------------------------------------------------------- */

enum peer_action {
    PEER_READS,  /* counts bytes */
    PEER_ECHOES, /* after `go`: sends, and sends again for every whole frame that comes back */
    PEER_PONGS,  /* answers every 2 bytes with 6; counts the answers */
    PEER_CLOSES, /* counts bytes to the end of the stream, then closes with FIN */
};

struct peer_plan {
    enum peer_action action;
    const char *request; /* sent right after connect; NULL: nothing */
    size_t request_size;
    int sockets;
    int window;  /* connects ahead of the server's `served`; also echoes in flight */
    int burst;   /* > 0: connect so many, then wait until all are served */
    int rounds;  /* echoes per connection */
    int timeout_s;
    int cpu;
};

/* Shared by both processes. Written by one side each; relaxed order is enough for counters. */
struct shared {
    _Atomic uint64_t connected; /* peer: connects done */
    _Atomic uint64_t received;  /* peer: bytes read, or frames answered */
    _Atomic uint64_t ended;     /* peer: sockets that saw the end of the stream */
    _Atomic uint64_t served;    /* server: sockets accepted and answered */
    _Atomic int go;             /* server: start echoing */
    _Atomic int failed;         /* peer: errno of what went wrong, 0: nothing */
};

struct peer {
    pid_t pid;
    int listener;
    struct sockaddr_in address; /* of the listener */
    struct shared *shared;
};

/* Opens a listener on loopback with the gateway's options and forks the peer that connects to it. */
bool peer_start(struct peer *peer, const struct peer_plan *plan, int defer_accept_s);
/* Ends the peer and closes the listener. */
void peer_stop(struct peer *peer);
/* The child's whole life; never returns. */
_Noreturn void peer_run(const struct peer_plan *plan, struct shared *shared, struct sockaddr_in address);
/* Waits, outside of any measured section, until `*counter >= target`. False: deadline or failure. */
bool peer_wait(const struct peer *peer, _Atomic uint64_t *counter, uint64_t target, double deadline_us);
/* Accepts `count` sockets into `descriptors`, unmeasured. Returns how many came. */
int accept_all(const struct peer *peer, int *descriptors, int count, double deadline_us);
void close_all(const int *descriptors, int count);
void pin_to(int cpu);
bool raise_descriptor_limit(void);

/* ---- the fan-out loop, also called through the library by loadtest/peers/floor_server.py ------- */

/* Writes `frames_each` (1 to 64) frames of 134 bytes, laid end to end, to every socket: by send when it is
 * one, by sendmsg when there are more. Returns how many sockets took all of them, -1: frames_each is wrong. */
int floor_send_round(const int *descriptors, int count, const char *frames, int frames_each);

/* ---- scenarios -------------------------------------------------------------------------------- */

struct scenario {
    const char *name;
    const char *help;
    void (*run)(const struct options *options, struct result *result);
};

void run_fanout(const struct options *options, struct result *result);
void run_coalesced16(const struct options *options, struct result *result);
void run_coalesced64(const struct options *options, struct result *result);
void run_accept(const struct options *options, struct result *result);
void run_refuse(const struct options *options, struct result *result);
void run_refuse_at_once(const struct options *options, struct result *result);
void run_echo(const struct options *options, struct result *result);
void run_ping(const struct options *options, struct result *result);
void run_accept_epoll(const struct options *options, struct result *result);
void run_accept_epoll_burst(const struct options *options, struct result *result);
void run_accept_uring(const struct options *options, struct result *result);
void run_accept_uring_burst(const struct options *options, struct result *result);

#endif
