"""Measures a running gateway from outside: the client engine, the floor probe, scenarios and reports.

Built in place by make, never part of the wheel, and sharing nothing with the data plane it judges.
"""
