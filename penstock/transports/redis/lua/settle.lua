#!lua flags=allow-oom
-- settle: claim said that another worker runs this job. If that worker lives and its list holds the id, one copy is
-- removed from the caller's list: a duplicate steals nothing.
-- KEYS  1 {Q}:worker:<other>   2 {Q}:worker:<own>   3 {Q}:workers   4 {Q}:clock
-- ARGV  1 the other worker   2 request id
-- Returns 1 if it was settled so; 0 if the caller may claim again, naming that worker.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local lease = tonumber(redis.call('ZSCORE', KEYS[3], ARGV[1]) or 0)
local is_live = lease > now or (lease > 0 and now < (tonumber(redis.call('HGET', KEYS[4], 'amnesty') or 0) or 0))
if not is_live or not redis.call('LPOS', KEYS[1], ARGV[2]) then return 0 end
redis.call('LREM', KEYS[2], 1, ARGV[2])
return 1
