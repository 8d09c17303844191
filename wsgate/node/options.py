"""Convert a configuration into the options of each process of a node, and select what a reload may change."""

import shlex
import shutil
import sys
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from wsgate.admin import AdminOptions
from wsgate.admission import BusShares, ByteRates, networks_of
from wsgate.auth import KeySource, OriginPolicy, TokenPolicy
from wsgate.bus import parse_address
from wsgate.bus.receivers import ANY_NAMESPACE
from wsgate.config import Config, is_loopback
from wsgate.config.settings import Section, fields_of
from wsgate.errors import SettingsError
from wsgate.node.memory import memory_share
from wsgate.node.runtime import RunningGateway, url_host
from wsgate.reactor import GateLimits, Settings, event_kinds
from wsgate.shard.options import DESCRIPTORS_OF_OURS, ChannelRules, EventOptions, ShardOptions, UserLimits
from wsgate.shard.publication_encoder import opcodes
from wsgate.shard.shares import NodeLimits

__all__ = [
    "Machine",
    "admin_options",
    "command_line",
    "descriptors_needed",
    "key_sources",
    "publish_command",
    "publish_limits",
    "renewable",
    "shard_options",
]

FIXED: Final = {
    "server": ("host", "port", "path", "node", "user", "shards", "compression", "dev"),
    "auth": ("jwks_url",),
    "bus": (),
    "events": (),
    "health": (),
    "log": (),
    "admin": ("host", "port"),
}
"""Settings that need a restart, by section; an empty tuple stands for the whole section."""

BACKLOG_SHARE: Final = 4
"""The backlog of a shard takes at most one part in so many of the shard's memory."""
BLOCKED_GRACE_MS: Final = 5_000
"""After a socket became full, the limit of frames does not count for this long; those of bytes and age do.

A socket is also full while its peer's process waits for a CPU: on a busy machine for seconds."""
BLOCKED_MOVING_MS: Final = 250
"""Publications wait for a slow connection only if its socket took bytes within this time, or in a crowd.

It is one tick of the reactor's timers. On a busy machine a process waits about as long for a CPU.
"""

POLICIES: Final = {
    "close": event_kinds.POLICY_CLOSE,
    "drop_oldest": event_kinds.POLICY_DROP_OLDEST,
    "latest_only": event_kinds.POLICY_LATEST_ONLY,
}


def renewable(config: Config, fresh: Config) -> tuple[Config, list[str]]:
    """Merge a new configuration into that of a running node: settings that need a restart keep their value.

    Args:
        config: The configuration that the node was started with.
        fresh: The configuration that was read now.

    Returns:
        The new configuration with the old values of all settings that need a restart, and the names of those
        of them that have changed.
    """
    ignored: list[str] = []
    sections: dict[str, Section] = {}
    for section, names in FIXED.items():
        before: Section = getattr(config, section)
        after: Section = getattr(fresh, section)
        kept = {}
        for info in fields_of(type(after)):
            is_fixed = not names or info.encode_name in names
            if is_fixed and getattr(before, info.name) != getattr(after, info.name):
                ignored.append(f"{section}.{info.encode_name}")
                kept[info.name] = getattr(before, info.name)
        sections[section] = msgspec.structs.replace(after, **kept)
    return msgspec.structs.replace(fresh, **sections), ignored


def key_sources(config: Config, development_secret: str = "") -> tuple[KeySource, ...]:
    """List the sources of all configured keys, and check each by making its key.

    Args:
        config: The configuration.
        development_secret: The HS256 secret to use when `auth.hmac_secret` is not set; empty: none.

    Raises:
        SettingsError: The material of a key does not fit its algorithm.
    """
    keys = []
    if secret := config.auth.hmac_secret or development_secret:
        keys.append(KeySource(None, "HS256", secret))
    for kid, row in config.auth.keys.items():
        keys.append(KeySource(kid, row.algorithm, row.secret, row.public_key))
    for key in keys:
        key.make()
    return tuple(keys)


def _rules(row: object) -> ChannelRules:
    """Convert the settings of one namespace into the rules of its channels."""
    return ChannelRules(
        subscribe=row.subscribe,  # type: ignore[attr-defined]
        publish=row.publish,  # type: ignore[attr-defined]
        slow_consumer=POLICIES[row.slow_consumer],  # type: ignore[attr-defined]
        max_publish_bytes=row.max_publish_bytes,  # type: ignore[attr-defined]
    )


class Machine(NamedTuple):
    """The resources of the node's processes, which do not change while the node runs.

    Attributes:
        shards: The number of shards.
        descriptors: The limit of open files of one process.
        bus_bytes: The memory limit of the private bus; 0: the node has none.
    """

    shards: int
    descriptors: int
    bus_bytes: int = 0


