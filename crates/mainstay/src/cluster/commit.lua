-- Writes what changed in a session, in one step. A commit is numbered within its claim, so that a duplicate changes nothing.
--
-- KEYS: the session (hash), its messages (list)
-- ARGV: 1 claim, 2 owner, 3 number of the commit, 4 '1' if it has the whole session, 5 number of the message before the first,
--       6 acknowledged, 7 milliseconds to keep it, 8 '1' if it has no owner afterwards, 9 incarnation of the engine,
--       10 what is saved or '' if that did not change, 11 count of the head's pieces, then the pieces, then the messages
-- Answer: stored; fenced, owner: another claim has it; behind: the engine lacks what came before, send the whole
local CHUNK = 1000 -- Lua's stack holds 8,000 values
local function each(command, key, values, from)
  for i = from, #values, CHUNK do
    redis.call(command, key, unpack(values, i, math.min(i + CHUNK - 1, #values)))
  end
end

local claim, owner, number, base = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[5])
local pieces = tonumber(ARGV[11])
local known = redis.call('HMGET', KEYS[1], 'c', 'o', 'n', 'b')
local known_claim, known_number = tonumber(known[1] or 0), tonumber(known[3] or 0)
if known_claim > claim or (known_claim == claim and known[2] ~= owner) then return {'fenced', known[2]} end
if known_claim == claim and number <= known_number then return {'stored'} end -- a duplicate
if ARGV[4] == '1' then
  -- Not a DEL of nothing: after a first write an engine whose memory is full refuses no other.
  if redis.call('EXISTS', KEYS[1], KEYS[2]) > 0 then redis.call('DEL', KEYS[1], KEYS[2]) end
elseif known_claim < claim or number > known_number + 1 then return {'behind'}
elseif base > tonumber(known[4]) then redis.call('LTRIM', KEYS[2], base - known[4], -1) end
each('RPUSH', KEYS[2], ARGV, 12 + pieces)
local fields = {'c', claim, 'o', ARGV[8] == '1' and '' or owner, 'n', number, 'b', base, 'r', ARGV[6], 'i', ARGV[9],
                'l', redis.call('LLEN', KEYS[2])}
if ARGV[10] ~= '' then fields[#fields + 1] = 's'; fields[#fields + 1] = ARGV[10] end
for piece = 1, pieces do fields[#fields + 1] = 'h' .. piece; fields[#fields + 1] = ARGV[11 + piece] end
each('HSET', KEYS[1], fields, 1)
redis.call('PEXPIRE', KEYS[1], ARGV[7])
redis.call('PEXPIRE', KEYS[2], ARGV[7])
return {'stored'}
