"""Run all checks on a machine, and combine their findings into a diagnosis."""

from dataclasses import replace
from typing import Final

from wsgate.doctor.capacity import capacities
from wsgate.doctor.kernel import Kernel
from wsgate.doctor.model import Case, Demand, Diagnosis, Resources, Severity
from wsgate.doctor.network_checks import NETWORK_CHECKS
from wsgate.doctor.node_checks import NODE_CHECKS

__all__ = ["examine"]

_ORDER: Final = (Severity.BLOCKING, Severity.WARNING, Severity.ADVICE, Severity.OK)


def examine(kernel: Kernel, resources: Resources, demand: Demand) -> Diagnosis:
    """Run every check of a machine for a demand, and return the diagnosis.

    Args:
        kernel: The numbers of the kernel.
        resources: The resources of the node's processes.
        demand: The demand. With `connections` 0 the number is checked that the tightest resource allows.

    Returns:
        The diagnosis, with the worst findings first. Good findings are included, to show what was checked.
    """
    found = capacities(kernel, resources, demand)
    want = replace(demand, connections=demand.connections or found[0].connections)
    case = Case(kernel, resources, want, found)
    findings = [finding for check in (*NODE_CHECKS, *NETWORK_CHECKS) for finding in check(case)]
    findings.sort(key=lambda finding: _ORDER.index(finding.severity))
    return Diagnosis(want.connections, found, tuple(findings))
