"""One machine: the keeper, what it listens on, and the private bus."""
