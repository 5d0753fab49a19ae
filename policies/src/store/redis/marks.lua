-- Returns all marks as JSON: field, reason, and so on.

local no = refuse(true)
if no then return no end
local all = call('HGETALL', D .. 'marks')
return done(#all == 0 and '[]' or cjson.encode(all))
