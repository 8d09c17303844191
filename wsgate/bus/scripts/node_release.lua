-- Give up the lease of a node's name, if the one who asks still holds it.
--
-- KEYS[1]  the lease
-- ARGV     who asks
if redis.call('GET', KEYS[1]) == ARGV[1] then
    redis.call('DEL', KEYS[1])
end
return ''
