-- Charges what gateways held that have died, in steps of a bounded size.
-- ARGV[6..]: microseconds between the first suspicion and death, most leases. Returns how many it charged.

local grace, most = tonumber(ARGV[6]), tonumber(ARGV[7])
local no = refuse()
if no then return no end
local now, count = now_us(), 0

local function lose(id)
  local held = lease(id)
  if not held or held[1] ~= 'open' then return end
  for place = HEAD + 1, #held, EACH do
    local key, amount = held[place], int(held[place + 1])
    local counter = read(key)
    if counter.is then
      counter.leased = take_off(counter.leased, amount)
      charge(key, counter, amount, tonumber(held[4]), now, held[place + 2], held[place + 3])
      call('HSET', ledger_of(key), 'sum', text(counter.sum), 'leased', text(counter.leased))
    end
  end
  local owner = held[2]
  held[1], held[2] = 'unknown', NAME
  -- Its gateway may come back and say what it cost, for a week.
  call('SET', lease_key(id), cmsgpack.pack(held), 'PX', 604800000)
  held[2] = owner
  call('HSET', D .. 'unknown:' .. NAME, id, cmsgpack.pack(held))
  count = count + 1
end

for _, member in ipairs(call('ZRANGEBYSCORE', D .. 'alive', '-inf', format('%.0f', now), 'LIMIT', 0, 16)) do
  -- A server that stood still finds everybody late: who lives says so before it is asked about a second time.
  local suspect = call('HGET', D .. 'suspects', member)
  if member == MEMBER then
    -- Who asks lives.
  elseif not suspect then
    call('HSET', D .. 'suspects', member, format('%.0f', now))
  elseif now - tonumber(suspect) >= grace then
    local name, boot = string.match(member, '^(.*)@(.*)$')
    local them = D .. 'n:' .. name
    if call('HGET', them, 'boot') == boot then call('HSET', them, 'dead', boot) end
    local leases = D .. 'h:' .. member
    while count < most do
      local id = call('SPOP', leases)
      if not id then break end
      lose(id)
    end
    if call('EXISTS', leases) == 0 then
      call('ZREM', D .. 'alive', member)
      call('HDEL', D .. 'suspects', member)
    end
  end
end
return done(tostring(count))
