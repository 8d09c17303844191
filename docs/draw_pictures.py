"""Draws the pictures of the documents as SVG files: a node, a publication's way, the states of a connection.

    python -m docs.draw_pictures            write docs/pictures/*.svg

Numbers and states are read from the source of the reactor, so a picture cannot contradict the code. A test
compares the files with what this module draws. Each picture is 400 units wide, so that its text is readable
on a screen of 390 pixels, and follows the colour scheme of the reader (light or dark).
"""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple
from xml.sax.saxutils import escape

__all__ = ["PICTURES", "States", "draw_all", "main", "read_states"]

ROOT: Final = Path(__file__).resolve().parents[1]
TARGET: Final = ROOT / "docs" / "pictures"
STRUCTS: Final = ROOT / "wsgate" / "reactor" / "structs.pxd"
CLOSING: Final = ROOT / "wsgate" / "reactor" / "closing.pyx"

WIDTH: Final = 400
TITLE_SIZE: Final = 14
LINE_SIZE: Final = 13
CHARACTER: Final = 0.54
"""Mean width of a character of a sans-serif font, as a part of its size. A bit more than fonts need."""
PADDING: Final = 8

STYLE: Final = """\
  svg { font-family: system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
  .page { fill: #ffffff; }
  .frame { fill: #f4f6f8; stroke: #6b7785; stroke-dasharray: 5 4; }
  .box { fill: #e3edf9; stroke: #2f5f9e; }
  .outside { fill: #f2ead9; stroke: #8a6a1f; }
  .end { fill: #e6e6e6; stroke: #6b7785; }
  .title { font-size: 14px; font-weight: 600; fill: #14202e; }
  .line { font-size: 13px; fill: #2b3a4a; }
  .arrow { stroke: #34465a; stroke-width: 1.5; fill: none; }
  .tip { fill: #34465a; }
  @media (prefers-color-scheme: dark) {
    .page { fill: #131a22; }
    .frame { fill: #1a232d; stroke: #8794a3; }
    .box { fill: #1e3350; stroke: #7fb0ee; }
    .outside { fill: #3a3020; stroke: #d8b361; }
    .end { fill: #2b343e; stroke: #8794a3; }
    .title { fill: #f1f5f9; }
    .line { fill: #d3dce6; }
    .arrow { stroke: #b7c4d2; }
    .tip { fill: #b7c4d2; }
  }
"""


class Point(NamedTuple):
    """A place in a picture."""

    x: float
    y: float


class Box(NamedTuple):
    """A rectangle in a picture."""

    x: float
    y: float
    width: float
    height: float

    @property
    def top(self) -> Point:
        """The middle of the upper side."""
        return Point(self.x + self.width / 2, self.y)

    @property
    def bottom(self) -> Point:
        """The middle of the lower side."""
        return Point(self.x + self.width / 2, self.y + self.height)

    @property
    def left(self) -> Point:
        """The middle of the left side."""
        return Point(self.x, self.y + self.height / 2)

    @property
    def right(self) -> Point:
        """The middle of the right side."""
        return Point(self.x + self.width, self.y + self.height / 2)


