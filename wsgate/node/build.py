"""From a configuration to everything a keeper starts: sockets bound, options made, nothing forked."""

import os
import secrets
import shlex
import shutil
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from wsgate.address import with_password
from wsgate.admin import AdminOptions
from wsgate.auth import OriginPolicy, TokenPolicy, VerificationKey, make_key
from wsgate.bus import parse_address
from wsgate.config import Config
from wsgate.errors import InternalError, SettingsError
from wsgate.node.embedded_bus import EmbeddedBus
from wsgate.node.listeners import open_group, when_free
from wsgate.node.machine import raise_descriptor_limit, usable_cores
from wsgate.node.memory import memory_share
from wsgate.node.runtime import RunningGateway, lock_file, lock_port, runtime_directory, url_host
from wsgate.reactor import GateLimits, ListenerOptions, Settings, events
from wsgate.shard.options import ChannelRules, EventOptions, ShardOptions
from wsgate.shard.variants import opcodes

__all__ = ["Plan", "make_plan", "verification_keys"]

POLICIES: Final = {
    "close": events.POLICY_CLOSE,
    "drop_oldest": events.POLICY_DROP_OLDEST,
    "latest_only": events.POLICY_LATEST_ONLY,
}
DESCRIPTORS_OF_OURS: Final = 32
"""What a shard opens besides clients: epoll sets, bus, pipes, standard streams."""
USER_TIMEOUT_MARGIN_MS: Final = 10_000
PATIENCE_S: Final = 2.0
"""For ports that a predecessor's children still hold: they end within a second of their keeper."""
_LOOPBACK: Final = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True, slots=True)
class Plan:
    """What one keeper starts."""

    listeners: list[socket.socket]
    shards: list[ShardOptions]
    admin_listener: socket.socket
    admin: AdminOptions
    embedded_bus: EmbeddedBus | None
    running: RunningGateway
    drain_timeout_s: float
    lock_fd: int
    clean: Callable[[], None]  # removes what was left in the runtime directory


def make_plan(config: Config, environ: Mapping[str, str]) -> Plan:
    """Bind, lock and prepare.

    Raises:
        SettingsError: What stops the start: a port in use, no server for the private bus, a key that
            does not fit its algorithm. Nothing is left behind then.
        InternalError: The operating system refuses what we need: no space, no memory, no permission.
    """
    try:
        with ExitStack() as undo:
            plan = _plan(config, environ, undo)
            undo.pop_all()
            return plan
    except OSError as error:
        raise InternalError(f"cannot start: {error}") from error


def _plan(config: Config, environ: Mapping[str, str], undo: ExitStack) -> Plan:
    directory = runtime_directory(environ)
    descriptors = raise_descriptor_limit()
    listeners, lock_fd = _open_listeners(config, directory, undo)
    port: int = listeners[0].getsockname()[1]
    admin_listener = _open_admin(config, undo)
    bus = None if config.bus.url else EmbeddedBus(directory, port, environ)
    if bus is not None:
        undo.callback(bus.clean)
    secret = secrets.token_urlsafe(32) if config.server.dev and not config.auth.hmac_secret else ""
    running = RunningGateway(
        pid=os.getpid(),
        node=f"{socket.gethostname()}-{secrets.token_hex(3)}",
        port=port,
        url=f"ws://{url_host(config.server.host)}:{port}{config.server.path}",
        admin_port=admin_listener.getsockname()[1],
        bus_url=bus.url if bus else with_password(config.bus.url, config.bus.password),
        prefix=config.bus.prefix,
        secret=secret,
    )
    shards = [
        _shard_options(config, running, number, len(listeners), descriptors)
        for number in range(len(listeners))
    ]
    admin = _admin_options(config, running)
    file = running.write(directory)
    return Plan(
        listeners=listeners,
        shards=shards,
        admin_listener=admin_listener,
        admin=admin,
        embedded_bus=bus,
        running=running,
        drain_timeout_s=config.server.drain_timeout_ms / 1000,
        lock_fd=lock_fd,
        clean=lambda: _clean(file, lock_file(directory, port), bus),
    )


def _clean(file: Path, lock: Path, bus: EmbeddedBus | None) -> None:
    file.unlink(missing_ok=True)
    lock.unlink(missing_ok=True)
    if bus is not None:
        bus.clean()


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


def verification_keys(config: Config, development_secret: str = "") -> tuple[VerificationKey, ...]:
    """Every key of the configuration, and the one made for development when there is none."""
    keys = []
    if secret := config.auth.hmac_secret or development_secret:
        keys.append(make_key(None, "HS256", secret=secret.encode()))
    for kid, row in config.auth.keys.items():
        keys.append(make_key(kid, row.algorithm, secret=row.secret.encode(), public_key=row.public_key))
    return tuple(keys)


def _rules(row: object) -> ChannelRules:
    return ChannelRules(
        subscribe=row.subscribe,  # type: ignore[attr-defined]
        publish=row.publish,  # type: ignore[attr-defined]
        slow_consumer=POLICIES[row.slow_consumer],  # type: ignore[attr-defined]
        max_publish_bytes=row.max_publish_bytes,  # type: ignore[attr-defined]
    )


