-- Leases all amounts, or none.
-- ARGV[6..]: lease, now, memo, how many marks stop it, the marks; then for each counter: key, limit, least, most, end of
-- its window (ms), length and slot of a rolling window (us)

local id, now, memo, marks = ARGV[6], tonumber(ARGV[7]), ARGV[8], tonumber(ARGV[9])
local no = refuse() or unsure()
if no then return no end

local known = lease(id)
if known then
  if known[1] ~= 'open' then return { 'closed' } end
  local reply = {}
  for at = HEAD + 1, #known, EACH do
    local counter = read(known[at])
    for _, part in ipairs({ known[at + 1], text(settled(counter)), text(counter.leased) }) do reply[#reply + 1] = part end
  end
  return done(unpack(reply))
end

for at = 10, 9 + marks do
  local reason = call('HGET', D .. 'marks', ARGV[at])
  if reason then return { 'stopped', ARGV[at], reason } end
end

local counters, reply, short = {}, {}, false
for at = 10 + marks, #ARGV, 7 do
  local key = ARGV[at]
  roll(key, now, ARGV[at + 5], ARGV[at + 6])
  local counter = read(key)
  local room = max(take_off(int(ARGV[at + 1]), add(settled(counter), counter.leased)), ZERO)
  short = short or less(room, int(ARGV[at + 2]))
  counter.granted = min(int(ARGV[at + 3]), room)
  counter.at = at
  counters[#counters + 1] = counter
end
if short then
  for _, counter in ipairs(counters) do
    for _, part in ipairs({ '0', text(settled(counter)), text(counter.leased) }) do reply[#reply + 1] = part end
  end
  return { 'refused', unpack(reply) }
end

local record = { 'open', MEMBER, 0, ARGV[7], memo }
for _, counter in ipairs(counters) do
  local at = counter.at
  counter.leased = add(counter.leased, counter.granted)
  write(ARGV[at], counter)
  keep(ARGV[at], ARGV[at + 4], now)
  for _, part in ipairs({ ARGV[at], text(counter.granted), ARGV[at + 5], ARGV[at + 6] }) do record[#record + 1] = part end
  for _, part in ipairs({ text(counter.granted), text(settled(counter)), text(counter.leased) }) do reply[#reply + 1] = part end
end
call('SET', lease_key(id), cmsgpack.pack(record))
call('SADD', D .. 'h:' .. MEMBER, id)
return done(unpack(reply))
