#!lua flags=allow-oom
-- cancel: end a queued job at once, with its terminal frame, the attempt raised first so that no worker can write after
-- it; mark a running one and hint to its worker, which ends it (or the next claim does), and to its owner, which asks
-- again if the store loses that. A running job that is 4 s past its deadline is ended as well: its worker is dead, or
-- will be refused. With the reason no_workers only a queued job is ended: one that runs has a worker.
-- With the reason client and an owner, a job that another gateway reads too is left to that one: only the last
-- reader's leaving counts.
-- KEYS  1 {inference:response:<id>}:job   2 {inference:response:<id>}:log
-- ARGV  1 request id   2 reason: client, deadline, operator or no_workers
--       3 owner: only if this gateway owns the job; "" anyway
--       4 how long at most what a client or an operator cancels is kept, ms (may be missing)
-- Returns "gone" | "done" | "owned" (by another gateway) | "ended" (the caller removes the id from the queue) | "marked" |
--         "running" (no_workers: left alone)
local hash = redis.call('HMGET', KEYS[1], 'state', 'attempt', 'worker', 'owner', 'retention', 'readers', 'deadline',
  'unread')
if not hash[1] then return 'gone' end
if hash[1] == 'done' then return 'done' end
if ARGV[3] ~= '' and ARGV[2] == 'client' and hash[6] then
  local others = {}
  for reader in string.gmatch(hash[6], '[^,]+') do
    if reader ~= ARGV[3] then others[#others + 1] = reader end
  end
  local owner = others[1] and hash[4] == ARGV[3] and others[#others] or hash[4] or ''
  local readers = table.concat(others, ',')
  redis.call('HSET', KEYS[1], 'readers', readers, 'owner', owner,
    unpack(hash[8] and {'unread', hash[8] == hash[6] and readers or ''} or {}))
  if others[1] then return 'owned' end
elseif ARGV[3] ~= '' and ARGV[3] ~= hash[4] then
  return 'owned'
end

local retention = hash[5] or ''
if #retention > 15 or not string.find(retention, '^[1-9]%d*$') then retention = '60000' end -- as in `finish`
if ARGV[4] and (ARGV[2] == 'client' or ARGV[2] == 'operator') and tonumber(ARGV[4]) < tonumber(retention) then
  retention = ARGV[4]
  redis.call('HSET', KEYS[1], 'retention', retention)
end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
if hash[1] == 'running' and not (ARGV[2] == 'deadline' and now >= (tonumber(hash[7] or 0) or 0) + 4000) then
  if ARGV[2] == 'no_workers' then return 'running' end
  redis.call('HSETNX', KEYS[1], 'cancel', ARGV[2])
  local hint = string.format('{"id":"%s","reason":"%s"}', ARGV[1], ARGV[2])
  redis.pcall('PUBLISH', 'inference:control:' .. (hash[3] or ''), hint) -- only hints: the worker asks, too
  redis.pcall('PUBLISH', 'inference:control:' .. (hash[4] or ''), hint)
  return 'marked'
end

local function int(number) return string.format('%.0f', number) end
local END, attempt, tokens = '18446744073709551615', tonumber(hash[2]) or 0, 0
local fence, frame -- of the end
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
if last then
  local written, count = string.match(last[1], '^(%d+)-(%d+)$')
  if count == END then -- an earlier call was cut off after its first command
    fence, frame = written, last[2][2]
  elseif #written > 15 or #count > 15 then -- no release of ours wrote this, and nothing can follow it
    redis.call('UNLINK', KEYS[2])
  else
    attempt, tokens = math.max(attempt, tonumber(written)), tonumber(count)
  end
end

local cancel = {}
if not fence then
  local kind, tail = 'done', '"finish_reason":"cancelled"'
  if ARGV[2] == 'deadline' then
    kind, tail = 'failed', '"code":"deadline_exceeded","message":"The request did not finish within its timeout_s (default: PENSTOCK_DEFAULT_TIMEOUT_S)."'
  elseif ARGV[2] == 'no_workers' then
    kind, tail = 'failed', '"code":"no_workers","message":"No worker has come to run this in time (PENSTOCK_NO_WORKER_GRACE_S)."'
  end
  fence = int(math.max(attempt + 1, now))
  frame = string.format('{"kind":"%s","id":"%s","attempt":%s,"seq":%s,%s}', kind, ARGV[1], fence, int(tokens), tail)
  redis.call('XADD', KEYS[2], fence .. '-' .. END, 'f', frame)
  cancel = {'cancel', ARGV[2]}
end
-- The log first, as it is the truth: what is refused after it is done by a repetition, or by a claim.
redis.call('PEXPIRE', KEYS[2], retention)
redis.call('PEXPIRE', KEYS[1], retention)
redis.call('HSET', KEYS[1], 'state', 'done', 'attempt', fence, 'ended', int(now), unpack(cancel))
redis.pcall('PUBLISH', 'inference:response:' .. ARGV[1], frame)
return cancel[1] and 'ended' or 'done'
