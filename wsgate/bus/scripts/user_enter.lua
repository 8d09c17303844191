-- One more connection of a user, and who is there when that is too many.
--
-- KEYS[1]  the user's connections: a sorted set, by when they came
-- ARGV     connection, how many there may be, seconds until an untouched set is forgotten
--
-- Returns "" when it fits, else how many there are now and the oldest of them, the new one among those
-- that count; thirty at most, because an answer is a line. Nobody is removed here: whether the server of one
-- still lives is not known here.
-- By this server's clock, in microseconds: those of the nodes differ, and the oldest would be a newcomer.
local time = redis.call('TIME')
redis.call('ZADD', KEYS[1], 'NX', string.format('%.0f', time[1] * 1000000 + time[2]), ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[3])
local count = redis.call('ZCARD', KEYS[1])
if count <= tonumber(ARGV[2]) then
    return ''
end
return count .. ' ' .. table.concat(redis.call('ZRANGE', KEYS[1], 0, 29), ' ')
