"""Format a diagnosis as text for people, or as JSON for programs."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Final

from wsgate.doctor.model import Diagnosis, Finding, Severity

__all__ = ["as_json", "as_text"]

_MARKS: Final = {
    Severity.BLOCKING: "BLOCKING",
    Severity.WARNING: "warning",
    Severity.ADVICE: "advice",
    Severity.OK: "ok",
}
_INDENT: Final = " " * 10


def as_text(diagnosis: Diagnosis) -> str:
    """Format the limits, a paragraph for each finding that is not good, and a line for each good one."""
    binding = diagnosis.binding
    bears = ", ".join(f"{each.resource} {each.connections:,}" for each in diagnosis.capacities)
    lines = [f"checked for {diagnosis.connections:,} connections", f"allows: {bears}"]
    lines += [f"limit: {binding.resource}, at {binding.connections:,} connections", ""]
    for finding in diagnosis.findings:
        lines += _paragraph(finding)
    return "\n".join(lines) + "\n"


def _paragraph(finding: Finding) -> Iterator[str]:
    """Format one finding; a finding that is not good also has its reason and its fix."""
    yield f"{_MARKS[finding.severity]:<9} {finding.name}: {finding.now}"
    if finding.severity is not Severity.OK:
        yield f"{_INDENT}{finding.why}"
        yield f"{_INDENT}needed: {finding.needed}"
        yield f"{_INDENT}fix: {finding.fix}"


def as_json(diagnosis: Diagnosis) -> str:
    """Format one JSON object: `connections`, `binding`, `capacities`, `is_blocked` and `findings`."""
    told = {
        "connections": diagnosis.connections,
        "binding": asdict(diagnosis.binding),
        "capacities": [asdict(each) for each in diagnosis.capacities],
        "is_blocked": diagnosis.is_blocked,
        "findings": [asdict(finding) for finding in diagnosis.findings],
    }
    return json.dumps(told, indent=2) + "\n"
