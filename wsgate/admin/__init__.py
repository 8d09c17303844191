"""The process with HTTP: health, metrics, the API for backends, and a page to try the gateway.

It reads the statistics block and publishes to the bus, and nothing hangs on it: clients are served as
well while it is dead. What it is built with (starlette, uvicorn, prometheus_client) is imported when it
starts, in its own process, so that the keeper and the shards never carry it.
"""

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

from wsgate.bus import BusAddress
from wsgate.statistics import Board, StatisticsBlock

__all__ = ["AdminOptions", "run_admin"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminOptions:
    """What an admin process is told at its start.

    Attributes:
        node: The node's name.
        bus: Where the API publishes to.
        prefix: Of names on the bus.
        api_key: What callers of the API must show; empty: nobody can, except in development.
        is_dev: Development: no key is asked for unless one is set, and the try page is served.
        is_loopback: Whether only this machine can reach the listener; then metrics need no key.
        client_port: Where clients connect to, for the try page.
        path: The path clients ask for, for the try page.
        connect_timeout_s: For a connection to the bus.
        command_timeout_s: For an answer of the bus.
        publish_command: A line to paste into a shell, for the try page.
        max_publish_bytes: The largest payload the API publishes.
        publish_limits: The largest payload by namespace, as `wsgate.bus.receivers` reads it; empty: it is
            `max_publish_bytes` for every channel.
        log_level: `debug`, `info`, `warning` or `error`.
        jwks_url: Where the issuer's key set is; empty: nowhere.
    """

    node: str
    bus: BusAddress
    prefix: str
    api_key: str = field(repr=False)
    is_dev: bool
    is_loopback: bool
    client_port: int
    path: str
    connect_timeout_s: float
    command_timeout_s: float
    publish_command: str
    max_publish_bytes: int
    log_level: str
    jwks_url: str = ""
    publish_limits: Mapping[str, int] = field(default_factory=dict)


def run_admin(
    options: AdminOptions, block: StatisticsBlock, listener: socket.socket, alive: int, key_set: Board
) -> None:
    """Be the admin process until SIGTERM or until the keeper is gone; both end it within a second.

    Args:
        options: What to be.
        block: The node's numbers; only read.
        listener: A listening socket; closed here at the end, the keeper's copy stays open.
        alive: The read end of a pipe whose other end the keeper holds: its end of file is the keeper's.
        key_set: Where the issuer's key set is posted for the shards.
    """
    from wsgate.admin.server import serve

    serve(options, block, listener, alive, key_set)
