#!lua
-- enqueue: push an id, if the queue has room. Check and push are one, so the limit is exact over any number of gateways.
-- KEYS  1 Q   2 {Q}:clock
-- ARGV  1 request id   2 most ids that may wait, 0 for no limit   3 "tail" or "head"
--       4 "once" to push only if the queue does not hold the id (a repetition after an unknown outcome), else ""
-- Returns how many ids wait now, -1 if the queue is full.
local depth = redis.call('LLEN', KEYS[1])
if ARGV[4] == 'once' and redis.call('LPOS', KEYS[1], ARGV[1]) then return depth end
if tonumber(ARGV[2]) > 0 and depth >= tonumber(ARGV[2]) then return -1 end

-- Pushing last, as the caller takes an error for "not pushed". A count too many does no harm. What is new gets its
-- expiry here; what is there already, from every gateway's tick.
if redis.call('HINCRBY', KEYS[2], 'pushed', 1) == 1 then redis.call('PEXPIRE', KEYS[2], 604800000) end
redis.call(ARGV[3] == 'head' and 'LPUSH' or 'RPUSH', KEYS[1], ARGV[1])
if depth == 0 then redis.pcall('PEXPIRE', KEYS[1], 604800000) end
return depth + 1