def _shard_options(
    config: Config, running: RunningGateway, number: int, shards: int, descriptors: int
) -> ShardOptions:
    limits, auth = config.limits, config.auth
    most = max(1, descriptors - config.admission.reserve_descriptors - DESCRIPTORS_OF_OURS)
    share = -(-config.admission.max_connections // shards) or most
    rate = config.admission.handshake_rate_per_s
    connections = min(most, share)
    channels = {name: _rules(row) for name, row in config.channels.items()}
    return ShardOptions(
        node=running.node,
        number=number,
        reactor=Settings(
            head_timeout_ms=limits.head_timeout_ms,
            message_limit_bytes=limits.max_message_bytes,
            fragments_limit=limits.max_fragments,
            message_timeout_ms=limits.message_timeout_ms,
            message_rate_per_s=limits.message_rate_per_s,
            byte_rate_per_s=limits.byte_rate_per_s,
            outbox_limit_bytes=limits.outbox_bytes,
            outbox_limit_frames=limits.outbox_frames,
            outbox_age_ms=limits.outbox_age_ms,
            write_timeout_ms=limits.write_timeout_ms,
            ping_interval_ms=config.heartbeat.ping_interval_ms,
            pong_timeout_ms=config.heartbeat.pong_timeout_ms,
            idle_timeout_ms=limits.idle_timeout_ms,
            subscriptions_limit=limits.max_subscriptions,
            report_vacated=True,
            report_meta=bool(config.events.enabled),
            variant_opcodes=opcodes(is_compressing=config.server.compression),
        ),
        gate=GateLimits(
            descriptors=descriptors - config.admission.reserve_descriptors,
            connections=connections,
            handshakes_in_progress=config.admission.handshakes_in_progress,
            accepts_per_s=-(-rate // shards),
            partial_bytes=-(-config.admission.partial_bytes // shards),
            memory_bytes=memory_share(config.admission.memory_budget_bytes, shards),
        ),
        bus=parse_address(running.bus_url),
        bus_prefix=config.bus.prefix,
        bus_connect_timeout_s=config.bus.connect_timeout_ms / 1000,
        bus_command_timeout_s=config.bus.command_timeout_ms / 1000,
        path=config.server.path,
        origins=OriginPolicy(
            tuple(config.server.allowed_origins) + _page_origins(config, running.admin_port)
        ),
        keys=verification_keys(config, running.secret),
        tokens=TokenPolicy(
            audience=auth.audience,
            issuer=auth.issuer,
            leeway_s=-(-auth.leeway_ms // 1000),  # whole seconds, as token times are; never less than asked
            require_exp=auth.require_exp,
        ),
        token_cache_entries=auth.token_cache_entries,
        is_compressing=config.server.compression,
        compression_threshold_bytes=config.server.compression_threshold_bytes,
        allow_anonymous=auth.allow_anonymous,
        allow_query_token=auth.allow_query_token,
        auth_timeout_ms=limits.auth_timeout_ms,
        unauthenticated_limit=config.admission.handshakes_in_progress or connections,
        max_channel_name_bytes=limits.max_channel_name_bytes,
        channels=channels,
        any_channel=channels["default"] if config.server.dev else None,
        inbox_slow_consumer=POLICIES[config.inbox.slow_consumer],
        drain_timeout_ms=config.server.drain_timeout_ms,
        probe_interval_ms=config.health.canary_interval_ms,
        events=EventOptions(
            enabled=frozenset(config.events.enabled),
            partitions=config.events.partitions,
            maxlen=config.events.maxlen,
            pubsub=config.events.pubsub,
        ),
    )


def _page_origins(config: Config, admin_port: int) -> tuple[str, ...]:
    """Where the try page is served from, in development."""
    if not config.server.dev:
        return ()
    hosts = dict.fromkeys((*_LOOPBACK, url_host(config.admin.host)))
    return tuple(f"http://{host}:{admin_port}" for host in hosts)


def _admin_options(config: Config, running: RunningGateway) -> AdminOptions:
    return AdminOptions(
        node=running.node,
        bus=parse_address(running.bus_url),
        prefix=config.bus.prefix,
        api_key=config.admin.api_key,
        is_dev=config.server.dev,
        is_loopback=config.admin.host in ("localhost", "::1") or config.admin.host.startswith("127."),
        client_port=running.port,
        path=config.server.path,
        connect_timeout_s=config.bus.connect_timeout_ms / 1000,
        command_timeout_s=config.bus.command_timeout_ms / 1000,
        publish_command=publish_command(running),
        max_publish_bytes=max(row.max_publish_bytes for row in config.channels.values()),
        log_level=config.log.level,
    )


def publish_command(running: RunningGateway) -> str:
    """A line to paste into a shell that publishes something; it works there as it stands."""
    port = "" if running.port == 8000 else f" --port {running.port}"
    return f"{_program()} publish{port} news '{{\"hello\":1}}'"


def _program() -> str:
    """How a shell starts `wsgate`: by name, or by the path it was started from (`make run`)."""
    if shutil.which("wsgate"):
        return "wsgate"
    started = Path(sys.argv[0])
    if started.name == "wsgate":
        return shlex.quote(str(started))
    return f"{shlex.quote(sys.executable)} -m wsgate"
