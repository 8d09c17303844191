"""Check the response to a request head: path, origin and credentials, decided without a socket."""

from base64 import b64encode

import pytest

from wsgate.auth import Identity, OriginPolicy, Permissions, TokenError, TokenPolicy
from wsgate.bus import parse_address
from wsgate.handshake import Refusal
from wsgate.reactor import GateLimits, Settings
from wsgate.shard.handshakes import Entry, HandshakePolicy
from wsgate.shard.options import ShardOptions

GOOD_TOKEN = "good"


class FakeTokens:
    """Accepts one token, exactly as it is written, and remembers none."""

    def recall(self, token: str, now_s: float) -> Identity | None:
        return None

    def connection(self, token: str, now_s: float) -> Identity:
        if token != GOOD_TOKEN:
            raise TokenError("malformed")
        return Identity("ann", Permissions((), (), ()), 0)


def make_policy(**changes: object) -> HandshakePolicy:
    """Return a policy with default options."""
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
    return HandshakePolicy(options, FakeTokens())  # type: ignore[arg-type]


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
def test_s15_s16_handshake_with_a_legal_unrelated_header_is_accepted(line: str) -> None:
    assert isinstance(make_policy().judge(head(line.encode()), 0), Entry)


@pytest.mark.parametrize("space", [b"", b" ", b"\t "])
def test_spaces_and_tabs_around_a_bearer_token_are_ignored(space: bytes) -> None:
    entry = make_policy().judge(head(b"Authorization: Bearer " + space + b"good" + space), 0)
    assert isinstance(entry, Entry)
    assert entry.identity is not None


@pytest.mark.parametrize("byte", [b"\x80", b"\x85", b"\xa0", b"\xff"])
@pytest.mark.parametrize("place", [b"%bgood", b"good%b", b"go%bod", b"%b"])
def test_bearer_token_with_a_byte_above_127_is_answered_400(byte: bytes, place: bytes) -> None:
    refused = make_policy().judge(head(b"Authorization: Bearer " + place % byte), 0)
    assert isinstance(refused, Refusal)
    assert (refused.status, refused.reason) == (400, "bad_header_value")


# --- paths --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [b"/", b"/wsx", b"/ws/", b"/WS", b"/chat?ch=news", b"/%77s"])
@pytest.mark.parametrize("is_upgrade", [True, False])
@pytest.mark.parametrize("method", [b"GET", b"POST", b"HEAD"])
def test_unknown_path_is_answered_404_for_every_method(path: bytes, method: bytes, is_upgrade: bool) -> None:
    asked = head(request_line=method + b" " + path + b" HTTP/1.1", is_upgrade=is_upgrade)
    refused = make_policy().judge(asked, 0)
    assert isinstance(refused, Refusal)
    assert (refused.status, refused.reason) == (404, "unknown_path")


@pytest.mark.parametrize(
    ("method", "path", "reason"),
    [
        (b"GET", b"/ws", "not_websocket"),
        (b"GET", b"/ws?ch=news", "not_websocket"),
        (b"POST", b"/ws", "wrong_method"),
        (b"OPTIONS", b"*", "wrong_method"),
        (b"CONNECT", b"gate.example:80", "wrong_method"),
        (b"POST", b"http://gate.example/other", "wrong_method"),
        (b"POST", b"/a b", "wrong_method"),
        (b"POST", b"/\xff", "wrong_method"),
    ],
)
def test_request_without_upgrade_or_with_a_wrong_method_is_refused_for_that_reason(
    method: bytes, path: bytes, reason: str
) -> None:
    refused = make_policy().judge(head(request_line=method + b" " + path + b" HTTP/1.1", is_upgrade=False), 0)
    assert isinstance(refused, Refusal)
    assert refused.reason == reason


# --- origins ------------------------------------------------------------------------------------------


def refused_origin(origin: bytes, *, is_dev: bool) -> tuple[Refusal, dict[str, object]]:
    """Return the refusal of this origin and the fields of its log line."""
    lines: list[tuple[str, dict[str, object]]] = []
    options = ShardOptions(
        node="n",
        number=0,
        reactor=Settings(),
        gate=GateLimits(),
        bus=parse_address("unix:///nowhere"),
        origins=OriginPolicy((), is_dev=is_dev),
        tokens=TokenPolicy(),
        is_dev=is_dev,
    )
    judge = HandshakePolicy(options, FakeTokens(), lambda event, **fields: lines.append((event, fields)))  # type: ignore[arg-type]
    refused = judge.judge(head(b"Origin: " + origin), 0)
    assert isinstance(refused, Refusal)
    [(event, fields)] = lines
    assert (event, refused.status, refused.reason) == ("origin_refused", 403, "forbidden_origin")
    return refused, fields


ORIGINS = [
    (b"https://evil.example", "https://evil.example"),
    (b"http://evil.example:8000", "http://evil.example:8000"),
    (b"null", "null"),
    (b"file://", "file://"),
    (b"https://a.example/$(reboot)`id`\"';", "https://a.example/??reboot??id????"),
    (b"<script>", "?script?"),
    (b"https://" + b"a" * 4_000, "https://" + "a" * 112 + "..."),
]


@pytest.mark.parametrize(("origin", "shown"), ORIGINS)
def test_refused_origin_and_its_setting_are_logged_and_not_sent_to_the_client(
    origin: bytes, shown: str
) -> None:
    refused, fields = refused_origin(origin, is_dev=False)
    assert (fields["origin"], fields["setting"]) == (shown, "server.allowed_origins")
    assert refused.response.endswith(b"\r\n\r\nForbidden\n")


@pytest.mark.parametrize(("origin", "shown"), ORIGINS)
def test_response_names_the_refused_origin_and_its_setting_in_development(origin: bytes, shown: str) -> None:
    refused, _ = refused_origin(origin, is_dev=True)
    body = refused.response.partition(b"\r\n\r\n")[2].decode()
    assert body.startswith("Forbidden: ")
    assert f" {shown} " in body
    assert "server.allowed_origins" in body


def test_allowed_origin_writes_no_log_line() -> None:
    lines: list[str] = []
    options = make_policy()
    options._log = lambda event, **fields: lines.append(event)
    assert isinstance(options.judge(head(b"Origin: https://gate.example"), 0), Entry)
    assert not lines
