#!lua flags=allow-oom
-- reap: move the list of a dead worker back to the head of the queue, the oldest first. Repeated until 10 s after
-- the lapse, because a blocking pop may still deliver; then the worker is removed. With "leave" the worker itself
-- gives up its lease, and its list goes the same way. A lease that was given up ends in .5, as no other does: that worker
-- is dead in an amnesty, too.
-- KEYS  1 Q   2 {Q}:worker:<wid>   3 {Q}:workers   4 {Q}:about   5 {Q}:clock
-- ARGV  1 worker id   2 "reap" or "leave"
-- Returns how many ids were moved; 0 if the worker lives.
local GAP_MS = 1500
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local lease = tonumber(redis.call('ZSCORE', KEYS[3], ARGV[1]) or 0)
if ARGV[2] == 'leave' then
  redis.call('ZADD', KEYS[3], 'XX', string.format('%.1f', now - 0.5), ARGV[1])
  redis.call('HDEL', KEYS[4], ARGV[1])
else
  local clock = redis.call('HMGET', KEYS[5], 'pulse', 'amnesty')
  local is_amnesty = now < (tonumber(clock[2] or 0) or 0) or not (now - (tonumber(clock[1] or 0) or 0) <= GAP_MS)
  if lease > now or (lease > 0 and is_amnesty) then return 0 end
end

local moved = 0 -- one at a time, each in one command: an interrupted call has moved some, and none twice
while redis.call('LMOVE', KEYS[2], KEYS[1], 'RIGHT', 'LEFT') do moved = moved + 1 end
if moved > 0 then
  redis.pcall('HINCRBY', KEYS[5], 'pushed', moved)
  redis.pcall('PEXPIRE', KEYS[1], 604800000)
  redis.pcall('PEXPIRE', KEYS[5], 604800000)
end
if ARGV[2] == 'reap' and now - lease > 10000 then
  redis.call('ZREM', KEYS[3], ARGV[1])
  redis.call('HDEL', KEYS[4], ARGV[1])
end
return moved
