"""The control channel of a server: one JSON command per line in, one JSON reply per line out.

A command is ``{"id": 7, "command": "stats", ...arguments}``, its reply ``{"id": 7, "ok": true, "result":
...}`` or ``{"id": 7, "ok": false, "error": "..."}``: the same form as in ``loadtest.engine``. The process
ends after `quit` or when its input ends, so that it never outlives the bench.

Commands: ``hello`` {pid, port}; ``stats`` {cpu_s, counters, bytes_held, and send_memory if
``with_send_memory`` is set}; ``memory`` {pss_bytes, private_bytes, allocated_blocks, after a garbage
collection}; ``subscribers`` {channel}; ``publish`` (PublishPlan); ``gate`` {connections}; ``watch_lag``
{is_on} returns the lag since the last call; ``quit``; and the server's own commands.
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
# Short compared with the 10 ms that the loop lag may reach. Switched on only when needed, because it costs
# CPU.
_LAG_TICK_S = 0.002

_Served = TypeVar("_Served", bound=Server)


Commands = Mapping[str, Callable[..., Any]]


def serve(
    make_server: Callable[[asyncio.AbstractEventLoop, dict[str, Any]], _Served],
    more: Callable[[_Served], Commands] | None = None,
) -> None:
    """Run a server until its control channel ends. The settings are the JSON object in the first argument.

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
    """Reads commands, runs them on one server, and writes replies."""

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
        """Run every complete line of the input; end the process at the end of the input."""
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
        # The bench receives every failure; no command may end the server during a run.
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
            # Read in the same turn of the loop, so that both numbers are of one moment.
            stats["send_memory"] = send_memory()
        return stats


class _Lag:
    """Measures how late a timer of 2 ms fires, which is the delay that a busy loop causes."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._is_on = False
        self._most_s = 0.0
        self._handle: asyncio.TimerHandle | None = None

    def watch(self, is_on: bool) -> dict[str, float]:
        """Start or stop the timer, and return the worst lateness since the last call."""
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
    """Return this process's memory after a garbage collection."""
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
