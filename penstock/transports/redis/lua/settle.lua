#!lua flags=allow-oom
-- settle: claim returned that another worker runs this job. If that worker lives and its list holds the id, one copy is
-- removed from the caller's list: a duplicate steals nothing.
-- KEYS  1 {Q}:worker:<other>   2 {Q}:worker:<own>   3 {Q}:workers   4 {Q}:clock
-- ARGV  1 the other worker   2 request id   3 "lives" if the caller knows the reply 2 (may be missing)
-- Returns 1 if it was settled so; 0 if the caller may claim again, naming that worker; 2, where it is asked for, if it
--         may claim again and that worker is not known to be dead: it has only lost the id, so no death counts.
local GAP_MS = 1500
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local lease = tonumber(redis.call('ZSCORE', KEYS[3], ARGV[1]) or 0)
local clock = redis.call('HMGET', KEYS[4], 'pulse', 'amnesty')
-- A gap in the pulse of the whole pool is an amnesty that is not written yet.
local is_amnesty = now < (tonumber(clock[2] or 0) or 0) or not (now - (tonumber(clock[1] or 0) or 0) <= GAP_MS)
local is_live = lease > now or (lease > 0 and is_amnesty)
if not is_live or not redis.call('LPOS', KEYS[1], ARGV[2]) then
  local may_live = is_live or is_amnesty -- in an amnesty one that is unknown may live as well
  if lease % 1 ~= 0 then may_live = false end -- it has given its lease up, or its parent has, which saw it die
  return ARGV[3] == 'lives' and may_live and 2 or 0
end
redis.call('LREM', KEYS[2], 1, ARGV[2])
return 1
