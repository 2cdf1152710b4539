#!lua flags=allow-oom
-- requeue: the first half of a hand-back: the job is queued again, if it runs under this very attempt. No death counts.
-- The attempt stays; a late frame of it does no harm, and the next claim raises it.
-- KEYS  1 {inference:response:<id>}:job
-- ARGV  1 attempt   2 worker id
-- Returns "queued" (also when it had been before) | "other" (this worker's, under another attempt) | "lost"
local hash = redis.call('HMGET', KEYS[1], 'state', 'attempt', 'worker')
if hash[2] == ARGV[1] and hash[1] == 'queued' then return 'queued' end
if hash[1] ~= 'running' or hash[3] ~= ARGV[2] then return 'lost' end
if hash[2] ~= ARGV[1] then return 'other' end
redis.call('HSET', KEYS[1], 'state', 'queued', 'worker', '')
return 'queued'
