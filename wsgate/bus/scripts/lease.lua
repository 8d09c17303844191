-- One member of a set of leases: renewed, or given up. Members whose lease has run out are removed.
--
-- KEYS[1]  the leases: a sorted set, by when each runs out
-- ARGV     the member, and for how many milliseconds its lease runs; 0: it is given up
--
-- Returns ''. By this server's clock, in milliseconds: those of the nodes differ. A key of another type is
-- replaced, because nobody else would do it.
local key = KEYS[1]
local time = redis.call('time')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local expired = redis.pcall('zremrangebyscore', key, '-inf', now)
if type(expired) == 'table' and expired.err then
    if not string.find(expired.err, 'WRONGTYPE', 1, true) then
        return expired
    end
    redis.call('del', key)
end
local ttl = tonumber(ARGV[2])
if ttl > 0 then
    redis.call('zadd', key, now + ttl, ARGV[1])
    -- The set lives as long as its longest lease, and a little for clocks that are set back.
    redis.call('pexpire', key, math.max(ttl + 1000, redis.call('pttl', key)))
else
    redis.call('zrem', key, ARGV[1])
end
return ''
