"""wsgate: a WebSocket long-connection gateway for very many sockets on few machines."""

__all__ = ["__version__"]

__version__ = "0.1.0"
