-- Makes room in a stream of events when the server has no memory left; answers how many entries are gone.
-- KEYS[1] the stream; ARGV[1] the bytes that it may take.
--
-- What every consumer group has acknowledged goes. What a group has still to read stays, whatever its size. Without
-- any group nobody is known to read: then the oldest half goes, and only of a stream that takes more than it may.
-- A stream that is within its bytes loses nothing it was given to keep, because the memory went elsewhere.

local stream = KEYS[1]
if redis.call('EXISTS', stream) == 0 then
  return 0
end

local function is_before(ms, seq, other_ms, other_seq)
  return ms < other_ms or (ms == other_ms and seq < other_seq)
end

local groups = redis.call('XINFO', 'GROUPS', stream)
local keep_ms, keep_seq
for _, group in ipairs(groups) do
  local row = {}
  for place = 1, #group, 2 do
    row[group[place]] = group[place + 1]
  end
  local ms, seq = string.match(row['last-delivered-id'], '^(%d+)%-(%d+)$')
  ms, seq = tonumber(ms), tonumber(seq) + 1
  local pending = redis.call('XPENDING', stream, row['name'])
  if pending[1] > 0 then
    ms, seq = string.match(pending[2], '^(%d+)%-(%d+)$')
    ms, seq = tonumber(ms), tonumber(seq)
  end
  if not keep_ms or is_before(ms, seq, keep_ms, keep_seq) then
    keep_ms, keep_seq = ms, seq
  end
end
if keep_ms then
  return redis.call('XTRIM', stream, 'MINID', string.format('%.0f-%.0f', keep_ms, keep_seq))
end
if redis.call('MEMORY', 'USAGE', stream) <= tonumber(ARGV[1]) then
  return 0
end
return redis.call('XTRIM', stream, 'MAXLEN', math.floor(redis.call('XLEN', stream) / 2))
