#!lua flags=allow-oom
-- rerun: the worker cannot continue the answer of a job that it has claimed. If no client can have a token of it, the job
-- begins again: its tokens are dropped, the attempt is raised once more, and `started` is appended and published with a
-- seq of 0. After a lost reply claim the job again.
-- KEYS  1 {inference:response:<id>}:job   2 {inference:response:<id>}:log
-- ARGV  1 request id   2 attempt, as `claim` returned it   3 worker id
-- Returns the new attempt | "read" (a client may have a token, so nothing is done: end the job with worker_lost) | "lost" (it
--         does not run at this worker under this attempt)
local hash = redis.call('HMGET', KEYS[1], 'state', 'attempt', 'worker', 'owner', 'readers', 'unread')
if hash[1] ~= 'running' or hash[2] ~= ARGV[2] or hash[3] ~= ARGV[3] then return 'lost' end
-- A gateway that does not know this field changes `owner` or `readers` alone when it takes the job over.
if not hash[6] or hash[6] == '' or hash[6] ~= (hash[5] or hash[4]) then return 'read' end
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
local written, at = string.match(last and last[1] or '', '^(%d+)-(%d+)$')
if written ~= ARGV[2] or at == '18446744073709551615' then return 'lost' end
-- Asked first: without its log the job would look as if nothing had ever been written.
if not (redis.acl_check_cmd('XADD', KEYS[2], '1-1', 'f', '') and redis.acl_check_cmd('HSET', KEYS[1], 'attempt', 1)
    and redis.acl_check_cmd('PEXPIREAT', KEYS[2], 1)) then
  return redis.error_reply('NOPERM rerun was refused XADD, HSET or PEXPIREAT')
end

local t = redis.call('TIME')
local attempt = math.max(tonumber(ARGV[2]) + 1, t[1] * 1000 + math.floor(t[2] / 1000))
local fence = string.format('%.0f', attempt)
local started = '{"kind":"started","id":"' .. ARGV[1] .. '","attempt":' .. fence .. ',"seq":0}'
local expires = redis.call('PEXPIRETIME', KEYS[1])
-- The whole log, so that a reader of any release finds one generation in it.
redis.call('UNLINK', KEYS[2])
redis.call('XADD', KEYS[2], fence .. '-0', 'f', started)
if expires > 0 then redis.call('PEXPIREAT', KEYS[2], expires) end
redis.call('HSET', KEYS[1], 'attempt', fence)
redis.pcall('PUBLISH', 'inference:response:' .. ARGV[1], started)
return attempt
