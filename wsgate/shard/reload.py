"""What a running shard may be told anew without dropping anyone: keys, rules, limits.

The keeper posts it on the board of the configuration as JSON; nothing in it needs more than plain text and
numbers. Everything else of `ShardOptions` belongs to what a shard was started with.
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
    """The part of `ShardOptions` that may change, by the same names; origins as they are written.

    It is the same for every shard. What differs from shard to shard is computed by each from `node_limits`:
    of `gate` only what all have in common counts, and `unauthenticated_limit` is not sent at all.
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
        """What there is to renew in these options."""
        names = (each.name for each in fields(cls))
        values = {name: getattr(options, name) for name in names if name != "origins"}
        return cls(origins=options.origins.allowed, **values)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Renewal":
        """What `to_bytes` made.

        Raises:
            InternalError: It is not.
        """
        try:
            return _DECODER.decode(data)
        except msgspec.MsgspecError as error:
            raise InternalError(f"the renewed configuration cannot be read: {error}") from error

    def to_bytes(self) -> bytes:
        """As JSON."""
        return msgspec.json.encode(self)

    def applied(self, options: ShardOptions) -> ShardOptions:
        """The options with this in place of what they had, and with this shard's own share of the node."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        values["origins"] = replace(options.origins, allowed=self.origins)
        values["gate"] = self.node_limits.gate(self.gate, options.number)
        values["unauthenticated_limit"] = self.node_limits.unauthenticated_limit(options.number)
        return replace(options, **values)


_DECODER: Final = msgspec.json.Decoder(Renewal)
