"""Every setting of a client, with unit, default and reason."""

from dataclasses import dataclass, field

from wsgate.client.backoff import Backoff
from wsgate.client.ranges import check_seconds, check_time_limits, check_whole_numbers

__all__ = ["ClientOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    """The settings of a `Client`. A value that is out of its range raises SettingsError.

    Attributes:
        command_timeout_s: How long a command may wait for a connection and for its reply, together.
        open_timeout_s: How long a handshake may take, and after it the `welcome`. The gateway sends the
            `welcome` only when its bus has replied.
        token_timeout_s: How long one call of a token provider may take.
        backoff: The delay between attempts to connect, and between tries of a subscription that is refused
            temporarily.
        steady_s: After a connection that lasted so long after its welcome, the back-off starts again from its
            first window.
        unauthorized_limit: How many handshakes in a row may be refused with 401 or 403 before a client with a
            token provider ends. Without a provider the first one ends the client, because the same token
            would be refused again.
        queue_limit: How many publications of one subscription may wait for the application.
        silence_margin_s: If no byte arrives for two ping intervals of the gateway, the client sends a ping.
            If no byte arrives for this time after the ping, the client drops the connection and reconnects.
        own_ping_s: How long no byte may arrive from a gateway that sends no pings, before the client sends a
            ping.
        max_message_bytes: Size of the largest message that is accepted; a larger one ends the client with
            1009.
        proxy: True: connect through the proxy that the environment names for the address (`wss_proxy`,
            `socks_proxy`, `https_proxy`; for `ws://` also `ws_proxy` and `http_proxy`; `no_proxy` names hosts
            that are excluded). False: never use a proxy. A text: use this proxy, such as `http://proxy:3128`.
            Connections to loopback addresses are always direct. A SOCKS proxy needs the package
            `python-socks`. A proxy that cannot be used ends the client.
    """

    command_timeout_s: float = 10.0
    open_timeout_s: float = 20.0
    token_timeout_s: float = 10.0
    backoff: Backoff = field(default_factory=Backoff)
    steady_s: float = 5.0
    unauthorized_limit: int = 5
    queue_limit: int = 1000
    silence_margin_s: float = 10.0
    own_ping_s: float = 25.0
    max_message_bytes: int = 16 * 1024 * 1024
    proxy: bool | str = field(default=True, repr=False)  # not shown, because it may hold a password

    def __post_init__(self) -> None:
        """Check the ranges: time limits above 0, counts and sizes from 1 on. Raises SettingsError."""
        check_time_limits(
            self, "command_timeout_s", "open_timeout_s", "token_timeout_s", "silence_margin_s", "own_ping_s"
        )
        check_seconds(self, steady_s=0)
        check_whole_numbers(self, unauthorized_limit=1, queue_limit=1, max_message_bytes=1)
