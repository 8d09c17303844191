-- Return the next page of all revocations, the newest first.
--
-- KEYS[1]  revocations: a sorted set of users by a time, in seconds of Unix time
-- ARGV     the last user of the page before, its time, and its position among the users with that time (an
--          empty user: begin with the newest), how long a revocation is kept in seconds, the most bytes of
-- the          entries, the most bytes of a user
--
-- Returns the position of the last entry and "|", then "<time> <bytes of the user>:<user>" for each entry
-- without a separator; "" when there are no more entries. A user whose revocation exists during the whole
-- reading is returned, whatever changes meanwhile. A user may be returned twice.
local key, last, top = KEYS[1], ARGV[1], ARGV[2]
local start = 0
if last == '' then
    top = '+inf'
elseif redis.call('ZRANGE', key, top, top, 'BYSCORE', 'REV', 'LIMIT', ARGV[3], 1)[1] == last then
    start = ARGV[3] + 1
end -- else users with that time were added or removed: begin again with the first user of that time
local oldest = redis.call('TIME')[1] - ARGV[4]
local most, longest = tonumber(ARGV[5]), tonumber(ARGV[6])
local parts, size = {}, 0
local tie, place = top, start
repeat
    local found = redis.call('ZRANGE', key, top, oldest, 'BYSCORE', 'REV', 'LIMIT', start, 512, 'WITHSCORES')
    local removed = 0
    for number = 1, #found, 2 do
        local user, score = found[number], found[number + 1]
        if user == '' or #user > longest then
            redis.call('ZREM', key, user) -- no token has such a user, so another program wrote the member
            removed = removed + 1
        else
            local part = score .. ' ' .. #user .. ':' .. user
            size = size + #part
            if size > most then
                break
            end
            if score ~= tie then
                tie, place = score, 0
            end
            parts[#parts + 1] = part
            place = place + 1
        end
    end
until #parts > 0 or removed == 0
if #parts == 0 then
    return ''
end
return string.format('%d|', place - 1) .. table.concat(parts)
