#!lua flags=no-writes,allow-oom
-- read_summary: what a list shows of a request: small fields only, never the job, the prompt or the answer.
-- KEYS  1 {inference:response:<id>}:job   2 {inference:response:<id>}:log
-- Returns {} if the job does not exist, was deleted or cannot be read, else {model, what lists show of it (JSON), state, worker, claims, deaths, created,
--         deadline, started, first, ended, now (ms; what is nothing yet is nil), tokens in the log (0 at the end), the
--         terminal frame without its tokens, "" while there is none}
local hash = redis.pcall('HMGET', KEYS[1], 'model', 'about', 'state', 'worker', 'claims', 'all_deaths', 'created',
  'deadline', 'started', 'first', 'ended', 'end', 'deleted')
if hash.err and not string.find(hash.err, 'WRONGTYPE', 1, true) then return hash end
if hash.err or not hash[3] or hash[13] then return {} end
local t = redis.call('TIME')
local tokens, last = 0, hash[12] or ''
hash[12] = string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000))
if last == '' and hash[3] ~= 'queued' then
  local entry = redis.pcall('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1]
  if hash[3] == 'running' and entry then
    tokens = string.match(entry[1], '-(%d+)$')
  elseif entry and #entry[2][2] <= 4096 then -- of a longer one `finish` has stored a copy without its tokens
    last = entry[2][2]
  end
end
hash[13], hash[14] = tokens, last
return hash
