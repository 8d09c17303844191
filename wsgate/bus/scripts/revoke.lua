-- Store a revocation: the tokens of a user that were issued before a time are not valid.
--
-- KEYS[1]  revocations: a sorted set of users by that time, in seconds of Unix time
-- ARGV     user, time, how long a revocation is kept in seconds, the most users in the set
--
-- Returns how many users were removed because there were too many. The later time of a user counts, so that
-- the script may run any number of times, from any number of nodes, in any order. It uses only commands that
-- the limits of users use as well, so it needs no further rights.
local MOST = 256 -- removed for one reason in one run
local key = KEYS[1]
-- A server that has reached its `maxmemory` refuses a script at its first write or not at all, and EXPIRE
-- needs no memory: a revocation must not fail because the memory is full. The time to live is set again
-- below.
redis.call('EXPIRE', key, 315360000)
redis.call('ZADD', key, 'GT', ARGV[2], ARGV[1])
-- Every token that an older revocation covers has expired by now.
local now = redis.call('TIME')[1]
local old = redis.call('ZRANGE', key, '-inf', '(' .. (now - ARGV[3]), 'BYSCORE', 'LIMIT', 0, MOST)
if #old > 0 then
    redis.call('ZREM', key, unpack(old))
end
-- Beyond the limit remove the users with the oldest times: their tokens expire first.
local forgotten = 0
local excess = math.min(redis.call('ZCARD', key) - ARGV[4], MOST)
if excess > 0 then
    forgotten = redis.call('ZREM', key, unpack(redis.call('ZRANGE', key, 0, excess - 1)))
end
local newest = redis.call('ZRANGE', key, -1, -1, 'WITHSCORES')
if newest[2] then
    -- A time in the far future must not overflow what EXPIRE takes: ten years at most.
    local left = math.ceil(tonumber(newest[2]) - now + ARGV[3])
    redis.call('EXPIRE', key, string.format('%.0f', math.max(1, math.min(left, 315360000))))
end
return forgotten
