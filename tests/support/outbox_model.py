"""Model the outbox of a connection in plain Python, from its rules alone.

The rules are at the heads of `wsgate/reactor/outbox.pyx` and `wsgate/reactor/pacing.pyx`. Everything is a
list and is computed again at each use: slow, but simple. A model cannot know how many bytes a socket took, so
the test gives this number.
"""

from dataclasses import dataclass, field
from enum import Enum

from wsgate.reactor import event_kinds

__all__ = ["PONG_SLOT_BYTES", "PONG_SLOT_FRAMES", "Kind", "OutboxModel", "Waiting", "server_frame"]

GAP_BYTES = 64
PONG_SLOT_FRAMES = 16
PONG_SLOT_BYTES = 968


def server_frame(opcode: int, payload: bytes) -> bytes:
    """Return one final, unmasked frame."""
    size = len(payload)
    if size < 126:
        return bytes([0x80 | opcode, size]) + payload
    if size < 65536:
        return bytes([0x80 | opcode, 126]) + size.to_bytes(2, "big") + payload
    return bytes([0x80 | opcode, 127]) + size.to_bytes(8, "big") + payload


class Kind(Enum):
    """The kinds of entries that the rules distinguish."""

    CONTROL = "control"
    REPLY = "reply"
    PUBLICATION = "publication"
    GAP = "gap"


@dataclass
class Waiting:
    """One entry of the outbox; a gap has no `wire` until it becomes a message."""

    kind: Kind
    wire: bytes
    queued_ms: int | None
    channel: bytes = b""
    position: int = 0
    first: int = 0
    last: int = 0
    charge: int = 0  # charge of a gap