class Picture:
    """One picture under construction.

    Args:
        title: What the picture shows, for readers that cannot see it.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._parts: list[str] = []
        self._height = 0.0

    def box(
        self,
        place: Box,
        title: str,
        lines: Sequence[str] = (),
        *,
        kind: str = "box",
        is_top: bool = False,
    ) -> Box:
        """Draw a rectangle with a title and lines of text; raise ValueError if the text is too wide.

        Args:
            place: Where the rectangle is.
            title: The first line, in bold.
            lines: Further lines.
            kind: The class of the rectangle: `box`, `outside` or `end`.
            is_top: Put the text at the top of the rectangle and not in its middle.
        """
        self._height = max(self._height, place.y + place.height)
        self._parts.append(
            f'<rect class="{kind}" x="{place.x:g}" y="{place.y:g}" width="{place.width:g}"'
            f' height="{place.height:g}" rx="6"/>'
        )
        text_height = TITLE_SIZE + len(lines) * (LINE_SIZE + 4)
        start = place.y + PADDING if is_top else place.y + (place.height - text_height) / 2
        rows = [("title", TITLE_SIZE, title), *(("line", LINE_SIZE, line) for line in lines)]
        if text_height > place.height:
            raise ValueError(f"{title}: the text is higher than its box")
        for number, (style, size, text) in enumerate(rows):
            if len(text) * size * CHARACTER > place.width - PADDING:
                raise ValueError(f"{text!r} is wider than its box")
            y = start + TITLE_SIZE - 2 + number * (LINE_SIZE + 4)
            self.text(Point(place.x + place.width / 2, y), text, style=style)
        return place

    def frame(self, place: Box, title: str) -> None:
        """Draw a rectangle around other ones, its title in the upper left corner."""
        self._height = max(self._height, place.y + place.height)
        self._parts.append(
            f'<rect class="frame" x="{place.x:g}" y="{place.y:g}" width="{place.width:g}"'
            f' height="{place.height:g}" rx="6"/>'
        )
        self.text(Point(place.x + 16, place.y + 20), title, style="title", anchor="start")

    def text(self, place: Point, text: str, *, style: str = "line", anchor: str = "middle") -> None:
        """Write one line of text, its middle (or start) at a place."""
        self._height = max(self._height, place.y)
        self._parts.append(
            f'<text class="{style}" x="{place.x:g}" y="{place.y:g}" text-anchor="{anchor}">'
            f"{escape(text)}</text>"
        )

    def arrow(self, *points: Point, is_double: bool = False) -> None:
        """Draw a line through the points with a tip at its end, and at its start if `is_double`."""
        path = " ".join(f"{point.x:g},{point.y:g}" for point in points)
        start = ' marker-start="url(#tip)"' if is_double else ""
        self._parts.append(f'<polyline class="arrow" points="{path}"{start} marker-end="url(#tip)"/>')

    def to_svg(self) -> str:
        """Return the finished picture."""
        height = self._height + 10
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}"'
                f' height="{height:g}" role="img">',
                f"<title>{escape(self._title)}</title>",
                f"<style>\n{STYLE}</style>",
                '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8"'
                ' orient="auto-start-reverse"><path class="tip" d="M0,0 L8,4 L0,8 z"/></marker></defs>',
                f'<rect class="page" width="{WIDTH}" height="{height:g}" rx="8"/>',
                *self._parts,
                "</svg>",
                "",
            ]
        )


# --- what the source says -----------------------------------------------------------------------------


class States(NamedTuple):
    """The states of a connection, as the source of the reactor describes them.

    Attributes:
        chain: The states in their usual order, from the first one after FREE to the last one before it.
        texts: One description for each state of the chain.
        edges: Pairs of states that are not neighbours in the chain.
        exits: The state that every other state can change to at once.
    """

    chain: tuple[str, ...]
    texts: Mapping[str, str]
    edges: tuple[tuple[str, str], ...]
    exits: str


def read_states(structs: str, closing: str) -> States:
    """Read the states from the texts of structs.pxd and closing.pyx.

    Raises:
        ValueError: A text does not have the expected form, or contradicts the enumeration of states.
    """
    found = re.search(r"^ +FREE -> ([A-Z> -]+) -> FREE$", structs, re.MULTILINE)
    if found is None:
        raise ValueError("structs.pxd: there is no line `FREE -> ... -> FREE`")
    chain = tuple(found[1].split(" -> "))
    enumeration = tuple(re.findall(r"^    STATE_([A-Z]+)", structs, re.MULTILINE))
    if enumeration != ("FREE", *chain):
        raise ValueError(f"structs.pxd: the enumeration has {enumeration}, the drawing {chain}")
    texts = {}
    for name in chain:
        match = re.search(rf"^    {name} +(\S.*(?:\n {{10,}}\S.*)*)", structs, re.MULTILINE)
        if match is None:
            raise ValueError(f"structs.pxd: {name} has no description")
        texts[name] = " ".join(match[1].split())
    edges: list[tuple[str, str]] = []
    exits = ""
    for sources, target in re.findall(
        r"^    \w+ +([A-Z]+(?:, [A-Z]+)*|any) -> ([A-Z]+)", closing, re.MULTILINE
    ):
        if sources == "any":
            exits = target
        edges += [(source, target) for source in sources.split(", ") if sources != "any"]
    strange = {name for edge in edges for name in edge} - set(chain)
    if strange or exits != chain[-1]:
        raise ValueError(f"closing.pyx: {strange or exits} is not a state of structs.pxd")
    jumps = tuple(edge for edge in edges if chain.index(edge[1]) - chain.index(edge[0]) != 1)
    return States(chain, texts, jumps, exits)


def _constant(structs: str, name: str) -> int:
    found = re.search(rf"^    {name} = (\d+)", structs, re.MULTILINE)
    if found is None:
        raise ValueError(f"structs.pxd: there is no {name}")
    return int(found[1])


# --- the pictures -------------------------------------------------------------------------------------


def draw_node() -> str:
    """Draw the processes of one node and the parties around it."""
    picture = Picture(
        "A node: clients, listeners, shards, shared memory, keeper, admin process, bus, backends"
    )
    left, width = 20, 310
    clients = picture.box(Box(left, 10, width, 46), "Clients", ["WebSocket connections"], kind="outside")
    picture.frame(Box(4, 78, 392, 462), "One node")
    listeners = picture.box(
        Box(left, 112, width, 50), "Listeners", ["one per shard; the kernel picks by weight"]
    )
    shards = picture.box(
        Box(left, 196, width, 122), "Shards", ["one process and one event loop each"], is_top=True
    )
    for number, name in enumerate(("0", "1", "n")):
        picture.box(Box(left + 12 + number * 98, 250, 90, 54), f"shard {name}", ["its sockets"], kind="end")
    memory = picture.box(Box(left, 352, width, 50), "Shared memory", ["counters, heartbeats, free room"])
    keeper = picture.box(
        Box(left, 436, 148, 86), "Keeper", ["binds the port", "forks, restarts", "sets weights"]
    )
    admin = picture.box(
        Box(left + 162, 436, 148, 86), "Admin process", ["health, metrics", "HTTP API", "status page"]
    )
    bus = picture.box(
        Box(left, 574, 360, 50), "Bus", ["Redis or Valkey; without a URL the node's own"], kind="outside"
    )
    backends = picture.box(Box(left, 658, 360, 46), "Backends", ["your programs"], kind="outside")
    picture.arrow(clients.bottom, listeners.top)
    picture.arrow(listeners.bottom, shards.top)
    picture.arrow(shards.bottom, memory.top)
    picture.arrow(Point(keeper.top.x, memory.y + memory.height), keeper.top, is_double=True)
    picture.arrow(Point(admin.top.x, memory.y + memory.height), admin.top)
    trunk = 362
    picture.arrow(
        Point(shards.right.x, shards.right.y),
        Point(trunk, shards.right.y),
        Point(trunk, bus.y),
        is_double=True,
    )
    picture.arrow(admin.bottom, Point(admin.bottom.x, bus.y))
    picture.arrow(bus.bottom, backends.top, is_double=True)
    return picture.to_svg()


def draw_publication() -> str:
    """Draw the way of a publication from a backend to the sockets of clients."""
    structs = STRUCTS.read_text(encoding="utf-8")
    urgent = _constant(structs, "URGENT_SUBSCRIBERS")
    slice_ms = _constant(structs, "SLICE_NS") // 1_000_000
    picture = Picture(
        "A publication's way: backend, bus, reader, backlog, pacer, hub, fan-out, lists, writer, clients"
    )
    left, width, height, step = 30, 340, 50, 76
    top = 10
    rows = [
        ("Backend", "publishes to a channel", "outside"),
        ("Bus", "hands it to every shard with subscribers", "outside"),
        ("Bus reader", "takes it from the socket at all times", "box"),
        ("Backlog", "a bounded queue; drops the oldest", "box"),
        ("Pacer", "hands it on unless outboxes are full", "box"),
        ("Hub", "checks it; encodes it once per variant", "box"),
        ("Fan-out", "one reference in each outbox", "box"),
    ]
    picture.frame(Box(8, top + 2 * step - 14, 384, 7 * step + 10), "One shard")
    boxes = []
    for number, (title, line, kind) in enumerate(rows):
        shift = 16 if number >= 2 else 0
        boxes.append(
            picture.box(Box(left, top + number * step + shift, width, height), title, [line], kind=kind)
        )
    y = boxes[-1].y + step
    lists = [
        picture.box(Box(left, y, 164, height), "Urgent list", [f"up to {urgent} subscribers"]),
        picture.box(Box(left + 176, y, 164, height), "Bulk list", ["more subscribers"]),
    ]
    writer = picture.box(
        Box(left, y + step, width, height), "Writer", [f"one write per visit, slices of {slice_ms} ms"]
    )
    clients = picture.box(
        Box(left, y + 2 * step + 14, width, height), "Clients", ["one order per channel"], kind="outside"
    )
    for before, after in pairwise(boxes):
        picture.arrow(before.bottom, after.top)
    for each in lists:
        picture.arrow(Point(each.top.x, boxes[-1].bottom.y), each.top)
        picture.arrow(each.bottom, Point(each.bottom.x, writer.y))
    picture.arrow(writer.bottom, clients.top)
    return picture.to_svg()


def draw_states() -> str:
    """Draw the states of a connection."""
    states = read_states(STRUCTS.read_text(encoding="utf-8"), CLOSING.read_text(encoding="utf-8"))
    picture = Picture("The states of a connection: " + ", ".join(states.chain))
    left, width, gap = 60, 290, 30
    y: float = 10
    boxes: dict[str, Box] = {}
    start = picture.box(Box(left + 95, y, 100, 28), "FREE", kind="end")
    y += 28 + gap
    for name in states.chain:
        lines = _wrapped(states.texts[name], int((width - PADDING) / (LINE_SIZE * CHARACTER)))
        height = 14 + TITLE_SIZE + len(lines) * (LINE_SIZE + 4)
        boxes[name] = picture.box(Box(left, y, width, height), name, lines)
        y += height + gap
    end = picture.box(Box(left + 95, y, 100, 28), "FREE", kind="end")
    column = [start, *boxes.values(), end]
    for before, after in pairwise(column):
        picture.arrow(before.bottom, after.top)
    # The line from the earliest state is the outermost one and ends lowest, so that no two lines cross.
    for number, (source, target) in enumerate(
        sorted(states.edges, key=lambda edge: states.chain.index(edge[0]))
    ):
        lane = 12 + 15 * number
        into = boxes[target].left
        entry = Point(into.x, into.y + 12 - 12 * number)
        leave = boxes[source].left
        picture.arrow(leave, Point(lane, leave.y), Point(lane, entry.y), entry)
    into = boxes[states.exits].right
    for name, box in boxes.items():
        if name != states.exits and name != states.chain[-2]:
            picture.arrow(box.right, Point(380, box.right.y), Point(380, into.y), into)
    picture.text(Point(WIDTH / 2, y + 52), f"Right: every state can change to {states.exits} at once.")
    return picture.to_svg()


def _wrapped(text: str, characters: int) -> list[str]:
    lines = [""]
    for word in text.replace("`", "").split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > characters:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


PICTURES: Final = {
    "node.svg": draw_node,
    "publication.svg": draw_publication,
    "states.svg": draw_states,
}


def draw_all() -> dict[str, str]:
    """Return each picture by the name of its file."""
    return {name: draw() for name, draw in PICTURES.items()}


def main() -> None:
    """Write the files."""
    TARGET.mkdir(exist_ok=True)
    for name, text in draw_all().items():
        (TARGET / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
