-- The next part of all revocations, the newest first.
--
-- KEYS[1]  revocations: a sorted set of users by a time, in seconds of Unix time
-- ARGV     last user of the part before and its time (two empty strings: from the beginning),
--          how long a token may live in seconds, bytes that the answer may have, bytes that a user may have
--
-- Returns "<time> <bytes of the user>:<user>" for each, one behind the other; "" when there are no more. Who
-- has a revocation from the beginning to the end of the reading is returned, whatever changes meanwhile.
local start = 0
if ARGV[1] ~= '' then
    local score = redis.call('ZSCORE', KEYS[1], ARGV[1])
    if score and tonumber(score) == tonumber(ARGV[2]) then
        start = redis.call('ZREVRANK', KEYS[1], ARGV[1]) + 1
    else
        -- The user has gone or has a later time: begin again with all who have the time that it had.
        start = redis.call('ZCOUNT', KEYS[1], '(' .. ARGV[2], '+inf')
    end
end
local oldest = redis.call('TIME')[1] - ARGV[3]
local most, longest = tonumber(ARGV[4]), tonumber(ARGV[5])
local parts, size = {}, 0
repeat
    local found = redis.call('ZRANGE', KEYS[1], start, start + 511, 'REV', 'WITHSCORES')
    local removed = 0
    for place = 1, #found, 2 do
        local user, score = found[place], found[place + 1]
        if tonumber(score) < oldest then
            break
        end
        if user == '' or #user > longest then
            redis.call('ZREM', KEYS[1], user) -- no user of a token: somebody else wrote it
            removed = removed + 1
        else
            local part = score .. ' ' .. #user .. ':' .. user
            size = size + #part
            if size > most then
                break
            end
            parts[#parts + 1] = part
        end
    end
until #parts > 0 or removed == 0
return table.concat(parts)
