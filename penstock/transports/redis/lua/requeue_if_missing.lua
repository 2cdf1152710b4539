#!lua flags=allow-oom
-- requeue_if_missing: push an id at the head unless the queue holds it: for a queued job whose id is in no list.
-- KEYS  1 Q   2 {Q}:clock
-- ARGV  1 request id
-- Returns 1 if it was pushed, 0 if it was there.
if redis.call('LPOS', KEYS[1], ARGV[1]) then return 0 end
redis.call('HINCRBY', KEYS[2], 'pushed', 1)
redis.call('PEXPIRE', KEYS[2], 604800000)
redis.call('LPUSH', KEYS[1], ARGV[1])
redis.pcall('PEXPIRE', KEYS[1], 604800000)
return 1
