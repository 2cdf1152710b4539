#!lua flags=allow-oom
-- retire: the client has the last byte; keep a finished job only so long from now.
-- KEYS  1 {inference:response:<id>}:job   2 {inference:response:<id>}:log
-- ARGV  1 retention, ms
-- Returns 1; 0, and nothing is done, if the job is not done.
if redis.call('HGET', KEYS[1], 'state') ~= 'done' then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
redis.call('PEXPIRE', KEYS[2], ARGV[1])
return 1
