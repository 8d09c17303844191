"""The configuration: every setting once, read at the start and handed down as frozen values.

`settings` is the manual (what there is), `sources` reads (TOML file, then environment, then flags),
`units` knows durations and sizes. Read by the command line and the node alone.
"""

from wsgate.config.settings import (
    Admin,
    Admission,
    Auth,
    Bus,
    Config,
    Health,
    Heartbeat,
    Inbox,
    Key,
    Limits,
    Log,
    Namespace,
    Server,
    is_loopback,
)
from wsgate.config.sources import effective, ignored_variables, load
from wsgate.config.units import format_duration, format_size, parse_duration_ms, parse_size_bytes

__all__ = [
    "Admin",
    "Admission",
    "Auth",
    "Bus",
    "Config",
    "Health",
    "Heartbeat",
    "Inbox",
    "Key",
    "Limits",
    "Log",
    "Namespace",
    "Server",
    "effective",
    "format_duration",
    "format_size",
    "ignored_variables",
    "is_loopback",
    "load",
    "parse_duration_ms",
    "parse_size_bytes",
]
