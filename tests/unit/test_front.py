"""Which answer a request head gets: the path, the origin and the credentials, judged without a socket."""

from base64 import b64encode

import pytest

from wsgate.auth import Identity, OriginPolicy, Permissions, TokenError, TokenPolicy
from wsgate.bus import parse_address
from wsgate.handshake import Refusal
from wsgate.reactor import GateLimits, Settings
from wsgate.shard.front import Entry, Front
from wsgate.shard.options import ShardOptions

GOOD_TOKEN = "good"


class FakeTokens:
    """Accepts one token, exactly as it is written."""

    def connection(self, token: str, now_s: float) -> Identity:
        if token != GOOD_TOKEN:
            raise TokenError("malformed")
        return Identity("ann", Permissions((), (), ()), 0)


def front(**changes: object) -> Front:
    """A front with default options."""
    options = ShardOptions(
        node="n",
        number=0,
        reactor=Settings(),
        gate=GateLimits(),
        bus=parse_address("unix:///nowhere"),
        origins=OriginPolicy(()),
        tokens=TokenPolicy(),
        **changes,  # type: ignore[arg-type]
    )
    return Front(options, FakeTokens())  # type: ignore[arg-type]


def head(*lines: bytes, request_line: bytes = b"GET /ws HTTP/1.1", is_upgrade: bool = True) -> bytes:
    """A request head with these further lines."""
    upgrade = (
        b"Upgrade: websocket",
        b"Connection: Upgrade",
        b"Sec-WebSocket-Version: 13",
        b"Sec-WebSocket-Key: " + b64encode(bytes(16)),
    )
    rows = (request_line, b"Host: gate.example", *(upgrade if is_upgrade else ()), *lines)
    return b"\r\n".join(rows) + b"\r\n\r\n"


@pytest.mark.parametrize(
    "line",
    [
        "Cookie: city=Ålesund",
        "Cookie: w=光明",
        "X-Town: Århus",
        'Authorization: Digest username="Åse"',
        "Content-Length: 0",
    ],
)
def test_s15_s16_a_legal_header_of_others_does_not_refuse_the_handshake(line: str) -> None:
    assert isinstance(front().judge(head(line.encode()), 0), Entry)


@pytest.mark.parametrize("space", [b"", b" ", b"\t "])
def test_spaces_and_tabs_around_a_bearer_token_are_ignored(space: bytes) -> None:
    entry = front().judge(head(b"Authorization: Bearer " + space + b"good" + space), 0)
    assert isinstance(entry, Entry)
    assert entry.identity is not None


@pytest.mark.parametrize("byte", [b"\x80", b"\x85", b"\xa0", b"\xff"])
@pytest.mark.parametrize("place", [b"%bgood", b"good%b", b"go%bod", b"%b"])
def test_a_bearer_token_with_a_high_byte_is_an_invalid_token(byte: bytes, place: bytes) -> None:
    refused = front().judge(head(b"Authorization: Bearer " + place % byte), 0)
    assert isinstance(refused, Refusal)
    assert (refused.status, refused.reason) == (401, "invalid_token")
