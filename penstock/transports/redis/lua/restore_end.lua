#!lua
-- restore_end: a request has ended, as its gateway knows, and the store has lost that: it has lost the request, or come
-- back with an older state. Raises the attempt (a worker that runs it once more is fenced), writes the whole log
-- with its terminal frame and sets the job done. The caller removes the id from the queue afterwards.
-- KEYS  1 {inference:response:<id>}:job   2 {inference:response:<id>}:log
-- ARGV  1 to 6 as create   7 the highest attempt seen   8 request id   9 what lists show of it, JSON
--       10 how long it is to be kept from now on, ms
--       11 to 14 ms since it was created, was started, had its first token and ended; -1 for what did not happen
--       15 kind of the terminal frame, done or failed   16 what that frame holds behind its seq, from the comma to the brace
--       17… every token, each as a JSON string
-- Returns 1, or 2 if it made the job; 0, and nothing is done, if the job is done.
local hash = redis.call('HMGET', KEYS[1], 'state', 'attempt', 'started', 'first')
if hash[1] == 'done' then return 0 end
-- Asked first: each repetition would write the log again, and what has no expiry would stay.
if not (redis.acl_check_cmd('HSET', KEYS[1], 'state', '') and redis.acl_check_cmd('PEXPIRE', KEYS[1], 1)) then
  return redis.error_reply('NOPERM restore_end was refused HSET or PEXPIRE')
end

local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local function int(number) return string.format('%.0f', number) end
local LAST = '18446744073709551615'

if not hash[1] then redis.call('UNLINK', KEYS[2]) end
local attempt, has_end = tonumber(hash[2] or 0) or 0, false
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
if last then
  local written, count = string.match(last[1], '^(%d+)-(%d+)$')
  attempt, has_end = math.max(attempt, tonumber(written)), count == LAST
end

local changed, frame = {}, nil
if has_end then -- a script that ended it was stopped halfway: only the state is missing
  changed = {'attempt', int(attempt)}
else
  attempt = math.max(attempt, tonumber(ARGV[7]), now - 1) + 1
  local tokens = #ARGV - 16
  local head = '"id":"' .. ARGV[8] .. '","attempt":' .. int(attempt) .. ',"seq":'
  if tokens > 0 then
    redis.call('XADD', KEYS[2], int(attempt) .. '-' .. int(tokens), 'f',
      '{"kind":"tokens",' .. head .. '0,"tokens":[' .. table.concat(ARGV, ',', 17) .. ']}')
  end
  frame = '{"kind":"' .. ARGV[15] .. '",' .. head .. int(tokens) .. ARGV[16]
  redis.call('XADD', KEYS[2], int(attempt) .. '-' .. LAST, 'f', frame)
  changed = {'attempt', int(attempt), 'tokens', int(tokens)}
  if #frame > 4096 then changed[5], changed[6] = 'end', frame end -- what lists read
end
local function set(field, ago)
  if tonumber(ago) < 0 then return end
  changed[#changed + 1] = field
  changed[#changed + 1] = int(now - ago)
end
if not hash[1] then
  redis.call('HSET', KEYS[1],
    'job', ARGV[1], 'about', ARGV[9], 'model', ARGV[2], 'disconnect', ARGV[3], 'owner', ARGV[4], 'retention', ARGV[6],
    'created', int(now - ARGV[11]), 'deadline', int(now - ARGV[11] + ARGV[5]), 'claims', 1)
end
if not hash[3] then set('started', ARGV[12]) end
if not hash[4] then set('first', ARGV[13]) end
set('ended', ARGV[14])
redis.call('HSET', KEYS[1], 'state', 'done', 'worker', '', unpack(changed))
redis.call('PEXPIRE', KEYS[1], ARGV[10])
redis.call('PEXPIRE', KEYS[2], ARGV[10])
if frame then redis.pcall('PUBLISH', 'inference:response:' .. ARGV[8], frame) end
return hash[1] and 1 or 2
