#!lua flags=allow-oom
-- adopt: from now on this gateway answers for the job, and counts among those that read it.
-- KEYS  1 {inference:response:<id>}:job
-- ARGV  1 gateway id   2 "unread" if this gateway gives no token of it to a client yet (may be missing)
-- Returns 1; 0 if the job does not exist.
local hash = redis.call('HMGET', KEYS[1], 'owner', 'readers', 'unread')
if not hash[1] then return 0 end
local readers = hash[2] or hash[1]
local is_unread = ARGV[2] == 'unread' and hash[3] == readers
if not string.find(',' .. readers .. ',', ',' .. ARGV[1] .. ',', 1, true) then readers = readers .. ',' .. ARGV[1] end
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'readers', readers,
  unpack(hash[3] and {'unread', is_unread and readers or ''} or {}))
return 1
