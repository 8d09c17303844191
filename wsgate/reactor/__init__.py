"""The compiled data plane of a shard: client sockets, frames, buffers, timers and fan-out.

The reactor must not know JSON, Redis, asyncio or any policy: its caller passes limits as numbers. Start with
`loop.pyi` for the interface, then read `structs.pxd` for the data, and `reader.pyx` and `writer.pyx` for the
two paths that run most often.
"""

from wsgate.reactor.addresses import SharedAddresses
from wsgate.reactor.listener import open_listener
from wsgate.reactor.loop import Reactor
from wsgate.reactor.settings import GateLimits, ListenerOptions, Settings

__all__ = ["GateLimits", "ListenerOptions", "Reactor", "Settings", "SharedAddresses", "open_listener"]
