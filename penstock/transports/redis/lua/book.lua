#!lua
-- book: a request of this caller is about to be stored: list it, and count its bytes against the caller's share.
-- Expired requests are removed before any refusal and otherwise four times a second, so that none counts for longer than
-- it was booked, even if its gateway has died. A request that is already booked is booked again, never for a shorter time,
-- and never refused.
-- KEYS  1 {inference:caller:<caller>}:requests   2 {inference:caller:<caller>}:stored
--       3 {inference:caller:<caller>}:bytes
-- ARGV  1 request id   2 bytes of the request   3 most bytes of its answer   4 how long it is kept at most, ms
--       5 most requests stored, 0 for no limit   6 most bytes, 0 for no limit   7 most ids in the list
-- Returns {1 or 0 if refused, requests stored, their bytes, ms until the first of them expires}
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local function int(number) return string.format('%.0f', number) end
local function size(entry)
  if not entry then return 0 end
  local request, answer = string.match(entry, '^(%d+) (%d+)$')
  local bytes = (request or 0) + (answer or 0)
  return bytes < 2 ^ 53 and bytes or 0 -- else this script did not write it
end

local SWEEP_MS = 250
local known = redis.call('HMGET', KEYS[3], 'sum', 'due', ARGV[1]) -- due: nothing expires before it
local sum, due, booked = tonumber(known[1] or 0) or 0, tonumber(known[2] or 0) or 0, known[3]
if not (sum >= 0 and sum < 2 ^ 53) then -- this script did not write it: it is added up anew
  sum = 0
  for i, value in ipairs(redis.call('HGETALL', KEYS[3])) do
    if i % 2 == 0 then sum = sum + size(value) end -- of 'sum' itself it is 0
  end
end
local num = redis.call('ZCARD', KEYS[2])
local function sweep()
  for _ = 1, 10 do -- one round is nearly always enough
    local gone = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, 1000)
    if not gone[1] then break end
    local changed = {}
    for i, entry in ipairs(redis.call('HMGET', KEYS[3], unpack(gone))) do
      if entry then
        sum = sum - size(entry)
        changed[#changed + 1], changed[#changed + 2] = gone[i], '0 0' -- so that what is cut off here frees it once
      end
    end
    if changed[1] then redis.call('HSET', KEYS[3], 'sum', int(sum), unpack(changed)) end
    redis.call('ZREM', KEYS[2], unpack(gone))
    redis.call('HDEL', KEYS[3], unpack(gone))
    num = num - #gone
    if #gone < 1000 then break end
  end
  due = tonumber(redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2] or 0)
  if num == 0 then
    redis.call('DEL', KEYS[3]) -- after any error the count begins at 0
    sum = 0
  end
  booked = redis.call('HGET', KEYS[3], ARGV[1])
end
-- A time that far away was not written by this script.
if num == 0 or not (due + SWEEP_MS > now and due < now + 86400000) then sweep() end

local wanted, life = ARGV[2] + ARGV[3], tonumber(ARGV[4])
local function is_over()
  return not booked and ((tonumber(ARGV[5]) > 0 and num >= tonumber(ARGV[5]))
    or (tonumber(ARGV[6]) > 0 and sum + wanted > tonumber(ARGV[6])))
end
if is_over() then sweep() end
if is_over() then
  local first = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2] or now
  return {0, num, sum, math.max(0, first - now)}
end

-- A little longer than needed now, so that most requests need not set it. Each key has its expiry before the next one
-- is written: a script that is cut off here leaves no key without an expiry.
local is_longer = redis.call('PTTL', KEYS[2]) < life
local function keep(key, is_new)
  if is_new or is_longer then redis.call('PEXPIRE', key, int(life + 600000)) end
end
local is_added = redis.call('ZADD', KEYS[2], 'GT', int(now + life), ARGV[1]) == 1
keep(KEYS[2], num == 0)
sum = sum + wanted - size(booked)
if num == 0 or due > now + life then due = now + life end
local added = redis.call('HSET', KEYS[3], 'sum', int(sum), 'due', int(due), ARGV[1], ARGV[2] .. ' ' .. ARGV[3])
keep(KEYS[3], added == 3)
if not booked then
  local length = redis.call('LPUSH', KEYS[1], ARGV[1])
  keep(KEYS[1], length == 1)
  if length > ARGV[7] + 100 then redis.call('LTRIM', KEYS[1], 0, ARGV[7] - 1) end
end
return {1, is_added and num + 1 or num, sum, 0}
