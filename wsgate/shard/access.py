"""Who may subscribe and publish where. Pure: names and rules in, an error's name or None out.

Source: protocols/client/v1/spec.md, "Permissions".
"""

from collections.abc import Callable, Mapping

from wsgate.auth import Member, Permissions
from wsgate.bus.names import INBOX_MARK
from wsgate.shard.options import ChannelRules

__all__ = ["Access"]


class Access:
    """The rules of one node.

    Args:
        channels: Rules by namespace; `default` for names without one.
        any_channel: Rules of every other namespace; None: there are no others.
    """

    def __init__(self, channels: Mapping[str, ChannelRules], any_channel: ChannelRules | None) -> None:
        self.renew(channels, any_channel)

    def renew(self, channels: Mapping[str, ChannelRules], any_channel: ChannelRules | None) -> None:
        """Other rules, from now on."""
        self._channels = channels
        self._any = any_channel
        rules = [*channels.values(), *([any_channel] if any_channel else [])]
        self.smallest_max_publish_bytes = min((each.max_publish_bytes for each in rules), default=0)

    def rules(self, channel: str) -> ChannelRules | None:
        """The rules of a channel's namespace: what stands before the first colon."""
        namespace, colon, _ = channel.partition(":")
        return self._channels.get(namespace if colon else "default", self._any)

    def max_publish_bytes(self, channel: str) -> int:
        """The largest payload a channel takes; an inbox has the rules of no namespace, but a limit too."""
        rules = None if channel.startswith(INBOX_MARK) else self.rules(channel)
        return rules.max_publish_bytes if rules else self.smallest_max_publish_bytes

    def may_subscribe(self, member: Member, channel: str, *, has_channel_token: bool = False) -> str | None:
        """None, or the name of the error: `unknown_channel`, `permission_denied`."""
        if channel in member.permissions.channels:
            return None  # it was subscribed on connect, whatever the namespace says
        rules = self.rules(channel)
        if rules is None:
            return "unknown_channel"
        if has_channel_token and rules.subscribe != "nobody":
            return None
        return _judge(rules.subscribe, member, Permissions.may_subscribe, channel)

    def may_publish(self, member: Member, channel: str) -> str | None:
        """As `may_subscribe`."""
        rules = self.rules(channel)
        if rules is None:
            return "unknown_channel"
        return _judge(rules.publish, member, Permissions.may_publish, channel)


def _judge(
    level: str, member: Member, by_claim: Callable[[Permissions, str], bool], channel: str
) -> str | None:
    """Claims add, never remove: what the namespace grants needs no claim."""
    if level == "anyone" or (level == "authenticated" and member.user_utf8):
        return None
    if level != "nobody" and by_claim(member.permissions, channel):
        return None
    return "permission_denied"
