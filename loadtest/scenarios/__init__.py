"""The scenarios of the bench, one file for each kind; `SCENARIOS` lists them in the order in which they run.

A scenario has a floor (the numbers of the C probe for the same work) and a measure (the same work done by a
server). Both return the numbers of one run by name, in the unit of the name. A lost message is recorded on
the contender: a run that lost something fails, whatever its numbers are.
"""

from loadtest.scenarios.connecting import HANDSHAKE, REFUSAL
from loadtest.scenarios.crowding import CROWD
from loadtest.scenarios.echoing import ECHO
from loadtest.scenarios.fanout import COALESCED, FANOUT
from loadtest.scenarios.publishing import CLIENT_PUBLISH, PUBLICATION
from loadtest.scenarios.stage import Contender, Results, Scenario, Sizes
from loadtest.scenarios.walking import WALK

__all__ = ["SCENARIOS", "Contender", "Results", "Scenario", "Sizes"]

# `idle` runs before these, `heartbeat` after them, and `gateway_resting` last: they need their own servers
# (bench.py).
SCENARIOS: tuple[Scenario, ...] = (
    HANDSHAKE,
    REFUSAL,
    ECHO,
    FANOUT,
    COALESCED,
    PUBLICATION,
    CLIENT_PUBLISH,
    WALK,
    CROWD,
)
