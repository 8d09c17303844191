"""Decide which channels a client may subscribe to and publish to. Pure: no state but the rules.

Source: protocols/client/v1/spec.md, "Permissions".
"""

from collections.abc import Callable, Mapping

from wsgate.auth import Member, Permissions
from wsgate.bus.names import INBOX_MARK
from wsgate.shard.options import ChannelRules

__all__ = ["Access"]


class Access:
    """Applies the rules of namespaces and the permissions of a token to the channels of clients.

    Args:
        channels: Rules by namespace; `default` for channels without a namespace.
        any_channel: Rules of every other namespace; None: channels of other namespaces do not exist.
    """

    def __init__(self, channels: Mapping[str, ChannelRules], any_channel: ChannelRules | None) -> None:
        self.renew(channels, any_channel)

    def renew(self, channels: Mapping[str, ChannelRules], any_channel: ChannelRules | None) -> None:
        """Use these rules from now on."""
        self._channels = channels
        self._any = any_channel
        rules = [*channels.values(), *([any_channel] if any_channel else [])]
        self.smallest_max_publish_bytes = min((each.max_publish_bytes for each in rules), default=0)

    def rules(self, channel: str) -> ChannelRules | None:
        """Return the rules of a channel's namespace, the text before the first colon; None: no rules."""
        namespace, colon, _ = channel.partition(":")
        return self._channels.get(namespace if colon else "default", self._any)

    def max_publish_bytes(self, channel: str) -> int:
        """Return the largest payload of a publication on a channel, in bytes.

        An inbox belongs to no namespace; its limit is the smallest of all namespaces.
        """
        rules = None if channel.startswith(INBOX_MARK) else self.rules(channel)
        return rules.max_publish_bytes if rules else self.smallest_max_publish_bytes

    def may_subscribe(self, member: Member, channel: str, *, has_channel_token: bool = False) -> str | None:
        """Return the error for a client that may not subscribe to a channel; None: it may.

        Args:
            member: Of the connection.
            channel: The name of a channel, not of an inbox.
            has_channel_token: Whether the client showed a valid token for this channel.

        Returns:
            `unknown_channel`, `permission_denied` or None.
        """
        if channel in member.permissions.channels:
            return None  # a channel of the token is subscribed on connect, whatever its namespace permits
        rules = self.rules(channel)
        if rules is None:
            return "unknown_channel"
        if has_channel_token and rules.subscribe != "nobody":
            return None
        return _judge(rules.subscribe, member, Permissions.may_subscribe, channel)

    def may_publish(self, member: Member, channel: str) -> str | None:
        """Return the error for a client that may not publish to a channel; None: it may.

        The arguments and errors are those of `may_subscribe`.
        """
        rules = self.rules(channel)
        if rules is None:
            return "unknown_channel"
        return _judge(rules.publish, member, Permissions.may_publish, channel)


def _judge(
    level: str, member: Member, by_claim: Callable[[Permissions, str], bool], channel: str
) -> str | None:
    """Return the error if neither the level of the namespace nor the claims of the token permit an action.

    Claims only add permissions: an action that the namespace permits needs no claim.
    """
    if level == "anyone" or (level == "authenticated" and member.user_utf8):
        return None
    if level != "nobody" and by_claim(member.permissions, channel):
        return None
    return "permission_denied"
