-- Delete the lease of a node's name if the caller still holds it.
--
-- KEYS[1]  the lease
-- ARGV     the holder that deletes the lease
--
-- Returns ''.
if redis.call('GET', KEYS[1]) == ARGV[1] then
    redis.call('DEL', KEYS[1])
end
return ''
