#!lua flags=allow-oom
-- claim: give a job of this worker's list to this worker. Raises the attempt, which fences every earlier writer, and
-- appends and publishes `started`. What must not run is ended here, with its terminal frame, and so is what cannot be
-- read. Safe to repeat: the same worker gets the job again, under a higher attempt, and no death is counted. An end
-- that an interrupted script has left in the log alone is completed.
-- KEYS  1 {inference:response:<id>}:job   2 {inference:response:<id>}:log
-- ARGV  1 request id   2 worker id   3 the worker that it may be taken from, "" for none
--       4 "lives" if that worker is not dead, as `settle` returned: then no death is counted (may be missing)
-- Returns {"missing"} | {"done"} | {"busy", its worker} | {"ended"} | {"poisoned", model, deaths} |
--         {"newer", version} (of a release to come: nothing is done, it goes to the tail of the queue for another worker) |
--         {"unreadable", model, why} (the caller adds these two to the dead-letter list; a later claim may return them again) |
--         {"claimed", attempt, now, deadline, created (ms), deaths in a row, job JSON, {every frame before this one}}
local END = '18446744073709551615' -- the number of an attempt's last entry
local DAY = 86400000
local MAX_DEATHS_IN_A_ROW, MAX_DEATHS = 3, 10
local JOB_VERSION = 1 -- the highest `v` of a job that this release can read
local hash = redis.pcall('HMGET', KEYS[1], 'state', 'attempt', 'worker', 'cancel', 'deadline', 'created', 'deaths',
  'all_deaths', 'tokens', 'retention', 'model', 'job', 'claims', 'started', 'unreadable')
local is_hash = not hash.err
if not is_hash and not string.find(hash.err, 'WRONGTYPE', 1, true) then return hash end
local state, holder, cancel, model = hash[1], hash[3] or '', hash[4], hash[11] or ''
if is_hash and not state then
  local is_there = false
  for i = 1, 15 do is_there = is_there or hash[i] end
  if not is_there then return {'missing'} end
end

-- A count or a time; nil for what is neither. Up to here a double holds every integer.
local function number(text)
  local value = text and tonumber(text)
  return value and value >= 0 and value < 1e15 and value % 1 == 0 and value or nil
end
local deaths, all_deaths = number(hash[7]) or 0, number(hash[8]) or 0
local function is_poison() return deaths >= MAX_DEATHS_IN_A_ROW or all_deaths >= MAX_DEATHS end
local function over() -- of what has ended: whether the caller has something for the dead-letter list
  return hash[15] and {'unreadable', model, hash[15]} or is_poison() and {'poisoned', model, all_deaths} or {'done'}
end
if state == 'done' then return over() end
local is_taken_over = state == 'running' and holder ~= ARGV[2]
local is_death = is_taken_over and ARGV[4] ~= 'lives'
if is_taken_over and holder ~= ARGV[3] then return {'busy', holder} end

local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local function int(number) return string.format('%.0f', number) end

local deadline, retention = number(hash[5]), number(hash[10]) or 0
retention = int(retention > 0 and retention or 60000)
local attempt, tokens = number(hash[2]), 0
local wrong = not is_hash and 'its hash is of another type' or state ~= 'queued' and state ~= 'running' and 'state'
  or not attempt and 'attempt' or not deadline and 'deadline' or not number(hash[6]) and 'created'
  or not hash[12] and 'job'
attempt = attempt or 0

