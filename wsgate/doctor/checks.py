"""All checks together: what binds, and the findings, the worst first."""

from dataclasses import replace
from typing import Final

from wsgate.doctor.capacity import capacities
from wsgate.doctor.case import Case
from wsgate.doctor.demand import Demand, Resources
from wsgate.doctor.findings import Diagnosis, Severity
from wsgate.doctor.kernel import Kernel
from wsgate.doctor.network_checks import NETWORK_CHECKS
from wsgate.doctor.node_checks import NODE_CHECKS

__all__ = ["examine"]

_ORDER: Final = (Severity.BLOCKING, Severity.WARNING, Severity.ADVICE, Severity.OK)


def examine(kernel: Kernel, resources: Resources, demand: Demand) -> Diagnosis:
    """Judge the machine.

    Args:
        kernel: What it says of itself.
        resources: What the node's processes may use.
        demand: With `connections` 0 as many are judged as the tightest resource bears.

    Returns:
        The findings, the worst first; good ones too, so that one sees what was looked at.
    """
    found = capacities(kernel, resources, demand)
    want = replace(demand, connections=demand.connections or found[0].connections)
    case = Case(kernel, resources, want, found)
    findings = [finding for check in (*NODE_CHECKS, *NETWORK_CHECKS) for finding in check(case)]
    findings.sort(key=lambda finding: _ORDER.index(finding.severity))
    return Diagnosis(want.connections, found, tuple(findings))
