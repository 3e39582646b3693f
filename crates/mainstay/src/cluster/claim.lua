-- Takes a session over if it has no owner, or the one that the claimant believes to be gone, in one step.
--
-- KEYS: the session (hash), its messages (list)
-- ARGV: 1 the owner that the claimant believes it has, 2 claimant, 3 name of the token that the client presented, 16 bytes,
--       4 milliseconds to keep it
-- Answer: none: no such session, or a part of it was evicted, or its owner has consumed it; moved, owner; yours, all fields, all
--         messages. A repeated claim gets the same answer again.
local known = redis.call('HMGET', KEYS[1], 'c', 'o', 'h1', 'l', 'd')
local names = known[3]
if not names or (string.sub(names, 1, 16) ~= ARGV[3] and string.sub(names, 17, 32) ~= ARGV[3]) then return {'none'} end
if known[2] ~= ARGV[2] and known[2] ~= '' and known[2] ~= ARGV[1] then return {'moved', known[2]} end
if known[5] or redis.call('LLEN', KEYS[2]) ~= tonumber(known[4]) then return {'none'} end
if known[2] ~= ARGV[2] then
  redis.call('HSET', KEYS[1], 'c', known[1] + 1, 'o', ARGV[2], 'n', 0)
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
  redis.call('PEXPIRE', KEYS[2], ARGV[4])
end
return {'yours', redis.call('HGETALL', KEYS[1]), redis.call('LRANGE', KEYS[2], 0, -1)}
