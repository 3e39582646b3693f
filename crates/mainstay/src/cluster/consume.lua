-- Empties the record of a session that its owner has claimed and needs no more. Who has it stays, and so do the names, so that a
-- HELLO with an old token is led to the owner; no node gets the record again.
--
-- KEYS: the session (hash), its messages (list)
-- ARGV: 1 claim, 2 owner
-- Answer: stored; fenced, owner: another claim has it
local known = redis.call('HMGET', KEYS[1], 'c', 'o')
if tonumber(known[1] or 0) ~= tonumber(ARGV[1]) or known[2] ~= ARGV[2] then return {'fenced', known[2] or ''} end
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  if field == 's' or (string.sub(field, 1, 1) == 'h' and field ~= 'h1') then redis.call('HDEL', KEYS[1], field) end
end
redis.call('HSET', KEYS[1], 'l', 0, 'd', 1)
redis.call('DEL', KEYS[2])
return {'stored'}
