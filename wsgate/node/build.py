"""Make the plan of a node from its configuration: bind the sockets and make the options, but fork nothing."""

import os
import secrets
import socket
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from wsgate.admin import AdminOptions
from wsgate.bus_address import parse_address, with_password
from wsgate.config import Config
from wsgate.errors import InternalError, SettingsError
from wsgate.node.embedded_bus import EmbeddedBus
from wsgate.node.identity import Holder, claim_name, names_for
from wsgate.node.listeners import open_group, when_free
from wsgate.node.machine import raise_descriptor_limit, usable_cores
from wsgate.node.memory import bus_share
from wsgate.node.options import (
    Machine,
    admin_options,
    descriptors_needed,
    publish_limits,
    renewable,
    shard_options,
)
from wsgate.node.privacy import forbid_dumps
from wsgate.node.privileges import account_for, become
from wsgate.node.runtime import (
    RunningGateway,
    RuntimeFiles,
    lock_file,
    lock_port,
    read_lock_holder,
    runtime_directory,
    url_host,
    write_lock_holder,
)
from wsgate.reactor import ListenerOptions
from wsgate.shard.options import ShardOptions

__all__ = ["Plan", "Renewed", "make_plan"]

USER_TIMEOUT_MARGIN_MS: Final = 10_000
CLAIM_MOST_S: Final = 2.0
"""The longest wait for a reply to the claim of the name. Without a reply the node starts without a claim."""
PATIENCE_S: Final = 2.0
"""How long to wait for ports that a predecessor's children keep open; these end within a second."""


@dataclass(frozen=True, slots=True)
class Renewed:
    """The options of a running node after its configuration was read again.

    Attributes:
        shards: The options of each shard, for running shards and for those started later.
        admin: The options of the admin process.
        ignored: The settings that have changed and need a restart.
    """

    shards: list[ShardOptions]
    admin: AdminOptions
    ignored: list[str]


@dataclass(frozen=True, slots=True)
class Plan:
    """The sockets, files and options of everything that a keeper starts; `reread` reads the options again."""

    listeners: list[socket.socket]
    shards: list[ShardOptions]
    admin_listener: socket.socket
    admin: AdminOptions
    embedded_bus: EmbeddedBus | None
    running: RunningGateway
    files: RuntimeFiles
    reread: Callable[[], Renewed]


def make_plan(config: Config, environ: Mapping[str, str], read: Callable[[], Config]) -> Plan:
    """Lock and bind the ports, claim the node's name, and make the options of all processes.

    Args:
        config: The configuration of the node.
        environ: The environment variables, which locate the runtime directory and the server of the private
            bus.
        read: Reads the configuration again from the same sources.

    Raises:
        SettingsError: A setting prevents the start: a port in use, no server for the private bus, a key that
            does not fit its algorithm. No socket, lock or file is left then.
        InternalError: The operating system refuses a resource: no space, no memory, no permission.
    """
    try:
        with ExitStack() as undo:
            plan = _plan(config, environ, read, undo)
            undo.pop_all()
            return plan
    except OSError as error:
        raise InternalError(f"cannot start: {error}") from error


def _plan(config: Config, environ: Mapping[str, str], read: Callable[[], Config], undo: ExitStack) -> Plan:
    """Do the work of `make_plan`; `undo` releases what was made if a later step fails."""
    account = account_for(config.server.user)
    owner = None if account is None else (account.uid, account.gid)
    directory = runtime_directory(environ, owner=owner)
    descriptors = raise_descriptor_limit()
    _check_descriptors(config, descriptors)
    listeners, lock_fd = _open_listeners(config, directory, undo)
    port: int = listeners[0].getsockname()[1]
    admin_listener = _open_admin(config, undo)
    if account is not None:
        # Every port is bound. From here on nothing needs root, and no file may belong to root.
        os.fchown(lock_fd, account.uid, account.gid)
        become(account)
        forbid_dumps()
    bus = None
    machine = Machine(len(listeners), descriptors)
    if not config.bus.url:
        bus_bytes = bus_share(config.admission.memory_budget_bytes, len(listeners))
        machine = machine._replace(bus_bytes=bus_bytes)
        bus = EmbeddedBus(directory, port, environ, machine.bus_bytes, len(listeners))
        undo.callback(bus.clean)
    secret = secrets.token_urlsafe(32) if config.server.dev and not config.auth.hmac_secret else ""
    node, lease = _name(config, port, read_lock_holder(lock_fd))
    write_lock_holder(lock_fd, lease)
    running = RunningGateway(
        pid=os.getpid(),
        node=node,
        port=port,
        url=f"ws://{url_host(config.server.host)}:{port}{config.server.path}",
        admin_port=admin_listener.getsockname()[1],
        bus_url=bus.url if bus else with_password(config.bus.url, config.bus.password),
        prefix=config.bus.prefix,
        secret=secret,
        publish_limits=publish_limits(config),
    )

    def shards_of(config: Config) -> list[ShardOptions]:
        made = [shard_options(config, running, number, machine) for number in range(machine.shards)]
        return [replace(options, node_lease=lease) for options in made]

    def reread() -> Renewed:
        fresh, ignored = renewable(config, read())
        renewed = Renewed(shards_of(fresh), admin_options(fresh, running), ignored)
        files.describe(replace(running, publish_limits=publish_limits(fresh)))
        return renewed

    shards = shards_of(config)
    files = RuntimeFiles(lambda: runtime_directory(environ), running, lock_fd)
    undo.callback(files.clean)
    return Plan(
        listeners=listeners,
        shards=shards,
        admin_listener=admin_listener,
        admin=admin_options(config, running),
        embedded_bus=bus,
        running=running,
        files=files,
        reread=reread,
    )


