"""Check the headroom of a node as its status page shows it."""

from html.parser import HTMLParser

from wsgate.admin.headroom import headroom_card
from wsgate.shard.statistics_layout import LAYOUT
from wsgate.statistics import StatisticsBlock


class Page(HTMLParser):
    """The meters and the text of a page without scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.meters: list[dict[str, str | None]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "style")
        assert "style" not in dict(attrs), "the content security policy would block a style"
        if tag == "meter":
            self.meters.append(dict(attrs))

    def handle_data(self, data: str) -> None:
        self.words += data


def block_of(*rooms: int) -> StatisticsBlock:
    block = StatisticsBlock.create(LAYOUT, len(rooms))
    for number, room in enumerate(rooms):
        shard = block.shard(number)
        for name in ("connections", "descriptors", "memory"):
            shard["room_" + name] = room + 100
        shard["room_memory"] = room
        shard["binds_memory"] = 1
        shard["now_connections"], shard["connections_limit"] = 1_000, 4_000
        shard["held_connections"], shard["held_frame"] = 3 << 20, 1 << 20
        shard["memory_budget_bytes"] = 16 << 20
        shard["full_in_s"] = 1 << 31
    return block


def test_headroom_card_has_sentences_for_the_node_and_meters_for_each_shard() -> None:
    block = block_of(1_500, 2_500)
    block.shard(0)["growth_per_1000_s"], block.shard(0)["full_in_s"] = 12_500, 7_300
    block.shard(1)["admission_state"] = 1
    page = Page(headroom_card(block))
    assert "4,000 more connections fit; memory is the limit." in page.words
    assert (
        "The number of connections grows by 12.5 a second, and the first shard is full in 2 hours."
        in page.words
    )
    assert "refusing" in page.words
    assert page.words.count("1,000 of 4,000 connections") == 4, "once inside the meter and once beside it"
    found = [(meter["value"], meter["max"], meter["low"], meter["high"]) for meter in page.meters]
    assert found == [("1000", "4000", "3000", "3750"), ("4", "16", "12", "15")] * 2


def test_headroom_card_without_growth_has_no_forecast() -> None:
    assert "The number of connections does not grow." in Page(headroom_card(block_of(1))).words


def test_headroom_card_shows_socket_memory_and_listen_overflows_of_the_machine() -> None:
    block = block_of(1)
    block.keeper["tcp_memory_bytes"], block.keeper["tcp_memory_limit_bytes"] = 5 << 20, 50 << 20
    block.keeper["listen_overflows"] = 7
    words = Page(headroom_card(block)).words
    assert "5 of 50 MiB" in words
    assert "Overflows of accept queues since the start7" in words


def test_headroom_card_of_a_shard_without_numbers_has_no_meters() -> None:
    page = Page(headroom_card(StatisticsBlock.create(LAYOUT, 1)))
    assert page.meters == []
    assert "0 more connections fit; nothing is measured yet" in page.words
