"""Admission: who may come in, how much of everybody's share they take, and who must go.

Pure: clocks, randomness and answers of the bus are passed in. What the gate judges by itself is in
wsgate/reactor/gate.pyx; here is what it is told, and what needs more than counters.
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
