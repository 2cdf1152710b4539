#!lua
-- restore: create for a job whose log is behind what its client has. Appends the relayed tokens as one frame of a
-- raised attempt (so the short attempt is fenced) and sets the job queued; makes the job if there is none. All of the
-- tokens, from the first: if the short attempt continued meanwhile, the log differs from the relayed tokens.
-- The caller pushes the id at the head afterwards. Not published: the caller has those tokens.
-- KEYS  1 {inference:response:<id>}:job   2 {inference:response:<id>}:log
-- ARGV  1 to 6 as create   7 the highest attempt seen   8 request id   9 what lists show of it, JSON
--       10… every token relayed, each as a JSON string; in front of them "unread", without quotes, if no client has one
-- Returns 1, 2 if it made the job, or 3 if this very call did it before and no worker has claimed the job since (then the
-- caller pushes the id unless the queue holds it); 0, and nothing is done, if the job is done or its attempt is higher
-- than ARGV 7. A job whose log has an end is done: a script that ended it was stopped halfway.
local hash = redis.call('HMGET', KEYS[1], 'state', 'attempt', 'restored', 'retention', 'unread')
local seen = tonumber(ARGV[7])
local attempt = tonumber(hash[2] or 0) or 0
if hash[1] == 'queued' and hash[3] == ARGV[7] .. ' ' .. (hash[2] or '') then return 3 end
if hash[1] == 'done' or attempt > seen then return 0 end
-- Asked first: each repetition would append all tokens again, and what has no expiry would stay.
if not (redis.acl_check_cmd('HSET', KEYS[1], 'state', '') and redis.acl_check_cmd('PEXPIRE', KEYS[1], 1)
    and redis.acl_check_cmd('PEXPIRETIME', KEYS[1]) and redis.acl_check_cmd('PEXPIREAT', KEYS[2], 1)) then
  return redis.error_reply('NOPERM restore was refused one of HSET, PEXPIRE, PEXPIRETIME and PEXPIREAT')
end
if not hash[1] then redis.call('UNLINK', KEYS[2]) end

local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local function int(number) return string.format('%.0f', number) end

local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
if last then
  local written, at = string.match(last[1], '^(%d+)-(%d+)$')
  if at == '18446744073709551615' then -- it has ended, and the script that did it was refused its next command
    local life = hash[4] or ''
    if #life > 15 or not string.find(life, '^[1-9]%d*$') then life = '60000' end -- as in `finish`
    redis.call('PEXPIRE', KEYS[2], life)
    redis.call('PEXPIRE', KEYS[1], life)
    redis.call('HSET', KEYS[1], 'state', 'done', 'attempt', written, 'ended', int(now))
    return 0
  end
  if #written > 15 or #at > 15 then -- no release of ours wrote this, and nothing can follow it
    redis.call('UNLINK', KEYS[2])
  else
    attempt = math.max(attempt, tonumber(written))
  end
end
attempt = math.max(attempt + 1, seen + 1, now)

local is_unread = ARGV[10] == 'unread'
local first = is_unread and 11 or 10
local tokens = #ARGV - first + 1
local frame = string.format('{"kind":"tokens","id":"%s","attempt":%s,"seq":0,"tokens":[%s]}',
  ARGV[8], int(attempt), table.concat(ARGV, ',', first))
redis.call('XADD', KEYS[2], int(attempt) .. '-' .. int(tokens), 'f', frame)
if not hash[1] then
  redis.call('HSET', KEYS[1],
    'job', ARGV[1], 'model', ARGV[2], 'disconnect', ARGV[3], 'about', ARGV[9],
    'created', int(now), 'deadline', int(now + ARGV[5]), 'retention', ARGV[6])
  redis.call('PEXPIRE', KEYS[1], int(ARGV[5] + ARGV[6]))
end
-- Never set for a job that is there: another gateway may have given tokens of it to a client.
local unread = is_unread and not hash[1] and {'unread', ARGV[4]} or not is_unread and hash[5] and {'unread', ''} or {}
redis.call('HSET', KEYS[1],
  'state', 'queued', 'worker', '', 'owner', ARGV[4], 'attempt', int(attempt), 'tokens', int(tokens),
  'restored', ARGV[7] .. ' ' .. int(attempt), unpack(unread))
local expires = redis.call('PEXPIRETIME', KEYS[1])
if expires > 0 then redis.call('PEXPIREAT', KEYS[2], expires) end
return hash[1] and 1 or 2
