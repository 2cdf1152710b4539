#!lua flags=allow-oom
-- enlist: take a lease under a new worker id, if the live processes of the pool speak this protocol, and its live
-- workers serve the same models, by name: what a model can do may differ while a release is rolled out.
-- KEYS  1 {Q}:workers   2 {Q}:about   3 {Q}:clock   4 {Q}:gateways
-- ARGV  1 worker id   2 the worker's description of itself, JSON   3 lease, ms (may be missing: 2,500; other values for tests)
-- Returns "" | a sentence with the reason of the refusal
local PROTOCOL, LEASE_MS, GAP_MS = '1', 2500, 1500
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local lease = tonumber(ARGV[3] or LEASE_MS)
local clock = redis.call('HMGET', KEYS[3], 'pulse', 'amnesty', 'protocol')
local amnesty = tonumber(clock[2] or 0) or 0
if not (amnesty <= now + 120000) then amnesty = 0 end -- no lease is as long: not written by Penstock, or not a number
if not (now - (tonumber(clock[1] or 0) or 0) <= GAP_MS) then amnesty = now + lease end
local live = now < amnesty and '-inf' or '(' .. now

local function refuse(...) -- writes the pulse all the same: an amnesty must end where all workers are refused
  redis.call('HSET', KEYS[3], 'pulse', string.format('%.0f', now), 'amnesty', string.format('%.0f', amnesty))
  redis.call('PEXPIRE', KEYS[3], 604800000)
  return string.format(...)
end
local function names(models) -- sorted; nil for what is not an object of objects
  local found = {}
  for name, can in pairs(models) do
    if type(name) ~= 'string' or type(can) ~= 'table' then return nil end
    found[#found + 1] = name
  end
  table.sort(found)
  return table.concat(found, ', ')
end
local function read(about) -- nil for what no gateway could read
  local is_json, info = pcall(cjson.decode, about or '')
  if is_json and type(info) == 'table' and type(info.id) == 'string' and type(info.models) == 'table'
    and type(info.num_slots) == 'number' and type(info.num_free) == 'number' then return names(info.models), info.id end
end

local own, id = read(ARGV[2])
if not own or id ~= ARGV[1] then
  return refuse('What worker %s announces must be a JSON object with its `id`, `models` (name: object), `num_slots` '
    .. 'and `num_free`.', ARGV[1])
end
if clock[3] and clock[3] ~= PROTOCOL and string.find(clock[3], '^%d%d?%d?$') and (redis.call('ZCOUNT', KEYS[1], live, '+inf') > 0
  or redis.call('ZCOUNT', KEYS[4], live, '+inf') > 0) then
  return refuse('This pool speaks protocol %s and this worker protocol %s: stop the other processes first, or use another '
    .. 'pool (PENSTOCK_POOL).', clock[3], PROTOCOL)
end
for _, wid in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], live, '+inf')) do
  local others = wid ~= ARGV[1] and read(redis.call('HGET', KEYS[2], wid))
  if others and others ~= own then
    return refuse('Worker %s of this pool serves %s and this one would serve %s: workers of one pool must agree on their '
      .. 'models, or have pools of their own (PENSTOCK_POOL).', wid, others, own)
  end
end

redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[1], string.format('%.0f', now + lease), ARGV[1])
redis.call('HSET', KEYS[3], 'pulse', string.format('%.0f', now), 'amnesty', string.format('%.0f', amnesty),
  'protocol', PROTOCOL)
for i = 1, 3 do redis.call('PEXPIRE', KEYS[i], 604800000) end
return ''
