#!lua flags=allow-oom
-- adopt: from now on this gateway answers for the job, and counts among those that read it.
-- KEYS  1 {inference:response:<id>}:job
-- ARGV  1 gateway id
-- Returns 1; 0 if the job does not exist.
local owner = redis.call('HGET', KEYS[1], 'owner')
if not owner then return 0 end
local readers = redis.call('HGET', KEYS[1], 'readers') or owner
if not string.find(',' .. readers .. ',', ',' .. ARGV[1] .. ',', 1, true) then readers = readers .. ',' .. ARGV[1] end
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'readers', readers)
return 1
