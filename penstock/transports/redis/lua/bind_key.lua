#!lua
-- bind_key: bind an idempotency key to a request, or return which request it names. One script, so that of several
-- clients that ask at once, or find the request of a key expired, one gets the key.
-- KEYS  1 inference:once:<caller>:<hash>
-- ARGV  1 request id   2 hash of the body   3 how long the binding holds, ms   4 a request that may lose the key, or ""
-- Returns {} when the key names ARGV 1 from here on (or did before, and now for ARGV 3 more), else what it is bound to:
--         {request id, hash of the body, ms since it was bound}
-- The key holds: request id, space, hash of the body, space, when it was bound (ms).
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local since = string.format('%.0f', now)
local bound = redis.call('GET', KEYS[1])
if bound then
  local id, hash, at = string.match(bound, '^(%S+) (%S+) ?(%d*)$')
  if id and id ~= ARGV[1] and id ~= ARGV[4] then return {id, hash, now - (tonumber(at) or 0)} end
  if id == ARGV[1] and at ~= '' then since = at end
end
redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. ARGV[2] .. ' ' .. since, 'PX', ARGV[3])
return {}
