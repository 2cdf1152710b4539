#!lua flags=allow-oom
-- hand_back: the second half of a hand-back: ids that this worker's list still holds go to the head of the queue,
-- the oldest first. Safe to repeat: what has left the list is not pushed again.
-- KEYS  1 Q   2 {Q}:worker:<wid>   3 {Q}:clock
-- ARGV  1… request ids
-- Returns how many were moved.
if not redis.acl_check_cmd('LREM', KEYS[2], 0, '') then -- asked first: each repetition would push them again
  return redis.error_reply('NOPERM hand_back was refused LREM')
end
local wanted, moved = {}, 0
for _, id in ipairs(ARGV) do wanted[id] = true end
local held = redis.call('LRANGE', KEYS[2], 0, -1)
for i = #held, 1, -1 do
  if wanted[held[i]] then
    wanted[held[i]] = nil
    redis.call('LPUSH', KEYS[1], held[i])
    redis.call('LREM', KEYS[2], 0, held[i])
    moved = moved + 1
  end
end
if moved > 0 then
  redis.pcall('HINCRBY', KEYS[3], 'pushed', moved)
  redis.pcall('PEXPIRE', KEYS[1], 604800000)
  redis.pcall('PEXPIRE', KEYS[3], 604800000)
end
return moved
