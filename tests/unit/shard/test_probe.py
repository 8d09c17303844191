"""Check the probe: an echo makes the shard ready, and a missing echo renews both bus connections."""

from collections.abc import Callable
from typing import cast

from wsgate.bus import Publisher, Subscriber
from wsgate.shard.probe import TIMEOUT_MS, Probe

NAME = b"wsgate:probe:n:0"


class Ends:
    """Both ends of a bus, and a record of every call."""

    def __init__(self) -> None:
        self.is_up = True
        self.servers = [b""]
        self.heard: set[bytes] = set()
        self.subscribed: list[bytes] = []
        self.sent: list[tuple[bytes, bytes, Callable[[str], None]]] = []
        self.renewed: list[bytes] = []
        self.unheard: list[bytes] = []
        self.echoes: list[tuple[int, int]] = []
        self.now_ns = 10**12
        self.probe = Probe(
            NAME,
            cast(Publisher, self),
            cast(Subscriber, self),
            1_000,
            lambda *echo: self.echoes.append(echo),
            self.unheard.append,
        )

    def reaching(self, name: bytes) -> list[bytes]:
        return [name + each for each in self.servers]

    def subscribe_control(self, name: bytes) -> None:
        self.subscribed.append(name)

    def publish(
        self, name: bytes, data: bytes, done: Callable[[str], None], *, must_reach: bool = False
    ) -> None:
        assert must_reach
        self.sent.append((name, data, done))

    def renew(self, why: str, name: bytes) -> None:
        self.renewed.append(name)

    def hears(self, name: bytes) -> bool:
        return name in self.heard

    def confirm(self, name: bytes) -> None:
        """Confirm the subscription to a name."""
        self.heard.add(name)
        self.probe.on_control(name, None)

    def come_up(self) -> None:
        """Lose every connection, report the subscriber as up, and confirm everything that it requested."""
        self.lose(*self.heard)
        self.probe.on_up()
        for name in self.reaching(NAME):
            self.confirm(name)

    def lose(self, *names: bytes) -> None:
        """Lose the connections of some names."""
        self.heard -= set(names)
        self.probe.on_down()

    def check_after(self, ms: int) -> None:
        """Check the probes so many milliseconds after the last one was sent."""
        sent_ns = max(target.sent_ns for target in self.probe._targets.values())
        self.probe.check(sent_ns + ms * 1_000_000)

    def echo(self, name: bytes) -> int:
        """Let the last probe of a name come back; return when the next is due."""
        data = next(data for each, data, _ in reversed(self.sent) if each == name)
        self.probe.on_control(name, data)
        return self.echoes[-1][1]


def test_echo_reports_its_duration_and_when_the_next_probe_is_due() -> None:
    ends = Ends()
    ends.come_up()
    assert ends.subscribed == [NAME]
    [(name, data, done)] = ends.sent
    done("")
    ends.probe.on_control(name, b"another")
    ends.probe.on_control(b"another", data)
    assert ends.echoes == []
    ends.probe.on_control(name, data)
    ends.probe.on_control(name, data)  # a repeated echo is ignored
    [(took_us, due_ms)] = ends.echoes
    assert took_us >= 0 and due_ms > TIMEOUT_MS


def test_probe_is_sent_only_after_its_subscription_is_confirmed() -> None:
    """The connection of the publisher may be up already, and its command would overtake the subscription."""
    ends = Ends()
    ends.probe.on_up()
    ends.confirm(b"another")
    ends.probe.check(ends.now_ns)
    assert ends.sent == [], "the interval has ended before the confirmation"
    ends.confirm(NAME)
    ends.confirm(NAME)
    assert len(ends.sent) == 1


def test_no_second_probe_is_sent_before_the_timeout_of_the_first() -> None:
    ends = Ends()
    ends.come_up()
    ends.sent[0][2]("")
    ends.check_after(TIMEOUT_MS - 1)
    assert len(ends.sent) == 1 and ends.renewed == []
    ends.probe.on_control(NAME, ends.sent[0][1])  # a late echo still counts
    assert len(ends.echoes) == 1


def test_accepted_probe_without_an_echo_renews_both_bus_connections() -> None:
    ends = Ends()
    ends.come_up()
    ends.sent[0][2]("")
    ends.check_after(TIMEOUT_MS)
    assert ends.renewed == [NAME, NAME]
    ends.come_up()
    assert len(ends.sent) == 2


