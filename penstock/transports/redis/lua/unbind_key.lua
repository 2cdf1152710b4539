#!lua flags=allow-oom
-- unbind_key: free an idempotency key whose request was never admitted, unless it names another request by now.
-- KEYS  1 inference:once:<caller>:<hash>
-- ARGV  1 request id
-- Returns 1 when it was freed, else 0.
local bound = redis.call('GET', KEYS[1])
if bound and string.match(bound, '^[^ ]+') == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
