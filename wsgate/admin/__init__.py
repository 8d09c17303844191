"""The admin process, which serves HTTP: health, metrics, the API for backends, and a page to try the gateway.

It reads the statistics block and publishes to the bus. The shards do not depend on it: they serve clients
also when it does not run. Its libraries (starlette, uvicorn, prometheus_client) are imported only in this
process, so that they use no memory in the keeper and the shards.
"""

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

from wsgate.bus import BusAddress
from wsgate.statistics import Board, StatisticsBlock

__all__ = ["AdminOptions", "run_admin"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminOptions:
    """The options of an admin process, fixed at its start.

    Attributes:
        node: The name of the node.
        bus: The address of the bus to which the API publishes.
        prefix: The prefix of names on the bus.
        api_key: The key that callers of the API must send; empty: all are refused, except in development
            mode.
        is_dev: Development mode: the API needs no key unless one is set, and the try page is served.
        is_loopback: Whether only this machine can reach the listener; then metrics need no key.
        client_port: The port for clients, for the try page.
        path: The path of the WebSocket URL, for the try page.
        connect_timeout_s: Time for connecting to the bus, in seconds.
        command_timeout_s: Time for a reply of the bus, in seconds.
        publish_command: A shell command that publishes, for the try page.
        max_publish_bytes: The largest payload that the API publishes.
        publish_limits: The largest payload by namespace, see `wsgate.bus.receivers`; empty:
            `max_publish_bytes` for every channel.
        log_level: `debug`, `info`, `warning` or `error`.
        jwks_url: The URL of the issuer's key set; empty: there is none.
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
    """Run the admin process until SIGTERM, or until the keeper has ended; both end it within a second.

    Args:
        options: The options of the process.
        block: The statistics of the node, which are only read.
        listener: The listening socket. It is closed here at the end; the keeper's copy stays open.
        alive: The read end of a pipe whose write end only the keeper has: at its end of file the keeper has
            ended.
        key_set: The board on which the issuer's key set is posted for the shards.
    """
    from wsgate.admin.server import serve

    serve(options, block, listener, alive, key_set)
