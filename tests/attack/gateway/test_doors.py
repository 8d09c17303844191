"""Check admission: origins, tokens by every carrier, and tokens that expire on an open connection."""

import base64
import hashlib
import hmac
import http.server
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import jwt
import pytest
import redis
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.support.attack_rig import (
    AUDIENCE,
    SECRET,
    besieged,
    configured_gateway,
    fresh_counters,
    make_token,
)
from tests.support.browser import find_chromium, running_browser
from tests.support.frames import TEXT, client_frame
from tests.support.gateway import Gateway, running_gateway, wait_until
from tests.support.raw_client import Answer, Ending, RawClient, bearer, request
from wsgate.auth.faults import CAUSES

pytestmark = pytest.mark.slow

HOST: Final = "gate.example:8000"
LISTED: Final = ["https://app.example", "https://app.example:8443"]


@pytest.fixture(scope="module")
def rsa() -> RSAPrivateKey:
    return generate_private_key(65537, 2048)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, rsa: RSAPrivateKey) -> Iterator[Gateway]:
    settings = f"""
[server]
allowed_origins = {json.dumps(LISTED)}
[auth]
allow_query_token = true
[auth.keys.rsa]
algorithm = "RS256"
public_key = '''{pem_of(rsa)}'''
"""
    with configured_gateway(tmp_path_factory.mktemp("doors"), settings) as running:
        yield running


