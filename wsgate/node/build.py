"""From a configuration to everything a keeper starts: sockets bound, options made, nothing forked."""

import os
import secrets
import socket
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
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
"""Longest wait for a bus that does not answer the claim of the name. The node then starts without a claim."""
PATIENCE_S: Final = 2.0
"""For ports that a predecessor's children still hold: they end within a second of their keeper."""


@dataclass(frozen=True, slots=True)
class Renewed:
    """What a configuration that was read again makes of a running node.

    Attributes:
        shards: Options of each shard, for those that start later and for those that run.
        admin: Options of the admin process.
        ignored: Settings that changed and need a restart.
    """

    shards: list[ShardOptions]
    admin: AdminOptions
    ignored: list[str]


@dataclass(frozen=True, slots=True)
class Plan:
    """What one keeper starts."""

    listeners: list[socket.socket]
    shards: list[ShardOptions]
    admin_listener: socket.socket
    admin: AdminOptions
    embedded_bus: EmbeddedBus | None
    running: RunningGateway
    files: RuntimeFiles
    reread: Callable[[], Renewed]


def make_plan(config: Config, environ: Mapping[str, str], read: Callable[[], Config]) -> Plan:
    """Bind, lock and prepare.

    Args:
        config: What to start with.
        environ: Where the runtime directory is.
        read: Reads the configuration again, from where this one came.

    Raises:
        SettingsError: What stops the start: a port in use, no server for the private bus, a key that
            does not fit its algorithm. Nothing is left behind then.
        InternalError: The operating system refuses what we need: no space, no memory, no permission.
    """
    try:
        with ExitStack() as undo:
            plan = _plan(config, environ, read, undo)
            undo.pop_all()
            return plan
    except OSError as error:
        raise InternalError(f"cannot start: {error}") from error


def _plan(config: Config, environ: Mapping[str, str], read: Callable[[], Config], undo: ExitStack) -> Plan:
    account = account_for(config.server.user)
    owner = None if account is None else (account.uid, account.gid)
    directory = runtime_directory(environ, owner=owner)
    descriptors = raise_descriptor_limit()
    _check_descriptors(config, descriptors)
    listeners, lock_fd = _open_listeners(config, directory, undo)
    port: int = listeners[0].getsockname()[1]
    admin_listener = _open_admin(config, undo)
    if account is not None:
        # Every port is bound. From here on nothing needs root, and nothing belongs to root.
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
        with suppress(OSError):  # the file serves our own commands; a renewal does not fail for it
            replace(running, publish_limits=publish_limits(fresh)).write(directory)
        return Renewed(shards_of(fresh), admin_options(fresh, running), ignored)

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
    """Refuse a start that cannot succeed: for want of descriptors shards would end again and again."""
    shards = config.server.shards or usable_cores()
    least = descriptors_needed(shards, config.admission.reserve_descriptors)
    if descriptors < least:
        raise InternalError(
            f"the limit of open files (ulimit -n) is {descriptors}, and {shards}"
            f" shard{'s need' if shards > 1 else ' needs'} at least {least}, of which"
            f" {config.admission.reserve_descriptors} are admission.reserve_descriptors"
        )


def _name(config: Config, port: int, former: str) -> tuple[str, str]:
    """Claim a name for this node.

    Args:
        config: The configuration.
        port: Where clients connect.
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
    """Locked first, so that whoever else has the port in use is no gateway of ours that lives."""
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
    lock_fd = lock_port(directory, port)
    if lock_fd is None:
        raise SettingsError(f"server.port: {port} is held by another gateway of this user")
    undo.callback(os.close, lock_fd)
    undo.callback(lock_file(directory, port).unlink, missing_ok=True)
    return lock_fd


def _open_admin(config: Config, undo: ExitStack) -> socket.socket:
    host, port = config.admin.host, config.admin.port
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = when_free(
            lambda: socket.create_server((host, port), family=family, backlog=128), PATIENCE_S
        )
    except UnicodeError as error:
        raise SettingsError(f"admin.host: {host!r} is no address and no name") from error
    except OSError as error:
        # Without the address, which create_server repeats; a name that is not known has no errno of ours.
        text = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise SettingsError(f"admin.port: cannot listen on {host}:{port}: {text}") from error
    undo.callback(listener.close)
    return listener
