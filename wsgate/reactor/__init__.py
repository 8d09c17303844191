"""The data plane: sockets, frames, buffers, timers and fan-out, compiled.

Knows no JSON, no Redis, no asyncio and no policy; takes numbers. Start reading at `loop.pyi` for the
promises, then `structs.pxd` for the data, then `reader.pyx` and `writer.pyx` for the two hot paths.
"""

from wsgate.reactor.addresses import SharedAddresses
from wsgate.reactor.listener import open_listener
from wsgate.reactor.loop import Reactor
from wsgate.reactor.settings import GateLimits, ListenerOptions, Settings

__all__ = ["GateLimits", "ListenerOptions", "Reactor", "Settings", "SharedAddresses", "open_listener"]
