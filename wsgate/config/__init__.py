"""The configuration of a gateway: its settings, read from file, environment and flags into frozen values.

`settings` defines every setting and is the manual. `sources` reads the TOML file, then the environment, then
the flags. `units` parses durations and sizes. Only the command line, the node and the doctor use this
package.
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
from wsgate.config.sources import effective, ignored_variables, load, reloader
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
    "reloader",
]
