-- A batch of a user's allowance, one second deep and shared by all who ask here (GCRA).
--
-- KEYS[1]  when the user's bucket is full again, in microseconds of this server's clock
-- ARGV     allowance per second, how much is wanted, how much was used already on credit
--
-- Returns how much is granted, and when nothing is, in how many ms something will be. What was used is
-- charged in any case: whoever ran ahead waits for it.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local cost = 1000000 / ARGV[1]
local depth = math.max(1000000, cost)
local full = math.max(now, tonumber(redis.call('GET', KEYS[1]) or '0')) + ARGV[3] * cost
local room = math.floor((now + depth - full) / cost + 0.000001)
local granted = math.max(0, math.min(tonumber(ARGV[2]), room))
full = full + granted * cost
if full > now then
    redis.call('SET', KEYS[1], string.format('%.0f', full), 'PX', math.ceil((full - now) / 1000) + 1)
end
local wait = 0
if granted == 0 then
    wait = math.max(1, math.ceil((full + cost - now - depth) / 1000))
end
return granted .. ' ' .. wait
