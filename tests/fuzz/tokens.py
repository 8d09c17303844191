"""Make random tokens, and compare the verifier with an oracle built on `jwt.decode`."""

import hmac
import json
import random
from base64 import urlsafe_b64encode
from typing import Any, Final

from tests.fuzz.mutation import mutate
from tests.support.sizes import draw_size
from tests.support.token_reference import Oracle, Refused
from wsgate.auth import KeyRing, PermissionTable, TokenError, TokenPolicy, Verifier, make_key
from wsgate.auth.tokens import TOKEN_LIMIT_BYTES, USER_LIMIT_BYTES
from wsgate.dialects.names import CHANNEL_LIMIT_BYTES

__all__ = ["NOW_S", "SECRET", "TokensTarget", "agree", "is_accepted", "signed"]

NOW_S: Final = 1_800_000_000.5
SECRET: Final = b"an example secret of more than 32 bytes"
CHANNEL: Final = "chat:42"
POLICIES: Final[tuple[dict[str, Any], ...]] = (
    {},
    {"audience": "shop"},
    {"issuer": "me"},
    {"leeway_s": 5},
    {"require_exp": False},
)
KEYS: Final = KeyRing([make_key(None, "HS256", secret=SECRET)])


def signed(header: bytes, claims: bytes, *, secret: bytes = SECRET, digest: str = "sha256") -> bytes:
    """Return a token of any bytes as header and claims, with a valid signature."""
    signing_input = urlsafe_b64encode(header).rstrip(b"=") + b"." + urlsafe_b64encode(claims).rstrip(b"=")
    return signing_input + b"." + urlsafe_b64encode(hmac.digest(secret, signing_input, digest)).rstrip(b"=")


def is_accepted(token: bytes) -> bool:
    """Whether the verifier opens a connection for this token, under the plain policy."""
    try:
        Verifier(KEYS, TokenPolicy(), PermissionTable()).verify_connection(token, now_s=NOW_S)
    except TokenError:
        return False
    return True


def agree(token: bytes) -> bool:
    """Compare verifier and oracle under every policy; whether the plain policy accepts the token.

    Raises:
        AssertionError: The verifier accepts what the oracle refuses, or reads it differently.
    """
    for policy in POLICIES:
        verifier = Verifier(KEYS, TokenPolicy(**policy), PermissionTable())
        oracle = Oracle(SECRET, **policy)
        try:
            found = verifier.verify_connection(token, now_s=NOW_S)
        except TokenError:
            pass
        else:
            allowed = found.permissions
            read = (found.user, *map(set, (allowed.channels, allowed.subscribe, allowed.publish)))
            assert (*read, found.expires_at_s) == _asked(oracle.connection, token, NOW_S), (token, policy)
        try:
            grant = verifier.verify_channel(token, channel=CHANNEL, user=None, now_s=NOW_S)
        except TokenError:
            pass
        else:
            read_grant = (grant.user, grant.expires_at_s)
            assert read_grant == _asked(oracle.channel, token, CHANNEL, NOW_S), (token, policy)
    return is_accepted(token)


def _asked(ask: Any, *arguments: Any) -> Any:
    try:
        return ask(*arguments)
    except Refused as refused:
        return f"refused: {refused}"


class TokensTarget:
    """Tokens with odd headers, odd claims, odd spelling, or changed bytes.

    `close` checks that some of them were accepted and some refused; otherwise nothing is tested.
    """

    def __init__(self) -> None:
        self.accepted = self.refused = 0

    def run(self, dice: random.Random) -> bytes:
        """See `Target`."""
        header, claims = _header(dice), _claims(dice)
        if dice.random() < 0.15:
            header = mutate(dice, [header])
        if dice.random() < 0.25:
            claims = mutate(dice, [claims])
        token = signed(header, claims)
        if dice.random() < 0.25:
            token = _bent(dice, token)
        if agree(token):
            self.accepted += 1
        else:
            self.refused += 1
        return token

    def close(self) -> None:
        """Check that both outcomes occurred."""
        assert self.accepted and self.refused