def _check_descriptors(config: Config, descriptors: int) -> None:
    """Refuse a start with too few descriptors: shards would end at once, again and again."""
    shards = config.server.shards or usable_cores()
    least = descriptors_needed(shards, config.admission.reserve_descriptors)
    if descriptors < least:
        raise InternalError(
            f"the limit of open files (ulimit -n) is {descriptors}, and {shards}"
            f" shard{'s need' if shards > 1 else ' needs'} at least {least}, of which"
            f" {config.admission.reserve_descriptors} are admission.reserve_descriptors"
        )


def _name(config: Config, port: int, former: str) -> tuple[str, str]:
    """Choose a name for this node, and claim it when the bus is shared.

    Args:
        config: The configuration.
        port: The client port.
        former: The holder that the predecessor of this node left in the runtime directory; it has ended.

    Returns:
        The name, and the text of its lease on the bus. The text is empty when no other node shares the bus.
    """
    names = names_for(config.server.node, port)
    if not config.bus.url:
        return names[0], ""
    holder = Holder.here()
    address = parse_address(with_password(config.bus.url, config.bus.password))
    timeout_s = min(CLAIM_MOST_S, config.bus.connect_timeout_ms / 1000)
    name = claim_name(names, address, config.bus.prefix, holder, timeout_s, former=former)
    return name, holder.to_text()


def _open_listeners(config: Config, directory: Path, undo: ExitStack) -> tuple[list[socket.socket], int]:
    """Lock the client port and open its listeners; return these and the descriptor of the lock.

    The lock comes first: once it is taken, a port in use does not belong to a running gateway of this user.
    """
    slowest_ms = max(
        config.limits.write_timeout_ms,
        config.limits.outbox_age_ms,
        config.heartbeat.ping_interval_ms + config.heartbeat.pong_timeout_ms,
    )
    options = ListenerOptions(user_timeout_ms=slowest_ms + USER_TIMEOUT_MARGIN_MS)
    host, port, count = config.server.host, config.server.port, config.server.shards or usable_cores()
    lock_fd = _lock(directory, port, undo) if port else -1
    listeners = open_group(host, port, count, options, patience_s=PATIENCE_S)
    for listener in listeners:
        undo.callback(listener.close)
    return listeners, lock_fd if port else _lock(directory, listeners[0].getsockname()[1], undo)


def _lock(directory: Path, port: int, undo: ExitStack) -> int:
    """Lock a port against a second gateway of this user; raise SettingsError when it is locked."""
    lock_fd = lock_port(directory, port)
    if lock_fd is None:
        raise SettingsError(f"server.port: {port} is used by another gateway of this user")
    undo.callback(os.close, lock_fd)
    undo.callback(lock_file(directory, port).unlink, missing_ok=True)
    return lock_fd


def _open_admin(config: Config, undo: ExitStack) -> socket.socket:
    """Open the listener of the admin port."""
    host, port = config.admin.host, config.admin.port
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = when_free(
            lambda: socket.create_server((host, port), family=family, backlog=128), PATIENCE_S
        )
    except UnicodeError as error:
        raise SettingsError(f"admin.host: {host!r} is neither an address nor a name") from error
    except OSError as error:
        # create_server repeats the address in its text, so use only the system's text. An unknown name has a
        # negative errno, with a text of its own.
        text = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise SettingsError(f"admin.port: cannot listen on {host}:{port}: {text}") from error
    undo.callback(listener.close)
    return listener
