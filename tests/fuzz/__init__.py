"""Random input for every reader of foreign bytes; see run.py."""
