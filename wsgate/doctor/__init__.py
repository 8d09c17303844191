"""Examine a machine: how many connections it can serve, which resource is the limit, and how to change it."""

from wsgate.doctor.examine import examine
from wsgate.doctor.kernel import Kernel, read_kernel
from wsgate.doctor.model import Capacity, Demand, Diagnosis, Finding, Resources, Severity
from wsgate.doctor.report import as_json, as_text
from wsgate.doctor.resources import resources

__all__ = [
    "Capacity",
    "Demand",
    "Diagnosis",
    "Finding",
    "Kernel",
    "Resources",
    "Severity",
    "as_json",
    "as_text",
    "examine",
    "read_kernel",
    "resources",
]
