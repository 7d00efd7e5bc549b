-- admit: let requests in, or say why not, each at all three levels or at none.
--
-- KEYS  1 holds, then for each request: key record, account record, organization record
-- ARGV  1 until when, by Redis's clock in ms, anybody waits for the answers; '': for ever  2 ms until the holds' deadline,
--       then for each request: digest of the token, amount to hold (microcredits), head of the hold:
--       request|key|account|organization|route
-- Returns a list with an answer for each request: the hold (a string, see records.py) when admitted, else one of
--   {'placed', hold}                                     admitted, and its place is one of a bounded number
--   {'observed', hold, level, what, …}                   admitted; these levels only observe, and would have refused: what is
--                                                        'budget', 'rate' or 'in_flight'
--   {'missing', level}                                   a record is not there: the caller asks whether Redis is loaded
--   {'broken', level}                                    what is there is no record
--   {'late'}                                             nobody waits for the answer any more
--   {'digest'}                                           the record has another digest, or none yet
--   {'status', level, status} and {'expired', expires_at}
--   {'rate', level, per_minute, burst, retry_after_ms} and {'in_flight', level, max, in_flight}
--   {'budget', level, limit, spent, held, resets_at}     resets_at 0: never
--
-- Why it is right: a script runs alone, so what it reads is what it writes against. Requests of a batch are judged one after
-- another, each against what those before it left in `records`, so a batch is no other than its requests sent one by one.
-- Everything is judged before the first write, and a request that is refused changes nothing in `records`: it leaves no
-- trace, burns no rate, and no level is charged without the others. `spent + held` never passes the limit of a level that
-- enforces it, because the sum with this hold is compared first. An absent limit is the empty string; 0 blocks.
-- A window is rolled by the first admission after its end. Time that steps back never re-opens an old window, since a
-- window is only replaced by one that starts later. Requests that lay before a Redis which stood still are not admitted
-- when it goes on: their callers have been told no, and the holds would be nobody's until they expired. It does not promise
-- that holds of an ended window count in the new one: they belong to the window in which they were admitted (settle
-- leaves the new counters alone). What is in flight knows no windows: it is the number of holds that name the record.
-- A rate is kept as the time at which the next request would be due if all came evenly (GCRA): one number, no list. One
-- that this pace cannot have made is an older pace's, or a clock's that was set back: then one request passes, and the burst is
-- used up by it, so nobody is locked out.

