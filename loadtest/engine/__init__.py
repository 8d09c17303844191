"""The client side of every measurement: tens of thousands of WebSocket connections in one process.

A compiled client on its own epoll loop. It opens connections, holds them (answering pings), sends stamped
messages by the clock, and judges what arrives: latency from the *intended* send time, and every message
lost, doubled or out of order. It keeps no Python object per connection.

Reading order: ``plans`` (what can be asked), ``results`` (what comes back), ``engine`` (the loop's Python
face), ``process`` (the same engine as a child process). Below them, in C: ``core`` (state), ``table``
(connections and buffers), ``loop``, ``connecting``, ``handshake``, ``receiving``, ``frames``, ``sending``,
``echoing``, ``ending``, ``sequences``, ``stamps``, ``histogram``, ``report``. ``preparing``
is what Python does first.

The stamp
    A message counts as stamped when, within its first ``EngineSettings.stamp_window_bytes`` bytes, it
    contains 48 ASCII characters: ``WSGLOAD1``, stream (8 hex digits), sequence (16), intended send time (16;
    ns of CLOCK_MONOTONIC, comparable between processes of one machine). It may stand inside JSON or other
    text, so a server may wrap it. Publishers make one with ``stamp``. Streams with the top bit set belong to
    ``echo``.
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
