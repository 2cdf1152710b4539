#!lua flags=allow-oom
-- take: move up to ARGV 2 ids from the head of the queue into this worker's list, if its lease holds (or there is an
-- amnesty), and return the whole list: the list, not a reply, is what a worker holds.
-- KEYS  1 Q   2 {Q}:worker:<wid>   3 {Q}:workers   4 {Q}:clock
-- ARGV  1 worker id   2 how many
-- Returns the list, oldest first.
local GAP_MS = 1500
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local lease = tonumber(redis.call('ZSCORE', KEYS[3], ARGV[1]) or 0)
local clock = lease > 0 and lease <= now and redis.call('HMGET', KEYS[4], 'pulse', 'amnesty')
if lease > now or (clock and (now < (tonumber(clock[2] or 0) or 0) or not (now - (tonumber(clock[1] or 0) or 0) <= GAP_MS))) then
  for _ = 1, tonumber(ARGV[2]) do
    if not redis.call('LMOVE', KEYS[1], KEYS[2], 'LEFT', 'RIGHT') then break end
  end
  redis.call('PEXPIRE', KEYS[2], 604800000)
end
return redis.call('LRANGE', KEYS[2], 0, -1)
