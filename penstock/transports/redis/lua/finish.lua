#!lua flags=allow-oom
-- finish: append and publish the terminal frame, and the state with it, if the job runs under this very attempt.
-- The entry has the highest number there is: nothing of this attempt can follow it, and a reader that asks for the
-- entries after any position finds it.
-- KEYS  1 {inference:response:<id>}:job   2 {inference:response:<id>}:log
-- ARGV  1 request id   2 attempt   3 tokens before the frame   4 the frame   5 when the first token came, ms (may be missing)
-- Returns "ok" (also when this attempt had ended it before) | "refused" | "gap" (tokens before the frame are missing)
local hash = redis.call('HMGET', KEYS[1], 'state', 'attempt', 'retention', 'first')
if hash[2] ~= ARGV[2] then return 'refused' end
if hash[1] == 'done' then return 'ok' end
if hash[1] ~= 'running' then return 'refused' end

local END, tokens, is_written = '18446744073709551615', '0', false
local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
if last then
  local written
  written, tokens = string.match(last[1], '^(%d+)-(%d+)$')
  if tonumber(written) > tonumber(ARGV[2]) then return 'refused' end -- a claim was cut off after its first command
  is_written = tokens == END and written == ARGV[2] -- so was an earlier call of this
end
if tonumber(tokens) < tonumber(ARGV[3]) then return 'gap' end

-- A long frame is also kept without its tokens, so that a list need not read it whole. JSON has no bare quote inside a
-- text: the match is at the start of a field.
local bare
if #ARGV[4] > 4096 then
  local from = string.find(ARGV[4], ',"tokens":[', 1, true)
  local to = string.find(ARGV[4], '],"finish_reason":"', 1, true) or string.find(ARGV[4], '],"code":"', 1, true)
  if from and to and from < to then
    bare = string.sub(ARGV[4], 1, from - 1) .. string.sub(ARGV[4], to + 1)
  else
    local is_json, frame = pcall(cjson.decode, ARGV[4])
    if is_json and type(frame) == 'table' then
      frame['tokens'] = nil
      bare = cjson.encode(frame)
    end
  end
end

-- The log first, as it is the truth: what is refused after it is done by a repetition, or by the next claim.
-- Publishing last: it may fail, and costs a delay then.
local t = redis.call('TIME')
if not is_written then redis.call('XADD', KEYS[2], ARGV[2] .. '-' .. END, 'f', ARGV[4]) end
local life = hash[3] or ''
if #life > 15 or not string.find(life, '^[1-9]%d*$') then life = '60000' end -- PEXPIRE would fail, or delete at once
redis.call('PEXPIRE', KEYS[2], life)
redis.call('PEXPIRE', KEYS[1], life)
local changed = {'state', 'done', 'ended', t[1] .. string.format('%03d', math.floor(t[2] / 1000))}
if not hash[4] and tonumber(ARGV[5] or 0) > 0 then changed[5], changed[6] = 'first', ARGV[5] end
if bare then
  changed[#changed + 1] = 'end'
  changed[#changed + 1] = bare
end
redis.call('HSET', KEYS[1], unpack(changed))
redis.pcall('PUBLISH', 'inference:response:' .. ARGV[1], ARGV[4])
return 'ok'
