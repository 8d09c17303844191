-- Renew the liveness key of a shard.
--
-- KEYS[1]  the liveness key
-- ARGV     the seconds until the key expires
--
-- Returns ''. The first write deletes the key, because a server that has reached its `maxmemory` refuses a
-- script only at its first write, and refuses only writes that need memory. Otherwise the key of a running
-- shard would expire while the memory is full, and other nodes would stop counting its connections.
redis.call('del', KEYS[1])
redis.call('set', KEYS[1], '1', 'EX', ARGV[1])
return ''
