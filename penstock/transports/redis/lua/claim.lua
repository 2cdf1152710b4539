#!lua flags=allow-oom
-- claim: give a job of this worker's list to this worker. Raises the attempt, which fences every earlier writer, and
-- appends and publishes `started`. What must not run is ended here, with its terminal frame. Safe to repeat: the same
-- worker gets the job again, under a higher attempt, and no death is counted.
-- KEYS  1 {inference:response:<id>}:job   2 {inference:response:<id>}:log
-- ARGV  1 request id   2 worker id   3 the worker that it may be taken from, "" for none
-- Returns {"missing"} | {"done"} | {"busy", its worker} | {"ended"} | {"poisoned", model, deaths} |
--         {"newer", version} (of a release to come: nothing is done, it goes to the tail of the queue for another worker) |
--         {"claimed", attempt, now, deadline, created (ms), deaths in a row, job JSON, {every frame before this one}}
local MAX_DEATHS_IN_A_ROW, MAX_DEATHS = 3, 10
local JOB_VERSION = 1 -- the highest `v` of a job that this release can read
local hash = redis.call('HMGET', KEYS[1], 'state', 'attempt', 'worker', 'cancel', 'deadline', 'created', 'deaths',
  'all_deaths', 'tokens', 'retention', 'model', 'job', 'claims', 'started')
local state, holder, cancel = hash[1], hash[3], hash[4]
if not state then return {'missing'} end
if state == 'done' then return {'done'} end
local is_death = state == 'running' and holder ~= ARGV[2]
if is_death and holder ~= ARGV[3] then return {'busy', holder} end

local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local function int(number) return string.format('%.0f', number) end

local attempt, tokens = tonumber(hash[2]), 0
-- A job that was never claimed or restored has no log: `create` has removed what was left, and nobody but this makes one.
local last = attempt > 0 and redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
if last then
  local written, at = string.match(last[1], '^(%d+)-(%d+)$')
  attempt, tokens = math.max(attempt, tonumber(written)), tonumber(at)
end
attempt = math.max(attempt + 1, now)
local fence, count = int(attempt), int(tokens) -- as text: a number is slow to format, and each would be several times

local function write(entry, head, tail)
  local frame = '{"kind":' .. head .. ',"id":"' .. ARGV[1] .. '","attempt":' .. fence .. ',"seq":' .. count .. tail .. '}'
  redis.call('XADD', KEYS[2], fence .. '-' .. entry, 'f', frame)
  redis.call('PUBLISH', 'inference:response:' .. ARGV[1], frame)
end
local function finish(head, tail)
  write('18446744073709551615', head, tail) -- the last entry that this attempt can have
  redis.call('HSET', KEYS[1], 'state', 'done', 'attempt', fence, 'ended', int(now))
  redis.call('PEXPIRE', KEYS[1], hash[10] or 60000)
  redis.call('PEXPIRE', KEYS[2], hash[10] or 60000)
end

if cancel and cancel ~= 'deadline' then
  finish('"done"', ',"finish_reason":"cancelled"')
  return {'ended'}
end
local deadline = tonumber(hash[5])
if cancel or now >= deadline then
  finish('"failed"', ',"code":"deadline_exceeded","message":"The request did not finish within its timeout_s."')
  return {'ended'}
end

local version = tonumber(string.match(hash[12] or '', '^%s*{%s*"v"%s*:%s*(%d+)') or 0) -- `v` comes first in the JSON
if version > JOB_VERSION then return {'newer', version} end

local deaths, all_deaths = tonumber(hash[7] or 0), tonumber(hash[8] or 0)
if is_death then
  if tokens > tonumber(hash[9] or 0) then deaths = 0 else deaths = deaths + 1 end
  all_deaths = all_deaths + 1
  if deaths >= MAX_DEATHS_IN_A_ROW or all_deaths >= MAX_DEATHS then
    finish('"failed"', string.format(',"code":"request_poisoned",'
      .. '"message":"The request ended %d workers and will not be tried again."', all_deaths))
    redis.call('HSET', KEYS[1], 'deaths', deaths, 'all_deaths', all_deaths)
    redis.call('PEXPIRE', KEYS[1], 86400000) -- a day, for whoever wants to look at it or run it again
    return {'poisoned', hash[11] or '', all_deaths}
  end
end

local frames = {}
if tokens > 0 then
  for i, entry in ipairs(redis.call('XRANGE', KEYS[2], '-', '+')) do frames[i] = entry[2][2] end
end
write(count, '"started"', '')
local changed = {'state', 'running', 'attempt', fence, 'worker', ARGV[2], 'claims', int(tonumber(hash[13] or 0) + 1)}
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
redis.call('PEXPIREAT', KEYS[2], int(deadline + (hash[10] or 60000))) -- as `create` has it of the hash
return {'claimed', attempt, now, deadline, tonumber(hash[6]), deaths, hash[12], frames}
