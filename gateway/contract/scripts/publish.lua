-- publish: write the rules of one organization, account or key, as Postgres has them.
--
-- KEYS  1 the record
-- ARGV  1 version  2 window, 3 spent, 4 lost: counters for a record that does not exist yet; '' if it is to exist already
--       5… field, value, field, value
-- Returns 1 written, 0 the record already has this version or a newer one, -1 there is no record, and no counters were given.
--
-- Why it is right: versions come from one row in Postgres and only grow, so whoever is late (the outbox behind the call
-- that made the change, a second publisher) changes nothing. Counters are set only together with a new record, in the
-- same step, so there is never a rule without its spend: a rebuilt Redis gives no free ride, and a change that meets a Redis just
-- emptied (by a caller who does not know what was spent) writes nothing. On a live record counters
-- stay, and only what was worked out from the old rule is dropped: the cached end of the window, so that the next admission
-- works it out from the new one, and where the next alert lies. What was told of thresholds is lowered to what is spent
-- of the new limit: a raised limit arms those that lie ahead again. But where the next admission would open another window (the
-- change starts one, as becoming prepaid does, or time did), the counters are those of a window to which the new limit never
-- applied: then nothing is told until that admission. What expired grants have lost only grows, so a Redis that
-- came back with an older state takes what the publisher knows of the same window, whatever the version.

local version, window, lost = unpack(redis.call('HMGET', KEYS[1], 'version', 'window', 'lost'))
if version and ARGV[2] ~= '' and window == ARGV[2] and tonumber(lost or 0) < tonumber(ARGV[4]) then
  redis.call('HSET', KEYS[1], 'lost', ARGV[4], 'alert_at', '0')
end
if version and tonumber(version) >= tonumber(ARGV[1]) then return 0 end
if not version then
  if ARGV[2] == '' then return -1 end
  redis.call('HSET', KEYS[1], 'window', ARGV[2], 'spent', ARGV[3], 'held', '0', 'in_flight', '0', 'tat', '0',
             'observed', '0', 'lost', ARGV[4], 'alerted', '0')
end
redis.call('HSET', KEYS[1], 'version', ARGV[1], 'window_end', '0', unpack(ARGV, 5))

local clock = redis.call('TIME')
local now = redis.call('HMGET', KEYS[1], 'limit', 'lost', 'spent', 'alerted', 'window')
local rule = redis.call('HMGET', KEYS[1], 'period', 'billing_day', 'since')
if window_of(rule, clock[1] * 1000 + floor(clock[2] / 1000)) > tonumber(now[5] or 0) then
  redis.call('HSET', KEYS[1], 'alert_at', '')
  return 1
end
redis.call('HSET', KEYS[1], 'alert_at', '0')
local limit, alerted = tonumber(now[1]), tonumber(now[4]) or 0
if alerted > 0 then
  local reached = 0
  if limit then
    limit = limit - (tonumber(now[2]) or 0)
    reached = limit > 0 and floor(now[3] * 100 / limit) or alerted
  end
  if reached < alerted then redis.call('HSET', KEYS[1], 'alerted', ('%d'):format(reached)) end
end
return 1
