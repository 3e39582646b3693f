-- Empties the record of a session that its owner has claimed and needs no more. The owner and the names stay, so that a HELLO with
-- an old token is led to the owner; no node gets the record again.
--
-- KEYS: the session (hash), its messages (list)
-- ARGV: 1 claim, 2 owner
-- Answer: stored; fenced, owner: another claim has it. A repeated request changes nothing more.
local known = redis.call('HMGET', KEYS[1], 'c', 'o', 'n', 'h1')
if tonumber(known[1] or 0) ~= tonumber(ARGV[1]) or known[2] ~= ARGV[2] then return {'fenced', known[2] or ''} end
local left = redis.call('PTTL', KEYS[1])
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('HSET', KEYS[1], 'c', known[1], 'o', known[2], 'n', known[3], 'h1', known[4], 'l', 0, 'd', 1)
redis.call('PEXPIRE', KEYS[1], left)
return {'stored'}