def test_probe_that_the_bus_did_not_accept_is_followed_by_another() -> None:
    ends = Ends()
    for outcome in ("down", "unknown", "full", "refused"):
        ends.come_up()
        ends.sent[-1][2](outcome)
        sent = len(ends.sent)
        ends.probe.check(0)
        assert len(ends.sent) == sent + 1
    ends.check_after(TIMEOUT_MS)  # the outcome of this probe is not known yet
    assert ends.renewed == []


def test_outcome_of_an_earlier_probe_does_not_count_for_the_current_one() -> None:
    ends = Ends()
    ends.come_up()
    ends.come_up()
    ends.sent[0][2]("")
    ends.check_after(TIMEOUT_MS)
    assert ends.renewed == []


def test_no_probe_is_sent_while_the_subscriber_is_down() -> None:
    ends = Ends()
    ends.come_up()
    ends.echo(NAME)
    ends.lose(NAME)
    ends.probe.check(ends.now_ns)
    assert len(ends.sent) == 1


def test_every_server_of_a_cluster_is_probed_and_has_its_own_deadline() -> None:
    ends = Ends()
    ends.servers = [b":0", b":4", b":1"]
    first, second, third = names = ends.reaching(NAME)
    ends.come_up()
    assert ends.subscribed == names and [name for name, _, _ in ends.sent] == names
    ends.probe.on_control(NAME + b":9", ends.sent[0][1])  # the echo of another server does not count
    assert ends.echoes == []
    assert ends.echo(first) == ends.echo(second) == 0, "one server has not echoed yet"
    due_ms = ends.echo(third)
    assert due_ms > TIMEOUT_MS
    ends.probe.check(ends.now_ns)
    assert [name for name, _, _ in ends.sent[3:]] == names
    kept_ms = ends.probe._targets[second].due_ms = due_ms - 50
    assert ends.echo(first) == ends.echo(third) == kept_ms, "this server has not echoed since"
    ends.probe.on_up()
    assert len(ends.sent) == 6, "a new map disturbs no probe that is under way"


def test_missing_echo_of_one_server_renews_only_the_connections_to_this_server() -> None:
    ends = Ends()
    ends.servers = [b":0", b":1"]
    ends.come_up()
    for _, _, done in ends.sent:
        done("")
    ends.echo(NAME + b":0")
    ends.check_after(TIMEOUT_MS)
    assert ends.renewed == [NAME + b":1"] * 2


def test_server_whose_connection_is_lost_must_echo_again_before_the_bus_is_up() -> None:
    ends = Ends()
    ends.servers = [b":0", b":1"]
    first, second = ends.reaching(NAME)
    ends.come_up()
    ends.echo(first)
    assert ends.echo(second) > 0
    ends.lose(second)
    ends.probe.check(ends.now_ns)
    assert ends.echo(first) == 0
    ends.probe.on_up()
    ends.confirm(second)
    assert ends.echo(second) > 0


def test_server_that_joins_must_echo_as_soon_as_the_others_and_one_that_leaves_need_not() -> None:
    ends = Ends()
    ends.come_up()
    due_ms = ends.echo(NAME)
    ends.servers = [b"", b":1"]
    ends.probe.on_up()
    ends.probe.check(ends.now_ns)
    assert ends.echo(NAME) == due_ms, "the new server has confirmed nothing yet"
    ends.servers = [b""]
    ends.probe.on_up()
    ends.probe.check(ends.now_ns)
    assert ends.echo(NAME) >= due_ms and list(ends.probe._targets) == [NAME]


def test_probe_of_a_name_that_moves_is_given_up_and_sent_again_when_it_is_confirmed() -> None:
    ends = Ends()
    ends.come_up()
    ends.sent[0][2]("")
    ends.heard.clear()  # the slot has moved; no connection is lost
    ends.probe.on_up()
    ends.check_after(TIMEOUT_MS)
    assert ends.renewed == [] and len(ends.sent) == 1
    ends.confirm(NAME)
    assert len(ends.sent) == 2


def test_a_cluster_without_servers_is_not_probed() -> None:
    ends = Ends()
    ends.servers = []
    ends.come_up()
    assert ends.sent == []


def test_probe_without_a_receiver_is_reported_at_once_and_followed_by_another() -> None:
    ends = Ends()
    ends.come_up()
    [(name, _, done)] = ends.sent
    done("unheard")
    assert ends.unheard == [name]
    ends.probe.check(ends.now_ns)
    assert len(ends.sent) == 2
    done("unheard")
    assert ends.unheard == [name], "the outcome of an earlier probe is ignored"
    ends.heard.clear()
    ends.sent[-1][2]("unheard")
    assert ends.unheard == [name], "the subscription has ended meanwhile"
