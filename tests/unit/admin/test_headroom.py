"""How full a node is, as its status page draws it."""

from html.parser import HTMLParser

from wsgate.admin.headroom import headroom_card
from wsgate.shard.statistics_layout import LAYOUT
from wsgate.statistics import StatisticsBlock


class Page(HTMLParser):
    """Its meters, its text, and what it must not have."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.meters: list[dict[str, str | None]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "style")
        assert "style" not in dict(attrs), "the policy for content would not let it through"
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


def test_a_node_in_a_sentence_and_each_shard_in_a_row() -> None:
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
    assert page.words.count("1,000 of 4,000 connections") == 4, "the bar's own text, and beside it"
    found = [(meter["value"], meter["max"], meter["low"], meter["high"]) for meter in page.meters]
    assert found == [("1000", "4000", "3000", "3750"), ("4", "16", "12", "15")] * 2


def test_without_growth_nothing_is_foretold() -> None:
    assert "The number of connections does not grow." in Page(headroom_card(block_of(1))).words


def test_the_machine_s_own_limits() -> None:
    block = block_of(1)
    block.keeper["tcp_memory_bytes"], block.keeper["tcp_memory_limit_bytes"] = 5 << 20, 50 << 20
    block.keeper["listen_overflows"] = 7
    words = Page(headroom_card(block)).words
    assert "5 of 50 MiB" in words
    assert "Overflows of accept queues since the start7" in words


def test_a_shard_that_has_told_nothing_yet_has_no_limits_to_draw() -> None:
    page = Page(headroom_card(StatisticsBlock.create(LAYOUT, 1)))
    assert page.meters == []
    assert "0 more connections fit; nothing is measured yet" in page.words
