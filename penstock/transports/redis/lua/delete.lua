#!lua flags=allow-oom
-- delete: leave nothing of an ended job but that it has ended, for as long as it would have been kept: a gateway that
-- remembers it must not give it back. Reads and lists treat it as gone. The caller takes it out of the books afterwards.
-- KEYS  1 {inference:response:<id>}:job   2 {inference:response:<id>}:log
-- Returns 1, also when it had been deleted before; 0 if it has not ended, or is gone.
if redis.call('HGET', KEYS[1], 'state') ~= 'done' then return 0 end
redis.call('HSET', KEYS[1], 'deleted', 1, 'job', '', 'about', '', 'end', '')
redis.call('UNLINK', KEYS[2])
return 1
