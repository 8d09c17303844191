"""Start and supervise the processes of one node: keeper, shards, admin process and private bus."""
