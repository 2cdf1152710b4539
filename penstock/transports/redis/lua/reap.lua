#!lua flags=allow-oom
-- reap: move the list of a dead worker back to the head of the queue, the oldest first. Repeated until 10 s after
-- the lapse, because a blocking pop may still deliver; then the worker is forgotten. With "leave" the worker itself
-- gives up its lease, and its list goes the same way.
-- KEYS  1 Q   2 {Q}:worker:<wid>   3 {Q}:workers   4 {Q}:about   5 {Q}:clock
-- ARGV  1 worker id   2 "reap" or "leave"
-- Returns how many ids were moved; 0 if the worker lives.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local lease = tonumber(redis.call('ZSCORE', KEYS[3], ARGV[1]) or 0)
if ARGV[2] == 'leave' then
  redis.call('ZADD', KEYS[3], 'XX', string.format('%.0f', now), ARGV[1])
  redis.call('HDEL', KEYS[4], ARGV[1])
elseif lease > now or (lease > 0 and now < tonumber(redis.call('HGET', KEYS[5], 'amnesty') or 0)) then
  return 0
end

local held = redis.call('LRANGE', KEYS[2], 0, -1)
for i = #held, 1, -1 do redis.call('LPUSH', KEYS[1], held[i]) end
if #held > 0 then
  redis.call('DEL', KEYS[2])
  redis.call('HINCRBY', KEYS[5], 'pushed', #held)
  redis.call('PEXPIRE', KEYS[1], 604800000)
  redis.call('PEXPIRE', KEYS[5], 604800000)
end
if ARGV[2] == 'reap' and now - lease > 10000 then
  redis.call('ZREM', KEYS[3], ARGV[1])
  redis.call('HDEL', KEYS[4], ARGV[1])
end
return #held
