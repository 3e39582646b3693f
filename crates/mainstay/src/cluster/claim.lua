-- Takes a session over if it has no owner, or the one that the claimant believes to be gone, in one step. What a node took
-- over and did not commit since is given to that node again, and to another only if that node states that it does not have it.
-- Otherwise it may have continued the session, or reported the account, and what stands here is old.
--
-- KEYS: the session (hash), its messages (list)
-- ARGV: 1 the owner that the claimant believes it has, 2 claimant, 3 name of the token that the client presented, 16 bytes,
--       4 milliseconds to keep it, 5 '1' if that owner states that it does not have the session
-- Answer: none: no such session, or a part of it was evicted, or the owner that is believed to be gone took it over; moved, owner;
--         yours, all fields, all messages. A repeated claim gets the same answer again.
local known = redis.call('HMGET', KEYS[1], 'c', 'o', 'h1', 'l', 'n')
local names = known[3]
if not names or (string.sub(names, 1, 16) ~= ARGV[3] and string.sub(names, 17, 32) ~= ARGV[3]) then return {'none'} end
if known[2] ~= ARGV[2] and known[2] ~= '' and known[2] ~= ARGV[1] then return {'moved', known[2]} end
if known[2] ~= ARGV[2] and known[2] ~= '' and tonumber(known[5]) == 0 and ARGV[5] ~= '1' then return {'none'} end
if redis.call('LLEN', KEYS[2]) ~= tonumber(known[4]) then return {'none'} end
if known[2] ~= ARGV[2] then
  redis.call('HSET', KEYS[1], 'c', known[1] + 1, 'o', ARGV[2], 'n', 0)
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
  redis.call('PEXPIRE', KEYS[2], ARGV[4])
end
return {'yours', redis.call('HGETALL', KEYS[1]), redis.call('LRANGE', KEYS[2], 0, -1)}
