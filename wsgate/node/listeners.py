"""Open the client port with one listener for each shard, and distribute new connections between these.

All listeners of the port form one SO_REUSEPORT group. The kernel's default distributes connections by hash,
without regard to the state of shards. The program distributes them at random by weight, so that a full,
draining or hung shard gets none. The keeper keeps every listener open, so that the successor of a crashed
shard has the same accept queue.

Source: socket(7), SO_ATTACH_REUSEPORT_CBPF; the kernel's Documentation/networking/filter.rst.
"""

import contextlib
import ctypes
import errno
import random
import socket
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final, TypeVar

from wsgate.errors import SettingsError
from wsgate.reactor import ListenerOptions, open_listener

__all__ = ["open_group", "refuse_handed", "refuse_waiting", "steer", "steering_program", "when_free"]

T = TypeVar("T")

_SO_ATTACH_REUSEPORT_CBPF: Final = 51
_LOAD_RANDOM: Final = (0x20, 0, 0, 0xFFFFF000 + 56)  # BPF_LD | BPF_W | BPF_ABS, SKF_AD_OFF + SKF_AD_RANDOM
_MODULO: Final = 0x94  # BPF_ALU | BPF_MOD | BPF_K
_JUMP_IF_GREATER_OR_EQUAL: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K
_WEIGHT_SUM: Final = 1 << 16

_TRY_AGAIN_S: Final = 0.05
_REFUSALS_PER_CALL: Final = 64
_NOBODY_ANSWERS: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: %d\r\nContent-Length: 0\r\n\r\n"
)
_RETRY_S: Final = (2, 10)


def when_free(open_it: Callable[[], T], within_s: float) -> T:
    """Call `open_it` and return its result; while the address is in use, try again for `within_s` seconds.

    The children of a killed keeper end shortly after it, and keep its ports open until then.
    """
    end_s = time.monotonic() + within_s
    while True:
        try:
            return open_it()
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() >= end_s:
                raise
        time.sleep(_TRY_AGAIN_S)


def open_group(
    host: str, port: int, count: int, options: ListenerOptions, *, patience_s: float = 0.0
) -> list[socket.socket]:
    """Open the listeners of all shards on one port, as one SO_REUSEPORT group.

    A first listener without SO_REUSEPORT checks that the port is free, so that the group of another gateway
    is not joined.

    Args:
        host: The address or name to bind.
        port: The port; 0: the kernel chooses one for all listeners.
        count: The number of listeners, >= 1.
        options: The options of each listener.
        patience_s: How long to wait for a port that is in use, in seconds.

    Raises:
        SettingsError: The port is in use, or the address cannot be bound.
    """
    try:
        if port:
            probe = replace(options, reuse_port=False, backlog=1)
            when_free(lambda: open_listener(host, port, probe).close(), patience_s)
        group = [open_listener(host, port, replace(options, reuse_port=True))]
    except UnicodeError as error:  # for instance a name with a label that is too long
        raise SettingsError(f"server.host: {host!r} is neither an address nor a name") from error
    except OSError as error:
        raise SettingsError(f"cannot listen on {host}:{port}: {_plainly(error)}") from error
    chosen = group[0].getsockname()[1]
    group += [open_listener(host, chosen, replace(options, reuse_port=True)) for _ in range(count - 1)]
    return group


def _plainly(error: OSError) -> str:
    """Describe an error of binding a port in words for the operator."""
    if error.errno == errno.EADDRINUSE:
        return "the port is in use, perhaps by another gateway"
    return error.strerror or str(error)


def steering_program(weights: Sequence[int]) -> bytes:
    """Assemble the classic BPF program that returns index n with the probability weight n / sum of weights.

    If all weights are 0, all shards get the same share: each shard then refuses connections with its own
    reason.

    Args:
        weights: The weight of each shard, >= 0, in the order of the listeners.
    """
    if not any(weights):
        weights = [1] * len(weights)
    total = sum(weights)
    scaled = [max(1, weight * _WEIGHT_SUM // total) if weight else 0 for weight in weights]
    steps = [_LOAD_RANDOM, (_MODULO, 0, 0, sum(scaled))]
    bound = 0
    for index, weight in enumerate(scaled):
        bound += weight
        # A number below the bound selects this index; otherwise jump over the return.
        steps += [(_JUMP_IF_GREATER_OR_EQUAL, 1, 0, bound), (_RETURN, 0, 0, index)]
    steps.append((_RETURN, 0, 0, len(scaled) - 1))
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def steer(listener: socket.socket, weights: Sequence[int]) -> None:
    """Attach the steering program to the listener's group, so that new connections follow these weights."""
    program = ctypes.create_string_buffer(steering_program(weights))
    steps = (len(program) - 1) // 8
    listener.setsockopt(
        socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, struct.pack("@HP", steps, ctypes.addressof(program))
    )


def refuse_waiting(listener: socket.socket) -> int:
    """Refuse connections in an accept queue that no shard serves, with 503; return how many, at most 64."""
    refused = 0
    while refused < _REFUSALS_PER_CALL:
        try:
            peer, _ = listener.accept()
        except OSError:
            break
        _refuse(peer)
        refused += 1
    return refused


def refuse_handed(channel: socket.socket) -> int:
    """Refuse connections, with 503, that other shards handed over to a shard that does not accept them.

    Args:
        channel: The receiving end of the shard's handover channel; it does not block.

    Returns:
        How many connections were refused, at most 64.
    """
    refused = 0
    while refused < _REFUSALS_PER_CALL:
        try:
            handed, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
        except OSError:
            break
        if not handed:
            break
        for descriptor in descriptors:
            _refuse(socket.socket(fileno=descriptor))
        refused += 1
    return refused


def _refuse(peer: socket.socket) -> None:
    """Send the response 503 to one connection and close it."""
    with peer, contextlib.suppress(OSError):
        peer.setblocking(False)
        with contextlib.suppress(BlockingIOError):  # a peer that has sent nothing yet gets the response too
            peer.recv(16 * 1024)  # closing with unread bytes would send a reset, and lose the response
        peer.send(_NOBODY_ANSWERS % random.randint(*_RETRY_S))  # noqa: S311 - spreading, not secrecy
        peer.shutdown(socket.SHUT_WR)
