"""Check that the operator, and in development the client, gets the cause of a refused token."""

import logging
import re
import time
from collections import Counter
from typing import Any, Final, cast

import jwt
import pytest

from tests.unit.auth.test_tokens import PUBLIC_TEXTS, RSA, encoded, forge, pem, text
from tests.unit.shard.test_sessions import Shard
from tests.unit.shard.test_token_refusals import Refusing, told
from wsgate.admin.metrics import make_registry
from wsgate.auth import FAULTS, OriginPolicy, TokenError, TokenPolicy, make_key
from wsgate.auth.faults import CAUSES
from wsgate.bus import parse_address
from wsgate.handshake import Refusal
from wsgate.log import Log
from wsgate.reactor import GateLimits, Settings
from wsgate.shard.handshakes import HandshakePolicy
from wsgate.shard.options import ShardOptions
from wsgate.shard.statistics_layout import LAYOUT
from wsgate.shard.tokens import Tokens
from wsgate.statistics import StatisticsBlock

SECRET: Final = b"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
NOW_S: Final = 1_764_422_412.0
EXP: Final = int(NOW_S) + 600
CANARY: Final = "canary"


class TokensRig:
    """The tokens of a shard, with everything that they count and log."""

    def __init__(self, part: str = "test", **policy: Any) -> None:
        self.counts: Counter[str] = Counter()
        keys = (
            make_key(None, "HS256", secret=SECRET),
            make_key("rsa", "RS256", public_key=pem(RSA.public_key())),
        )
        self.tokens = Tokens(keys, TokenPolicy(**policy), 100, self._count, log=Log(part))

    def _count(self, name: str, amount: int) -> None:
        self.counts[name] += amount

    def refuse(self, token: str | bytes, now_s: float = NOW_S) -> TokenError:
        with pytest.raises(TokenError) as refused:
            self.tokens.connection(cast(str, token), now_s)
        return refused.value


def signed(*, headers: dict[str, Any] | None = None, **changes: Any) -> bytes:
    claims = {"sub": "42", "exp": EXP} | changes
    claims = {name: value for name, value in claims.items() if value is not ...}
    return forge({"alg": "HS256"} | (headers or {}), claims, SECRET)


EIGHT: Final = {
    "bad_signature": forge({"alg": "HS256"}, {"sub": "42", "exp": EXP}, b"another secret"),
    "missing_exp": signed(exp=...),
    "bad_sub": signed(sub=7),
    "missing_sub": signed(sub=...),
    "wrong_algorithm": jwt.encode({"sub": "42", "exp": EXP}, SECRET, "HS512").encode(),
    "unknown_key": signed(headers={"kid": CANARY}),
    "bad_subscribe": signed(subscribe=CANARY),
    "expired": signed(exp=int(NOW_S) - 12),
}
"""The tokens that a backend developer tries first."""

OTHERS: Final = {
    "too_large": b"a" * 9000,
    "malformed": b"canary.canary",
    "bad_header": forge({"alg": 7, "x": CANARY}, {}, SECRET),
    "critical_header": signed(headers={"crit": [CANARY]}),
    "bad_claims": forge({"alg": "HS256"}, [CANARY], SECRET),
    "bad_exp": signed(exp=CANARY),
    "bad_nbf": signed(nbf=CANARY),
    "bad_iat": signed(iat=[CANARY]),
    "bad_channels": signed(channels=[CANARY, "{bad}"]),
    "bad_publish": signed(publish=[CANARY, 7]),
    "bad_channel": signed(channel=7),
    "channel_token": signed(channel=CANARY),
    "wrong_audience": signed(aud=CANARY),
    "wrong_issuer": signed(aud="shop", iss=CANARY),
    "bad_aud": signed(aud=7),
    "bad_iss": signed(aud="shop", iss=7),
    "not_yet_valid": signed(aud="shop", iss="me", nbf=NOW_S + 60),
}
STRICT: Final = {"audience": "shop", "issuer": "me"}


def _policy(cause: str) -> dict[str, str]:
    """Return a policy that checks `aud` and `iss` if the cause is about them."""
    return STRICT if cause in ("wrong_audience", "wrong_issuer", "bad_aud", "bad_iss") else {}


@pytest.mark.parametrize("cause", EIGHT)
def test_each_frequent_token_fault_has_its_own_cause(cause: str) -> None:
    rig = TokensRig()
    error = rig.refuse(EIGHT[cause])
    assert error.cause == cause
    assert rig.counts == {"tokens_refused": 1, f"token_fault_{error.fault}": 1}


