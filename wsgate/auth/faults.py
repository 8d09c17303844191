"""The faults of tokens: a name for the metric, and a sentence for the operator.

Every refusal of a token has a fault, which is the label of a metric, and a cause, which is more exact and has
one sentence. In development mode these texts may be sent to clients, so they repeat no text of a token.
"""

from typing import Final, NamedTuple

from wsgate.errors import PeerError
from wsgate.reasons import Reason

__all__ = ["CAUSES", "FAULTS", "Cause", "TokenError"]

FAULTS: Final = (
    "too_large",
    "malformed",
    "critical_header",
    "unknown_key",
    "awaited_key",
    "unusable_key",
    "wrong_algorithm",
    "bad_signature",
    "bad_claims",
    "wrong_channel",
    "wrong_user",
    "wrong_audience",
    "wrong_issuer",
    "not_yet_valid",
    "expired",
    "revoked",
)
"""Every value of `TokenError.fault`."""


class Cause(NamedTuple):
    """One cause of a refusal: the fault that it belongs to, and its sentence."""

    fault: str  # one of `FAULTS`
    text: str  # a sentence without its full stop


def _names(claim: str, what: str) -> str:
    return f"the claim {claim} must be a list of at most 128 {what}"


CAUSES: Final[dict[str, Cause]] = {
    "too_large": Cause("too_large", "the token is longer than 8 KiB, or its header is longer than 2 KiB"),
    "malformed": Cause(
        "malformed", "the token is not three base64url segments without padding with JSON in UTF-8"
    ),
    "bad_header": Cause("malformed", "the header must be a JSON object; its alg and kid are strings"),
    "critical_header": Cause("critical_header", "the header has crit or b64, and no extension is supported"),
    "unknown_key": Cause("unknown_key", "no key has the kid that the header names"),
    "no_kid": Cause(
        "unknown_key", "the header names no kid, and there is neither a key without kid nor only one"
    ),
    "awaited_key": Cause("awaited_key", "the key that the header names has not been fetched yet"),
    "unusable_key": Cause(
        "unusable_key", "the key set has the key that the header names, but it is not usable"
    ),
    "wrong_algorithm": Cause("wrong_algorithm", "the header's alg is not the algorithm of the key"),
    "bad_signature": Cause(
        "bad_signature", "the signature was not made with this gateway's key for the token"
    ),
    "bad_claims": Cause("bad_claims", "the payload is not a JSON object of claims with the right types"),
    "missing_sub": Cause("bad_claims", "the claim sub is missing: it names the user"),
    "bad_sub": Cause(
        "bad_claims", "the claim sub must be a string of 1 to 128 bytes without control characters"
    ),
    "missing_exp": Cause("bad_claims", "the claim exp is missing: it is required here"),
    "missing_iat": Cause("bad_claims", "the claim iat is missing: the life of tokens is limited here"),
    "long_life": Cause("bad_claims", "exp lies further after iat than the life of tokens is limited to here"),
    "bad_exp": Cause("bad_claims", "the claim exp must be a number: seconds since 1970"),
    "bad_nbf": Cause("bad_claims", "the claim nbf must be a number: seconds since 1970"),
    "bad_iat": Cause("bad_claims", "the claim iat must be a number: seconds since 1970"),
    "bad_aud": Cause("bad_claims", "the claim aud must be a string or a list of strings"),
    "bad_iss": Cause("bad_claims", "the claim iss must be a string"),
    "bad_channels": Cause("bad_claims", _names("channels", "channel names")),
    "bad_subscribe": Cause("bad_claims", _names("subscribe", "channel names or prefixes that end with *")),
    "bad_publish": Cause("bad_claims", _names("publish", "channel names or prefixes that end with *")),
    "bad_channel": Cause("bad_claims", "the claim channel must be one channel name"),
    "channel_token": Cause(
        "bad_claims", "a token with the claim channel opens one channel and no connection"
    ),
    "no_channel": Cause("bad_claims", "the claim channel is missing: this token opens no channel"),
    "wrong_channel": Cause("wrong_channel", "the claim channel names another channel"),
    "wrong_user": Cause("wrong_user", "the claim sub names another user than the connection's"),
    "wrong_audience": Cause("wrong_audience", "the claim aud does not contain the configured audience"),
    "wrong_issuer": Cause("wrong_issuer", "the claim iss is not the configured issuer"),
    "not_yet_valid": Cause("not_yet_valid", "the token is not valid yet: see its claims nbf and iat"),
    "expired": Cause("expired", "the token has expired: see its claim exp"),
    "revoked": Cause("revoked", "the token was issued before its user's tokens were revoked"),
}
"""Every cause by its name. Each fault has a cause of the same name."""

_REASONS: Final = {
    "expired": Reason.TOKEN_EXPIRED,
    "revoked": Reason.TOKEN_EXPIRED,
    "awaited_key": Reason.KEY_AWAITED,
    "not_yet_valid": Reason.TOKEN_NOT_YET_VALID,
}


class TokenError(PeerError):
    """A token that is refused. Its message to the peer does not give the cause, except for expiry.

    Attributes:
        cause: A name in `CAUSES`, for logs and, in development mode, for clients.
        fault: One of `FAULTS`, for metrics and tests.
        retry_s: The seconds until the token is valid; only with the fault `not_yet_valid`.
    """

    def __init__(self, cause: str, *, detail: str = "", retry_s: float = 0.0) -> None:
        """Create an error for one of the causes.

        Args:
            cause: A name in `CAUSES`; every fault is also the name of a cause.
            detail: A sentence for logs that replaces the text of the cause, such as the same with numbers.
                From the token it may contain only numbers and names of a fixed list.
            retry_s: The seconds until the token is valid; 0 with every fault but `not_yet_valid`.
        """
        self.cause = cause
        self.fault = CAUSES[cause].fault
        self.retry_s = retry_s
        self._detail = detail
        reason = _REASONS.get(self.fault, Reason.INVALID_TOKEN)
        super().__init__(reason, "the token has expired" if self.is_expired else "the token is not valid")

    @property
    def text(self) -> str:
        """The sentence of the cause, without numbers."""
        return CAUSES[self.cause].text

    @property
    def why(self) -> str:
        """The sentence for an operator: the detail with numbers, or the text of the cause."""
        return self._detail or self.text

    @property
    def is_expired(self) -> bool:
        """Whether a new token with the same claims but new times would be valid: it is expired or revoked."""
        return self.fault in ("expired", "revoked")

    @property
    def is_awaited(self) -> bool:
        """Whether the token's key has not been fetched yet, so that the same token may be valid soon."""
        return self.fault == "awaited_key"

    @property
    def is_early(self) -> bool:
        """Whether the token is not valid yet, so that the same token may be valid after `retry_s`."""
        return self.fault == "not_yet_valid"
