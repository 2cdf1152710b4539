#!lua flags=allow-oom
-- adopt: from now on this gateway answers for the job.
-- KEYS  1 {inference:response:<id>}:job
-- ARGV  1 gateway id
-- Returns 1; 0 if there is no such job.
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'owner', ARGV[1])
return 1