def test_eight_refused_tokens_write_eight_log_lines_with_different_texts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rig = TokensRig("eight")
    with caplog.at_level(logging.INFO):
        for token in EIGHT.values():
            rig.refuse(token)
    fields = [vars(record)["fields"] for record in caplog.records]
    assert [record.message for record in caplog.records] == [f"token_refused_{cause}" for cause in EIGHT]
    assert len({field["why"] for field in fields}) == 8
    assert all(field["fault"] in FAULTS for field in fields)


@pytest.mark.parametrize("cause", OTHERS)
def test_each_rare_token_fault_has_its_own_cause(cause: str) -> None:
    assert TokensRig(**_policy(cause)).refuse(OTHERS[cause]).cause == cause


def test_refused_tokens_write_one_log_line_for_each_second_and_cause(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock_s = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: clock_s)
    rig = TokensRig("flood")
    with caplog.at_level(logging.INFO):
        for _ in range(100):
            for token in EIGHT.values():
                rig.refuse(token)
        assert len(caplog.records) == 8
        clock_s = 101.0
        rig.refuse(EIGHT["expired"])
    assert len(caplog.records) == 9
    assert vars(caplog.records[-1])["fields"]["held_back"] == 99


@pytest.mark.parametrize("cause", [*EIGHT, *OTHERS])
def test_log_line_and_error_text_contain_no_part_of_the_token(
    cause: str, caplog: pytest.LogCaptureFixture
) -> None:
    token = {**EIGHT, **OTHERS}[cause]
    with caplog.at_level(logging.DEBUG):
        error = TokensRig(f"canary {cause}", **_policy(cause)).refuse(token)
    assert len(caplog.records) == 1
    for output in (error.why, error.text, str(error), repr(error)):
        assert CANARY not in output and token.decode() not in output
        assert output.isprintable() and len(output) < 200
    lines = "".join(str([record.message, vars(record)["fields"]]) for record in caplog.records)
    assert lines.count(CANARY) == 0
    assert not any(part and part in lines for part in token.decode().split(".") if len(part) > 20)


@pytest.mark.parametrize(
    ("token", "policy", "why"),
    [
        (signed(exp=int(NOW_S) - 12), {}, "expired 12 s ago (exp 1764422400)"),
        (signed(exp=int(NOW_S) - 12), {"leeway_s": 5}, "expired 12 s ago (exp 1764422400)"),
        (signed(exp=-1e300), {}, "expired 1764422412 s ago (exp -1000000000000000)"),
        (signed(nbf=NOW_S + 60), {}, "nbf is 60 s ahead (nbf 1764422472)"),
        (signed(nbf=10**300), {}, "nbf is 999998235577588 s ahead (nbf 1000000000000000)"),
        (signed(iat=NOW_S * 1000), {}, "iat is 1762657989588 s ahead (iat 1764422412000)"),
        (EIGHT["wrong_algorithm"], {}, "the header's alg is HS512, the key's is HS256"),
        (forge({"alg": CANARY}, {}, SECRET), {}, "the header's alg is another one, the key's is HS256"),
        (EIGHT["unknown_key"], {}, "no key has the kid that the header names; known are rsa"),
        (signed(aud="x"), STRICT, "aud does not contain the audience shop"),
        (signed(aud="shop"), STRICT, "iss is not the issuer me"),
    ],
)
def test_refusal_text_for_the_operator_contains_times_and_expected_values(
    token: bytes, policy: dict[str, Any], why: str
) -> None:
    assert TokensRig(**policy).refuse(token).why == why


def test_refusal_text_of_a_revoked_token_contains_both_times() -> None:
    rig = TokensRig()
    rig.tokens.revoke("42", NOW_S - 5)
    revoked = rig.refuse(signed(iat=NOW_S - 60))
    assert revoked.why == (
        "the token was issued before the revocation (iat 1764422352, revoked before 1764422407)"
    )
    assert rig.refuse(signed()).why == "the user's tokens were revoked, and this one has no iat"


# --- the registry ---------------------------------------------------------------------------------------