def _value(dice: random.Random) -> Any:
    return dice.choice(
        (
            None,
            True,
            False,
            0,
            -0.0,
            -1,
            1.5,
            2**63,
            2**64,
            10**25,
            1e300,
            float("nan"),
            float("inf"),
            "",
            "42",
            "é",
            "\ud800",
            "\x85",
            [],
            ["a"],
            [None],
            [["a"]],
            {},
            {"a": 1},
            CHANNEL,
            int(NOW_S),
            NOW_S + dice.choice((-10, -1, -0.25, 0, 0.25, 1, 5, 6, 10, 60, 61)),
        )
    )


def _member(dice: random.Random, good: Any) -> Any:
    return good if dice.random() < 0.9 else _value(dice)


def _json(dice: random.Random, members: list[tuple[str, Any]]) -> bytes:
    """Return an object as text, so that a name can occur twice in it."""
    if dice.random() < 0.2:
        members.append((dice.choice(members)[0], _value(dice)))
    if dice.random() < 0.3:
        dice.shuffle(members)
    is_ascii, gap = dice.random() < 0.7, dice.choice(("", "", " ", "\n\t"))
    rows = (
        f"{json.dumps(name)}:{gap}{json.dumps(value, ensure_ascii=is_ascii)}{gap}" for name, value in members
    )
    return ("{" + ",".join(rows) + "}").encode("utf-8", "surrogatepass")


def _header(dice: random.Random) -> bytes:
    members: list[tuple[str, Any]] = [("alg", _member(dice, "HS256")), ("typ", _member(dice, "JWT"))]
    if dice.random() < 0.1:
        name = dice.choice(("kid", "crit", "b64", "jwk", "jku", "alg", "cty", "zip"))
        members.append((name, _value(dice)))
    return _json(dice, members)


def _claims(dice: random.Random) -> bytes:
    user = _text(dice, USER_LIMIT_BYTES) if dice.random() < 0.2 else "42"
    members = [("sub", _member(dice, user)), ("exp", _member(dice, int(NOW_S) + 60))]
    likely = {
        "nbf": int(NOW_S) - 5,
        "iat": int(NOW_S) - 5,
        "aud": dice.choice(("shop", ["shop", "x"])),
        "iss": "me",
        "channels": ["news", _text(dice, CHANNEL_LIMIT_BYTES)],
        "subscribe": ["chat:*"],
        "publish": ["chat:42", "b"],
        "jti": "1",
        "x": {"deep": [1, 2.5, None]},
    }
    for name, good in likely.items():
        if dice.random() < 0.3:
            members.append((name, _member(dice, good)))
    if dice.random() < 0.3:
        members.append(("channel", _member(dice, CHANNEL)))
    if dice.random() < 0.1:
        # Base64 makes a token a third longer, so that the whole token has a size around its limit.
        members.append(("filler", "x" * (TOKEN_LIMIT_BYTES * 3 // 4 - dice.randrange(400))))
    return _json(dice, members)


def _text(dice: random.Random, limit: int) -> str:
    """Return a name of a size around a bound, up to one byte over its limit; one sign may have two bytes."""
    return dice.choice(("x", "é")) + "x" * (draw_size(dice, limit + 1, least=1) - 1)


def _bent(dice: random.Random, token: bytes) -> bytes:
    place = dice.randrange(len(token) + 1)
    odd = dice.choice((b"=", b"==", b".", b"\n", b" ", b"+", b"/", b"A", b"\x00", b"\xff", b"-", b"_"))
    how = dice.randrange(4)
    if how == 0:
        return token[:place] + odd + token[place:]
    if how == 1:
        return token + odd
    if how == 2:
        return token[:place] + odd + token[place + len(odd) :]
    return mutate(dice, [token])
