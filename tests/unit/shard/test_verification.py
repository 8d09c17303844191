"""Check that new tokens are verified in turns by address, a bounded number in each pass."""

from wsgate.shard.verification import ADDRESSES_MOST, CROWDED_PASS_NS, PASS_NS, WAITING_MOST, Verification

COST_NS = PASS_NS // 4
HOSTILE, GOOD = 666, 1


class VerificationRig:
    """A verification with numbered connections, the order of its tokens, and the charged connections."""

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


def test_tokens_of_other_addresses_are_verified_before_a_flood_of_200() -> None:
    rig = VerificationRig()
    for _ in range(200):
        rig.come(HOSTILE, "bad")
    assert rig.verification.step()
    before = len(rig.done)
    newcomers = [rig.come(GOOD + number) for number in range(5)]
    while rig.verification.step():
        pass
    assert max(map(rig.place, newcomers)) <= before + 6
    assert len(rig.done) == 205, "and every token is verified"
    assert rig.verification.waiting_bytes == 0


def test_one_pass_verifies_no_longer_than_its_time_budget() -> None:
    rig = VerificationRig()
    for _ in range(WAITING_MOST):
        rig.come(HOSTILE, "bad")
    rig.verification.step()
    assert len(rig.done) == 4


def test_pass_verifies_for_longer_while_too_many_handshakes_wait() -> None:
    rig = VerificationRig()
    for _ in range(WAITING_MOST + 5):
        rig.come(HOSTILE, "bad")
    rig.verification.step()
    assert len(rig.verification) == WAITING_MOST
    for _ in range(100):
        rig.come(HOSTILE, "bad")
    rig.done.clear()
    rig.verification.step()
    assert len(rig.done) == CROWDED_PASS_NS // COST_NS


def test_waiting_tokens_of_messages_never_lengthen_the_pass() -> None:
    rig = VerificationRig()
    for _ in range(4 * WAITING_MOST):
        rig.come(HOSTILE, "bad", is_handshake=False)
    rig.verification.step()
    assert len(rig.done) == PASS_NS // COST_NS


def test_verification_time_is_charged_to_the_connection_of_the_message() -> None:
    rig = VerificationRig()
    rig.come(HOSTILE, "bad")
    second, third = rig.come(GOOD, is_handshake=False), rig.come(GOOD, "bad", is_handshake=False)
    while rig.verification.step():
        pass
    assert sorted(rig.charged) == [(second, COST_NS), (third, COST_NS)]


def test_address_with_many_failures_has_its_second_turn_after_all_others() -> None:
    rig = VerificationRig()
    for _ in range(100):
        rig.come(HOSTILE, "bad")
    while rig.verification.step():
        pass
    rig.done.clear()
    flood = [rig.come(HOSTILE, "bad") for _ in range(50)]
    crowd = [rig.come(GOOD) for _ in range(50)]
    while rig.verification.step():
        pass
    assert rig.place(flood[0]) == 0, "the first turn of the address comes as for all others"
    assert rig.place(flood[1]) == 51, "the second turn comes behind addresses without failures"
    assert max(map(rig.place, crowd)) == 50
    assert len(rig.done) == 100


def test_failures_are_remembered_for_a_bounded_number_of_addresses() -> None:
    rig = VerificationRig()
    for _ in range(10):
        rig.come(HOSTILE, "bad")
    while rig.verification.step():
        pass
    for origin in range(3 * ADDRESSES_MOST):
        rig.come(1_000 + origin, "bad")
        rig.verification.step()
    assert len(rig.verification._young) + len(rig.verification._old) <= ADDRESSES_MOST
    assert rig.verification._failures(HOSTILE) == 0


def test_token_of_a_forgotten_connection_is_not_verified() -> None:
    rig = VerificationRig()
    first, second = rig.come(HOSTILE), rig.come(HOSTILE)
    rig.verification.forget(first)
    rig.verification.forget(12_345)
    while rig.verification.step():
        pass
    assert [conn for conn, _ in rig.done] == [second]
    assert rig.verification.waiting_bytes == 0
