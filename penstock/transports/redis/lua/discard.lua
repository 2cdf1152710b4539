#!lua flags=allow-oom
-- discard: leave nothing of a job that the queue had no room for. A job that a worker has claimed is left alone.
-- KEYS  1 {inference:response:<id>}:job   2 {inference:response:<id>}:log
-- Returns 1 if it was removed or there is none, 0 if it is running or done.
local state = redis.call('HGET', KEYS[1], 'state')
if state and state ~= 'queued' then return 0 end
redis.call('UNLINK', KEYS[1], KEYS[2])
return 1