-- Also of a job that was never claimed: an interrupted claim may have begun its log.
local last = redis.pcall('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)
if last.err then
  if not string.find(last.err, 'WRONGTYPE', 1, true) then return last end
  redis.call('UNLINK', KEYS[2])
  wrong = wrong or 'its log is of another type'
elseif last[1] then
  local written, at = string.match(last[1][1], '^(%d+)-(%d+)$')
  if at == END and is_hash then -- ended, and the script that did it was refused its next command
    redis.call('PEXPIRE', KEYS[2], retention)
    redis.call('PEXPIRE', KEYS[1], is_poison() and DAY or retention)
    redis.call('HSET', KEYS[1], 'state', 'done', 'attempt', written, 'ended', int(now))
    return over()
  end
  if number(written) and number(at) then
    if number(written) > attempt and not redis.acl_check_cmd('HSET', KEYS[1], 'state', state or '') then
      return redis.error_reply('NOPERM a claim was refused HSET; it is not begun again before that is allowed')
    end
    attempt, tokens = math.max(attempt, number(written)), number(at)
  else
    redis.call('UNLINK', KEYS[2])
    wrong = wrong or 'the numbers in its log'
  end
end
attempt = math.max(attempt + 1, now)
local fence, count = int(attempt), int(tokens) -- as text: a number is slow to format, and each would be several times

local function frame(head, tail)
  return '{"kind":' .. head .. ',"id":"' .. ARGV[1] .. '","attempt":' .. fence .. ',"seq":' .. count .. tail .. '}'
end
-- The log first, as it is the truth: what is refused after it is done by a repetition. Publishing last: it may fail.
local function finish(terminal, life)
  redis.call('XADD', KEYS[2], fence .. '-' .. END, 'f', terminal)
  redis.call('PEXPIRE', KEYS[2], retention)
  redis.call('PEXPIRE', KEYS[1], life)
  redis.call('HSET', KEYS[1], 'state', 'done', 'attempt', fence, 'ended', int(now))
  redis.pcall('PUBLISH', 'inference:response:' .. ARGV[1], terminal)
end

if wrong then
  if is_hash and not string.find(wrong, ' ', 1, true) then
    wrong = 'the field ' .. wrong .. ' of its hash is missing or not what it should be'
  end
  local terminal = frame('"failed"', ',"code":"internal_error","message":"The request cannot be read: ' .. wrong .. '."')
  if is_hash then
    redis.call('HSET', KEYS[1], 'unreadable', wrong) -- first, as below
    finish(terminal, retention)
  else
    redis.pcall('PUBLISH', 'inference:response:' .. ARGV[1], terminal) -- its readers check, and find it unreadable too
  end
  return {'unreadable', model, wrong}
end
if cancel and cancel ~= 'deadline' then
  finish(frame('"done"', ',"finish_reason":"cancelled"'), retention)
  return {'ended'}
end
if cancel or now >= deadline then
  local message = 'The request did not finish within its timeout_s (default: PENSTOCK_DEFAULT_TIMEOUT_S).'
  finish(frame('"failed"', ',"code":"deadline_exceeded","message":"' .. message .. '"'), retention)
  return {'ended'}
end

local version = tonumber(string.match(hash[12] or '', '^%s*{%s*"v"%s*:%s*(%d+)') or 0) -- `v` comes first in the JSON
if version > JOB_VERSION then return {'newer', version} end

if is_death then
  if tokens > (number(hash[9]) or 0) then deaths = 0 else deaths = deaths + 1 end
  all_deaths = all_deaths + 1
  if is_poison() then
    -- Kept for a day, so that an operator can look at it or run it again. Its deaths are noted first: a repetition that
    -- finds the end in the log need not know them.
    redis.call('HSET', KEYS[1], 'deaths', deaths, 'all_deaths', all_deaths)
    finish(frame('"failed"', string.format(',"code":"request_poisoned",'
      .. '"message":"The request ended %d workers and will not be tried again."', all_deaths)), DAY)
    return {'poisoned', model, all_deaths}
  end
end

local frames = {}
if tokens > 0 then
  for i, entry in ipairs(redis.call('XRANGE', KEYS[2], '-', '+')) do frames[i] = entry[2][2] end
end
local started = frame('"started"', '')
redis.call('XADD', KEYS[2], fence .. '-' .. count, 'f', started)
redis.call('PEXPIREAT', KEYS[2], int(deadline + retention)) -- as `create` has it of the hash
local changed = {'state', 'running', 'attempt', fence, 'worker', ARGV[2], 'claims', int((number(hash[13]) or 0) + 1)}
local function set(field, value)
  changed[#changed + 1] = field
  changed[#changed + 1] = value
end
if count ~= (hash[9] or '0') then set('tokens', count) end
if not hash[14] then set('started', int(now)) end
if is_death then
  set('deaths', deaths)
  set('all_deaths', all_deaths)
end
redis.call('HSET', KEYS[1], unpack(changed))
redis.pcall('PUBLISH', 'inference:response:' .. ARGV[1], started)
return {'claimed', attempt, now, deadline, number(hash[6]), deaths, hash[12], frames}
