-- Add a connection of a user. When there are too many, return the oldest connections.
--
-- KEYS[1]  the user's connections: a sorted set by the time when each was added
-- ARGV     the connection, the most connections, seconds until an unused set expires,
--          how many of the oldest connections to skip, how many to return at most, >= 1
--
-- Returns "" when the connection fits the limit, else how many there are now and the oldest of them behind
-- those skipped, the new one included. The script removes no connection, because it does not know whether the
-- shard of a connection is running. It removes members that cannot be connections, and a key of another type.
-- Times are in microseconds of this server's clock: the clocks of nodes differ, and a new connection could
-- seem the oldest.
--
-- The first write needs no memory: a server that has reached its `maxmemory` refuses a script at its first
-- write or not at all. Otherwise a client that fills the memory would switch the limit off.
local key = KEYS[1]
local time = redis.call('time')
local now = time[1] * 1000000 + time[2]
local newest = redis.pcall('zrange', key, -1, -1, 'WITHSCORES')
if newest.err then
    if not string.find(newest.err, 'WRONGTYPE', 1, true) then
        return newest
    end
    redis.call('del', key)
    newest = {}
end
-- If the clock was set back, the new connection must still be newer than all others.
local last = tonumber(newest[2] or '')
if last and last >= now and last < 9007199254740991 then
    now = last + 1
end
redis.call('expire', key, ARGV[3])
redis.call('zadd', key, 'NX', string.format('%.0f', now), ARGV[1])
redis.call('expire', key, ARGV[3])
local count = redis.call('zcard', key)
local limit = tonumber(ARGV[2])
if count <= limit then
    return ''
end
local pattern = '^' .. string.rep('[0-9a-f]', 16) .. '@[!-?A-~]+$'
local parts = {}
repeat
    local removed = 0
    for _, member in ipairs(redis.call('zrange', key, ARGV[4], ARGV[4] + ARGV[5] - 1)) do
        if #member > 64 or not string.find(member, pattern) then
            redis.call('zrem', key, member)
            removed = removed + 1
        else
            parts[#parts + 1] = member
        end
    end
    count = count - removed
until #parts > 0 or removed == 0
if count <= limit then
    return ''
end
return count .. ' ' .. table.concat(parts, ' ')
