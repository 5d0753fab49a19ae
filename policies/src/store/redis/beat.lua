-- Says that the gateway lives.
-- ARGV[6]: lease age in us. Returns whether all counters are sure, and everybody's name.

local no = refuse(true)
if no then return no end
local now = now_us()
call('ZADD', D .. 'alive', format('%.0f', now + tonumber(ARGV[6])), MEMBER)
call('HDEL', D .. 'suspects', MEMBER)
unsure()
local names = {}
for _, member in ipairs(call('ZRANGE', D .. 'alive', 0, -1)) do names[#names + 1] = (string.match(member, '^(.*)@')) end
return done(call('HGET', STATE, 'phase'), unpack(names))
