#!lua flags=allow-oom
-- renew: a worker lives. After a gap in everybody's pulse nobody is declared dead for one lease (the amnesty), and
-- a worker that Redis has forgotten is known again.
-- KEYS  1 {Q}:workers   2 {Q}:about   3 {Q}:clock   4 {Q}:worker:<wid>   5 {Q}:gateways
-- ARGV  1 worker id   2 lease, ms   3 what the worker says of itself, JSON   4 longest gap in the pulse, ms
--       5 how long a gateway may be away before its work is cancelled, ms
-- Returns {0} when the lease is lost: drop everything, and start again under a new id; else
--         {1, {the whole list}, {dead workers, to be reaped}, {gateways that stayed away}}
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local clock = redis.call('HMGET', KEYS[3], 'pulse', 'amnesty')
local amnesty = tonumber(clock[2] or 0)
if now - tonumber(clock[1] or 0) > tonumber(ARGV[4]) then amnesty = now + ARGV[2] end
redis.call('HSET', KEYS[3], 'pulse', string.format('%.0f', now), 'amnesty', string.format('%.0f', amnesty))

local lease = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or 0)
if lease <= now and now >= amnesty then return {0} end

redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[2]), ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
for i = 1, 5 do redis.call('PEXPIRE', KEYS[i], 604800000) end
local dead, away = {}, {}
if now >= amnesty then
  dead = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now)
  away = redis.call('ZRANGEBYSCORE', KEYS[5], '-inf', now - ARGV[5])
end
return {1, redis.call('LRANGE', KEYS[4], 0, -1), dead, away}