def pem_of(key: RSAPrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def ask(gateway: Gateway, head: bytes) -> Answer:
    with RawClient(gateway) as client:
        return client.ask(head)


# --- origins ------------------------------------------------------------------------------------------

ORIGINS: Final = {
    # origin: status
    "http://gate.example:8000": 101,
    "https://gate.example:8000": 101,
    "HTTP://Gate.Example:8000": 101,
    **dict.fromkeys(LISTED, 101),
    "https://APP.example": 101,
    "https://app.example:443": 101,  # the same origin with its default port
    # Another host.
    "http://evil.example": 403,
    "http://evil.example:8000": 403,
    "http://example:8000": 403,
    "http://gate.example.:8000": 403,
    # A known host with text before or after it.
    "http://gate.example:8000.evil.example": 403,
    "http://gate.example.evil.example:8000": 403,
    "http://evilgate.example:8000": 403,
    "http://sub.gate.example:8000": 403,
    "https://app.example.evil.example": 403,
    "https://evilapp.example": 403,
    # Userinfo.
    "http://gate.example:8000@evil.example": 403,
    "http://evil.example@gate.example:8000": 403,
    "http://evil.example#@gate.example:8000": 403,
    "http://evil.example\\@gate.example:8000": 403,
    # Ports.
    "http://gate.example": 403,
    "http://gate.example:80": 403,
    "http://gate.example:8001": 403,
    "http://gate.example:08000": 403,
    "http://gate.example:73536": 403,  # 8000 in 16 bits
    "https://app.example:444": 403,
    # Schemes.
    "http://app.example": 403,
    "ws://gate.example:8000": 403,
    "file://": 403,
    "javascript:alert(1)": 403,
    "chrome-extension://gate.example:8000": 403,
    # Values that are not an origin.
    "null": 403,
    "NULL": 403,
    "gate.example:8000": 403,
    "http://gate.example:8000/": 403,
    "https://app.example/": 403,
    "https://app.example?": 403,
    "https://app.example,https://evil.example": 403,
    "http://[::1": 403,
    "http://*": 403,
    "*": 403,
}


def refusals_of(gateway: Gateway, *, token: str) -> dict[str, int]:
    return {
        origin: ask(gateway, request(host=HOST, headers=[("Origin", origin), bearer(token)])).status
        for origin, status in ORIGINS.items()
        if status != 101
    }


def test_s17_only_the_own_host_and_listed_origins_are_accepted(gateway: Gateway) -> None:
    token = make_token()
    got = {
        origin: ask(gateway, request(host=HOST, headers=[("Origin", origin), bearer(token)])).status
        for origin, status in ORIGINS.items()
        if status == 101
    }
    assert got | refusals_of(gateway, token=token) == ORIGINS


def test_s17_request_without_an_origin_is_accepted(gateway: Gateway) -> None:
    assert ask(gateway, request(host=HOST, headers=[bearer(make_token())])).status == 101


@pytest.mark.parametrize(
    "headers",
    [
        [("Origin", "http://gate.example:8000"), ("Origin", "http://evil.example")],
        [("Origin", "http://evil.example"), ("Origin", "http://gate.example:8000")],
        [("Origin", "http://gate.example:8000"), ("origin", "http://gate.example:8000")],
        [("Origin", "")],
        [("Origin", "http://\xe9vil.example")],
        [("Origin", "http://gate.example:8000 http://evil.example")],
        [("Origin", "http://evil.example http://gate.example:8000")],
    ],
)
def test_s17_repeated_empty_or_ambiguous_origin_header_is_400(
    gateway: Gateway, headers: list[tuple[str, str]]
) -> None:
    head = request(host=HOST, headers=[*headers, bearer(make_token())])
    assert ask(gateway, head).status == 400


def test_s17_forbidden_origin_is_refused_before_the_token_and_the_bus_are_used(gateway: Gateway) -> None:
    """A bad token would be a 401, and a good one would be counted."""
    with redis.Redis.from_url(gateway.bus_url) as bus:
        channels = bus.pubsub_channels()
        before = fresh_counters(gateway)
        assert set(refusals_of(gateway, token="no token").values()) == {403}
        assert set(refusals_of(gateway, token=make_token()).values()) == {403}
        after = fresh_counters(gateway)
        assert bus.pubsub_channels() == channels
    families = ("wsgate_tokens_total", "wsgate_commands_total", "wsgate_publishes_total", "wsgate_upgrades")
    judged = {name for name in before if name.startswith(families)}
    assert len(judged) > len(families)
    assert {name: after[name] - before[name] for name in judged} == dict.fromkeys(judged, 0)
    refused = 'wsgate_refusals_total{reason="forbidden_origin"}'
    assert after[refused] - before[refused] == 2 * list(ORIGINS.values()).count(403)


@pytest.fixture(scope="module")
def foreign_page() -> Iterator[str]:
    """Serve a page from another port of the same machine, which is another origin."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>elsewhere</title>")

        def log_message(self, *_: object) -> None:
            """Write no log."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def dialogue(gateway: Gateway, token: str) -> str:
    """Return a script that connects as a page does, and yields the first message or the close code."""
    return f"""new Promise((resolve) => {{
        const offered = ["wsgate.v1.json", "wsgate.bearer.{token}"];
        const socket = new WebSocket({json.dumps(gateway.ws_url)}, offered);
        socket.onmessage = (event) => {{ resolve(JSON.parse(event.data).op); socket.close(); }};
        socket.onclose = (event) => resolve(`closed ${{event.code}}`);
    }})"""


def test_s17_chromium_can_connect_only_from_a_page_of_the_gateway_itself(
    gateway: Gateway, foreign_page: str
) -> None:
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("no Chromium here, and none could be installed")
    own_page = f"http://127.0.0.1:{gateway.port}/readyz"  # a document of the gateway's own origin
    script = dialogue(gateway, make_token())
    with running_browser(chromium) as browser:
        browser.open(own_page)
        assert browser.evaluate("location.origin") == f"http://127.0.0.1:{gateway.port}"
        assert browser.evaluate(script) == "welcome"
        browser.open(foreign_page)
        assert browser.evaluate(script) == "closed 1006"
        browser.open("data:text/html,<title>opaque</title>")
        assert browser.evaluate("self.origin") == "null"
        assert browser.evaluate(script) == "closed 1006"


# --- tokens -------------------------------------------------------------------------------------------


def encoded(part: object) -> str:
    raw = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def unsigned(alg: str) -> str:
    claims = {"sub": "42", "aud": AUDIENCE, "exp": int(time.time()) + 600}
    return f"{encoded({'alg': alg, 'typ': 'JWT'})}.{encoded(claims)}."


def signed_with_hmac(secret: bytes, headers: dict[str, Any]) -> str:
    """Sign as PyJWT would not: any bytes as a secret, any header."""
    claims = {"sub": "42", "aud": AUDIENCE, "exp": int(time.time()) + 600}
    text = f"{encoded(headers)}.{encoded(claims)}"
    return f"{text}.{encoded(hmac.digest(secret, text.encode(), hashlib.sha256))}"


def der_of(key: RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def jwk_of(key: RSAPrivateKey) -> bytes:
    numbers = key.public_key().public_numbers()
    size = (numbers.n.bit_length() + 7) // 8
    fields = {"kty": "RSA", "n": encoded(numbers.n.to_bytes(size)), "e": encoded(numbers.e.to_bytes(3))}
    return json.dumps(fields).encode()


HS: Final = {"alg": "HS256", "typ": "JWT"}
DEEP: Final = b'{"sub":' + b"[" * 3000 + b"]" * 3000 + b"}"

# From a name of the fault to a token with it. The answer to all of them is the same.
BAD_TOKENS: Final[dict[str, Callable[[RSAPrivateKey], str]]] = {
    "none": lambda _: unsigned("none"),
    "None": lambda _: unsigned("None"),
    "nOnE": lambda _: unsigned("nOnE"),
    "no algorithm": lambda _: unsigned(""),
    "PEM as a secret": lambda key: signed_with_hmac(pem_of(key).encode(), HS | {"kid": "rsa"}),
    "DER as a secret": lambda key: signed_with_hmac(der_of(key), HS | {"kid": "rsa"}),
    "JWK as a secret": lambda key: signed_with_hmac(jwk_of(key), HS | {"kid": "rsa"}),
    "HS256 on the RSA key": lambda _: signed_with_hmac(SECRET.encode(), HS | {"kid": "rsa"}),
    "RS256 on the secret": lambda _: signed_with_hmac(SECRET.encode(), HS | {"alg": "RS256"}),
    "HS512 on the secret": lambda _: make_token(secret=SECRET * 2, algorithm="HS512"),
    "unknown kid": lambda _: signed_with_hmac(SECRET.encode(), HS | {"kid": "../../dev/null"}),
    "embedded key": lambda key: signed_with_hmac(b"x", HS | {"jwk": json.loads(jwk_of(key))}),
    "crit": lambda _: signed_with_hmac(SECRET.encode(), HS | {"crit": ["exp"]}),
    "b64 false": lambda _: signed_with_hmac(SECRET.encode(), HS | {"b64": False}),
    "empty secret": lambda _: signed_with_hmac(b"", HS),
    "another secret": lambda _: make_token(secret=SECRET + "x"),
    "wrong audience": lambda _: make_token(aud="watches"),
    "no audience": lambda _: make_token(aud=None),
    "no exp": lambda _: make_token(exp=None),
    "no sub": lambda _: make_token(sub=None),
    "a channel token": lambda _: make_token(channel="open:1"),
    "over the cap": lambda _: make_token(padding="x" * 6200),
    "deep": lambda _: f"{encoded(HS)}.{encoded(DEEP[:5000])}.{encoded(b'x' * 32)}",
    "no token": lambda _: "x",
    "dots": lambda _: "...",
}


def by_subprotocol(client: RawClient, token: str) -> None:
    offered = f"wsgate.v1.json, wsgate.bearer.{token}"
    answer = client.ask(request(headers=[("Sec-WebSocket-Protocol", offered)]))
    assert answer.headers["sec-websocket-protocol"] == "wsgate.v1.json"
    assert answer.status == 101


def by_message(client: RawClient, token: str) -> None:
    assert client.ask(request()).status == 101
    client.say(op="auth", token=token)


def by_query(client: RawClient, token: str) -> None:
    assert client.ask(request(f"/ws?token={token}")).status == 101


LATE_CARRIERS: Final = [by_subprotocol, by_message, by_query]


def ending(gateway: Gateway, carry: Callable[[RawClient, str], None], token: str) -> tuple[Ending, bytes]:
    with RawClient(gateway) as client:
        carry(client, token)
        return client.ending(), bytes(client.heard)


def test_s18_every_bad_token_in_the_header_is_the_same_401(gateway: Gateway, rsa: RSAPrivateKey) -> None:
    with_good = ask(gateway, request(headers=[bearer(make_token())]))
    assert with_good.status == 101
    signed = make_token(secret=rsa, algorithm="RS256", headers={"kid": "rsa"})
    assert ask(gateway, request(headers=[bearer(signed)])).status == 101
    answers = {name: ask(gateway, request(headers=[bearer(make(rsa))])) for name, make in BAD_TOKENS.items()}
    assert {name: answer.status for name, answer in answers.items()} == dict.fromkeys(BAD_TOKENS, 401)
    assert len({answer.raw for answer in answers.values()}) == 1
    expired = ask(gateway, request(headers=[bearer(make_token(ttl_s=-1))]))
    assert expired.raw == answers["none"].raw


@pytest.mark.parametrize("carry", LATE_CARRIERS)
def test_s18_every_bad_token_by_a_late_carrier_has_the_same_error_and_4501(
    gateway: Gateway, rsa: RSAPrivateKey, carry: Callable[[RawClient, str], None]
) -> None:
    first = b""
    for name, make in BAD_TOKENS.items():
        if carry is by_query and name == "over the cap":
            continue  # a URL of this length is refused
        closed, heard = ending(gateway, carry, make(rsa))
        message, bye = closed.messages
        assert (name, closed.code) == (name, 4501)
        assert (message["op"], message["code"], message["error"]) == ("err", 401, "unauthorized")
        assert bye == {"op": "bye", "code": 4501, "reason": "invalid_token", "reconnect": False}
        first = first or heard
        assert heard == first, name


@pytest.mark.parametrize("carry", LATE_CARRIERS)
def test_s18_expired_token_by_a_late_carrier_is_4001_and_asks_to_reconnect(
    gateway: Gateway, carry: Callable[[RawClient, str], None]
) -> None:
    closed, _ = ending(gateway, carry, make_token(ttl_s=-1))
    assert (closed.code, closed.bye["reason"], closed.bye["reconnect"]) == (4001, "token_expired", True)


BEGINNERS_TOKENS: Final[dict[str, Callable[[], str]]] = {
    "bad_signature": lambda: make_token(secret=SECRET + "x"),
    "missing_exp": lambda: make_token(exp=None),
    "bad_sub": lambda: signed_claims({"sub": 7, "aud": AUDIENCE, "exp": int(time.time()) + 600}),
    "missing_sub": lambda: make_token(sub=None),
    "wrong_algorithm": lambda: make_token(secret=SECRET * 2, algorithm="HS512"),
    "unknown_key": lambda: make_token(headers={"kid": "2026-11"}),
    "bad_subscribe": lambda: make_token(subscribe="chat:*"),
    "expired": lambda: make_token(ttl_s=-12),
}


def signed_claims(claims: dict[str, Any]) -> str:
    text = f"{encoded(HS)}.{encoded(claims)}"
    return f"{text}.{encoded(hmac.digest(SECRET.encode(), text.encode(), hashlib.sha256))}"


def test_cause_of_a_refused_token_is_in_log_and_metrics_but_not_in_the_answer(tmp_path: Path) -> None:
    with configured_gateway(tmp_path) as fresh:
        before = fresh_counters(fresh)
        tokens = {cause: make() for cause, make in BEGINNERS_TOKENS.items()}
        answers = {ask(fresh, request(headers=[bearer(token)])).raw for token in tokens.values()}
        assert len(answers) == 1
        after = fresh_counters(fresh)
        wait_until("all are logged", lambda: len(lines_about_tokens(fresh)) == len(tokens))
        log = lines_about_tokens(fresh)
    for cause in tokens:
        (line,) = [line for line in log if f" token_refused_{cause} " in line]
        assert f"fault={CAUSES[cause].fault} " in line
        assert "why=" in line
    assert any(re.search(r"expired 1\d s ago \(exp \d{10}\)", line) for line in log)
    counted = {
        fault: after[name] - before[name]
        for fault in ("bad_signature", "bad_claims", "wrong_algorithm", "unknown_key", "expired")
        if (name := f'wsgate_token_refusals_total{{fault="{fault}"}}')
    }
    assert counted == dict.fromkeys(counted, 1) | {"bad_claims": 4}


def lines_about_tokens(gateway: Gateway) -> list[str]:
    return [line for line in gateway.lines if " token_refused_" in line]


def test_cause_of_a_refused_token_is_in_the_answer_in_development() -> None:
    with running_gateway(environ={"WSGATE_AUTH__HMAC_SECRET": SECRET}) as fresh:
        for cause in ("missing_exp", "wrong_algorithm", "expired"):
            token = BEGINNERS_TOKENS[cause]()
            answer = ask(fresh, request(headers=[bearer(token)]))
            assert CAUSES[cause].text in answer.headers["www-authenticate"]
            closed, _ = ending(fresh, by_message, token)
            assert CAUSES[cause].text in closed.messages[-2]["message"]


@pytest.mark.parametrize("carry", LATE_CARRIERS)
@pytest.mark.parametrize("claim", ["nbf", "iat"])
def test_token_that_is_not_valid_yet_closes_4005_with_the_time_to_wait(
    gateway: Gateway, carry: Callable[[RawClient, str], None], claim: str
) -> None:
    later: dict[str, Any] = {claim: int(time.time()) + 600}
    closed, _ = ending(gateway, carry, make_token(**later))
    message, bye = closed.messages
    assert (message["error"], closed.code) == ("unauthorized", 4005)
    assert (bye["reason"], bye["reconnect"]) == ("token_not_yet_valid", True)
    assert 500_000 < bye["retry_ms"] <= 603_000
    assert "retry_ms" not in message


def test_token_in_the_header_is_503_before_its_time_and_101_afterwards(
    gateway: Gateway,
) -> None:
    answer = ask(gateway, request(headers=[bearer(make_token(nbf=int(time.time()) + 600))]))
    assert (answer.status, "www-authenticate" in answer.headers) == (503, False)
    assert 500 < int(answer.headers["retry-after"]) <= 606
    soon_s = int(time.time()) + 2
    soon = make_token(nbf=soon_s)
    assert ask(gateway, request(headers=[bearer(soon)])).status == 503
    wait_until("the token is valid", lambda: time.time() >= soon_s, 10)
    assert ask(gateway, request(headers=[bearer(soon)])).status == 101


def test_token_with_an_issue_time_up_to_five_seconds_ahead_is_accepted(gateway: Gateway) -> None:
    for ahead_s in (0.4, 5):
        token = make_token(iat=time.time() + ahead_s)
        assert ask(gateway, request(headers=[bearer(token)])).status == 101


@pytest.mark.parametrize("value", ["Bearer", "Bearer ", "bearer", "Bearer \t", "Bearer a b"])
def test_s18_bearer_header_without_exactly_one_token_is_401(gateway: Gateway, value: str) -> None:
    assert ask(gateway, request(headers=[("Authorization", value)])).status == 401


def test_s18_token_of_a_megabyte_is_refused_by_its_size_on_every_carrier(gateway: Gateway) -> None:
    token = make_token(padding="x" * 750_000)
    assert len(token) > 1_000_000
    assert ask(gateway, request(headers=[bearer(token)])).status == 431
    offered = ("Sec-WebSocket-Protocol", f"wsgate.v1.json, wsgate.bearer.{token}")
    assert ask(gateway, request(headers=[offered])).status == 431
    assert ask(gateway, request(f"/ws?token={token}")).status in (414, 431)
    with RawClient(gateway) as client:
        assert client.ask(request()).status == 101
        message = client_frame(TEXT, json.dumps({"op": "auth", "token": token}).encode())
        client.sock.sendall(message[:4096])  # the header declares the length, so the rest is not needed
        assert client.ending().code == 1009


def test_s18_bad_token_in_the_header_is_401_although_other_carriers_have_a_good_one(gateway: Gateway) -> None:
    """The header outranks the other carriers, and none of them can override a refusal."""
    good = make_token()
    offered = ("Sec-WebSocket-Protocol", f"wsgate.v1.json, wsgate.bearer.{good}")
    assert ask(gateway, request(f"/ws?token={good}", headers=[offered, bearer("x")])).status == 401


def test_s18_tokens_sent_behind_a_refused_token_are_not_verified(gateway: Gateway) -> None:
    """The connection ends with the first token that is refused."""
    before = fresh_counters(gateway)
    with RawClient(gateway) as client:
        assert client.ask(request()).status == 101
        for number in range(50):
            client.say(op="auth", token=make_token("guess", secret=SECRET + str(number)))
        client.say(op="auth", token=make_token("guess"))
        closed = client.ending()
    assert [said["op"] for said in closed.messages] == ["err", "bye"]
    assert closed.code == 4501
    after = fresh_counters(gateway)
    outcomes = ("refused", "verified", "cached")
    names = [f'wsgate_tokens_total{{outcome="{outcome}"}}' for outcome in outcomes]
    assert [after[name] - before[name] for name in names] == [1, 0, 0]


# --- tokens that end ----------------------------------------------------------------------------------


def let_in(gateway: Gateway, token: str) -> tuple[RawClient, dict[str, Any]]:
    client = RawClient(gateway)
    assert client.ask(request(headers=[bearer(token)])).status == 101
    return client, client.hear()


def test_s20_connection_closes_with_4001_when_its_token_expires_unless_refreshed(gateway: Gateway) -> None:
    with besieged(gateway):
        short = make_token("short", ttl_s=3)
        expires_at_s = jwt.decode(short, options={"verify_signature": False})["exp"]
        ended, welcome = let_in(gateway, short)
        refreshed, _ = let_in(gateway, short)
        kept, _ = let_in(gateway, short)
        shortened, _ = let_in(gateway, make_token("short"))
        with ended, refreshed, kept, shortened:
            assert 0 <= welcome["expires_s"] <= 3
            refreshed.say(op="refresh", token=make_token("short"), id=1)
            assert refreshed.hear_answer(1) == {"op": "ok", "id": 1, "expires_s": pytest.approx(3590, abs=10)}
            # A refused refresh leaves the old expiry.
            kept.say(op="refresh", token=make_token("other"), id=1)
            assert kept.hear_answer(1)["error"] == "permission_denied"
            kept.say(op="refresh", token=make_token("short", ttl_s=-1), id=2)
            assert kept.hear_answer(2)["error"] == "unauthorized"
            # A refresh may also shorten the time.
            shortened.say(op="refresh", token=make_token("short", ttl_s=3), id=1)
            assert shortened.hear_answer(1)["op"] == "ok"
            for client in (ended, kept, shortened):
                closed = client.ending()
                assert (closed.code, closed.bye["reason"]) == (4001, "token_expired")
                assert closed.bye["reconnect"] is True
                assert time.time() >= expires_at_s
            # The token was accepted before, and is refused after its expiry.
            assert ask(gateway, request(headers=[bearer(short)])).status == 401
            assert ending(gateway, by_subprotocol, short)[0].code == 4001
            refreshed.say(op="ping", id=2)
            assert refreshed.hear_answer(2) == {"op": "pong", "id": 2}
