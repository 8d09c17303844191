"""Code that the measuring programs share: starting servers, reading processes, arithmetic, and reports."""
