#!lua flags=allow-oom
-- add_dead: add an entry to the dead-letter list, once, and remove its id from this worker's list.
-- KEYS  1 {Q}:dead   2 {Q}:worker:<wid>
-- ARGV  1 the entry, JSON   2 request id, byte for byte as in the list
-- Returns how many copies of the id were removed.
local MAX_DEAD = 1000
redis.call('LREM', KEYS[1], 0, ARGV[1])
redis.call('LPUSH', KEYS[1], ARGV[1])
redis.call('LTRIM', KEYS[1], 0, MAX_DEAD - 1)
redis.call('PEXPIRE', KEYS[1], 604800000)
return redis.call('LREM', KEYS[2], 0, ARGV[2])
