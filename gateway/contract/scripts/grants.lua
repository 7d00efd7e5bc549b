-- Grants of a prepaid organization that expire. Put in front of every script that asks what is left of its limit.
--
-- All credits ever granted lie on a line, and are used up from its start; `grants` says of those that expire when they do
-- and where each ends ('expires_ms:end,…', soonest first). What is spent, held and lost is the way gone along the line. When a
-- grant expires with its end still ahead, what lies between is lost.
--
-- Why it is right: what is lost only grows, and is worked out from the present counters, so it may be looked for at any time and
-- as often as one likes: no job has to run at the moment of expiry. Credits that are held when their grant expires stay
-- with their request; what of them comes back is lost at the next look.
local function lost_by(grants, now, used, lost)
  for expires_at, finish in grants:gmatch('(%d+):(%d+)') do
    if now < tonumber(expires_at) then break end
    lost = math.max(lost, finish - used)
  end
  return lost
end
