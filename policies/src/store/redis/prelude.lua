-- What every script begins with: exact integers, who calls, and counters.
--
-- KEYS[1]: the prefix of all keys, one hash slot
-- ARGV[1..5]: generation, gateway's name, its boot, number of its connection, microseconds since 1970 ('' for the
-- server's own time)

local call, sub, format, byte = redis.call, string.sub, string.format, string.byte
local P, GEN, NAME, BOOT = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local STATE = P .. ':state'
local D = P .. ':' .. GEN .. ':'
local ME = D .. 'n:' .. NAME
local MEMBER = NAME .. '@' .. BOOT
-- How long counters outlive their window, and tombstones their lease, in milliseconds.
local KEPT, TOMB = 7200000, 60000

-- Amounts are two doubles, each of a whole number: billions, and what is left, from 0 to 999,999,999. A double alone
-- would round amounts of more than nine million dollars.
local BASE = 1e9
local ZERO = { 0, 0 }

local function int(text)
  if not text then return ZERO end
  local negative = byte(text, 1) == 45
  local digits = negative and sub(text, 2) or text
  local high, low
  if #digits <= 9 then
    high, low = 0, tonumber(digits)
  else
    high, low = tonumber(sub(digits, 1, -10)), tonumber(sub(digits, -9))
  end
  if negative then
    if low == 0 then high = 0 - high else high, low = -1 - high, BASE - low end
  end
  return { high, low }
end

local function text(a)
  local high, low, sign = a[1], a[2], ''
  if high < 0 then
    sign = '-'
    if low == 0 then high = 0 - high else high, low = -1 - high, BASE - low end
  end
  if high == 0 then return sign .. format('%.0f', low) end
  return sign .. format('%.0f%09.0f', high, low)
end

local function add(a, b)
  local high, low = a[1] + b[1], a[2] + b[2]
  if low >= BASE then return { high + 1, low - BASE } end
  return { high, low }
end

local function less(a, b) return a[1] < b[1] or (a[1] == b[1] and a[2] < b[2]) end

local function take_off(a, b)
  local high, low = a[1] - b[1], a[2] - b[2]
  if low < 0 then return { high - 1, low + BASE } end
  return { high, low }
end

local function max(a, b) if less(a, b) then return b end return a end
local function min(a, b) if less(b, a) then return b end return a end

-- Times fit in a double: microseconds of the next 200 years.
local function now_us()
  if ARGV[5] ~= '' then return tonumber(ARGV[5]) end
  local time = call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

-- Whether some gateways have not come back since the server forgot.
local incomplete = false

-- Why the caller may not do what it asks, or nothing. `fresh`: whether it may before its ledger was counted.
local function refuse(fresh)
  local state = call('HMGET', STATE, 'gen', 'incomplete')
  incomplete = state[2] == '1'
  if state[1] ~= GEN then return { 'lost', 'generation' } end
  local me = call('HMGET', ME, 'boot', 'conn', 'dead', 'restored')
  if not me[1] then return { 'lost', 'generation' } end
  if me[1] ~= BOOT then return { 'replaced' } end
  if me[2] ~= ARGV[4] then return { 'fenced' } end
  if me[3] == BOOT then return { 'dead' } end
  if not me[4] and not fresh then return { 'lost', 'ledger' } end
end

-- Nothing new is leased while it is not certain that all counters are whole.
local function unsure()
  local state = call('HMGET', STATE, 'phase', 'until')
  if state[1] == 'live' then return end
  if now_us() < tonumber(state[2]) then return { 'wait' } end
  incomplete = incomplete or state[1] == 'restoring'
  call('HSET', STATE, 'phase', 'live', 'incomplete', incomplete and '1' or '0')
end

-- Counts the calls that changed something: a caller that knows of more of them than the server has found the server's
-- memory rolled back. Second, how often marks changed.
local function done(...)
  return { 'ok', tostring(call('HINCRBY', ME, 'seq', 1)), call('HGET', STATE, 'marks') or '0', ... }
end

local function ledger_of(key) return D .. 'c:' .. key end

-- A counter's hash: `sum` settled, `leased`, `absent` what gateways that have not come back are known to have settled,
-- as long as there are such, `base` and `floor` from which that is reckoned; of a rolling window also `first` and `last` slot and `s…` what was
-- settled in each; `g:…` whose ledgers it holds.
local function read(key)
  local found = call('HMGET', ledger_of(key), 'sum', 'leased', 'absent')
  return { sum = int(found[1]), leased = int(found[2]), absent = incomplete and int(found[3]) or ZERO, is = found[1] or found[2] }
end

local function settled(counter) return add(counter.sum, counter.absent) end

-- Forgets what a rolling window has left behind.
local function roll(key, now, length, slot)
  if length == '' then return end
  length, slot = tonumber(length), tonumber(slot)
  local c = ledger_of(key)
  local found = call('HMGET', c, 'first', 'last', 'sum')
  local first, last = tonumber(found[1] or ''), tonumber(found[2] or '')
  if not first or first + slot > now - length then return end
  local sum, gone = int(found[3]), {}
  while first <= last and first + slot <= now - length do
    local field = 's' .. format('%.0f', first)
    local passed = call('HGET', c, field)
    if passed then
      sum, gone[#gone + 1] = take_off(sum, int(passed)), field
    end
    first = first + slot
  end
  for _, field in ipairs(gone) do call('HDEL', c, field) end
  if first > last then
    call('HDEL', c, 'first', 'last')
  else
    call('HSET', c, 'first', format('%.0f', first))
  end
  call('HSET', c, 'sum', text(sum))
end

-- Counts `amount` as settled, of what was admitted then.
local function charge(key, counter, amount, admitted, now, length, slot)
  if length ~= '' then
    length, slot = tonumber(length), tonumber(slot)
    local start = admitted - admitted % slot
    if start + slot <= now - length then return end
    local c, field = ledger_of(key), 's' .. format('%.0f', start)
    local found = call('HMGET', c, field, 'first', 'last')
    call('HSET', c, field, text(add(int(found[1]), amount)))
    local first, last = tonumber(found[2] or ''), tonumber(found[3] or '')
    if not first or start < first then call('HSET', c, 'first', format('%.0f', start)) end
    if not last or start > last then call('HSET', c, 'last', format('%.0f', start)) end
  end
  counter.sum = add(counter.sum, amount)
end

local function write(key, counter)
  call('HSET', ledger_of(key), 'sum', text(counter.sum), 'leased', text(counter.leased), 'g:' .. NAME, '1')
end

-- Keeps a counter until its window's end and a while longer, and while leases in it grow. `ends`: milliseconds since
-- 1970, '' for never.
local function keep(key, ends, now)
  if ends == '' then return end
  local left = math.max(tonumber(ends) - math.floor(now / 1000), 0) + KEPT
  call('PEXPIRE', ledger_of(key), format('%.0f', left))
end

-- A lease: state ('open' or 'unknown'), who holds it (or who charged it), step, time of admission, memo, then for each
-- counter its key, what is held (or was charged), and of rolling windows length and slot.
local HEAD, EACH = 5, 4

local function lease_key(id) return D .. 'l:' .. id end

local function lease(id)
  local found = call('GET', lease_key(id))
  if not found then return nil end
  if found == 'closed' then return { 'closed' } end
  return cmsgpack.unpack(found)
end
