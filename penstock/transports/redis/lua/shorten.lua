#!lua flags=allow-oom
-- shorten: a job has ended, and an earlier request holds a part of what was asked: only the rest is kept with it.
-- KEYS  1 {inference:response:<id>}:job
-- ARGV  1 job, JSON
-- Returns 1; 0 if it has not ended, or is gone or deleted.
local hash = redis.call('HMGET', KEYS[1], 'state', 'deleted')
if hash[1] ~= 'done' or hash[2] then return 0 end
redis.call('HSET', KEYS[1], 'job', ARGV[1])
return 1
