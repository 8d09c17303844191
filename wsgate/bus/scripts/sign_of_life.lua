-- Say that a shard lives.
--
-- KEYS[1]  the key that says so
-- ARGV     for how many seconds
--
-- Returns ''. The first write removes the key, because a server that has reached its `maxmemory` refuses a script
-- only at its first write, and refuses only writes that need memory: without it the shard would count as dead.
redis.call('del', KEYS[1])
redis.call('set', KEYS[1], '1', 'EX', ARGV[1])
return ''
