-- Remember that a user's tokens are revoked if they were issued before a time.
--
-- KEYS[1]  revocations: a sorted set of users by that time, in seconds of Unix time
-- ARGV     user, time, how long a token may live in seconds, how many users there may be
--
-- Returns how many users were forgotten because there are too many. The later time of a user counts, so
-- that the script may run any number of times, from any number of nodes, in any order.
redis.call('ZADD', KEYS[1], 'GT', ARGV[2], ARGV[1])
-- Every token that an older revocation covers has expired by now.
local now = redis.call('TIME')[1]
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. (now - ARGV[3]))
-- Beyond the limit the users with the oldest time go first: their tokens expire first.
local forgotten = redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -1 - ARGV[4])
local newest = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')
if newest[2] then
    -- A time in the far future must not overflow what EXPIRE takes: ten years at most.
    local left = math.ceil(tonumber(newest[2]) - now + ARGV[3])
    redis.call('EXPIRE', KEYS[1], string.format('%.0f', math.max(1, math.min(left, 315360000))))
end
return forgotten
