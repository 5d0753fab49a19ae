-- Counts what the gateway's ledger says, where that has not been counted already.
-- ARGV[6..]: now, how many shares, leases and marks, whether it may be that there are gateways it does not know of ('1');
-- the shares: key, settled, most settled that was seen ('' unknown),
-- end (ms), length, slot, time of admission; the leases: id, time of admission, memo, step, how many counters, and
-- each: key, held, end, length, slot; the marks: field, reason

local now = tonumber(ARGV[6])
local no = refuse(true)
if no then return no end

-- A counter that holds this gateway's ledger already keeps it out; several shares of one counter belong together.
local closed = {}
local at = 11
for _ = 1, tonumber(ARGV[7]) do
  local key, share, seen, ends, length, slot = ARGV[at], int(ARGV[at + 1]), ARGV[at + 2], ARGV[at + 3], ARGV[at + 4], ARGV[at + 5]
  local c = ledger_of(key)
  if closed[key] == nil then closed[key] = call('HEXISTS', c, 'g:' .. NAME) == 1 end
  if not closed[key] then
    roll(key, now, length, slot)
    local counter = read(key)
    charge(key, counter, share, tonumber(ARGV[at + 6]), now, length, slot)
    write(key, counter)
    if length == '' then
      local found = call('HMGET', c, 'base', 'floor')
      local base, floor = add(int(found[1]), share), int(found[2])
      if seen ~= '' then floor = max(floor, int(seen)) end
      call('HSET', c, 'base', text(base), 'floor', text(floor), 'absent', text(max(take_off(floor, base), ZERO)))
    end
    keep(key, ends, now)
  end
  at = at + 7
end

-- Leases once only: a list that comes late names some that have ended since.
local again = call('HEXISTS', ME, 'restored') == 1
for _ = 1, tonumber(ARGV[8]) do
  local id, counters = ARGV[at], tonumber(ARGV[at + 4])
  local known = again or call('EXISTS', lease_key(id)) == 1
  local record = { 'open', MEMBER, tonumber(ARGV[at + 3]), ARGV[at + 1], ARGV[at + 2] }
  at = at + 5
  for _ = 1, counters do
    local key, held = ARGV[at], ARGV[at + 1]
    if not known then
      local counter = read(key)
      counter.leased = add(counter.leased, int(held))
      write(key, counter)
      keep(key, ARGV[at + 2], now)
      for _, part in ipairs({ key, held, ARGV[at + 3], ARGV[at + 4] }) do record[#record + 1] = part end
    end
    at = at + 5
  end
  if not known then
    call('SET', lease_key(id), cmsgpack.pack(record))
    call('SADD', D .. 'h:' .. MEMBER, id)
  end
end

for _ = 1, tonumber(ARGV[9]) do
  if call('HSETNX', D .. 'marks', ARGV[at], ARGV[at + 1]) == 1 then call('HINCRBY', STATE, 'marks', 1) end
  at = at + 2
end

call('HSET', ME, 'restored', '1')
call('SADD', D .. 'there', NAME)
local phase = call('HGET', STATE, 'phase')
-- Nobody has this name: then time alone ends the waiting.
if phase == 'restoring' and ARGV[10] == '1' then call('SADD', D .. 'expected', '') end
if #call('SDIFF', D .. 'expected', D .. 'there') == 0 then
  incomplete = false
  if phase == 'restoring' then phase = 'live' end
  call('HSET', STATE, 'phase', phase, 'incomplete', '0')
end
return done(phase)
