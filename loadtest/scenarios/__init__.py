"""What the bench does to each server. One file per scenario; `SCENARIOS` lists them in the order they run.

A scenario has a floor (what the C probe says of the same work) and a measure (the same work done by a
server); both return figures by name, in the unit the name carries, for one run. Lost messages are noted on
the contender: a run that lost something fails, whatever its figures say.
"""

from loadtest.scenarios.connecting import HANDSHAKE, REFUSAL
from loadtest.scenarios.crowding import CROWD
from loadtest.scenarios.echoing import ECHO
from loadtest.scenarios.fanout import COALESCED, FANOUT
from loadtest.scenarios.publishing import CLIENT_PUBLISH, PUBLICATION
from loadtest.scenarios.stage import Contender, Results, Scenario, Sizes
from loadtest.scenarios.walking import WALK

__all__ = ["SCENARIOS", "Contender", "Results", "Scenario", "Sizes"]

# `idle` comes before and `heartbeat` after them, and `gateway_resting` last: they need processes of their own
# shape (bench.py).
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
