-- extend: keep a hold alive while its request runs, and top it up when the request costs more than was held.
--
-- KEYS  1 key record  2 account record  3 organization record  4 holds
-- ARGV  1 the hold  2 amount to add, microcredits (0: only push the deadline)  3 ms from now until the new deadline
-- Returns the hold, rewritten if its amount grew (and then perhaps its windows), else one of
--   {'gone'}                                             no such hold: it expired, or was settled
--   {'missing', level}, {'status', level, status}, {'expired', expires_at}   the request is to be cut
--   {'budget', level, limit, spent, held, resets_at}     no room for the added amount; the deadline is not pushed
-- A level that only observes always has room.
--
-- Why it is right: the hold is replaced inside one atomic step, so at any time exactly one form of it is in the set and
-- settlement stays exactly-once. A request that is topped up at a level whose window has changed since moves into the present one
-- with all that it holds, as if it were admitted now: what it costs will be booked there, so there must be room for all of it, and
-- no number of requests that run over a window's end comes to more than a limit. One that needs no more stays where it
-- was. Which window is current is worked out as `admit` does, and written only where it is a new one: an end that publish has
-- dropped, or that nobody was admitted after, must not read as a window without a limit.

local hold = ARGV[1]
if not redis.call('ZSCORE', KEYS[4], hold) then return {'gone'} end

local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local added = tonumber(ARGV[2])
local head, amount, admitted_at, windows = hold:match('^(.*)|(%d+)|(%d+)|(%d+|%d+|%d+)$')
local own_window = {windows:match('(%d+)|(%d+)|(%d+)')}

local names = {'key', 'account', 'organization'}
local levels = {}
for index, name in ipairs(names) do
  local level = redis.call('HMGET', KEYS[index], 'status', 'limit', 'window', 'window_end', 'spent', 'held', 'expires_at',
                           'enforcement', 'grants', 'lost')
  if not level[1] then return {'missing', name} end
  if level[1] ~= 'active' then return {'status', name, level[1]} end
  levels[index] = level
end
local expires_at = tonumber(levels[1][7] or 0)
if expires_at > 0 and now >= expires_at then return {'expired', expires_at} end

if added > 0 then
  for index, name in ipairs(names) do
    local level, own = levels[index], tonumber(own_window[index])
    local limit, window, window_end = tonumber(level[2]), tonumber(level[3] or 0), tonumber(level[4] or 0)
    local spent, held, lost = tonumber(level[5] or 0), tonumber(level[6] or 0), tonumber(level[10] or 0)
    if now >= window_end then
      local start, finish = window_of(redis.call('HMGET', KEYS[index], 'period', 'billing_day', 'since'), now)
      window_end = finish
      if start > window then window, spent, held, lost, level.is_new = start, 0, 0, 0, true end
    end
    local moves = level.is_new or window > own
    local needed = moves and amount + added or added
    if limit and level[8] ~= 'observe' then
      local lost_now = lost_by(level[9] or '', now, spent + held, lost)
      if lost_now > lost then level.lost = lost_now end
      limit = math.max(limit - lost_now, 0)
      if spent + held + needed > limit then
        return {'budget', name, limit, spent, held, window_end == NEVER_ENDS and 0 or window_end}
      end
    end
    if moves or window == own then level.held = held + needed end
    level.window, level.window_end = moves and window or own, window_end
  end
  for index, name in ipairs(names) do
    local level = levels[index]
    if level.is_new then
      redis.call('HSET', KEYS[index], 'window', ('%.0f'):format(level.window), 'window_end', ('%.0f'):format(level.window_end),
                 'spent', '0', 'observed', '0', 'alerted', '0', 'alert_at', '0')
      if name == 'organization' then level.lost = level.lost or 0 end
    end
    if level.lost then
      redis.call('HSET', KEYS[index], 'lost', ('%.0f'):format(level.lost), 'alert_at', '0')
    end
    if level.held then redis.call('HSET', KEYS[index], 'held', ('%.0f'):format(level.held)) end
  end
  redis.call('ZREM', KEYS[4], hold)
  hold = ('%s|%.0f|%s|%.0f|%.0f|%.0f'):format(head, amount + added, admitted_at, levels[1].window, levels[2].window,
                                              levels[3].window)
end
redis.call('ZADD', KEYS[4], now + tonumber(ARGV[3]), hold)
return hold
