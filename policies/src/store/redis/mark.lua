-- Sets marks, or removes them. ARGV[6..]: field, reason ('' removes it). Returns whether anything changed.

local no = refuse()
if no then return no end
local field, reason = ARGV[6], ARGV[7]
local marks, changed = D .. 'marks', false
if reason == '' then
  changed = call('HDEL', marks, field) == 1
else
  changed = call('HGET', marks, field) ~= reason
  if changed then call('HSET', marks, field, reason) end
end
if changed then call('HINCRBY', STATE, 'marks', 1) end
return done(changed and '1' or '0')
