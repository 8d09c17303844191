-- Renew or delete the lease of one member of a set. Members whose lease has expired are removed.
--
-- KEYS[1]  the leases: a sorted set of members by the time when the lease expires
-- ARGV     the member, and how long its lease runs in milliseconds; 0: delete the lease
--
-- Returns ''. Times are in milliseconds of this server's clock, because the clocks of nodes differ. A key of
-- another type is replaced: otherwise the set could not be used until an operator deletes the key.
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
