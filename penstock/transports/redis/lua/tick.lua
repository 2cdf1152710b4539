#!lua flags=allow-oom
-- tick: a gateway lives, and looks at its pool. Refused if the other live processes of the pool speak another protocol.
-- KEYS  1 {Q}:gateways   2 {Q}:workers   3 {Q}:about   4 {Q}:clock   5 Q
-- ARGV  1 gateway id   2 how long a gateway may be away before its work is cancelled, ms: the same in all gateways of a pool
--       3 lease, ms (may be missing: 2,500; other values for tests)
-- Returns {ids waiting, ids ever taken, {the JSON of each live worker}, {dead workers, to be reaped},
--          1 if this gateway was unknown: of one that has ticked before, data has been lost, now, ms} |
--         {-1, a sentence with the reason of the refusal}
local PROTOCOL, LEASE_MS, GAP_MS = '1', 2500, 1500
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local lease = tonumber(ARGV[3] or LEASE_MS)
local clock = redis.call('HMGET', KEYS[4], 'pulse', 'amnesty', 'pushed', 'taken', 'protocol')
local amnesty = tonumber(clock[2] or 0) or 0
if not (amnesty <= now + 120000) then amnesty = 0 end -- no lease is as long: not written by Penstock, or not a number
if not (now - (tonumber(clock[1] or 0) or 0) <= GAP_MS) then amnesty = now + lease end
local alive = now < amnesty and '-inf' or '(' .. now

if clock[5] and clock[5] ~= PROTOCOL and string.find(clock[5], '^%d%d?%d?$') then -- what is not a number is overwritten
  local num_others = redis.call('ZCOUNT', KEYS[1], alive, '+inf') + redis.call('ZCOUNT', KEYS[2], alive, '+inf')
  local own = redis.call('ZSCORE', KEYS[1], ARGV[1])
  if own and (now < amnesty or tonumber(own) > now) then num_others = num_others - 1 end
  if num_others > 0 then
    redis.call('HSET', KEYS[4], 'pulse', string.format('%.0f', now), 'amnesty', string.format('%.0f', amnesty))
    redis.call('PEXPIRE', KEYS[4], 604800000)
    return {-1, string.format('This pool speaks protocol %s and this gateway protocol %s: stop the other processes first, '
      .. 'or use another pool (PENSTOCK_POOL).', clock[5], PROTOCOL)}
  end
end

-- Everything pushed has been taken or waits. A foreign RPUSH is not counted as pushed: never let the number fall.
local depth = redis.call('LLEN', KEYS[5])
local taken = math.max(tonumber(clock[4] or 0) or 0, (tonumber(clock[3] or 0) or 0) - depth)
if not (taken >= 0 and taken < 1e15) then taken = 0 end
-- The pulse after the lease, and after what `renew` needs for one: where leases cannot be read or written no worker seems
-- to live, and none is declared dead for it.
redis.call('ZSCORE', KEYS[2], ARGV[1])
local is_new = redis.call('ZADD', KEYS[1], string.format('%.0f', now + lease), ARGV[1])
redis.call('HSET', KEYS[4], 'pulse', string.format('%.0f', now), 'amnesty', string.format('%.0f', amnesty),
  'taken', string.format('%.0f', taken), 'protocol', PROTOCOL, 'away', ARGV[2])

local dead = {}
if now >= amnesty then
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - 600000)
  dead = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now)
end
local about = {}
for _, wid in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], alive, '+inf')) do
  local info = redis.call('HGET', KEYS[3], wid)
  if info then about[#about + 1] = info end
end
for i = 1, 5 do redis.call('PEXPIRE', KEYS[i], 604800000) end
return {depth, taken, about, dead, is_new, now}
