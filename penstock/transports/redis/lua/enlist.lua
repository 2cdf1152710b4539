#!lua flags=allow-oom
-- enlist: take a lease under a new worker id, if every live worker of the pool serves the same models.
-- KEYS  1 {Q}:workers   2 {Q}:about   3 {Q}:clock
-- ARGV  1 worker id   2 lease, ms   3 what the worker says of itself, JSON with `models`   4 longest gap in the pulse, ms
-- Returns "" or, when refused, the JSON of a live worker that differs.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local clock = redis.call('HMGET', KEYS[3], 'pulse', 'amnesty')
local amnesty = tonumber(clock[2] or 0)
if now - tonumber(clock[1] or 0) > tonumber(ARGV[4]) then amnesty = now + ARGV[2] end

local function is_same(a, b)
  if type(a) ~= 'table' or type(b) ~= 'table' then return a == b end
  for key, value in pairs(a) do if not is_same(value, b[key]) then return false end end
  for key in pairs(b) do if a[key] == nil then return false end end
  return true
end
local models = cjson.decode(ARGV[3])['models']
for _, wid in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], now < amnesty and '-inf' or '(' .. now, '+inf')) do
  local about = wid ~= ARGV[1] and redis.call('HGET', KEYS[2], wid)
  if about and not is_same(cjson.decode(about)['models'], models) then return about end
end

redis.call('HSET', KEYS[3], 'pulse', string.format('%.0f', now), 'amnesty', string.format('%.0f', amnesty))
redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[2]), ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
for i = 1, 3 do redis.call('PEXPIRE', KEYS[i], 604800000) end
return ''
