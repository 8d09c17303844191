"""Small programs around a gateway: each shows one thing, and runs with one command."""
