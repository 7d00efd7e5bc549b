-- adopt: give a key record the digest of its token, after the token was verified against the argon2id hash.
--
-- KEYS  1 key record
-- ARGV  1 the hash that was verified  2 digest
-- Returns 1 if the record now has this digest, 0 if it has another one or other rules by now.
--
-- Why it is right: the digest is set only on a record that still carries the verified hash and no digest, so a key that
-- was removed or replaced while argon2id was busy does not come back to life.

local record = redis.call('HMGET', KEYS[1], 'hash', 'digest')
if record[1] ~= ARGV[1] then return 0 end
if record[2] then return record[2] == ARGV[2] and 1 or 0 end
redis.call('HSET', KEYS[1], 'digest', ARGV[2])
return 1
