-- The lease of a node's name: taken when it is free, renewed by who holds it, else left alone.
--
-- KEYS[1]  the lease
-- ARGV     who asks, for how many milliseconds, and a former holder that is known to be dead ('': none)
--
-- Returns '' when the one who asks holds it now, else how many milliseconds it still runs, and its holder.
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] and held ~= ARGV[3] then
    return redis.call('PTTL', KEYS[1]) .. ' ' .. held
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ''