def _backlog_bytes(config: Config, machine: Machine) -> int:
    """Compute the limit of one shard's backlog of publications, in bytes."""
    share = memory_share(config.admission.memory_budget_bytes, machine.shards, machine.bus_bytes)
    return min(config.bus.backlog_bytes, share // BACKLOG_SHARE)


def _settings(config: Config, machine: Machine) -> Settings:
    """Make the settings of a shard's reactor."""
    limits = config.limits
    return Settings(
        head_timeout_ms=limits.head_timeout_ms,
        max_message_bytes=limits.max_message_bytes,
        max_fragments=limits.max_fragments,
        message_timeout_ms=limits.message_timeout_ms,
        message_rate_per_s=limits.message_rate_per_s,
        byte_rate_per_s=limits.byte_rate_per_s,
        outbox_bytes=limits.outbox_bytes,
        outbox_frames=limits.outbox_frames,
        outbox_age_ms=limits.outbox_age_ms,
        blocked_grace_ms=BLOCKED_GRACE_MS,
        blocked_moving_ms=BLOCKED_MOVING_MS,
        write_timeout_ms=limits.write_timeout_ms,
        ping_interval_ms=config.heartbeat.ping_interval_ms,
        pong_timeout_ms=config.heartbeat.pong_timeout_ms,
        idle_timeout_ms=limits.idle_timeout_ms,
        max_subscriptions=limits.max_subscriptions,
        report_vacated=True,
        report_meta=True,
        variant_opcodes=opcodes(is_compressing=config.server.compression),
    )


def descriptors_needed(shards: int, reserved: int) -> int:
    """Compute the smallest limit of open files with which a node can start and serve one client per shard.

    Args:
        shards: The number of shards. Both ends of every handover channel are open in the keeper and in all
            shards.
        reserved: The descriptors reserved from clients.
    """
    channels = 2 * shards if shards > 1 else 0
    of_shard = reserved + DESCRIPTORS_OF_OURS + channels + 1  # one client
    of_keeper = DESCRIPTORS_OF_OURS + channels + shards
    return max(of_shard, of_keeper)


def _node_limits(config: Config, machine: Machine) -> NodeLimits:
    """Make the limits of the whole node, which its shards divide among themselves.

    Raises:
        SettingsError: The node may have fewer connections than it has shards.
    """
    admission = config.admission
    if 0 < admission.max_connections < machine.shards:
        raise SettingsError(f"admission.max_connections: less than one for each of {machine.shards} shards")
    descriptors = machine.descriptors - admission.reserve_descriptors
    return NodeLimits(
        shards=machine.shards,
        connections=admission.max_connections,
        connections_of_shard=max(1, descriptors - DESCRIPTORS_OF_OURS),
        handshake_rate_per_s=admission.handshake_rate_per_s,
        handshakes_in_progress=admission.handshakes_in_progress,
        partial_bytes=admission.partial_bytes,
    )


def _common_gate(config: Config, machine: Machine) -> GateLimits:
    """Make the limits for accepting connections that are the same in all shards."""
    admission = config.admission
    return GateLimits(
        descriptors=machine.descriptors - admission.reserve_descriptors,
        memory_bytes=memory_share(admission.memory_budget_bytes, machine.shards, machine.bus_bytes),
        per_address_connections=admission.per_address_connections,
        per_address_rate_per_s=admission.per_address_rate_per_s,
        trusted_networks=networks_of(config.server.trusted_proxies),
        reads_proxy_header=config.server.proxy_protocol,
    )


def shard_options(config: Config, running: RunningGateway, number: int, machine: Machine) -> ShardOptions:
    """Make the options of one shard.

    Args:
        config: The configuration.
        running: The description of this gateway, with its ports and the URL of the bus.
        number: The number of the shard, >= 0.
        machine: The resources of the node.

    Raises:
        SettingsError: A key does not fit its algorithm, there is too little memory, or the node may have
            fewer connections than shards.
    """
    limits, auth = config.limits, config.auth
    node_limits = _node_limits(config, machine)
    channels = {name: _rules(row) for name, row in config.channels.items()}
    bus_shares = BusShares.of(machine.bus_bytes, machine.shards)
    return ShardOptions(
        node=running.node,
        number=number,
        reactor=_settings(config, machine),
        gate=node_limits.gate(_common_gate(config, machine), number),
        node_limits=node_limits,
        bus=parse_address(running.bus_url),
        bus_prefix=config.bus.prefix,
        bus_connect_timeout_s=config.bus.connect_timeout_ms / 1000,
        bus_command_timeout_s=config.bus.command_timeout_ms / 1000,
        bus_backlog_bytes=_backlog_bytes(config, machine),
        path=config.server.path,
        is_dev=config.server.dev,
        page_url=f"http://{url_host(config.admin.host)}:{running.admin_port}/" if config.server.dev else "",
        origins=OriginPolicy(
            tuple(config.server.allowed_origins) + _page_origins(config, running.admin_port),
            is_dev=config.server.dev,
        ),
        keys=key_sources(config, running.secret),
        tokens=TokenPolicy(
            audience=auth.audience,
            issuer=auth.issuer,
            leeway_s=-(-auth.leeway_ms // 1000),  # token times are whole seconds: round up
            require_exp=auth.require_exp,
            token_max_life_s=-(-auth.token_max_life_ms // 1000),
        ),
        token_cache_entries=auth.token_cache_entries,
        is_compressing=config.server.compression,
        compression_threshold_bytes=config.server.compression_threshold_bytes,
        allow_anonymous=auth.allow_anonymous,
        allow_query_token=auth.allow_query_token,
        auth_timeout_ms=limits.auth_timeout_ms,
        unauthenticated_limit=node_limits.unauthenticated_limit(number),
        max_channel_name_bytes=limits.max_channel_name_bytes,
        channels=channels,
        any_channel=channels["default"] if config.server.dev else None,
        inbox_slow_consumer=POLICIES[config.inbox.slow_consumer],
        drain_timeout_ms=config.server.drain_timeout_ms,
        has_private_bus=not config.bus.url,
        bus_shares=bus_shares,
        probe_interval_ms=config.health.canary_interval_ms,
        gap_spread_ms=config.bus.gap_spread_ms,
        events=EventOptions(
            enabled=frozenset(config.events.enabled),
            partitions=config.events.partitions,
            maxlen=config.events.maxlen,
            pubsub=config.events.pubsub,
        ),
        user_limits=UserLimits(
            connections=config.admission.per_user_connections,
            replaces=config.admission.per_user_policy == "replace_oldest",
            rate_per_s=config.admission.per_user_rate_per_s,
        ),
        byte_rates=ByteRates.of_node(
            limits.publish_byte_rate_per_s,
            limits.node_publish_byte_rate_per_s,
            machine.shards,
            bus_shares.output_bytes,
        ),
        is_fetching_keys=bool(auth.jwks_url),
        publish_rate_per_s=limits.publish_rate_per_s,
        publish_burst=limits.publish_burst,
    )


def _page_origins(config: Config, admin_port: int) -> tuple[str, ...]:
    """Return the origin of the try page in development mode, for a host that is no loopback address."""
    if not config.server.dev:
        return ()
    return (f"http://{url_host(config.admin.host).lower()}:{admin_port}",)


def admin_options(config: Config, running: RunningGateway) -> AdminOptions:
    """Make the options of the admin process."""
    return AdminOptions(
        node=running.node,
        bus=parse_address(running.bus_url),
        prefix=config.bus.prefix,
        api_key=config.admin.api_key,
        is_dev=config.server.dev,
        is_loopback=is_loopback(config.admin.host),
        client_port=running.port,
        path=config.server.path,
        connect_timeout_s=config.bus.connect_timeout_ms / 1000,
        command_timeout_s=config.bus.command_timeout_ms / 1000,
        publish_command=publish_command(running),
        max_publish_bytes=max(row.max_publish_bytes for row in config.channels.values()),
        log_level=config.log.level,
        jwks_url=config.auth.jwks_url,
        publish_limits=publish_limits(config),
    )


def publish_limits(config: Config) -> dict[str, int]:
    """Map each namespace to its largest publication in bytes, in the form for `wsgate.bus.receivers`."""
    limits = {name: row.max_publish_bytes for name, row in config.channels.items()}
    return limits | ({ANY_NAMESPACE: limits["default"]} if config.open_namespaces else {})


def publish_command(running: RunningGateway) -> str:
    """Return a shell command that publishes to the channel `news` of this gateway."""
    return command_line(running, "publish", "news '{\"hello\":1}'")


def command_line(running: RunningGateway, command: str, arguments: str) -> str:
    """Return a shell command that runs a `wsgate` command for this gateway; `--port` only if not 8000."""
    port = "" if running.port == 8000 else f" --port {running.port}"
    return f"{_program()} {command}{port} {arguments}"


def _program() -> str:
    """Return how a shell starts `wsgate`: by name, by path, or with the Python interpreter."""
    if shutil.which("wsgate"):
        return "wsgate"
    started = Path(sys.argv[0])
    if started.name == "wsgate":
        return shlex.quote(str(started))
    return f"{shlex.quote(sys.executable)} -m wsgate"
