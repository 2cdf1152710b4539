#!lua flags=allow-oom
-- append: the one rule by which frames are written: one job's frames, in order, appended and published if the log ends
-- where the first of them begins, unless they are there already. Works when memory is out. Never makes a log. A frame
-- whose publication is refused is in the log, where readers find it a little later. A pipeline of XADD and PUBLISH is
-- the faster way for a job's further frames on one connection; what is refused there comes here.
-- KEYS  1 {inference:response:<id>}:log
-- ARGV  1 request id   2 attempt   3… for each frame: tokens before it, tokens after it, the frame
-- Returns "ok" | "fenced" (a higher attempt has written, or it has ended) | "gone" (no log) | "gap" (tokens before a frame are missing)
for i = 3, #ARGV, 3 do
  local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
  if not last then return 'gone' end
  local written, tokens = string.match(last[1], '^(%d+)-(%d+)$')
  if tonumber(written) > tonumber(ARGV[2]) then return 'fenced' end
  local id = ARGV[2] .. '-' .. ARGV[i + 1]
  if tokens == '18446744073709551615' and written == ARGV[2] then -- ended: "ok" only if this frame is the end that is there already
    if #redis.call('XRANGE', KEYS[1], id, id) == 0 then return 'fenced' end
  elseif tonumber(tokens) < tonumber(ARGV[i]) then
    return 'gap'
  elseif tonumber(written) < tonumber(ARGV[2]) or tonumber(tokens) < tonumber(ARGV[i + 1]) then
    redis.call('XADD', KEYS[1], 'NOMKSTREAM', id, 'f', ARGV[i + 2])
    redis.pcall('PUBLISH', 'inference:response:' .. ARGV[1], ARGV[i + 2])
  end
end
return 'ok'
