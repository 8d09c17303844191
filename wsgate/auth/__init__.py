"""Who may come in, and what they may do: tokens, keys, permissions, origins.

Pure: keys, clock and limits are passed in. Knows no sockets, no settings file and no log; what a peer
is told comes from `wsgate.reasons`.
"""

from wsgate.auth.cache import TokenCache
from wsgate.auth.faults import FAULTS, TokenError
from wsgate.auth.jwks import KEYS_LIMIT, parse_jwks
from wsgate.auth.keys import ALGORITHMS, KeyRing, KeySource, VerificationKey, make_key
from wsgate.auth.origins import OriginPolicy
from wsgate.auth.permissions import NO_PERMISSIONS, Permissions, PermissionTable
from wsgate.auth.tokens import ChannelGrant, Identity, Member, TokenPolicy, Verifier, kid_of

__all__ = [
    "ALGORITHMS",
    "FAULTS",
    "KEYS_LIMIT",
    "NO_PERMISSIONS",
    "ChannelGrant",
    "Identity",
    "KeyRing",
    "KeySource",
    "Member",
    "OriginPolicy",
    "PermissionTable",
    "Permissions",
    "TokenCache",
    "TokenError",
    "TokenPolicy",
    "VerificationKey",
    "Verifier",
    "kid_of",
    "make_key",
    "parse_jwks",
]
