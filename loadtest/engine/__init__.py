"""The client side of every measurement: tens of thousands of WebSocket connections in one process.

The engine is a compiled client with its own epoll loop. It opens connections, holds them (and answers pings),
sends stamped messages at fixed times, and checks what arrives: the latency from the *intended* send time, and
every message that is lost, duplicated or out of order. It has no Python object per connection.

Reading order: ``plans`` (the requests), ``results`` (the replies), ``engine`` (the Python interface),
``process`` (the same engine as a child process). Below them, in C: ``core`` (state), ``table`` (connections
and buffers), ``loop``, ``connecting``, ``handshake``, ``receiving``, ``frames``, ``sending``, ``echoing``,
``ending``, ``sequences``, ``stamps``, ``histogram``, ``report``. ``preparing`` is the Python code that runs
before them.

The stamp
    A message is stamped if its first ``EngineSettings.stamp_window_bytes`` bytes contain 48 ASCII characters:
    ``WSGLOAD1``, stream (8 hex digits), sequence (16), intended send time (16; ns of CLOCK_MONOTONIC, which
    all processes of one machine share). It may be part of JSON or other text, so a server may add text around
    it. Publishers make one with ``stamp``. Streams with the top bit set belong to ``echo``.
"""

from loadtest.engine.engine import Engine
from loadtest.engine.errors import EngineBusyError, EngineError, EngineLimitError
from loadtest.engine.histogram import Histogram
from loadtest.engine.plans import ConnectPlan, EchoPlan, EngineSettings
from loadtest.engine.process import EngineProcess
from loadtest.engine.results import (
    CloseResult,
    ConnectResult,
    EchoResult,
    HistogramDict,
    ReconcileResult,
    Stats,
)
from loadtest.engine.stamps import ECHO_STREAM_BIT, STAMP_BYTES, STAMP_MAGIC, parse_stamp, stamp

__all__ = [
    "ECHO_STREAM_BIT",
    "STAMP_BYTES",
    "STAMP_MAGIC",
    "CloseResult",
    "ConnectPlan",
    "ConnectResult",
    "EchoPlan",
    "EchoResult",
    "Engine",
    "EngineBusyError",
    "EngineError",
    "EngineLimitError",
    "EngineProcess",
    "EngineSettings",
    "Histogram",
    "HistogramDict",
    "ReconcileResult",
    "Stats",
    "parse_stamp",
    "stamp",
]
