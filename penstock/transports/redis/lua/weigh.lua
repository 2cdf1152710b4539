#!lua flags=allow-oom
-- weigh: a request has ended: its answer counts as what it is, and the request no longer than it is kept from now on.
-- Neither is ever raised. With 0 as the time nothing is left of it, not even in the list: it was not admitted.
-- KEYS  1 {inference:caller:<caller>}:requests   2 {inference:caller:<caller>}:stored
--       3 {inference:caller:<caller>}:bytes
-- ARGV  1 request id   2 bytes of its answer   3 how long it is kept from now on, ms
--       4 bytes of the request (may be missing: as they were booked)
-- Returns 1; 0 if it is not booked.
local booked = redis.call('HMGET', KEYS[3], 'sum', ARGV[1])
if not booked[2] then return 0 end
local sum = tonumber(booked[1] or 0) or 0
local request, answer = string.match(booked[2], '^(%d+) (%d+)$')
request, answer = tonumber(request or 0), tonumber(answer or 0)
local function write(request, answer, freed)
  local entry = string.format('%.0f %.0f', request, answer)
  redis.call('HSET', KEYS[3], 'sum', string.format('%.0f', math.max(0, sum - freed)), ARGV[1], entry)
end
if ARGV[3] == '0' then
  write(0, 0, request + answer) -- so that what is cut off here frees it once
  redis.call('HDEL', KEYS[3], ARGV[1])
  redis.call('ZREM', KEYS[2], ARGV[1])
  redis.call('LREM', KEYS[1], 1, ARGV[1])
  return 1
end
local own, has = math.min(request, ARGV[4] or request), math.min(answer, ARGV[2])
if own + has < request + answer then write(own, has, request + answer - own - has) end
local t = redis.call('TIME')
redis.call('ZADD', KEYS[2], 'XX', 'LT', string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000) + ARGV[3]), ARGV[1])
return 1
