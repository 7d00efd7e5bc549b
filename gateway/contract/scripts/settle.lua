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
-- event, which names its windows, still adds up. A record that is gone takes no counters with it: the event is written. One
-- that was removed and written again while holds lived starts with nothing held, so `held` stops at 0: below it, a limit would
-- give more than it has.

local hold = ARGV[1]
if ARGV[4] == 'due' then
  local deadline = redis.call('ZSCORE', KEYS[4], hold)
  if not deadline then return 0 end
  local clock = redis.call('TIME')
  if tonumber(deadline) > clock[1] * 1000 + clock[2] / 1000 then return -1 end
end
if redis.call('ZREM', KEYS[4], hold) == 0 then return 0 end

local amount, key_window, account_window, organization_window =
  hold:match('|(%d+)|%d+|(%d+)|(%d+)|(%d+)$')
amount = tonumber(amount)
local cost = tonumber(ARGV[2])

local function settle_at(name, window)
  local level = redis.call('HMGET', name, 'window', 'spent', 'held')
  if level[1] ~= window then return end
  redis.call('HSET', name, 'spent', ('%d'):format(level[2] + cost), 'held', ('%d'):format(math.max(level[3] - amount, 0)))
end
if amount > 0 or cost > 0 then
  settle_at(KEYS[1], key_window)
  settle_at(KEYS[2], account_window)
  settle_at(KEYS[3], organization_window)
end
redis.call('XADD', KEYS[5], '*', 'e', ARGV[3])
return 1
