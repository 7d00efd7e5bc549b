-- settle: turn holds into their actual costs, and append their usage events, each exactly once.
--
-- KEYS  1 holds  2 events, then for each settlement: key record, account record, organization record
-- ARGV  1 'due' to settle only what has passed its deadline (the expire job), else '', then for each settlement: the hold, as
--       admit or extend returned it, its cost in microcredits, the usage event (JSON)
-- Returns a list with an answer for each: 1 settled, 0 there is no such hold (settled before, or expired), -1 not due yet.
--
-- Why it is right: a hold is settled by whoever finds it in the sorted set, which happens to one caller only, and
-- everything else happens in the same atomic step, so counters and event move together, once, however often this is sent.
-- Each level's credits are touched only while it is still in the window in which the hold was placed: after a roll the hold is
-- in no current counter, and the event, which names its windows, still adds up. What is in flight knows no windows. A record
-- that is gone takes no counters with it: the event is written. One that was removed and written again while holds lived
-- starts with nothing held and nothing in flight, so both stop at 0: below it, a limit would give more than it has. Scripts do
-- not roll back, so whatever can fail is read first; and the first write is one that frees memory, after which a full Redis
-- refuses none of the others.
-- What expired grants lose is looked for first, as `admit` does: a request that comes to more than was held for it takes nothing of
-- a grant whose time has passed.
-- A threshold is crossed by the settlement that takes `spent` over it, and `alerted` keeps that it was told of: one event a
-- threshold, entity and window. `alert_at` is where the next one lies, so that only a crossing has to look at the rules; '0'
-- says that it is to be worked out, after a roll or a change of rules.

