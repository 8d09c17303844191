-- Claim the lease of a node's name: take a free lease, renew the caller's own lease, leave any other
-- unchanged.
--
-- KEYS[1]  the lease
-- ARGV     the holder that claims the lease, how long the lease runs in milliseconds, and a former holder
--          that has ended ('': none is known)
--
-- Returns '' when the claim succeeded, else the milliseconds that the lease still runs, a space and its
-- holder.
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] and held ~= ARGV[3] then
    return redis.call('PTTL', KEYS[1]) .. ' ' .. held
end
-- A server that has reached its `maxmemory` refuses a script at its first write or not at all, and DEL needs
-- no memory.
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ''
