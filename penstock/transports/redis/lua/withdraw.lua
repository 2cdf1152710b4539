#!lua flags=allow-oom
-- withdraw: take the id of an ended job out of the queue, so that it stops counting against the limit.
-- KEYS  1 Q   2 {Q}:clock
-- ARGV  1 request id
-- Returns how many copies were removed.
local removed = redis.call('LREM', KEYS[1], 0, ARGV[1])
if removed > 0 then redis.pcall('HINCRBY', KEYS[2], 'pushed', -removed) end
return removed
