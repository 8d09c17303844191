"""Attacks on the gateway's memory, each against a whole gateway in a memory control group."""
