#!lua
-- charge: count a request, or several, against a limit (GCRA), on Redis' clock, shared by every gateway. Refused ones cost nothing.
-- A negative number gives back what was counted, and is never refused; it leaves no more than a whole burst.
-- The key holds the theoretical arrival time, in microseconds since 1.7e9 s (so that a double keeps fractions of one).
-- KEYS  1 inference:rate:{<key>}
-- ARGV  1 requests a minute   2 burst   3 as how many it counts, all or none of them (may be missing: 1)
-- Returns {1 or 0, remaining, us until the full burst is there again, us until the next is allowed}
local t = redis.call('TIME')
local now = (t[1] - 1700000000) * 1000000 + t[2]
local interval = 60000000 / ARGV[1]
local window = interval * ARGV[2]
local held = redis.pcall('GET', KEYS[1])
if type(held) == 'table' and not string.find(held.err, 'WRONGTYPE', 1, true) then return held end
local arrival = type(held) == 'string' and tonumber(held) or 0
-- No request moves it further than this. What is beyond, or not a number, was not written here, and counts for nothing.
if not (arrival <= now + 2 * window) then arrival = 0 end
arrival = math.max(arrival, now)
local cost = interval * (ARGV[3] or 1)
local early = arrival + cost - window - now
if early > 0.01 then return {0, 0, math.ceil(arrival - now), math.ceil(early)} end

arrival = math.max(arrival + cost, now)
local life = string.format('%.0f', math.max(1000, math.ceil(2 * window / 1000)))
redis.call('SET', KEYS[1], string.format('%.17g', arrival), 'PX', life)
return {1, math.floor((window - (arrival - now)) / interval + 1e-6), math.ceil(arrival - now), 0}
