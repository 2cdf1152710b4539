#!lua flags=allow-oom
-- renew: a worker lives. After a gap in the pulse of the whole pool no worker is declared dead for one lease (the
-- amnesty), and a worker that Redis has lost is known again. Refused with an error if no gateway could read ARGV 2.
-- KEYS  1 {Q}:workers   2 {Q}:about   3 {Q}:clock   4 {Q}:worker:<wid>   5 {Q}:gateways
-- ARGV  1 worker id   2 the worker's description of itself, JSON   3 lease, ms (may be missing: 2,500; other values for tests)
-- Returns {0} when the lease is lost: drop everything, and start again under a new id; else
--         {1, {the whole list}, {dead workers, to be reaped}, {gateways that stayed away}}
local LEASE_MS, GAP_MS, AWAY_MS = 2500, 1500, 30000
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local lasts = tonumber(ARGV[3] or LEASE_MS)
local clock = redis.call('HMGET', KEYS[3], 'pulse', 'amnesty', 'away')
local amnesty = tonumber(clock[2] or 0) or 0
if not (amnesty <= now + 120000) then amnesty = 0 end -- no lease is as long: not written by Penstock, or not a number
if not (now - (tonumber(clock[1] or 0) or 0) <= GAP_MS) then amnesty = now + lasts end

local is_json, info = pcall(cjson.decode, ARGV[2])
if not (is_json and type(info) == 'table' and info.id == ARGV[1] and type(info.models) == 'table'
  and type(info.num_slots) == 'number' and type(info.num_free) == 'number') then
  return redis.error_reply('ERR what worker ' .. ARGV[1] .. ' announces must be a JSON object with its `id`, '
    .. '`models` (name: object), `num_slots` and `num_free`')
end
local lease = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or 0)
if lease <= now and now >= amnesty then return {0} end

-- The pulse after the lease: where leases cannot be written no worker seems to live, and none is declared dead for it.
redis.call('ZADD', KEYS[1], string.format('%.0f', now + lasts), ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
redis.call('HSET', KEYS[3], 'pulse', string.format('%.0f', now), 'amnesty', string.format('%.0f', amnesty))
for i = 1, 5 do redis.call('PEXPIRE', KEYS[i], 604800000) end
local dead, away = {}, {}
if now >= amnesty then
  dead = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now)
  away = redis.call('ZRANGEBYSCORE', KEYS[5], '-inf', now - (tonumber(string.match(clock[3] or '', '^%d+$') or AWAY_MS)))
end
return {1, redis.call('LRANGE', KEYS[4], 0, -1), dead, away}