local clock = redis.call('TIME')
local now = clock[1] * 1000 + floor(clock[2] / 1000)
local now_us = clock[1] * 1000000 + clock[2]
local answers = {}
local count = (#ARGV - 2) / 3
if ARGV[1] ~= '' and now > tonumber(ARGV[1]) then
  for i = 1, count do answers[i] = {'late'} end
  return answers
end

-- Where the fields stand in what HMGET answers. The last two are the key's own, and the organization's.
local STATUS, LIMIT, WINDOW, WINDOW_END, SPENT, HELD, OBSERVES, OBSERVED = 1, 2, 3, 4, 5, 6, 7, 8
local IN_FLIGHT, MOST, RPM, BURST, TAT = 9, 10, 11, 12, 13
local DIGEST, EXPIRES_AT, GRANTS, LOST = 14, 15, 9, 10
local records, read = {}, {}

local function roll(record)
  local window = tonumber(record[WINDOW] or 0)
  local start, finish = window_of(redis.call('HMGET', record.name, 'period', 'billing_day', 'since'), now)
  if start > window then
    window, record[SPENT], record[HELD], record[OBSERVED] = start, 0, 0, 0
    if record.level == 'organization' then record[LOST] = 0 end
    record.is_new = true
  end
  record[WINDOW], record[WINDOW_END], record.is_rolled = ('%d'):format(window), finish, true
end

-- The record as the requests judged so far leave it; nil if there is none, false if what is there is no record.
local function record_of(level, name)
  local record = records[name]
  if record ~= nil then return record end
  if level == 'organization' then
    record = redis.pcall('HMGET', name, 'status', 'limit', 'window', 'window_end', 'spent', 'held', 'enforcement',
                         'observed', 'grants', 'lost')
  elseif level == 'key' then
    record = redis.pcall('HMGET', name, 'status', 'limit', 'window', 'window_end', 'spent', 'held', 'enforcement',
                         'observed', 'in_flight', 'in_flight_max', 'rpm', 'burst', 'tat', 'digest', 'expires_at')
  else
    record = redis.pcall('HMGET', name, 'status', 'limit', 'window', 'window_end', 'spent', 'held', 'enforcement',
                         'observed', 'in_flight', 'in_flight_max', 'rpm', 'burst', 'tat')
  end
  if record.err then
    records[name] = false
    return false
  end
  if not record[STATUS] then return nil end
  record.level, record.name = level, name
  record[LIMIT], record[WINDOW_END] = tonumber(record[LIMIT]), tonumber(record[WINDOW_END] or 0)
  record[SPENT], record[HELD] = tonumber(record[SPENT] or 0), tonumber(record[HELD] or 0)
  record[OBSERVES], record[OBSERVED] = record[OBSERVES] == 'observe', tonumber(record[OBSERVED] or 0)
  if now >= record[WINDOW_END] then roll(record) end
  if level == 'organization' then
    if record[LIMIT] then
      local lost = tonumber(record[LOST] or 0)
      if record[GRANTS] and record[GRANTS] ~= '' then
        record.lost = lost_by(record[GRANTS], now, record[SPENT] + record[HELD], lost)
        record.loses, lost = record.lost > lost, record.lost
      end
      record[LIMIT] = math.max(record[LIMIT] - lost, 0)
    end
  else
    record[IN_FLIGHT], record[MOST] = tonumber(record[IN_FLIGHT] or 0), tonumber(record[MOST])
    record[RPM], record[TAT] = tonumber(record[RPM]), tonumber(record[TAT] or 0)
    if record[RPM] then record[BURST] = tonumber(record[BURST]) or record[RPM] end
  end
  records[name] = record
  read[#read + 1] = record
  return record
end

-- When the next request would be due if this one was let in, and how long it would have to wait (0: it is in time).
local function due_after(record)
  local every, tat = math.ceil(60000000 / record[RPM]), record[TAT]
  if tat > now_us + record[BURST] * every then tat = now_us + (record[BURST] - 1) * every end
  local due = math.max(tat, now_us) + every
  return due, math.max(due - record[BURST] * every - now_us, 0)
end

-- Why a level has no room for the request, as it is answered; nil if it has.
local function pace_refusal(record)
  if record[RPM] then
    local _, wait_us = due_after(record)
    if wait_us > 0 then return {'rate', record.level, record[RPM], record[BURST], math.ceil(wait_us / 1000)} end
  end
  if record[MOST] and record[IN_FLIGHT] >= record[MOST] then
    return {'in_flight', record.level, record[MOST], record[IN_FLIGHT]}
  end
end
local function budget_refusal(record, amount)
  local limit, used = record[LIMIT], record[SPENT] + record[HELD]
  if not limit or (used + amount <= limit and used < limit) then return nil end
  return {'budget', record.level, limit, record[SPENT], record[HELD],
          record[WINDOW_END] == NEVER_ENDS and 0 or record[WINDOW_END]}
end

-- The refusal of a level that enforces, or nil; one of a level that only observes is noted in `seen`.
local seen
local function judge(record, refusal)
  if not refusal or not record[OBSERVES] then return refusal end
  seen = seen or {}
  seen[#seen + 1] = record.level
  seen[#seen + 1] = refusal[1]
  seen[record.level] = true
end

local function take(record, amount)
  record[HELD], record[IN_FLIGHT], record.is_written = record[HELD] + amount, record[IN_FLIGHT] + 1, true
  if record[RPM] then
    local due, wait_us = due_after(record)
    if wait_us == 0 then record[TAT] = due end
  end
end

local holds, deadline = {}, now + ARGV[2]
local function admit(names, digest, amount, head)
  local key, account, organization = record_of('key', KEYS[names]), nil, nil
  if not key then return {key == nil and 'missing' or 'broken', 'key'} end
  if key[DIGEST] ~= digest then return {'digest'} end
  account = record_of('account', KEYS[names + 1])
  if not account then return {account == nil and 'missing' or 'broken', 'account'} end
  organization = record_of('organization', KEYS[names + 2])
  if not organization then return {organization == nil and 'missing' or 'broken', 'organization'} end
  if key[STATUS] ~= 'active' then return {'status', 'key', key[STATUS]} end
  if account[STATUS] ~= 'active' then return {'status', 'account', account[STATUS]} end
  if organization[STATUS] ~= 'active' then return {'status', 'organization', organization[STATUS]} end
  local expires_at = key[EXPIRES_AT]
  if expires_at and expires_at ~= '0' and now >= tonumber(expires_at) then return {'expired', tonumber(expires_at)} end

  local sum = tonumber(amount)
  seen = nil
  local refusal = judge(key, pace_refusal(key)) or judge(account, pace_refusal(account))
    or judge(key, budget_refusal(key, sum)) or judge(account, budget_refusal(account, sum))
    or judge(organization, budget_refusal(organization, sum))
  if refusal then return refusal end

  take(key, sum)
  take(account, sum)
  organization[HELD], organization.is_written = organization[HELD] + sum, true
  local hold = ('%s|%s|%d|%s|%s|%s'):format(head, amount, now, key[WINDOW], account[WINDOW], organization[WINDOW])
  holds[#holds + 1] = deadline
  holds[#holds + 1] = hold
  if not seen then return (key[MOST] or account[MOST]) and {'placed', hold} or hold end
  for _, record in ipairs({key, account, organization}) do
    if seen[record.level] then record[OBSERVED] = record[OBSERVED] + 1 end
  end
  return {'observed', hold, unpack(seen)}
end

for i = 1, count do
  answers[i] = admit(3 * i - 1, ARGV[3 * i], ARGV[3 * i + 1], ARGV[3 * i + 2])
end

-- Everything is judged: only writes from here on. (%d takes what a double holds exactly; %.0f would be slower.)
local whole = '%d'
for _, record in ipairs(read) do
  if record.is_written then
    local fields = {'held', whole:format(record[HELD])}
    if record.level ~= 'organization' then
      fields[3], fields[4] = 'in_flight', whole:format(record[IN_FLIGHT])
      if record[RPM] then fields[5], fields[6] = 'tat', whole:format(record[TAT]) end
    elseif record.loses then
      fields = {'held', fields[2], 'lost', whole:format(record.lost), 'alert_at', '0'}
    end
    if record[OBSERVES] then
      fields[#fields + 1] = 'observed'
      fields[#fields + 1] = whole:format(record[OBSERVED])
    end
    if record.is_rolled then
      redis.call('HSET', record.name, 'window', record[WINDOW], 'window_end', whole:format(record[WINDOW_END]),
                 'spent', whole:format(record[SPENT]), 'alert_at', '0', unpack(fields))
      if record.is_new then
        redis.call('HSET', record.name, 'alerted', '0')
        if not record[OBSERVES] then redis.call('HSET', record.name, 'observed', '0') end
        if record.level == 'organization' and not record.loses then redis.call('HSET', record.name, 'lost', '0') end
      end
    else
      redis.call('HSET', record.name, unpack(fields))
    end
  end
end
if #holds > 0 then redis.call('ZADD', KEYS[1], unpack(holds)) end
return answers
