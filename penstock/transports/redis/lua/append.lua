#!lua flags=allow-oom
-- append: the careful form of emit, for frames whose XADD was refused: one sequence's frames, in order, appended and
-- published unless they are there already. Works when memory is out. Never makes a log.
-- KEYS  1 {inference:response:<id>}:log
-- ARGV  1 request id   2 attempt   3… for each frame: tokens before it, tokens after it, the frame
-- Returns "ok" | "fenced" (a higher attempt has written) | "gone" (no log) | "gap" (tokens before a frame are missing)
for i = 3, #ARGV, 3 do
  local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
  if not last then return 'gone' end
  local written, tokens = string.match(last[1], '^(%d+)-(%d+)$')
  if tonumber(written) > tonumber(ARGV[2]) then return 'fenced' end
  if tonumber(tokens) < tonumber(ARGV[i]) then return 'gap' end
  if tonumber(written) < tonumber(ARGV[2]) or tonumber(tokens) < tonumber(ARGV[i + 1]) then
    redis.call('XADD', KEYS[1], 'NOMKSTREAM', ARGV[2] .. '-' .. ARGV[i + 1], 'f', ARGV[i + 2])
    redis.call('PUBLISH', 'inference:response:' .. ARGV[1], ARGV[i + 2])
  end
end
return 'ok'
