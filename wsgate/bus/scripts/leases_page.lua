-- Return one page of the members of a set whose leases have not expired.
--
-- KEYS[1]  the leases: a sorted set of members by the time when the lease expires
-- ARGV     the position of the first member, the most members to return, the longest member in bytes
--
-- Returns the members, separated by line feeds; '' behind the last member. A longer member, or one with a
-- line feed, is not valid and becomes an empty line.
local time = redis.call('time')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local first = tonumber(ARGV[1])
local found = redis.pcall('zrangebyscore', KEYS[1], '(' .. now, '+inf', 'LIMIT', first, ARGV[2])
if found.err then
    if string.find(found.err, 'WRONGTYPE', 1, true) then
        return ''
    end
    return found
end
for index, member in ipairs(found) do
    if #member > tonumber(ARGV[3]) or string.find(member, '\n', 1, true) then
        found[index] = ''
    end
end
return table.concat(found, '\n')
