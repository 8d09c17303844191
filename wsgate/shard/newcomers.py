"""Take each request head of a shard to its end: a page, a refusal, or a connection that is logged in.

A handshake whose token is not in the cache waits here for the turn of its address (`verification.py`), and so
do tokens that come in messages. What a handshake needs to be accepted is decided in `handshakes.py` alone.
"""

import time
from collections.abc import Callable

from wsgate.handshake import Refusal
from wsgate.log import Log
from wsgate.reactor import Reactor
from wsgate.reasons import Reason
from wsgate.shard.handshakes import Entry, HandshakePolicy, ProxyClaims
from wsgate.shard.http_pages import (
    answer,
    is_client_request,
    is_page_request,
    is_readiness_request,
    page_redirect,
)
from wsgate.shard.login import Logins
from wsgate.shard.members import now_ms
from wsgate.shard.options import ShardOptions
from wsgate.shard.verification import Verification
from wsgate.statistics import StatisticsBlock, why_not_ready

__all__ = ["Newcomers"]


class Newcomers:
    """The connections of one shard until they are logged in or refused.

    Args:
        options: Of the shard.
        reactor: Holds the connections.
        policy: Accepts or refuses handshakes.
        block: The statistics of the node, which say whether it is ready.
        log: Records faults of ours.
        count: Adds to a counter of the shard, by its name.
        refusals: Returns how many tokens the shard has refused until now.
        wake: Requests another pass.
    """

    def __init__(
        self,
        options: ShardOptions,
        reactor: Reactor,
        policy: HandshakePolicy,
        block: StatisticsBlock,
        log: Log,
        *,
        count: Callable[[str, int], None],
        refusals: Callable[[], int],
        wake: Callable[[], None],
    ) -> None:
        self._reactor = reactor
        self._policy = policy
        self._block = block
        self._log = log
        self._count = count
        self._refusals = refusals
        self._wake = wake
        self._logins: Logins
        self._verification: Verification[Entry | Callable[[], bool]] = Verification(
            self._verify, reactor.charge
        )
        self.renew(options)

    def attach(self, logins: Logins) -> None:
        """Log connections in here from now on; a login itself needs `verify_later`."""
        self._logins = logins

    def renew(self, options: ShardOptions) -> None:
        """Use these options from now on."""
        self._page_url = options.page_url
        self._policy.renew(options)
        self._claims = ProxyClaims(self._reactor, options.gate, self._count)

    @property
    def waiting_bytes(self) -> int:
        """Memory of all tokens that wait to be verified, in bytes."""
        return self._verification.waiting_bytes

    def step(self) -> bool:
        """Verify the tokens whose turn it is in this pass; return whether more wait."""
        return self._verification.step()

    def forget(self, conn: int) -> None:
        """Drop the token of a connection that is closed."""
        self._verification.forget(conn)

    def open(self, conn: int, head: bytes) -> None:
        """Answer a complete request head, or let its token wait for its turn."""
        if is_readiness_request(head):
            self._answer_readiness(conn)
            return
        if is_client_request(head):
            self._count("client_asked", 1)
            self._reactor.answer_page(conn, reason=Reason.APPLICATION)
            return
        if self._page_url and is_page_request(head):
            self._reactor.refuse(conn, page_redirect(self._page_url), reason=Reason.APPLICATION)
            return
        now_s = time.time()
        entry = self._policy.examine(head, now_s, self._claims.of(conn))
        if isinstance(entry, Refusal) or self._policy.is_known(entry, now_s):
            self._enter(conn, entry, now_s)
        else:
            origin = self._reactor.origin(conn)
            self._verification.add(conn, origin, entry, len(head), is_handshake=True)

    def verify_later(self, conn: int, size: int, act: Callable[[], bool]) -> None:
        """Call `act` when it is the turn of a token that came in a message: in this pass if no other waits.

        Args:
            conn: The connection that sent the token.
            size: Bytes of the token.
            act: Verifies the token and answers the message; it returns whether the token was valid.
        """
        self._verification.add(conn, self._reactor.origin(conn), act, size, is_handshake=False)
        self._wake()

    def _verify(self, conn: int, item: Entry | Callable[[], bool]) -> bool:
        """Verify the token of a handshake or of a message now; return whether it was valid."""
        if self._reactor.variant(conn) < 0:
            return True  # the connection was reset, and its end is not reported yet
        if isinstance(item, Entry):
            return self._verify_handshake(conn, item)
        try:
            return item()
        except Exception:  # the connection was ended for it, and the other connections go on
            self._log.exception("command_failed")
            return True

    def _verify_handshake(self, conn: int, entry: Entry) -> bool:
        now_s = time.time()
        before = self._refusals()
        try:
            self._enter(conn, self._policy.verify(entry, now_s), now_s)
        except Exception:  # a fault of ours must end this connection only
            self._log.exception("handshake_failed")
            self._reactor.abort(conn, reason=Reason.INTERNAL)
        return self._refusals() == before

    def _enter(self, conn: int, entry: Entry | Refusal, now_s: float) -> None:
        """Log in the connection of a handshake whose token is verified, or send the refusal."""
        if not isinstance(entry, Refusal):
            entry = self._policy.admit(entry, now_s, len(self._logins.unauthenticated))
        if isinstance(entry, Refusal):
            self._count("handshake_" + entry.reason, 1)
            self._reactor.refuse(conn, entry.response)
            return
        self._logins.enter(conn, entry)

    def _answer_readiness(self, conn: int) -> None:
        self._count("readiness_asked", 1)
        why = why_not_ready(self._block, now_ms())
        response = answer(503, b'{"ready":false}') if why else answer(200, b'{"ready":true}')
        self._reactor.refuse(conn, response, reason=Reason.APPLICATION)
