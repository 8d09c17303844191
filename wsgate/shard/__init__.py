"""Run one shard: a process with an event loop, a reactor, the parts that serve clients, and the bus."""
