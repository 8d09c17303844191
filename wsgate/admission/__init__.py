"""Admission: limits on connections, messages and memory, and how shards and users share them.

All modules are pure: clocks and replies of the bus are passed in. Limits that need only counters are applied
in wsgate/reactor/gate.pyx. This package prepares inputs of the gate, and applies the limits that need more.
"""

from wsgate.admission.bus_memory import BusLedger, BusReading, BusShares, names_bytes
from wsgate.admission.byte_budget import NO_BYTE_RATES, ByteBudget, ByteRates
from wsgate.admission.ledger import RESOURCES, Headroom, Ledger, Reading, State
from wsgate.admission.networks import forwarded_for, networks_of
from wsgate.admission.placement import ShardOffer, rate_share, weights
from wsgate.admission.publishing import PublishRates
from wsgate.admission.rates import UserRates
from wsgate.admission.users import LimitDecision, UserConnections, is_member, owner_of

__all__ = [
    "NO_BYTE_RATES",
    "RESOURCES",
    "BusLedger",
    "BusReading",
    "BusShares",
    "ByteBudget",
    "ByteRates",
    "Headroom",
    "Ledger",
    "LimitDecision",
    "PublishRates",
    "Reading",
    "ShardOffer",
    "State",
    "UserConnections",
    "UserRates",
    "forwarded_for",
    "is_member",
    "names_bytes",
    "networks_of",
    "owner_of",
    "rate_share",
    "weights",
]
