#!lua
-- create: make a job, queued. A job of this id that exists already is left as it is, so this may be repeated.
-- The one request-slot script, with restore, that Redis may refuse for memory.
-- KEYS  1 {inference:response:<id>}:job   2 {inference:response:<id>}:log
-- ARGV  1 job, JSON   2 model   3 on_disconnect   4 owner (gateway id)   5 timeout, ms   6 retention, ms
--       7 floor: the highest attempt seen so far, 0 for a new job
-- Returns "" when created, else the state of the job that is there.
local state = redis.call('HGET', KEYS[1], 'state')
if state then return state end

local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local function int(number) return string.format('%.0f', number) end

redis.call('UNLINK', KEYS[2]) -- of a job that is forgotten: its log says nothing any more
redis.call('HSET', KEYS[1],
  'job', ARGV[1], 'model', ARGV[2], 'disconnect', ARGV[3], 'owner', ARGV[4], 'state', 'queued', 'worker', '',
  'attempt', ARGV[7], 'claims', 0, 'deaths', 0, 'all_deaths', 0, 'tokens', 0,
  'created', int(now), 'deadline', int(now + ARGV[5]), 'retention', ARGV[6])
redis.call('PEXPIRE', KEYS[1], int(ARGV[5] + ARGV[6]))
return ''
