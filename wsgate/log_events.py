"""List every log event: its name, level, meaning and fields, and what an operator can do.

`docs/reference/log-events.md` is generated from this table. A test compares the table with every call of
`wsgate.log.Log` in the package: an event without a row fails, and so do a row that no call uses, another
level and another field. This module imports nothing of the package, so that every room may import it.

A name with a part in angle brackets, such as `duty_failed_<duty>`, stands for a family of events: the part is
replaced by a name that the code knows, never by input of a client.
"""

from typing import Final, NamedTuple

__all__ = ["COMMON_FIELDS", "EVENTS", "LogEvent"]


class LogEvent(NamedTuple):
    """One event that the gateway logs.

    Attributes:
        name: The first word of a text line after the process, and `cause` in a JSON line.
        levels: Each level that the event is logged with.
        processes: The processes that log the event: `keeper`, `shard`, `admin`, or `any`.
        meaning: One sentence that says what has happened.
        action: One or two sentences that say what the operator can do.
        fields: The name of each field of the event, with its meaning.
    """

    name: str
    levels: tuple[str, ...]
    processes: tuple[str, ...]
    meaning: str
    action: str
    fields: dict[str, str] = {}  # noqa: RUF012 - no row changes it


COMMON_FIELDS: Final = {
    "held_back": "Number of lines with the same event that this process did not write since the last line.",
    "traceback": "Traceback of an exception. It is part of JSON lines only; a text line has it below.",
}
"""Fields that a line may have in addition to those of its event."""

_BUS: Final = {"bus": "Address of the bus, without its password."}
_CHILD: Final = {
    "child": "Name of the process: `shard-0`, `admin` or `bus`.",
    "pid": "Process id of the child.",
}
_STATUS: Final = {
    **_CHILD,
    "status": "Exit code of the child; below 0, the number of the signal that killed it.",
}
_TEXT: Final = {"text": "Text that the library reported."}

_NO_ACTION: Final = "No action is necessary."
_REPORT: Final = "This is a defect of wsgate: please report it with the traceback."

