-- extend: keep a hold alive while its request runs, and top it up when the request costs more than was held.
--
-- KEYS  1 key record  2 account record  3 organization record  4 holds
-- ARGV  1 the hold  2 amount to add, microcredits (0: only push the deadline)  3 ms from now until the new deadline
-- Returns the hold, rewritten if its amount grew, else one of
--   {'gone'}                                             no such hold: it expired, or was settled
--   {'missing', level}, {'status', level, status}, {'expired', expires_at}   the request is to be cut
--   {'budget', level, limit, spent, held, resets_at}     no room for the added amount; the deadline is not pushed
-- A level that only observes always has room.
--
-- Why it is right: the hold is replaced inside one atomic step, so at any time exactly one form of it is in the set and
-- settlement stays exactly-once. The added amount is held only at levels still in the hold's own window; at a level that
-- has rolled since, room in the current window is asked for but nothing is held there, because the cost will not be
-- booked there either. Which window is current is worked out as `admit` does, but not written: an end that publish has
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
    local level = levels[index]
    local limit, window_end = tonumber(level[2]), tonumber(level[4] or 0)
    local spent, held, lost = tonumber(level[5] or 0), tonumber(level[6] or 0), tonumber(level[10] or 0)
    if limit and level[8] ~= 'observe' then
      local is_current = true
      if now >= window_end then
        local rule = redis.call('HMGET', KEYS[index], 'period', 'billing_day', 'since')
        local start, finish = window_at(rule[1], now, tonumber(rule[2] or 1), tonumber(rule[3] or 0))
        is_current = start <= tonumber(level[3] or 0)
        if not is_current then spent, held, lost = 0, 0, 0 end
        window_end = finish
      end
      local lost_now = lost_by(level[9] or '', now, spent + held, lost)
      if lost_now > lost and is_current then level.lost = lost_now end
      limit = math.max(limit - lost_now, 0)
      if spent + held + added > limit then
        return {'budget', name, limit, spent, held, window_end == NEVER_ENDS and 0 or window_end}
      end
    end
  end
  for index in ipairs(names) do
    if levels[index].lost then
      redis.call('HSET', KEYS[index], 'lost', ('%.0f'):format(levels[index].lost), 'alert_at', '0')
    end
    if levels[index][3] == own_window[index] then
      redis.call('HSET', KEYS[index], 'held', ('%.0f'):format(levels[index][6] + added))
    end
  end
  redis.call('ZREM', KEYS[4], hold)
  hold = ('%s|%.0f|%s|%s'):format(head, amount + added, admitted_at, windows)
end
redis.call('ZADD', KEYS[4], now + tonumber(ARGV[3]), hold)
return hold
