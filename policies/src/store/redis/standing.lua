-- What counters say. ARGV[6..]: now; then for each: key, length, slot

local no = refuse(true)
if no then return no end
local now, reply = tonumber(ARGV[6]), {}
for at = 7, #ARGV, 3 do
  roll(ARGV[at], now, ARGV[at + 1], ARGV[at + 2])
  local counter = read(ARGV[at])
  for _, part in ipairs({ text(settled(counter)), text(counter.leased) }) do reply[#reply + 1] = part end
end
return done(unpack(reply))
