"""The control channel of a driven server: one JSON command per line in, one JSON answer per line out.

A command is ``{"id": 7, "command": "stats", ...arguments}``, its answer ``{"id": 7, "ok": true, "result":
...}`` or ``{"id": 7, "ok": false, "error": "..."}``: the form of ``loadtest.engine``. The process ends when
told to quit or when its input ends, so it never outlives the bench.

Commands: ``hello`` {pid, port}; ``stats`` {cpu_s, counters, bytes_held, and send_memory when asked by
``with_send_memory``}; ``memory`` {pss_bytes,
allocated_blocks, after a garbage collection}; ``subscribers`` {channel}; ``publish`` (PublishPlan); ``gate``
{connections}; ``watch_lag`` {is_on} answers what was seen so far; ``quit``; and what the server adds.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import uvloop

from loadtest.harness.processes import memory
from loadtest.peers.publisher import PublishPlan, publish
from loadtest.peers.server import Server
from loadtest.peers.socket_memory import send_memory

__all__ = ["Commands", "serve"]

_READ_BYTES = 1 << 16
# Short against the 10 ms that loop lag may be; on only where it is wanted, since it costs CPU by itself.
_LAG_TICK_S = 0.002

_Served = TypeVar("_Served", bound=Server)


Commands = Mapping[str, Callable[..., Any]]


def serve(
    make_server: Callable[[asyncio.AbstractEventLoop, dict[str, Any]], _Served],
    more: Callable[[_Served], Commands] | None = None,
) -> None:
    """Run a server until its control channel ends; the settings are the JSON object in the first argument.

    Args:
        make_server: Called inside the running loop, with the loop and the settings; returns a listening
            server.
        more: Returns the commands that only this server has, by name; each may block.
    """
    settings = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    uvloop.run(_serve(make_server, more, settings))


async def _serve(
    make_server: Callable[[asyncio.AbstractEventLoop, dict[str, Any]], _Served],
    more: Callable[[_Served], Commands] | None,
    settings: dict[str, Any],
) -> None:
    loop = asyncio.get_running_loop()
    server = make_server(loop, settings)
    control = _Control(server, loop, {} if more is None else more(server))
    os.set_blocking(sys.stdin.fileno(), False)
    loop.add_reader(sys.stdin.fileno(), control.on_input)
    await control.ended.wait()
    loop.remove_reader(sys.stdin.fileno())


class _Control:
    """Reads commands, runs them against one server, writes answers."""

    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop, more: Commands) -> None:
        self.ended = asyncio.Event()
        self._server = server
        self._lag = _Lag(loop)
        self._input = bytearray()
        self._publishing: asyncio.Task[None] | None = None
        self._commands: dict[str, Callable[..., Any]] = {
            "hello": lambda: {"pid": os.getpid(), "port": server.port},
            "stats": self._stats,
            "memory": _memory,
            "subscribers": server.subscribers,
            "gate": lambda connections: server.limit_connections(connections),
            "watch_lag": self._lag.watch,
            "quit": self.ended.set,
            **more,
        }

    def on_input(self) -> None:
        """Run every complete line."""
        try:
            data = os.read(sys.stdin.fileno(), _READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self.ended.set()
        self._input += data
        *lines, rest = self._input.split(b"\n")
        self._input = bytearray(rest)
        for line in lines:
            self._run(bytes(line))

    def _run(self, line: bytes) -> None:
        number = 0
        try:
            arguments = json.loads(line)
            number = arguments.pop("id")
            command = arguments.pop("command")
            if command == "publish":
                self._begin_publish(number, PublishPlan(**arguments))
            else:
                _answer(number, self._commands[command](**arguments))
        # The bench is told of every failure; nothing it sends may end the server half-way through a run.
        except Exception as error:
            _refuse(number, error)

    def _begin_publish(self, number: int, plan: PublishPlan) -> None:
        if self._publishing is not None and not self._publishing.done():
            raise ValueError("a publish is under way")
        self._publishing = asyncio.ensure_future(self._publish(number, plan))

    async def _publish(self, number: int, plan: PublishPlan) -> None:
        try:
            _answer(number, await publish(self._server, plan))
        except Exception as error:
            _refuse(number, error)

    def _stats(self, *, with_send_memory: bool = False) -> dict[str, Any]:
        stats: dict[str, Any] = {
            # CLOCK_PROCESS_CPUTIME_ID: user and system time of this process in ns, not in ticks.
            "cpu_s": time.process_time_ns() / 1e9,
            "counters": self._server.counters(),
            "bytes_held": self._server.bytes_held(),
        }
        if with_send_memory:
            # In the same turn of the loop: what is held and what is booked are of one moment.
            stats["send_memory"] = send_memory()
        return stats


class _Lag:
    """How late a timer of 2 ms fires: what a busy loop does to everything else in it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._is_on = False
        self._most_s = 0.0
        self._handle: asyncio.TimerHandle | None = None

    def watch(self, is_on: bool) -> dict[str, float]:
        """Start or stop; return the worst lateness since the last call."""
        most_s, self._most_s = self._most_s, 0.0
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if is_on:
            self._arm()
        return {"lag_ms": most_s * 1e3}

    def _arm(self) -> None:
        self._handle = self._loop.call_later(_LAG_TICK_S, self._fire, time.monotonic() + _LAG_TICK_S)

    def _fire(self, due_s: float) -> None:
        self._most_s = max(self._most_s, time.monotonic() - due_s)
        self._arm()


def _memory() -> dict[str, int]:
    """Return this process's memory, without what only waits for the collector."""
    gc.collect()
    held = memory()
    return {**held._asdict(), "allocated_blocks": sys.getallocatedblocks()}


def _answer(number: int, result: Any) -> None:
    _write({"id": number, "ok": True, "result": result})


def _refuse(number: int, error: Exception) -> None:
    _write({"id": number, "ok": False, "error": f"{type(error).__name__}: {error}"})


def _write(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()
