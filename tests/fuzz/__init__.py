"""Random input for everything that reads what strangers send; see run.py."""
