-- publish: write the rules of one organization, account or key, as Postgres has them.
--
-- KEYS  1 the record
-- ARGV  1 version  2 window, 3 spent: counters for a record that does not exist yet; '' if it is to exist already
--       4… field, value, field, value
-- Returns 1 written, 0 the record already has this version or a newer one, -1 there is no record, and no counters were given.
--
-- Why it is right: versions come from one row in Postgres and only grow, so whoever is late (the outbox behind the call
-- that made the change, a second publisher) changes nothing. Counters are set only together with a new record, in the
-- same step, so there is never a rule without its spend: a rebuilt Redis gives no free ride, and a change that meets a Redis just
-- emptied (by a caller who does not know what was spent) writes nothing. On a live record counters
-- stay, and only the cached end of the window is dropped, so that the next admission works it out from the new rule.

local version = redis.call('HGET', KEYS[1], 'version')
if version and tonumber(version) >= tonumber(ARGV[1]) then return 0 end
if not version then
  if ARGV[2] == '' then return -1 end
  redis.call('HSET', KEYS[1], 'window', ARGV[2], 'spent', ARGV[3], 'held', '0')
end
redis.call('HSET', KEYS[1], 'version', ARGV[1], 'window_end', '0', unpack(ARGV, 4))
return 1
