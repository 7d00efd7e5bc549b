-- admit: let one request in, or say why not, at all three levels or at none.
--
-- KEYS  1 key record  2 account record  3 organization record  4 holds
-- ARGV  1 digest of the token  2 amount to hold, microcredits  3 ms until the hold's deadline
--       4 head of the hold: request|key|account|organization|route
--       5 until when, by Redis's clock in ms, anybody waits for the answer; '' or absent: for ever
-- Returns the hold (a string, see records.py) when admitted, else one of
--   {'missing', level}                                   a record is not there: the caller asks whether Redis is loaded
--   {'late'}                                             nobody waits for the answer any more
--   {'digest'}                                           the record has another digest, or none yet
--   {'status', level, status} and {'expired', expires_at}
--   {'budget', level, limit, spent, held, resets_at}     resets_at 0: never
--
-- Why it is right: a script runs alone, so what it reads is what it writes against. Every refusal returns before the
-- first write, so a refused request leaves no trace, and no level is charged without the others. `spent + held` never
-- passes the limit here, because the sum with this hold is compared first. An absent limit is the empty string; 0 blocks.
-- A window is rolled by the first admission after its end. Time that steps back never re-opens an old window, since a
-- window is only replaced by one that starts later. A command that lay before a Redis which stood still is not carried
-- out when it goes on: its caller has been told no, and the hold would be nobody's until it expired. It does not promise
-- that holds of an ended window count in the new one: they belong to the window in which they were admitted (settle
-- leaves the new counters alone).

local clock = redis.call('TIME')
local now = clock[1] * 1000 + floor(clock[2] / 1000)
if ARGV[5] and ARGV[5] ~= '' and now > tonumber(ARGV[5]) then return {'late'} end
local amount = tonumber(ARGV[2])

local key = redis.call('HMGET', KEYS[1], 'status', 'limit', 'window', 'window_end', 'spent', 'held',
                       'digest', 'expires_at')
if not key[1] then return {'missing', 'key'} end
if key[7] ~= ARGV[1] then return {'digest'} end
local account = redis.call('HMGET', KEYS[2], 'status', 'limit', 'window', 'window_end', 'spent', 'held')
if not account[1] then return {'missing', 'account'} end
local organization = redis.call('HMGET', KEYS[3], 'status', 'limit', 'window', 'window_end', 'spent', 'held')
if not organization[1] then return {'missing', 'organization'} end

if key[1] ~= 'active' then return {'status', 'key', key[1]} end
if account[1] ~= 'active' then return {'status', 'account', account[1]} end
if organization[1] ~= 'active' then return {'status', 'organization', organization[1]} end
if key[8] and key[8] ~= '0' and now >= tonumber(key[8]) then return {'expired', tonumber(key[8])} end

-- Puts the level's current window, spent and held into level[3..6] as numbers; level.rolled says that it is a new one.
local function roll(name, level)
  local window, spent, held = tonumber(level[3] or 0), tonumber(level[5] or 0), tonumber(level[6] or 0)
  local rule = redis.call('HMGET', name, 'period', 'billing_day', 'since')
  local start, finish = window_at(rule[1], now, tonumber(rule[2] or 1), tonumber(rule[3] or 0))
  if start > window then window, spent, held = start, 0, 0 end
  level[3], level[4], level[5], level[6] = ('%d'):format(window), finish, spent, held
  level.rolled = true
end

local function lacks_room(level)
  if level[2] == '' or not level[2] then return false end
  local limit, used = tonumber(level[2]), level[5] + level[6]
  return used + amount > limit or used >= limit
end

local function budget_refusal(name, level)
  local window_end = tonumber(level[4])
  return {'budget', name, tonumber(level[2]), tonumber(level[5]), tonumber(level[6]),
          window_end == NEVER_ENDS and 0 or window_end}
end

if now >= tonumber(key[4] or 0) then roll(KEYS[1], key) end
if lacks_room(key) then return budget_refusal('key', key) end
if now >= tonumber(account[4] or 0) then roll(KEYS[2], account) end
if lacks_room(account) then return budget_refusal('account', account) end
if now >= tonumber(organization[4] or 0) then roll(KEYS[3], organization) end
if lacks_room(organization) then return budget_refusal('organization', organization) end

-- Everything is checked: only writes from here on. (%d takes what a double holds exactly; %.0f would be slower.)
local function hold_at(name, level)
  if level.rolled then
    redis.call('HSET', name, 'window', level[3], 'window_end', ('%d'):format(level[4]),
               'spent', ('%d'):format(level[5]), 'held', ('%d'):format(level[6] + amount))
  elseif amount > 0 then
    redis.call('HSET', name, 'held', ('%d'):format(level[6] + amount))
  end
end
hold_at(KEYS[1], key)
hold_at(KEYS[2], account)
hold_at(KEYS[3], organization)

local hold = ('%s|%s|%d|%s|%s|%s'):format(ARGV[4], ARGV[2], now, key[3], account[3], organization[3])
redis.call('ZADD', KEYS[4], now + ARGV[3], hold)
return hold
