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
        self.subscribed: list[bytes] = []
        self.sent: list[tuple[bytes, bytes, Callable[[str], None]]] = []
        self.renewed: list[str] = []
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

    def renew(self, why: str) -> None:
        self.renewed.append(why)

    def come_up(self) -> None:
        """Report the subscriber as up and confirm everything that it requested."""
        self.probe.on_up()
        for name in self.reaching(NAME):
            self.probe.on_control(name, None)

    def check_after(self, ms: int) -> None:
        """Check the probe so many milliseconds after the last one was sent."""
        assert self.probe._sent is not None
        self.probe.check(self.probe._sent[2] + ms * 1_000_000)


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
    ends.probe.on_control(b"another", None)
    assert ends.sent == []
    ends.probe.on_control(NAME, None)
    ends.probe.on_control(NAME, None)
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
    assert len(ends.renewed) == 2
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
    ends.is_up = False
    ends.probe.check(0)
    assert ends.sent == []


def test_probes_reach_every_server_of_a_cluster_in_turn() -> None:
    ends = Ends()
    ends.servers = [b":0", b":4", b":1"]
    ends.come_up()
    assert ends.subscribed == [NAME + b":0", NAME + b":4", NAME + b":1"]
    for _ in range(3):
        name, data, done = ends.sent[-1]
        done("")
        ends.probe.on_control(NAME + b":9", data)  # the echo of another server does not count
        ends.probe.on_control(name, data)
        ends.probe.check(ends.now_ns)
    assert {name for name, _, _ in ends.sent[:3]} == set(ends.subscribed)
    assert len(ends.echoes) == 3


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