@dataclass
class OutboxModel:
    """The outbox of one connection: waiting entries, written bytes, and counts of drops."""

    limit_bytes: int
    limit_frames: int
    age_ms: int
    policies: dict[bytes, int]
    variant: int = 0
    entries: list[Waiting] = field(default_factory=list)
    head_written: int = 0
    pongs: list[bytes] = field(default_factory=list)
    pong_written: int = 0
    wire: bytearray = field(default_factory=bytearray)  # all bytes written until now
    blocked: bool = False
    owed: int = 0  # bytes that waited at the last short write and are not yet taken
    paused: bool = False
    is_open: bool = True
    dropped_policy: int = 0
    dropped_closing: int = 0
    pongs_dropped: int = 0
    gaps: int = 0

    # --- accounts ---------------------------------------------------------------------------------

    def size_of(self, entry: Waiting) -> int:
        """Return the bytes that an entry is charged."""
        return entry.charge if entry.kind is Kind.GAP else len(entry.wire)

    @property
    def bytes_waiting(self) -> int:
        """Return the charge of all entries, without the written part of the first one."""
        return sum(self.size_of(entry) for entry in self.entries) - self.head_written

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits, pongs included."""
        return not self.entries and not self.pongs

    @property
    def all_bytes_waiting(self) -> int:
        """Return the charge of all entries and pongs, without the written parts."""
        return self.bytes_waiting + sum(map(len, self.pongs)) - self.pong_written

    def is_over(self, size: int) -> bool:
        """Whether another entry of this size exceeds a limit, for a connection that is behind."""
        if not self.owed:
            return False
        return self.bytes_waiting + size > self.limit_bytes or len(self.entries) + 1 > self.limit_frames

    # --- rules 1 to 4 -----------------------------------------------------------------------------

    def push(self, entry: Waiting) -> bool:
        """Queue an entry by the rules; return False when the connection fails instead."""
        if entry.kind is not Kind.CONTROL:
            while self.is_over(len(entry.wire)):
                index = self.oldest_droppable(entry)
                if index is not None:
                    self.drop(index)
                elif (
                    entry.kind is Kind.PUBLICATION
                    and self.policies[entry.channel] == event_kinds.POLICY_DROP_OLDEST
                ):
                    return self.drop_newcomer(entry)
                else:
                    self.fail()
                    return False
        self.entries.append(entry)
        self.pause_if_over_half()
        return True

    def is_droppable(self, index: int, newcomer: Waiting | None) -> bool:
        """Apply rule 2 to an entry, where the arriving entry may be the newer one."""
        entry = self.entries[index]
        if entry.kind is not Kind.PUBLICATION or (index == 0 and self.head_written):
            return False
        policy = self.policies[entry.channel]
        if policy == event_kinds.POLICY_DROP_OLDEST:
            return True
        newer = self.entries[index + 1 :] + ([newcomer] if newcomer else [])
        return policy == event_kinds.POLICY_LATEST_ONLY and any(
            other.kind is Kind.PUBLICATION and other.channel == entry.channel for other in newer
        )

    def oldest_droppable(self, newcomer: Waiting) -> int | None:
        """Return the first entry that may be dropped for the arriving one."""
        return next((i for i in range(len(self.entries)) if self.is_droppable(i, newcomer)), None)

    # --- rule 5 -----------------------------------------------------------------------------------

    def drop(self, index: int) -> None:
        """Drop one entry: its position goes into an earlier gap of its channel, or into a new gap there."""
        entry = self.entries[index]
        gap = self.gap_of(entry.channel, index)
        self.dropped_policy += 1
        if gap is not None:
            self.widen(gap, entry.position)
            del self.entries[index]
        else:
            self.entries[index] = self.new_gap(entry)

    def drop_newcomer(self, entry: Waiting) -> bool:
        """Apply rule 3: drop the arriving publication."""
        gap = self.gap_of(entry.channel, len(self.entries))
        if gap is not None:
            self.widen(gap, entry.position)
        elif self.is_over(min(len(entry.wire), GAP_BYTES)):
            self.fail()
            return False
        else:
            self.entries.append(self.new_gap(entry))
        self.dropped_policy += 1
        self.pause_if_over_half()
        return True

    def gap_of(self, channel: bytes, end: int) -> Waiting | None:
        """Return the last waiting gap of a channel before an index."""
        for entry in reversed(self.entries[:end]):
            if entry.kind is Kind.GAP and entry.channel == channel:
                return entry
        return None

    def new_gap(self, entry: Waiting) -> Waiting:
        """Return a gap for one missing publication; its charge is never above that of the publication."""
        charge = min(len(entry.wire), GAP_BYTES)
        return Waiting(Kind.GAP, b"", None, entry.channel, 0, entry.position, entry.position, charge)

    def widen(self, gap: Waiting, position: int) -> None:
        """Add a later publication to a gap."""
        gap.first = gap.first or position
        gap.last = position or gap.last

    # --- age --------------------------------------------------------------------------------------

    def grow_old(self, now_ms: int) -> bool:
        """Drop too old entries; return False if one may not be dropped, which fails the connection."""
        index = 0
        while index < len(self.entries):
            queued_ms = self.entries[index].queued_ms
            if queued_ms is None or now_ms - queued_ms < self.age_ms:
                index += 1
            elif self.is_droppable(index, None):
                self.drop(index)
            else:
                self.fail()
                return False
        return True

    # --- pongs ------------------------------------------------------------------------------------

    def pong_fits(self, pong: bytes) -> bool:
        """Whether the control slot has room."""
        waiting = sum(map(len, self.pongs))
        return len(self.pongs) < PONG_SLOT_FRAMES and waiting + len(pong) <= PONG_SLOT_BYTES

    def push_pong(self, pong: bytes) -> None:
        """Queue a pong at a blocked socket, or in a slot with room; older pongs are dropped for it."""
        while not self.pong_fits(pong):
            self.drop_pong()
        self.pongs.append(pong)

    def drop_pong(self) -> None:
        """Drop the oldest pong that is not half-written."""
        del self.pongs[1 if self.pong_written else 0]
        self.pongs_dropped += 1

    # --- writing ----------------------------------------------------------------------------------

    def render(self) -> None:
        """Turn every gap into a message, as a visit does. A gap has no age, before and after."""
        for entry in self.entries:
            if entry.kind is Kind.GAP:
                entry.kind = Kind.CONTROL
                entry.wire = self.gap_wire(entry)
                self.gaps += 1

    def gap_wire(self, gap: Waiting) -> bytes:
        """Return the message of a gap."""
        payload = b"gap %d %s %d-%d" % (self.variant, gap.channel, gap.first, gap.last)
        return server_frame(1 + self.variant, payload)

    def write(self, count: int) -> None:
        """Note that the socket took this many bytes."""
        progressed, taken = count > 0, count
        while count:
            if self.pongs and not self.head_written:
                count = self.write_pong(count)
            else:
                count = self.write_entry(count)
        self.owed = min(max(0, self.owed - taken), self.all_bytes_waiting)
        if progressed and self.paused and not self.is_over_half():
            self.paused = False

    def write_pong(self, count: int) -> int:
        """Write from the first pong; return the number of bytes that are left."""
        taken = self.pongs[0][self.pong_written :][:count]
        self.wire += taken
        self.pong_written += len(taken)
        if self.pong_written == len(self.pongs[0]):
            del self.pongs[0]
            self.pong_written = 0
        return count - len(taken)

    def write_entry(self, count: int) -> int:
        """Write from the first entry; return the number of bytes that are left."""
        taken = self.entries[0].wire[self.head_written :][:count]
        assert taken, "more bytes were written than waited"
        self.wire += taken
        self.head_written += len(taken)
        if self.head_written == len(self.entries[0].wire):
            del self.entries[0]
            self.head_written = 0
        return count - len(taken)

    # --- pausing and failing ----------------------------------------------------------------------

    def is_over_half(self) -> bool:
        """Whether the outbox is more than half full, so that reading from the peer pauses."""
        return self.bytes_waiting * 2 > self.limit_bytes or len(self.entries) * 2 > self.limit_frames

    def pause_if_over_half(self) -> None:
        """Pause reading if the outbox is more than half full; called after every push."""
        self.paused = self.paused or self.is_over_half()

    def fail(self) -> None:
        """Fail with 4010: drop all entries and pongs that are not half-written."""
        kept = 1 if self.head_written else 0
        self.dropped_closing += len(self.entries) - kept
        del self.entries[kept:]
        kept = 1 if self.pong_written else 0
        self.pongs_dropped += len(self.pongs) - kept
        del self.pongs[kept:]
        self.is_open = False
