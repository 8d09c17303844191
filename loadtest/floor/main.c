/* The command line of the probe: `floor fanout echo --sockets 1000 --rounds 10 --json`. */
#define _GNU_SOURCE
#include "floor.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct scenario scenarios[] = {
    {"fanout", "send one frame of 134 bytes to each socket", run_fanout},
    {"coalesced16", "sendmsg 16 frames to each socket", run_coalesced16},
    {"coalesced64", "sendmsg 64 frames to each socket", run_coalesced64},
    {"accept", "accept4, recv, send 101, epoll_ctl", run_accept},
    {"refuse", "accept4, recv, send 503, half-close, wait for the peer's FIN, close", run_refuse},
    {"refuse_at_once", "accept4, recv, send 503, close", run_refuse_at_once},
    {"echo", "epoll_wait, recv, send", run_echo},
    {"ping", "send 2 bytes; epoll_wait, recv the pong; in batches of --window", run_ping},
    {"accept_epoll", "accept4 alone, as they come", run_accept_epoll},
    {"accept_epoll_burst", "accept4 alone, 512 waiting", run_accept_epoll_burst},
    {"accept_uring", "io_uring multishot accept, as they come", run_accept_uring},
    {"accept_uring_burst", "io_uring multishot accept, 512 waiting", run_accept_uring_burst},
};
enum { SCENARIOS = sizeof scenarios / sizeof scenarios[0] };

static int usage(FILE *out, int status) {
    fprintf(out, "usage: floor [options] scenario... | all\n\n"
                 "  --sockets N      connections (1000; at most 19900)\n"
                 "  --rounds N       fan-outs, or exchanges per connection (10)\n"
                 "  --interval-ms N  shortest time from one fan-out to the next (0)\n"
                 "  --window N       connects, echoes or pings in flight (64)\n"
                 "  --timeout-s N    deadline of one scenario (30)\n"
                 "  --server-cpu N   processor of the measured process (-1: not pinned)\n"
                 "  --peer-cpu N     processor of its peer (-1: not pinned)\n"
                 "  --json           one JSON object on stdout\n\n");
    for (int i = 0; i < SCENARIOS; i++) {
        fprintf(out, "  %-20s %s\n", scenarios[i].name, scenarios[i].help);
    }
    return status;
}

static void print_json(const char *name, const struct result *result, bool is_first) {
    printf("%s\n  \"%s\": {", is_first ? "" : ",", name);
    for (int i = 0; i < result->count; i++) {
        printf("\"%s\": %.6g, ", result->metrics[i].name, result->metrics[i].value);
    }
    /* Both texts are our own or strerror's, so there are no quotes to escape. */
    printf("\"unavailable\": \"%s\", \"error\": \"%s\"}", result->unavailable, result->error);
}

static void print_text(const char *name, const struct result *result) {
    printf("%s\n", name);
    for (int i = 0; i < result->count; i++) {
        printf("  %-28s %12.6g\n", result->metrics[i].name, result->metrics[i].value);
    }
    if (result->unavailable[0] != '\0') {
        printf("  not available: %s\n", result->unavailable);
    }
    if (result->error[0] != '\0') {
        printf("  FAILED: %s\n", result->error);
    }
}

static bool parse_number(const char *text, int least, int most, int *value) {
    char *end;
    long number = strtol(text, &end, 10);
    *value = (int)number;
    return *text != '\0' && *end == '\0' && number >= least && number <= most;
}

static bool parse_options(int argc, char **argv, struct options *options) {
    static const struct option names[] = {
        {"sockets", required_argument, NULL, 's'},    {"rounds", required_argument, NULL, 'r'},
        {"interval-ms", required_argument, NULL, 'i'}, {"window", required_argument, NULL, 'w'},
        {"timeout-s", required_argument, NULL, 't'},  {"server-cpu", required_argument, NULL, 'c'},
        {"peer-cpu", required_argument, NULL, 'p'},   {"json", no_argument, NULL, 'j'},
        {"help", no_argument, NULL, 'h'},             {NULL, 0, NULL, 0},
    };
    bool is_valid = true;
    for (int key; is_valid && (key = getopt_long(argc, argv, "", names, NULL)) != -1;) {
        switch (key) {
        case 's': is_valid = parse_number(optarg, 1, SOCKETS_LIMIT, &options->sockets); break;
        case 'r': is_valid = parse_number(optarg, 1, 1000000, &options->rounds); break;
        case 'i': is_valid = parse_number(optarg, 0, 60000, &options->interval_ms); break;
        case 'w': is_valid = parse_number(optarg, 1, 4000, &options->window); break;
        case 't': is_valid = parse_number(optarg, 1, 600, &options->timeout_s); break;
        case 'c': is_valid = parse_number(optarg, -1, 1023, &options->server_cpu); break;
        case 'p': is_valid = parse_number(optarg, -1, 1023, &options->peer_cpu); break;
        case 'j': options->json = true; break;
        case 'h': exit(usage(stdout, 0));
        default: is_valid = false;
        }
    }
    return is_valid && optind < argc;
}

static bool is_chosen(const char *name, int argc, char **argv) {
    for (int i = optind; i < argc; i++) {
        if (strcmp(argv[i], name) == 0 || strcmp(argv[i], "all") == 0) {
            return true;
        }
    }
    return false;
}

static bool are_known(int argc, char **argv) {
    for (int i = optind; i < argc; i++) {
        bool is_known = strcmp(argv[i], "all") == 0;
        for (int j = 0; j < SCENARIOS; j++) {
            is_known = is_known || strcmp(argv[i], scenarios[j].name) == 0;
        }
        if (!is_known) {
            fprintf(stderr, "floor: no such scenario: %s\n", argv[i]);
            return false;
        }
    }
    return true;
}

int main(int argc, char **argv) {
    struct options options = {
        .sockets = 1000, .rounds = 10, .window = 64, .timeout_s = 30, .server_cpu = -1, .peer_cpu = -1};
    int failures = 0;
    int printed = 0;
    if (!parse_options(argc, argv, &options) || !are_known(argc, argv)) {
        return usage(stderr, 2);
    }
    raise_descriptor_limit(); /* too low all the same: the scenario says so */
    pin_to(options.server_cpu);
    for (int i = 0; i < SCENARIOS; i++) {
        if (is_chosen(scenarios[i].name, argc, argv)) {
            struct result result = {0};
            fflush(stdout); /* the fork must not inherit half a line */
            scenarios[i].run(&options, &result);
            failures += result.error[0] != '\0';
            if (options.json) {
                printf("%s", printed == 0 ? "{" : "");
                print_json(scenarios[i].name, &result, printed == 0);
            } else {
                print_text(scenarios[i].name, &result);
            }
            printed++;
        }
    }
    printf("%s", options.json ? "\n}\n" : "");
    return failures > 0;
}
