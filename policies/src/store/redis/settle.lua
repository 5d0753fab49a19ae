-- Ends a lease and counts its cost; or corrects what was charged for it when its gateway was taken for dead.
-- Returns who had charged it, if somebody had, and for each counter what was held, settled and leased.
-- ARGV[6..]: lease, now; then for each of its counters the cost, 0 when left out

local id, now = ARGV[6], tonumber(ARGV[7])
local no = refuse()
if no then return no end
local held = lease(id)
if not held then return { 'gone' } end
if held[1] == 'closed' then return { 'closed' } end
local unknown = held[1] == 'unknown'

local reply = {}
for place = HEAD + 1, #held, EACH do
  local key, amount = held[place], int(held[place + 1])
  roll(key, now, held[place + 2], held[place + 3])
  local counter = read(key)
  -- A counter that is gone belonged to a window that ended long ago.
  if counter.is then
    local cost = int(ARGV[8 + (place - HEAD - 1) / EACH])
    if unknown then cost = take_off(cost, amount) else counter.leased = take_off(counter.leased, amount) end
    charge(key, counter, cost, tonumber(held[4]), now, held[place + 2], held[place + 3])
    write(key, counter)
  end
  for _, part in ipairs({ held[place + 1], text(settled(counter)), text(counter.leased) }) do reply[#reply + 1] = part end
end
-- A debt may be told again much later, by a gateway that got no answer.
call('SET', lease_key(id), 'closed', 'PX', held[5] == 'owed' and 604800000 or TOMB)
-- Its holder may be the process that had this gateway's name before.
if not unknown then call('SREM', D .. 'h:' .. held[2], id) end
return done(unknown and held[2] or '', unpack(reply))
