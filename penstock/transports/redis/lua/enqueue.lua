#!lua
-- enqueue: push an id, if the queue has room. Check and push are one, so the limit is exact over any number of gateways.
-- With a third key the caller's share is judged as well: of its ids in that list only those count that still wait. They
-- are looked for when the list has reached the limit, not each time, and nothing else takes an id off it.
-- KEYS  1 Q   2 {Q}:clock   3 {Q}:waiting:<caller> (may be missing)
-- ARGV  1 request id   2 most ids that may wait, 0 for no limit   3 "tail" or "head"
--       4 "once" to push only if the queue does not hold the id (a repetition after an unknown outcome), else ""
--       5 most ids of this caller that may wait, with the third key
-- Returns how many ids wait now, -1 if the queue is full, -2 if the caller's share of it is.
local depth = redis.call('LLEN', KEYS[1])
if ARGV[4] == 'once' and redis.call('LPOS', KEYS[1], ARGV[1]) then return depth end
if tonumber(ARGV[2]) > 0 and depth >= tonumber(ARGV[2]) then return -1 end
if KEYS[3] then
  if redis.call('LLEN', KEYS[3]) >= tonumber(ARGV[5]) then
    local waits, own = {}, {}
    for _, id in ipairs(redis.call('LRANGE', KEYS[1], 0, -1)) do waits[id] = true end
    for _, id in ipairs(redis.call('LRANGE', KEYS[3], 0, -1)) do
      if waits[id] then own[#own + 1], waits[id] = id, nil end
    end
    redis.call('DEL', KEYS[3])
    for i = 1, #own, 1000 do redis.call('RPUSH', KEYS[3], unpack(own, i, math.min(i + 999, #own))) end
    if own[1] then redis.call('PEXPIRE', KEYS[3], 604800000) end
    if #own >= tonumber(ARGV[5]) then return -2 end
  end
  if redis.call('RPUSH', KEYS[3], ARGV[1]) == 1 then redis.call('PEXPIRE', KEYS[3], 604800000) end
end

-- Pushing last, as the caller takes an error for "not pushed". A count too many does no harm. What is new gets its
-- expiry here; what is there already, from every gateway's tick.
if redis.call('HINCRBY', KEYS[2], 'pushed', 1) == 1 then redis.call('PEXPIRE', KEYS[2], 604800000) end
redis.call(ARGV[3] == 'head' and 'LPUSH' or 'RPUSH', KEYS[1], ARGV[1])
if depth == 0 then redis.pcall('PEXPIRE', KEYS[1], 604800000) end
return depth + 1
