-- settle: turn a hold into its actual cost, and append the usage event, exactly once.
--
-- KEYS  1 key record  2 account record  3 organization record  4 holds  5 events
-- ARGV  1 the hold, as admit or extend returned it  2 cost, microcredits  3 the usage event, JSON
--       4 'due' to settle only if the deadline has passed (the expire job), else ''
-- Returns 1 settled, 0 there is no such hold (settled before, or expired), -1 not due yet.
--
-- Why it is right: removing the hold from the sorted set succeeds for one caller only, and everything else happens in the
-- same atomic step, so counters and event move together, once, however often this is sent. Each level is touched only
-- while it is still in the window in which the hold was placed: after a roll the hold is in no current counter, and the
-- event, which names its windows, still adds up. A record that is gone takes no counters with it: the event is written.
-- One that was removed and written again while holds lived starts with nothing held, so `held` stops at 0: below it, a
-- limit would give more than it has. Scripts do not roll back, so whatever can fail (a record or a stream of another type,
-- a counter that is no number) is read first; and the first write is one that frees memory, after which a full Redis
-- refuses none of the others.

local hold = ARGV[1]
if ARGV[4] == 'due' then
  local deadline = redis.call('ZSCORE', KEYS[4], hold)
  if not deadline then return 0 end
  local clock = redis.call('TIME')
  if tonumber(deadline) > clock[1] * 1000 + clock[2] / 1000 then return -1 end
end
redis.call('XLEN', KEYS[5])

local amount, key_window, account_window, organization_window = hold:match('|(%d+)|%d+|(%d+)|(%d+)|(%d+)$')
if not amount then return 0 end
amount = tonumber(amount)
local cost = tonumber(ARGV[2])
local whole = '%d'

-- What a level's counters become, or nothing where it is in another window by now.
local function settled(name, window)
  local level = redis.call('HMGET', name, 'window', 'spent', 'held')
  if level[1] ~= window then return nil end
  return whole:format(level[2] + cost), whole:format(math.max(level[3] - amount, 0))
end
local key_spent, key_held, account_spent, account_held, organization_spent, organization_held
if amount > 0 or cost > 0 then
  key_spent, key_held = settled(KEYS[1], key_window)
  account_spent, account_held = settled(KEYS[2], account_window)
  organization_spent, organization_held = settled(KEYS[3], organization_window)
end

if redis.call('ZREM', KEYS[4], hold) == 0 then return 0 end
if key_spent then redis.call('HSET', KEYS[1], 'spent', key_spent, 'held', key_held) end
if account_spent then redis.call('HSET', KEYS[2], 'spent', account_spent, 'held', account_held) end
if organization_spent then redis.call('HSET', KEYS[3], 'spent', organization_spent, 'held', organization_held) end
redis.call('XADD', KEYS[5], '*', 'e', ARGV[3])
return 1
