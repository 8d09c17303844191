"""Authenticate clients: verify tokens with keys, derive permissions, and check the origins of web pages.

Pure: the caller passes keys, time and limits in. This package uses no sockets, no settings file and no log.
The texts for peers are in `wsgate.reasons`.
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
