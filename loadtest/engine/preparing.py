"""The steps in Python before the C code runs: descriptor limits, source addresses, the request's text."""

from __future__ import annotations

import dataclasses
import ipaddress
import resource

from loadtest.engine.errors import EngineLimitError
from loadtest.engine.plans import ConnectPlan, EngineSettings

__all__ = ["request_text", "resolve"]

# Descriptors for the interpreter, pipes and files.
_RESERVE = 64
# Half of the 28,232 ephemeral ports: connect(2) tries the ports of one parity first and is slower after them.
_PORTS_PER_SOURCE = 14_000


def resolve(settings: EngineSettings) -> EngineSettings:
    """Raise the soft descriptor limit, check the hard one, and fill in the open fields of the settings.

    Raises:
        EngineLimitError: The hard limit is below max_connections plus the reserve of 64.
        ValueError: Not all source addresses are in 127.0.0.0/8.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    most = 1_000_000 if hard == resource.RLIM_INFINITY else min(1_000_000, hard - _RESERVE)
    slots = settings.max_connections or most
    if slots > most:
        raise EngineLimitError(
            f"{slots} connections need {slots + _RESERVE} descriptors, but the hard limit of this process "
            f"is {hard}; use several engine processes"
        )
    first = ipaddress.IPv4Address(settings.first_source)
    count = settings.source_count or -(-slots // _PORTS_PER_SOURCE)
    if not first.is_loopback or not (first + count - 1).is_loopback:
        raise ValueError("source addresses must lie in 127.0.0.0/8")
    return dataclasses.replace(settings, max_connections=slots, first_source=str(first), source_count=count)


def request_text(plan: ConnectPlan) -> bytes:
    """Return the text of the handshake request, with its placeholders. Source: RFC 6455, 4.1."""
    lines = [
        f"GET {plan.path} HTTP/1.1",
        f"Host: {plan.host}:{plan.port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: {key}",
        "Sec-WebSocket-Version: 13",
        *(f"{name}: {value}" for name, value in plan.headers),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"
