/* The floor probe: it measures the kernel's cost of the work that no gateway can avoid.
 *
 * The probe contains nothing of wsgate and links only libc. It consists of straight loops around the
 * system calls, so that every result of the gateway can be given as a ratio to them, measured in the same
 * run.
 *
 * Rules:
 * - The measured process is the parent ("server"); every peer is a forked child. Only the CPU clock of the
 *   parent is read.
 * - A loop ends by a count or by its deadline.
 * - Every system call of a measured section is made by a counting wrapper (below). */
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
/* Adds cpu_us under the name `per`, and per unit: wall time, system calls, both kinds of context switches. */
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

/* Shared by both processes. Each field is written by one of them; counters need no strict memory order. */
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

/* Opens a listener on loopback with the options of the gateway, and forks the peer that connects to it. */
bool peer_start(struct peer *peer, const struct peer_plan *plan, int defer_accept_s);
/* Kills the peer and closes the listener. */
void peer_stop(struct peer *peer);
/* The whole program of the child process; never returns. */
_Noreturn void peer_run(const struct peer_plan *plan, struct shared *shared, struct sockaddr_in address);
/* Waits, outside of measured sections, until `*counter >= target`. Returns false at the deadline or after
 * a failure. */
bool peer_wait(const struct peer *peer, _Atomic uint64_t *counter, uint64_t target, double deadline_us);
/* Accepts `count` sockets into `descriptors`, unmeasured. Returns the number of accepted sockets. */
int accept_all(const struct peer *peer, int *descriptors, int count, double deadline_us);
void close_all(const int *descriptors, int count);
void pin_to(int cpu);
bool raise_descriptor_limit(void);

/* ---- the fan-out loop, also called through the library by loadtest/peers/floor_server.py ------- */

/* Writes `frames_each` (1 to 64) consecutive frames of 134 bytes to every socket: with send for one frame,
 * with sendmsg for more. Returns the number of sockets that accepted all of them; -1 if frames_each is out
 * of range. */
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
