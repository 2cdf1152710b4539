#!lua
-- create: make a job, queued. A job of this id that exists already is left as it is, so this may be repeated.
-- The one request-slot script, with restore, that Redis may refuse for memory.
-- KEYS  1 {inference:response:<id>}:job   2 {inference:response:<id>}:log
-- ARGV  1 job, JSON   2 model   3 on_disconnect   4 owner (gateway id)   5 timeout, ms   6 retention, ms
--       7 floor: the highest attempt seen so far, 0 for a new job   8 what lists show of it, JSON (may be missing)
--       9 "unread" if no client is given its tokens one by one: it may be run again (may be missing)
-- Returns "" when created, else the state of the job that is there.
local state = redis.call('HGET', KEYS[1], 'state')
if state then return state end

local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
-- Asked first: a hash without an expiry would stay.
if not redis.acl_check_cmd('PEXPIRE', KEYS[1], 1) then return redis.error_reply('NOPERM create was refused PEXPIRE') end
redis.call('UNLINK', KEYS[2]) -- the log of an expired job is of no use
-- Unset fields are omitted: each costs memory, and time at every step of a request's way.
redis.call('HSET', KEYS[1],
  'job', ARGV[1], 'model', ARGV[2], 'disconnect', ARGV[3], 'owner', ARGV[4], 'state', 'queued', 'attempt', ARGV[7],
  'created', string.format('%.0f', now), 'deadline', string.format('%.0f', now + ARGV[5]), 'retention', ARGV[6],
  'about', ARGV[8] or '{}', unpack(ARGV[9] == 'unread' and {'unread', ARGV[4]} or {}))
redis.call('PEXPIRE', KEYS[1], string.format('%.0f', ARGV[5] + ARGV[6]))
return ''