local is_due = ARGV[1] == 'due'
local count = (#ARGV - 1) / 3
local answers, holds = {}, {}
for i = 1, count do holds[i] = ARGV[3 * i - 1] end
local deadlines = redis.call('ZMSCORE', KEYS[1], unpack(holds))
local clock = redis.call('TIME')
local now = clock[1] * 1000 + clock[2] / 1000
redis.call('XLEN', KEYS[2])

local PARTS = '^[^|]*|[^|]*|[^|]*|[^|]*|[^|]*|(%d+)|%d+|(%d+)|(%d+)|(%d+)$'
local WINDOW, SPENT, HELD, IN_FLIGHT, ALERT_AT, GRANTS, LOST = 1, 2, 3, 4, 5, 6, 7
local records, read, whole = {}, {}, '%d'

-- Whether grants are of the record's window: they are of the present one.
local function is_current(record)
  local rule = redis.call('HMGET', record.name, 'limit', 'window_end')
  if not tonumber(rule[1]) then return false end
  if now < tonumber(rule[2] or 0) then return true end
  local start = window_of(redis.call('HMGET', record.name, 'period', 'billing_day', 'since'), now)
  return start <= tonumber(record[WINDOW])
end

local function look_for_losses(record)
  local lost = lost_by(record[GRANTS], now, record[SPENT] + record[HELD], record[LOST])
  if lost == record[LOST] then return end
  if record.is_current == nil then record.is_current = is_current(record) end
  if record.is_current then
    record[LOST], record.loses, record[ALERT_AT] = lost, true, '0'
  end
end

local function record_of(level, name)
  local record = records[name]
  if record ~= nil then return record end
  if level == 'organization' then
    record = redis.pcall('HMGET', name, 'window', 'spent', 'held', 'in_flight', 'alert_at', 'grants', 'lost')
  else
    record = redis.pcall('HMGET', name, 'window', 'spent', 'held', 'in_flight', 'alert_at')
  end
  if record.err or not record[WINDOW] then
    records[name] = false
    return false
  end
  record.level, record.name = level, name
  record[SPENT], record[HELD] = tonumber(record[SPENT]) or 0, tonumber(record[HELD]) or 0
  record[IN_FLIGHT] = level ~= 'organization' and (tonumber(record[IN_FLIGHT]) or 0)
  if record[GRANTS] == '' then record[GRANTS] = false end
  if record[GRANTS] then record[LOST] = tonumber(record[LOST]) or 0 end
  records[name] = record
  read[#read + 1] = record
  return record
end

local function book(record, window, amount, cost)
  if not record then return end
  if record[GRANTS] then look_for_losses(record) end
  if record[IN_FLIGHT] then
    record[IN_FLIGHT], record.is_written = math.max(record[IN_FLIGHT] - 1, 0), true
  end
  if record[WINDOW] == window and (amount > 0 or cost > 0) then
    record[SPENT], record[HELD] = record[SPENT] + cost, math.max(record[HELD] - amount, 0)
    record.is_written, record.is_spent = true, true
  end
end

local taken, found, events = {}, {}, {}
for i = 1, count do
  local hold, deadline = holds[i], deadlines[i]
  if not deadline or taken[hold] then
    answers[i] = 0
  elseif is_due and tonumber(deadline) > now then
    answers[i] = -1
  else
    local amount, key_window, account_window, organization_window = hold:match(PARTS)
    if amount then
      taken[hold], answers[i] = true, 1
      found[#found + 1] = hold
      local names, cost = 3 * i, tonumber(ARGV[3 * i])
      amount = tonumber(amount)
      book(record_of('key', KEYS[names]), key_window, amount, cost)
      book(record_of('account', KEYS[names + 1]), account_window, amount, cost)
      book(record_of('organization', KEYS[names + 2]), organization_window, amount, cost)
      events[#events + 1] = ARGV[3 * i + 1]
    else
      answers[i] = 0
    end
  end
end
if #found == 0 then return answers end

-- A share of a limit, in whole microcredits, rounded up; by parts, so that nothing passes 2^53.
local function share(limit, percent)
  local hundredth = math.floor(limit / 100)
  return hundredth * percent + math.ceil((limit - hundredth * 100) * percent / 100)
end

-- Which thresholds what a level has spent has crossed, as events, and where the next one lies.
local function look_closer(record)
  local rule = redis.call('HMGET', record.name, 'limit', 'lost', 'alerts', 'alerted')
  local limit, alerted = tonumber(rule[1]), tonumber(rule[4]) or 0
  record[ALERT_AT], record.alerted = '', whole:format(alerted)
  if not limit or not rule[3] then return end
  limit = math.max(limit - (tonumber(record.loses and record[LOST] or rule[2]) or 0), 0)
  local id = record.name:match('([^:]+)$')
  local organization = record.level == 'organization' and id or id:match('^%a%a_(......)') or id:sub(1, 6)
  for percent in rule[3]:gmatch('%d+') do
    local at, threshold = share(limit, percent), tonumber(percent)
    if threshold > alerted then
      if record[SPENT] < at or record[SPENT] == 0 then
        record[ALERT_AT] = whole:format(math.max(at, 1))
        break
      end
      alerted = threshold
      events[#events + 1] = ('{"kind":"alert","organization":"%s","level":"%s","id":"%s","window":%s,"threshold":%d,' ..
        '"limit":%d,"spent":%d,"at_ms":%d}'):format(organization, record.level, id, record[WINDOW], threshold, limit,
                                                     record[SPENT], math.floor(now))
    end
  end
  record.alerted = whole:format(alerted)
end
for _, record in ipairs(read) do
  if record.is_spent and record[ALERT_AT] ~= '' and record[SPENT] >= (tonumber(record[ALERT_AT]) or 0) then
    look_closer(record)
  end
end

redis.call('ZREM', KEYS[1], unpack(found))
for _, record in ipairs(read) do
  if record.loses then redis.call('HSET', record.name, 'lost', whole:format(record[LOST]), 'alert_at', '0') end
  if record.is_written then
    if record[IN_FLIGHT] then
      redis.call('HSET', record.name, 'spent', whole:format(record[SPENT]), 'held', whole:format(record[HELD]),
                 'in_flight', whole:format(record[IN_FLIGHT]))
    else
      redis.call('HSET', record.name, 'spent', whole:format(record[SPENT]), 'held', whole:format(record[HELD]))
    end
    if record.alerted then
      redis.call('HSET', record.name, 'alert_at', record[ALERT_AT], 'alerted', record.alerted)
    end
  end
end
for _, event in ipairs(events) do redis.call('XADD', KEYS[2], '*', 'e', event) end
return answers
