"""Define which options a running shard reloads without closing a connection: keys, rules and limits.

The keeper posts them as JSON on the board of the configuration. All other options of `ShardOptions` stay as
they were at the start of the shard.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Final

import msgspec

from wsgate.admission import ByteRates
from wsgate.auth import KeySource, TokenPolicy
from wsgate.errors import InternalError
from wsgate.reactor import GateLimits, Settings
from wsgate.shard.options import ChannelRules, ShardOptions, UserLimits
from wsgate.shard.shares import NodeLimits

__all__ = ["Renewal"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewal:
    """The options that a reload may change, under their names in `ShardOptions`; the same for every shard.

    `origins` has the texts of the setting. Each shard computes its own limits from `node_limits`: from `gate`
    it uses only what all shards have in common, and `unauthenticated_limit` is not included at all.
    """

    reactor: Settings
    gate: GateLimits
    node_limits: NodeLimits
    origins: tuple[str, ...]
    keys: tuple[KeySource, ...]
    tokens: TokenPolicy
    token_cache_entries: int
    compression_threshold_bytes: int
    allow_anonymous: bool
    allow_query_token: bool
    auth_timeout_ms: int
    max_channel_name_bytes: int
    channels: Mapping[str, ChannelRules]
    any_channel: ChannelRules | None
    inbox_slow_consumer: int
    drain_timeout_ms: int
    user_limits: UserLimits
    publish_rate_per_s: int
    publish_burst: int
    byte_rates: ByteRates

    @classmethod
    def of(cls, options: ShardOptions) -> "Renewal":
        """Take the options that a reload may change out of all options of a shard."""
        names = (each.name for each in fields(cls))
        values = {name: getattr(options, name) for name in names if name != "origins"}
        return cls(origins=options.origins.allowed, **values)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Renewal":
        """Decode a renewal that `to_bytes` has encoded.

        Raises:
            InternalError: The data is not such a renewal.
        """
        try:
            return _DECODER.decode(data)
        except msgspec.MsgspecError as error:
            raise InternalError(f"the renewed configuration cannot be read: {error}") from error

    def to_bytes(self) -> bytes:
        """Encode this renewal as JSON for the board of the configuration."""
        return msgspec.json.encode(self)

    def applied(self, options: ShardOptions) -> ShardOptions:
        """Return a shard's options with the renewed ones in place, and its part of the node's new limits.

        Args:
            options: The options that the shard uses now.
        """
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        values["origins"] = replace(options.origins, allowed=self.origins)
        values["gate"] = self.node_limits.gate(self.gate, options.number)
        values["unauthenticated_limit"] = self.node_limits.unauthenticated_limit(options.number)
        return replace(options, **values)


_DECODER: Final = msgspec.json.Decoder(Renewal)
