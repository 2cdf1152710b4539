#!lua flags=allow-oom
-- weigh: requests of one caller have ended: each answer counts at its size, and each request no longer than it is kept
-- from now on. Neither is ever raised. With 0 as the time nothing is left of it, not even in the list: it was not admitted.
-- KEYS  1 {inference:caller:<caller>}:requests   2 {inference:caller:<caller>}:stored
--       3 {inference:caller:<caller>}:bytes
-- ARGV  1 request id   2 bytes of its answer   3 how long it is kept from now on, ms
--       4 bytes of the request, "" for as they were booked   5… the same four of more requests, 1,000 of them at most
-- Returns how many of them are booked.
local fields = {'sum', 'due'}
for i = 1, #ARGV, 4 do fields[#fields + 1] = ARGV[i] end
local known = redis.call('HMGET', KEYS[3], unpack(fields))
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local sum, due = tonumber(known[1] or 0) or 0, tonumber(known[2] or 0) or 0
local changed, scores, gone, num, last = {}, {}, {}, 0, {}
for i = 1, #ARGV, 4 do
  local id, answer_has, keep = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2])
  local booked = last[id] or known[(i - 1) / 4 + 3]
  if booked then
    num = num + 1
    local request, answer = string.match(booked, '^(%d+) (%d+)$')
    request, answer = tonumber(request or 0), tonumber(answer or 0)
    local own, has = 0, 0 -- of what goes: so that what is cut off here frees it once
    if keep > 0 then
      own, has = math.min(request, tonumber(ARGV[i + 3]) or request), math.min(answer, answer_has)
      scores[#scores + 1], scores[#scores + 2] = string.format('%.0f', now + keep), id
      due = math.min(due, now + keep)
    else
      gone[#gone + 1] = id
    end
    if own + has < request + answer then
      sum = sum - request - answer + own + has
      last[id] = string.format('%.0f %.0f', own, has)
      changed[#changed + 1], changed[#changed + 2] = id, last[id]
    end
  end
end
if num == 0 then return 0 end
redis.call('HSET', KEYS[3], 'sum', string.format('%.0f', math.max(0, sum)), 'due', string.format('%.0f', due), unpack(changed))
if scores[1] then redis.call('ZADD', KEYS[2], 'XX', 'LT', unpack(scores)) end
if gone[1] then
  redis.call('HDEL', KEYS[3], unpack(gone))
  redis.call('ZREM', KEYS[2], unpack(gone))
  for _, id in ipairs(gone) do redis.call('LREM', KEYS[1], 1, id) end
end
return num