EVENTS: Final = (
    # --- start, reload and end of a node ----------------------------------------------------------------
    LogEvent(
        "started",
        ("info",),
        ("keeper",),
        "The keeper has started a child process.",
        _NO_ACTION,
        {**_CHILD, "restarts": "How often this child has ended unexpectedly since the node started."},
    ),
    LogEvent(
        "ended",
        ("info",),
        ("keeper",),
        "A child process has ended because the keeper requested it.",
        _NO_ACTION,
        _STATUS,
    ),
    LogEvent(
        "died",
        ("warning",),
        ("keeper",),
        "A child process has ended although the keeper did not request it; the keeper starts it again.",
        "Look for the lines of the same process just before. A status of -9 can mean that the kernel"
        " killed the process because memory was short.",
        {**_STATUS, "said": "Last lines of the log of the private bus, if the child is the bus."},
    ),
    LogEvent(
        "not_started",
        ("error",),
        ("keeper",),
        "The keeper could not start a child process and will try again after a back-off of at most 5 s.",
        "Read `error`: the limit of processes or the memory of the machine is usually exhausted.",
        {"child": _CHILD["child"], "error": "Error of the operating system."},
    ),
    LogEvent(
        "child_failed",
        ("error",),
        ("any",),
        "An unexpected exception has ended a child process of the keeper.",
        "Read the traceback. An OSError or a MemoryError is a fault of the machine; anything else is a"
        " defect of wsgate: please report it with the traceback.",
        {"child": "Name of the process, such as `wsgate-shard-0`."},
    ),
    LogEvent(
        "start_failed",
        ("error",),
        ("keeper",),
        "A shard ended several times before it served a client, so the node gives up and exits with code 1.",
        "Read the lines of that shard before this one, correct the cause, and start the node again.",
        {"shard": "Number of the shard.", "tries": "Number of starts that failed in a row."},
    ),
    LogEvent(
        "variables_ignored",
        ("warning",),
        ("keeper",),
        "Environment variables that begin with `WSGATE_` are not settings and have no effect.",
        "Correct the names that `why` suggests. Remove the other variables, or ignore the line.",
        {"why": "Names of the variables, and a suggestion where a name resembles a setting."},
    ),
    LogEvent(
        "node_named",
        ("info",),
        ("keeper",),
        "Another node of this machine already uses the host name, so this node took the host name"
        " with the port.",
        "Set `server.node` if metrics and control channels need a name of your choice.",
        {"node": "Name of this node.", "why": "Name of the other node."},
    ),
    LogEvent(
        "node_name_unchecked",
        ("info",),
        ("keeper",),
        "The bus did not answer when the node claimed its name; the shards claim the name later.",
        "No action is necessary if the bus is reachable soon. Watch for `node_name_taken`.",
        {"node": "Name of this node.", "why": "Answer or error of the bus."},
    ),
    LogEvent(
        "runs_as_root",
        ("warning",),
        ("keeper",),
        "The node runs as root, because it was started as root and `server.user` is empty.",
        "Set `server.user` to an ordinary user.",
        {"advice": "The same advice."},
    ),
    LogEvent(
        "config_reloaded",
        ("info",),
        ("keeper", "shard"),
        "The configuration was reloaded: the keeper has read it, or a shard has applied it.",
        "Restart the node if the line of the keeper lists settings in `needs_restart`.",
        {
            "needs_restart": (
                "Keeper only: the changed settings that a running node does not apply, or `nothing`."
            ),
        },
    ),
    LogEvent(
        "config_reload_failed",
        ("error",),
        ("keeper", "shard"),
        "A reloaded configuration was not applied; the process keeps the settings that it has.",
        "For a line of the keeper, correct the setting that `why` names and send SIGHUP again. A line"
        " of a shard is a defect of wsgate: please report it.",
        {
            "why": "Keeper only: the mistakes in the configuration.",
            "error": "Shard only: the error that occurred while the shard applied the configuration.",
        },
    ),
    LogEvent(
        "draining",
        ("info",),
        ("keeper",),
        "The node has received a signal to end and asks its shards to close their connections.",
        "No action is necessary. A second signal ends the node at once.",
        {"timeout_s": "Seconds that the shards may take (`server.drain_timeout`)."},
    ),
    LogEvent(
        "drained",
        ("info",),
        ("shard",),
        "A shard has finished draining.",
        _NO_ACTION,
        {"left": "Number of connections that were still open when the time was over."},
    ),
    LogEvent(
        "clients_cut",
        ("warning",),
        ("shard",),
        "Connections were cut at the end of the drain because their clients did not answer the Close"
        " in time.",
        "Increase `server.drain_timeout` if this happens at every restart.",
        {"clients": "Number of connections that were cut.", "why": "The same reason in words."},
    ),
    LogEvent(
        "events_lost_at_shutdown",
        ("warning",),
        ("shard",),
        "The shard ended before the bus had confirmed all events for backends, so these events may be lost.",
        "Check whether the bus was reachable when the node stopped.",
        {"events": "Number of events without a confirmation."},
    ),
    # --- duties of the keeper ---------------------------------------------------------------------------
    LogEvent(
        "duty_failed_<duty>",
        ("warning", "error"),
        ("keeper",),
        "A duty of the keeper failed; the keeper continues, and repeats periodic duties. An error with a"
        " traceback is a defect of wsgate, a warning is mostly an error of the operating system or of"
        " the configuration.",
        "Read `why`. Watch `wsgate_keeper_duty_failures_total` to see whether the duty still fails.",
        {"why": "Text of the error; warnings only."},
    ),
    LogEvent(
        "runtime_files_restored",
        ("warning",),
        ("keeper",),
        "Files in the runtime directory were removed while the node ran, and the keeper has made them again.",
        "Exclude the runtime directory from programs that clean temporary directories.",
        {"files": "Names of the files."},
    ),
    LogEvent(
        "bus_socket_removed",
        ("warning",),
        ("keeper",),
        "The socket of the private bus was removed, so the keeper restarts the bus and the data in it"
        " is lost.",
        "Exclude the runtime directory from programs that clean temporary directories.",
        {"socket": "Path of the socket.", "action": "What the keeper does: `bus_restarted`."},
    ),
    LogEvent(
        "connection_steering_failed",
        ("warning",),
        ("keeper",),
        "The kernel refused the program that distributes new connections by the room of each shard; it"
        " distributes them by a hash of the addresses instead.",
        "Check whether a sandbox forbids SO_ATTACH_REUSEPORT_CBPF. Shards may be loaded less evenly"
        " until then.",
        {"error": "Error of the operating system."},
    ),
    # --- the bus ----------------------------------------------------------------------------------------
    LogEvent(
        "bus_up",
        ("info",),
        ("shard",),
        "A shard has connected to the bus, at its start or again, and now subscribes to its channels.",
        _NO_ACTION,
        _BUS,
    ),
    LogEvent(
        "bus_down",
        ("warning",),
        ("shard",),
        "A shard has lost its subscriber connection to the bus; clients stay connected, and publishes and new"
        " subscriptions fail until the connection is back.",
        "Check the bus and the network to it. The shard reconnects by itself.",
        _BUS,
    ),
    LogEvent(
        "bus_failed",
        ("warning",),
        ("shard",),
        "A connection of a shard to the bus was lost or could not be made, or a stream of the bus refused an"
        " event.",
        "Read `why`: it has the error of the network or the answer of the bus.",
        {**_BUS, "why": "Cause of the failure."},
    ),
    LogEvent(
        "bus_silent",
        ("warning",),
        ("shard",),
        "The bus reports no receiver for a channel that the shard is subscribed to, so the shard makes its"
        " connections to the bus again.",
        "Check whether somebody closed connections of the bus (CLIENT KILL), or whether a failover is"
        " under way.",
        _BUS,
    ),
    LogEvent(
        "bus_forbids_channel",
        ("warning",),
        ("shard",),
        "The access control list of the bus forbids a channel that a client subscribed to; the"
        " subscription is refused.",
        "Grant the gateway's user of the bus every channel below `bus.prefix`.",
        {**_BUS, "why": "The same advice in words."},
    ),
    LogEvent(
        "bus_memory",
        ("warning", "info"),
        ("shard",),
        "The account of the private bus has become full (warning), or it has room again (info). While"
        " it is full, shards refuse new connections.",
        "Increase `admission.memory_budget`, or use an external bus (`bus.url`).",
        {
            "is_full": "Whether the account is full now.",
            "names_bytes": (
                "Bytes that the channel names of all shards take in the bus, by the shards' count."
            ),
            "used_bytes": "Bytes that the bus uses, by its last answer.",
        },
    ),
    LogEvent(
        "node_name_taken",
        ("error",),
        ("shard",),
        "Another live node on the same bus uses the name of this node.",
        "Give each node its own `server.node`, and restart this one.",
        {
            "setting": "Setting to change: `server.node`.",
            "by": "Holder of the name in JSON: boot id of its machine, process id and start time.",
        },
    ),
    # --- connections ------------------------------------------------------------------------------------
    LogEvent(
        "origin_refused",
        ("info",),
        ("shard",),
        "A handshake was refused because the origin of the web page is not allowed.",
        "Add the origin to `server.allowed_origins` if pages from there may connect.",
        {
            "origin": "Origin of the page, shortened.",
            "host": "Host that the client connected to, shortened.",
            "setting": "Setting to change: `server.allowed_origins`.",
            "why": "The same reason in words.",
        },
    ),
    LogEvent(
        "token_refused_<cause>",
        ("info",),
        ("shard",),
        "A token was refused. The page lists the causes below.",
        "Compare the program that issues tokens with `why`. The line never contains the token.",
        {
            "fault": "Coarse reason, the label of `wsgate_token_refusals_total`.",
            "why": "What is wrong with the token, with numbers where they help.",
        },
    ),
    LogEvent(
        "handshake_failed",
        ("error",),
        ("shard",),
        "An unexpected exception occurred while a shard answered a handshake; that connection was cut.",
        _REPORT,
    ),
    LogEvent(
        "command_failed",
        ("error",),
        ("shard",),
        "An unexpected exception occurred while a shard handled a message or an event of a connection; that"
        " connection is closed with 4050.",
        _REPORT,
    ),
    LogEvent(
        "publication_failed",
        ("error",),
        ("shard",),
        "An unexpected exception occurred while a shard passed on a publication; that publication is lost.",
        _REPORT,
    ),
    LogEvent(
        "admission",
        ("info",),
        ("shard",),
        "The admission state of a shard has changed.",
        "If the state is not `open`, look at `wsgate_headroom`: a resource with 0 is the short one. If none"
        " has 0, look at `wsgate_sockets_short`, `wsgate_ledger_drift_bytes` and the log event `bus_memory`."
        " After a shortage of memory the state lasts until an eighth of the budget is free.",
        {
            "state": "`open`, `refusing` (new connections are passed to a shard that has room, or"
            " refused) or `shedding` (some connections are closed, too).",
            "connections": "Number of connections of the shard.",
        },
    ),
    LogEvent(
        "accept_exhausted",
        ("warning",),
        ("shard",),
        "The operating system refused to accept connections because descriptors or memory were exhausted.",
        "Raise the limit of open files of the process or of the machine (`wsgate doctor` shows the limits).",
        {"times": "How often this has happened since the shard started."},
    ),
    # --- keys and revocations ---------------------------------------------------------------------------
    LogEvent(
        "key_set_fetch_failed",
        ("warning",),
        ("admin",),
        "The key set of `auth.jwks_url` could not be fetched or has no usable key; the keys fetched"
        " before stay valid, and the fetch is repeated after 0.5 s to 45 s.",
        "Read `why`, and check that the issuer answers at that address.",
        {"why": "Cause of the failure."},
    ),
    LogEvent(
        "key_set_keys_ignored",
        ("warning",),
        ("admin",),
        "Some keys of the fetched key set cannot be used; tokens signed with them are refused.",
        "Ask the issuer to correct these keys, or ignore the line if no token uses them.",
        {"count": "Number of these keys.", "keys": "Kid of each key with its reason, at most 16."},
    ),
    LogEvent(
        "key_set_rejected",
        ("error",),
        ("shard",),
        "A shard could not apply a fetched key set and keeps the keys that it has.",
        "This is a defect of wsgate: please report it with `error`.",
        {"error": "Error that occurred."},
    ),
    LogEvent(
        "revocations_full",
        ("error",),
        ("shard",),
        "Too many users are revoked at once, so the earliest revocations became one revocation for"
        " all users.",
        "Set `auth.token_max_life`, so that a shard can forget revocations that no token outlives.",
        {
            "users": "Number of single users that a shard remembers.",
            "all_before_s": "Tokens of all users issued before this time are refused, in seconds since 1970.",
            "why": "The consequences in words.",
        },
    ),
    # --- the admin process ------------------------------------------------------------------------------
    LogEvent(
        "request_failed",
        ("error",),
        ("admin",),
        "An unexpected exception occurred while the admin process answered an HTTP request.",
        _REPORT,
        _TEXT,
    ),
    LogEvent(
        "http",
        ("warning",),
        ("admin",),
        "The HTTP server of the admin process reported a problem, such as a request that is not valid HTTP.",
        "No action is necessary unless the line repeats; then find the program that sends these requests.",
        _TEXT,
    ),
    # --- any process ------------------------------------------------------------------------------------
    LogEvent(
        "callback_failed",
        ("error",),
        ("shard",),
        "An unexpected exception occurred in a callback of the event loop; the shard continues.",
        _REPORT,
        {"text": "Message of the event loop, if there is no exception."},
    ),
    LogEvent(
        "task_failed",
        ("error",),
        ("shard",),
        "A background task of a shard ended by an exception; the shard ends, and the keeper starts it again.",
        "This is a defect of wsgate: please report it with `error`.",
        {"error": "Exception that ended the task."},
    ),
    LogEvent(
        "library_<name>",
        ("warning", "error"),
        ("any",),
        "A library reported a warning or an error through Python's logging; the name is that of its logger.",
        "Read `text`, and look into the documentation of that library.",
        _TEXT,
    ),
    LogEvent(
        "uncaught",
        ("error",),
        ("any",),
        "An exception that no code caught has ended the process.",
        _REPORT,
    ),
    LogEvent(
        "unraisable",
        ("error",),
        ("any",),
        "An exception occurred where none can be raised, such as in a finalizer; the process continues.",
        _REPORT,
        {"where": "Where it occurred."},
    ),
    LogEvent(
        "thread_failed",
        ("error",),
        ("any",),
        "An exception that no code caught has ended a thread; the process continues.",
        _REPORT,
    ),
    LogEvent(
        "log_lines_dropped",
        ("warning",),
        ("any",),
        "Log lines were dropped at this place because the reader of standard error was too slow.",
        "Make the reader of standard error faster, or raise `log.level`.",
        {"lines": "Number of lines that were dropped.", "why": "The same reason in words."},
    ),
)
"""Every event, in the order of the generated page."""
