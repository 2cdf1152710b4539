#!lua flags=allow-oom
-- repair: remove those of these keys that are of another type than the protocol's, and the fields of a clock that are
-- not numbers. Called after an error that they may explain. Such a key has replaced what was there, so nothing is lost
-- by this; what these keys hold is written again by the next tick or renewal. Where leases were, that begins an amnesty.
-- KEYS  1… keys of one pool, or of one caller
-- ARGV  1… the type of each: list, zset, hash, clock (a hash of numbers) or string
-- Returns the name of each key, or "key field", that was removed
local function found_in(key, kind)
  if kind == 'list' then return redis.pcall('LLEN', key) end
  if kind == 'zset' then return redis.pcall('ZSCORE', key, 'x') end
  if kind == 'string' then return redis.pcall('GET', key) end
  return redis.pcall('HGET', key, 'x')
end
local removed, has_lost_leases = {}, false
for i, key in ipairs(KEYS) do
  local found = found_in(key, ARGV[i])
  if type(found) == 'table' and found.err and string.find(found.err, 'WRONGTYPE', 1, true) then
    redis.call('UNLINK', key)
    removed[#removed + 1] = key
    has_lost_leases = has_lost_leases or ARGV[i] == 'zset'
  elseif ARGV[i] == 'clock' then
    for _, field in ipairs({'pulse', 'amnesty', 'pushed', 'taken', 'protocol', 'away'}) do
      local value = redis.call('HGET', key, field)
      if value and (#value > 15 or not string.find(value, '^%-?%d+$')) then
        redis.call('HDEL', key, field)
        removed[#removed + 1] = key .. ' ' .. field
      end
    end
  end
end
if has_lost_leases then
  for i, key in ipairs(KEYS) do
    if ARGV[i] == 'clock' then redis.pcall('HDEL', key, 'pulse') end
  end
end
return removed
