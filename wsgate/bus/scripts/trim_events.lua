-- Trim a stream of events when the server has no memory left.
--
-- KEYS[1]  the stream
-- ARGV     the bytes that the stream may take
--
-- Returns how many entries were removed. Entries that every consumer group has acknowledged are removed.
-- Entries that a group still has to read or acknowledge are kept, whatever their size. A stream without a
-- group loses its oldest half, but only if it takes more than its bytes: otherwise other data has filled the
-- memory.

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
