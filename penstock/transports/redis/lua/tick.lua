#!lua flags=allow-oom
-- tick: a gateway lives, and looks at its pool.
-- KEYS  1 {Q}:gateways   2 {Q}:workers   3 {Q}:about   4 {Q}:clock   5 Q
-- ARGV  1 gateway id   2 lease, ms   3 longest gap in the pulse, ms
-- Returns {ids waiting, ids ever taken, {the JSON of each live worker}, {dead workers, to be reaped}, {dead gateways}}
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local clock = redis.call('HMGET', KEYS[4], 'pulse', 'amnesty', 'pushed', 'taken')
local amnesty = tonumber(clock[2] or 0)
if now - tonumber(clock[1] or 0) > tonumber(ARGV[3]) then amnesty = now + ARGV[2] end

-- Everything pushed has been taken or waits. A foreign RPUSH is not counted as pushed: never let the number fall.
local depth = redis.call('LLEN', KEYS[5])
local taken = math.max(tonumber(clock[4] or 0), tonumber(clock[3] or 0) - depth)
redis.call('HSET', KEYS[4], 'pulse', string.format('%.0f', now), 'amnesty', string.format('%.0f', amnesty),
  'taken', string.format('%.0f', taken))
redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[2]), ARGV[1])

local dead_workers, dead_gateways = {}, {}
if now >= amnesty then
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - 600000)
  dead_workers = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now)
  dead_gateways = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now)
end
local live = redis.call('ZRANGEBYSCORE', KEYS[2], now < amnesty and '-inf' or '(' .. now, '+inf')
local about = {}
for _, wid in ipairs(live) do
  local says = redis.call('HGET', KEYS[3], wid)
  if says then about[#about + 1] = says end
end
for i = 1, 5 do redis.call('PEXPIRE', KEYS[i], 604800000) end
return {depth, taken, about, dead_workers, dead_gateways}
