"""The library for backends: publish to clients, and consume the events that the gateway writes about them.

Source: protocols/bus/v1/spec.md and protocols/backend/v1/spec.md.
"""

from wsgate.client.backend.bus import BusError
from wsgate.client.backend.consumer import EventConsumer
from wsgate.client.backend.event import Event, MalformedEvent
from wsgate.client.backend.handling import HandlerCancelled
from wsgate.client.backend.options import ConsumerOptions
from wsgate.client.backend.publisher import Publisher

__all__ = [
    "BusError",
    "ConsumerOptions",
    "Event",
    "EventConsumer",
    "HandlerCancelled",
    "MalformedEvent",
    "Publisher",
]