def test_every_cause_has_a_fault_and_a_unique_text_that_is_valid_in_a_header() -> None:
    assert {cause.fault for cause in CAUSES.values()} == set(FAULTS)
    assert len({cause.text for cause in CAUSES.values()}) == len(CAUSES)
    for name, cause in CAUSES.items():
        assert re.fullmatch(r"[a-z_]+", name)
        # RFC 6750 section 3: the characters of error_description.
        assert re.fullmatch(r"[\x20\x21\x23-\x5b\x5d-\x7e]+", cause.text)
    assert all(CAUSES[fault].fault == fault for fault in FAULTS)


def test_metric_of_token_refusals_has_exactly_the_faults_as_labels() -> None:
    block = StatisticsBlock.create(LAYOUT, 1)
    block.shard(0).add("token_fault_expired")
    (family,) = [
        found
        for found in make_registry(block, "node", lambda: 0).collect()
        if found.name == "wsgate_token_refusals"
    ]
    values = {
        sample.labels["fault"]: sample.value for sample in family.samples if sample.name.endswith("total")
    }
    assert values == dict.fromkeys(FAULTS, 0) | {"expired": 1}
    assert family.documentation.endswith(".")


# --- the client -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_dev", [True, False])
@pytest.mark.parametrize("fault", FAULTS)
def test_error_message_contains_the_cause_only_in_development(fault: str, is_dev: bool) -> None:
    shard = Shard()
    try:
        shard.attach(tokens=cast(Tokens, Refusing()))
        shard.replies.renew(_options(is_dev=is_dev))
        error, *_ = told(shard, shard.enter(fault))
        assert (CAUSES[fault].text in error["message"]) is is_dev
        assert error["message"].startswith("the token is missing, expired or not valid")
        peer = shard.enter("ann")
        shard.confirm("@ann")
        told(shard, peer)
        shard.say(peer, {"op": "refresh", "token": fault, "id": 1})
        (error,) = told(shard, peer)
        assert (CAUSES[fault].text in error["message"]) is is_dev
    finally:
        shard.rig.close()


def _options(*, is_dev: bool) -> ShardOptions:
    return ShardOptions(
        node="n",
        number=0,
        reactor=Settings(report_vacated=True, variant_opcodes=(1, 2), max_subscriptions=4),
        gate=GateLimits(),
        bus=parse_address("unix:///nowhere"),
        origins=OriginPolicy(()),
        tokens=TokenPolicy(),
        is_dev=is_dev,
    )


HEAD: Final = (
    b"GET /ws HTTP/1.1\r\nHost: gate.example\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    b"Authorization: Bearer %b\r\n\r\n"
)


@pytest.mark.parametrize("cause", EIGHT)
def test_401_response_contains_the_cause_only_in_development(cause: str) -> None:
    for is_dev in (True, False):
        answer = HandshakePolicy(_options(is_dev=is_dev), TokensRig().tokens).judge(
            HEAD % EIGHT[cause], NOW_S
        )
        assert isinstance(answer, Refusal)
        assert (answer.status, answer.reason) == (401, "invalid_token")
        assert (CAUSES[cause].text.encode() in answer.response) is is_dev
        assert CANARY.encode() not in answer.response


def test_401_responses_for_all_faults_are_equal_outside_development() -> None:
    front = HandshakePolicy(_options(is_dev=False), TokensRig().tokens)
    answers = {cast(Refusal, front.judge(HEAD % token, NOW_S)).response for token in EIGHT.values()}
    assert len(answers) == 1


def test_hs256_token_signed_with_a_public_key_text_has_cause_wrong_algorithm() -> None:
    token = forge({"alg": "HS256", "kid": "rsa"}, {"sub": "42", "exp": EXP}, PUBLIC_TEXTS["pem"])
    assert TokensRig().refuse(token).cause == "wrong_algorithm"
    unsigned = encoded(text({"alg": "none"})) + b"." + encoded(text({"sub": "42"})) + b"."
    assert TokensRig().refuse(unsigned).why == "the header's alg is none, the key's is HS256"


@pytest.mark.parametrize("is_dev", [True, False])
def test_token_not_yet_valid_is_answered_503_with_retry_after(is_dev: bool) -> None:
    front = HandshakePolicy(_options(is_dev=is_dev), TokensRig().tokens)
    answer = front.judge(HEAD % signed(nbf=NOW_S + 600), NOW_S)
    assert isinstance(answer, Refusal)
    assert (answer.status, answer.reason) == (503, "token_not_yet_valid")
    (wait,) = re.findall(rb"Retry-After: (\d+)\r\n", answer.response)
    assert 600 <= int(wait) <= 605
    assert (CAUSES["not_yet_valid"].text.encode() in answer.response) is is_dev
