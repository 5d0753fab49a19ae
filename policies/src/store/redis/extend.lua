-- Changes what a lease holds, in all of its counters or in none.
-- ARGV[6..]: lease, step, now; then for each of its counters: key, limit, least and most in all, end of its window (ms)

local id, step, now = ARGV[6], tonumber(ARGV[7]), tonumber(ARGV[8])
local no = refuse()
if no then return no end
local held = lease(id)
if not held then return { 'gone' } end
if held[1] ~= 'open' then return { held[1] } end

local counters, reply, short, grows = {}, {}, false, false
local done_before = step <= held[3]
for at = 9, #ARGV, 5 do
  local place = HEAD + 1 + (at - 9) / 5 * EACH
  if held[place] ~= ARGV[at] then return { 'mismatch' } end
  roll(ARGV[at], now, held[place + 2], held[place + 3])
  local counter = read(ARGV[at])
  local mine = int(held[place + 1])
  counter.at, counter.place, counter.mine = at, place, mine
  if not done_before then
    -- What needs no more than is held fits however deep in the red the budget is.
    local room = add(max(take_off(int(ARGV[at + 1]), add(settled(counter), counter.leased)), ZERO), mine)
    short = short or less(room, int(ARGV[at + 2]))
    counter.granted = min(int(ARGV[at + 3]), room)
    grows = grows or less(mine, counter.granted)
  else
    counter.granted = mine
  end
  counters[#counters + 1] = counter
end
no = grows and unsure()
if no then return no end
if short then
  for _, counter in ipairs(counters) do
    for _, part in ipairs({ text(counter.mine), text(settled(counter)), text(counter.leased) }) do reply[#reply + 1] = part end
  end
  return { 'refused', unpack(reply) }
end
for _, counter in ipairs(counters) do
  if not done_before then
    counter.leased = add(counter.leased, take_off(counter.granted, counter.mine))
    write(ARGV[counter.at], counter)
    keep(ARGV[counter.at], ARGV[counter.at + 4], now)
    held[counter.place + 1] = text(counter.granted)
  end
  for _, part in ipairs({ text(counter.granted), text(settled(counter)), text(counter.leased) }) do reply[#reply + 1] = part end
end
if not done_before then
  held[3] = step
  call('SET', lease_key(id), cmsgpack.pack(held))
end
return done(unpack(reply))
