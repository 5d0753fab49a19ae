-- The charges that this gateway has to record. ARGV[6..]: those that it has recorded since. Returns JSON.

local no = refuse(true)
if no then return no end
local mine = D .. 'unknown:' .. NAME
for at = 6, #ARGV do call('HDEL', mine, ARGV[at]) end
local list = {}
local all = call('HGETALL', mine)
for at = 1, math.min(#all, 2000), 2 do
  local held = cmsgpack.unpack(all[at + 1])
  local counters = {}
  for place = HEAD + 1, #held, EACH do counters[#counters + 1] = { held[place], held[place + 1] } end
  list[#list + 1] = {
    lease = all[at],
    gateway = (string.match(held[2], '^(.*)@')),
    admitted = held[4],
    memo = held[5],
    charged = counters,
  }
end
return done(#list == 0 and '[]' or cjson.encode(list))
