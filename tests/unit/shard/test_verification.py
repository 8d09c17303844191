"""Unseen tokens are verified in turns by address, a bounded part in each pass."""

from wsgate.shard.verification import ADDRESSES_MOST, CROWDED_PASS_NS, PASS_NS, WAITING_MOST, Verification

COST_NS = PASS_NS // 4
HOSTILE, GOOD = 666, 1


class Desk:
    """Tokens that are numbered, what was verified in which order, and who was charged."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.done: list[tuple[int, str]] = []
        self.charged: list[tuple[int, int]] = []
        self.verification = Verification(
            self._verify, lambda conn, cost_ns: self.charged.append((conn, cost_ns)), lambda: self.now_ns
        )
        self.conn = 0

    def _verify(self, conn: int, token: str) -> bool:
        self.now_ns += COST_NS
        self.done.append((conn, token))
        return token != "bad"

    def come(self, origin: int, token: str = "good", *, is_handshake: bool = True) -> int:
        self.conn += 1
        self.verification.add(self.conn, origin, token, 100, is_handshake=is_handshake)
        return self.conn

    def place(self, conn: int) -> int:
        return [each for each, _ in self.done].index(conn)


def test_a_newcomer_goes_before_the_flood_of_another_address() -> None:
    desk = Desk()
    for _ in range(200):
        desk.come(HOSTILE, "bad")
    assert desk.verification.step()
    before = len(desk.done)
    newcomers = [desk.come(GOOD + number) for number in range(5)]
    while desk.verification.step():
        pass
    assert max(map(desk.place, newcomers)) <= before + 6
    assert len(desk.done) == 205, "and everybody is served"
    assert desk.verification.waiting_bytes == 0


def test_one_pass_does_a_bounded_amount_of_work() -> None:
    desk = Desk()
    for _ in range(WAITING_MOST):
        desk.come(HOSTILE, "bad")
    desk.verification.step()
    assert len(desk.done) == 4


def test_pass_verifies_for_longer_while_more_handshakes_wait_than_usual() -> None:
    desk = Desk()
    for _ in range(WAITING_MOST + 5):
        desk.come(HOSTILE, "bad")
    desk.verification.step()
    assert len(desk.verification) == WAITING_MOST
    for _ in range(100):
        desk.come(HOSTILE, "bad")
    desk.done.clear()
    desk.verification.step()
    assert len(desk.done) == CROWDED_PASS_NS // COST_NS


def test_tokens_of_messages_take_no_place_so_their_pass_is_never_longer() -> None:
    desk = Desk()
    for _ in range(4 * WAITING_MOST):
        desk.come(HOSTILE, "bad", is_handshake=False)
    desk.verification.step()
    assert len(desk.done) == PASS_NS // COST_NS


def test_verifying_is_charged_to_the_connection_whose_message_brought_the_token() -> None:
    desk = Desk()
    desk.come(HOSTILE, "bad")
    second, third = desk.come(GOOD, is_handshake=False), desk.come(GOOD, "bad", is_handshake=False)
    while desk.verification.step():
        pass
    assert sorted(desk.charged) == [(second, COST_NS), (third, COST_NS)]


def test_an_address_with_many_failures_goes_last() -> None:
    desk = Desk()
    for _ in range(100):
        desk.come(HOSTILE, "bad")
    while desk.verification.step():
        pass
    desk.done.clear()
    flood = [desk.come(HOSTILE, "bad") for _ in range(50)]
    crowd = [desk.come(GOOD) for _ in range(50)]
    while desk.verification.step():
        pass
    assert desk.place(flood[0]) == 0, "its first turn comes as everybody's"
    assert desk.place(flood[1]) == 51, "its second one behind those that do not fail"
    assert max(map(desk.place, crowd)) == 50
    assert len(desk.done) == 100


def test_failures_are_forgiven_and_only_so_many_addresses_remembered() -> None:
    desk = Desk()
    for _ in range(10):
        desk.come(HOSTILE, "bad")
    while desk.verification.step():
        pass
    for origin in range(3 * ADDRESSES_MOST):
        desk.come(1_000 + origin, "bad")
        desk.verification.step()
    assert len(desk.verification._young) + len(desk.verification._old) <= ADDRESSES_MOST
    assert desk.verification._failures(HOSTILE) == 0


def test_a_connection_that_is_gone_is_not_verified() -> None:
    desk = Desk()
    first, second = desk.come(HOSTILE), desk.come(HOSTILE)
    desk.verification.forget(first)
    desk.verification.forget(12_345)
    while desk.verification.step():
        pass
    assert [conn for conn, _ in desk.done] == [second]
    assert desk.verification.waiting_bytes == 0
