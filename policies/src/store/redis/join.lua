-- A gateway has connected. ARGV[1] is the generation that it knew last.
-- ARGV[6..]: the server's run id, lease age (us), the most of its own calls that it saw done, the end of a new
-- generation's name, and the names of the gateways that it knows of
-- Returns: generation, number of the connection, phase, whether its ledger is to be counted.

local run, age, seen, fresh = ARGV[6], tonumber(ARGV[7]), tonumber(ARGV[8]), ARGV[9]
local now = now_us()
local state = call('HMGET', STATE, 'gen', 'run', 'phase')
local generation, phase = state[1], state[3]
local ends = format('%.0f', now + age)

-- Generations are numbered, so that a server that went back to an old one is found out.
local function number(name) return tonumber(string.match(name or '', '^%d+') or '0') end

local function start()
  generation, phase = format('%d-%s', math.max(number(generation), number(GEN)) + 1, fresh), 'restoring'
  call('DEL', STATE)
  call('HSET', STATE, 'gen', generation, 'run', run, 'phase', phase, 'until', ends, 'marks', '1')
end

if not generation then
  start()
else
  local mine = P .. ':' .. generation .. ':n:' .. NAME
  local done_calls = tonumber(call('HGET', mine, 'seq') or '0')
  if number(generation) < number(GEN) or generation == GEN and done_calls < seen then
    -- The server has forgotten some of what it said was done.
    start()
  elseif state[2] ~= run then
    -- It was started anew, and may have forgotten what another gateway was told: everybody has to say so first.
    call('HSET', STATE, 'run', run, 'until', ends)
    if phase ~= 'restoring' then
      phase = 'checking'
      call('HSET', STATE, 'phase', phase)
      local data = P .. ':' .. generation .. ':'
      call('DEL', data .. 'asked', data .. 'answered')
      for _, member in ipairs(call('ZRANGEBYSCORE', data .. 'alive', '(0', '+inf')) do
        call('SADD', data .. 'asked', (string.match(member, '^(.*)@')))
      end
    end
  end
end

D = P .. ':' .. generation .. ':'
ME = D .. 'n:' .. NAME
local before = call('HGET', ME, 'boot')
if before and before ~= BOOT then
  -- The process that had this name is gone for good: the next to look may charge what it held.
  local member = NAME .. '@' .. before
  if call('EXISTS', D .. 'h:' .. member) == 1 then
    call('ZADD', D .. 'alive', 0, member)
    call('HSET', D .. 'suspects', member, 0)
  else
    call('ZREM', D .. 'alive', member)
  end
end
call('HSET', ME, 'boot', BOOT)
call('HDEL', ME, 'dead')
local conn = call('HINCRBY', ME, 'conn', 1)
call('ZADD', D .. 'alive', ends, MEMBER)
call('HDEL', D .. 'suspects', MEMBER)
local restored = call('HGET', ME, 'restored')

if phase == 'restoring' then
  call('SADD', D .. 'expected', NAME, unpack(ARGV, 10))
elseif phase == 'checking' then
  call('SADD', D .. 'asked', NAME, unpack(ARGV, 10))
  call('SADD', D .. 'answered', NAME)
  if #call('SDIFF', D .. 'asked', D .. 'answered') == 0 then
    phase = 'live'
    call('HSET', STATE, 'phase', phase)
  end
end
return { 'ok', call('HGET', ME, 'seq') or '0', call('HGET', STATE, 'marks') or '0', generation, tostring(conn), phase, restored and '1' or '0' }
