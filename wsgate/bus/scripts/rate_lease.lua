-- Grant a batch of a user's allowance, which all shards share; the bucket is one second deep (GCRA).
--
-- KEYS[1]  when the user's bucket is full again and when that was written, both in microseconds of this
--          server's clock, with a space between them; an older version wrote only the first
-- ARGV     allowance per second, how much is wanted, how much was used already on credit
--
-- Returns how much is granted and, when that is 0, in how many milliseconds a grant will be possible. The use
-- on credit is always charged, so that a shard waits for what it used in advance. The stored value is not
-- trusted: a value out of range counts as none, and no value makes a shard wait longer than the depth and
-- MOST_DEBT.
local MOST_DEBT = 10000000 -- the most that all shards together may use on credit, in microseconds

-- A number in the range of a clock, else nil. (NaN is unequal to itself.)
local function time_of(text)
    local number = tonumber(text)
    if number and number == number and number >= 0 and number <= 9007199254740991 then
        return number
    end
    return nil
end

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local cost = 1000000 / ARGV[1]
local depth = math.max(1000000, cost)
local full = now
local stored = redis.pcall('GET', KEYS[1]) -- a table when the key is of another type: SET replaces it
if type(stored) == 'string' then
    local first, second = string.match(stored, '^(%S+) ?(%S*)$')
    local said, written = time_of(first), time_of(second)
    if said and written then
        -- The clock was set back since the value was written: keep the waiting time that was left then.
        full = written > now and said - (written - now) or said
        full = math.min(full, now + depth + MOST_DEBT)
    elseif said then
        full = math.min(said, now + depth)
    end
end
full = math.max(now, full) + ARGV[3] * cost
local room = math.floor((now + depth - full) / cost + 0.000001)
local granted = math.max(0, math.min(tonumber(ARGV[2]), room))
full = full + granted * cost
if full > now then
    local value = string.format('%.0f %.0f', full, now)
    -- A server that has reached its `maxmemory` refuses a script at its first write or not at all, and DEL
    -- needs no memory. Otherwise a client that fills the memory would switch the limit off.
    redis.call('DEL', KEYS[1])
    redis.call('SET', KEYS[1], value, 'PX', math.ceil((full - now) / 1000) + 1)
end
local wait = 0
if granted == 0 then
    wait = math.max(1, math.ceil((full + cost - now - depth) / 1000))
end
return granted .. ' ' .. wait
