"""Every setting of a client once: unit, default, why."""

from dataclasses import dataclass, field

from wsgate.client.backoff import Backoff

__all__ = ["ClientOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    """Settings of a `Client`.

    Attributes:
        command_timeout_s: How long a command may wait, for a connection and for its answer together.
        open_timeout_s: How long a handshake may take, and then the `welcome`; the latter waits for the
            gateway's bus.
        token_timeout_s: How long a token provider may take.
        backoff: Between attempts, and between tries of what is refused for the moment.
        steady_s: A connection that lasted so long begins the back-off anew; one that is cut at once does not.
        unauthorized_limit: Handshakes in a row refused with 401 or 403 before a client with a token provider
            gives up. Without a provider the first ends it: the same token would be refused again.
        queue_limit: Publications of one subscription that may wait for the application.
        silence_margin_s: On top of two ping intervals: when nothing came for so long the gateway is dead.
        own_ping_s: Where the gateway does not ping, how often the client does.
        max_message_bytes: Largest message taken; a larger one ends the client with 1009.
        proxy: Whether to connect through the proxy that the environment names for the address (`wss_proxy`,
            `socks_proxy`, `https_proxy`; for `ws://` also `ws_proxy` and `http_proxy`; `no_proxy` names hosts
            that are excluded). False: never. A text: through this proxy, such as `http://proxy:3128`.
            Loopback addresses are always connected to directly. A SOCKS proxy needs the package
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
    proxy: bool | str = field(default=True, repr=False)  # it may hold a password
