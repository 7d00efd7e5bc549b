-- Windows of a budget, in UTC. Put in front of every script that rolls one; `periods.py` computes the same in Python.
--
-- Why it is right: hours, days and weeks are divisions of the time since 1970 (a Thursday, hence the 3 that makes weeks
-- start on Monday). Months convert the day number to a civil date and back, both by arithmetic on eras of 400 years, whose
-- 146 097 days hold every leap rule, so there is no table and no loop. All values stay below 2^53 and are exact.
--
-- The calendar stands inside the function that needs it: a script is run from its first line each time, and only one admission
-- in a window has to make these functions.

local floor = math.floor
local NEVER_ENDS = 9007199254740991

-- start and end (ms) of the window that holds `now`; a window never starts before `since`.
local function window_at(period, now, billing_day, since)
  local HOUR, DAY = 3600000, 86400000

  local function day_number(year, month, day)
    if month <= 2 then year = year - 1 end
    local era = floor(year / 400)
    local year_of_era = year - era * 400
    local shifted = month > 2 and month - 3 or month + 9
    local day_of_year = floor((153 * shifted + 2) / 5) + day - 1
    local day_of_era = year_of_era * 365 + floor(year_of_era / 4) - floor(year_of_era / 100) + day_of_year
    return era * 146097 + day_of_era - 719468
  end

  local function civil_date(number)
    local shifted = number + 719468
    local era = floor(shifted / 146097)
    local day_of_era = shifted - era * 146097
    local year_of_era = floor((day_of_era - floor(day_of_era / 1460) + floor(day_of_era / 36524)
                               - floor(day_of_era / 146096)) / 365)
    local day_of_year = day_of_era - (365 * year_of_era + floor(year_of_era / 4) - floor(year_of_era / 100))
    local month = floor((5 * day_of_year + 2) / 153)
    local day = day_of_year - floor((153 * month + 2) / 5) + 1
    month = month < 10 and month + 3 or month - 9
    local year = year_of_era + era * 400
    if month <= 2 then year = year + 1 end
    return year, month, day
  end

  -- The day on which the month of (year, month) starts for this billing day, clipped to the month's length.
  local function anchor(year, month, billing_day)
    if month < 1 then year, month = year - 1, 12 elseif month > 12 then year, month = year + 1, 1 end
    local first = day_number(year, month, 1)
    local next_first = month == 12 and day_number(year + 1, 1, 1) or day_number(year, month + 1, 1)
    return first + math.min(billing_day, next_first - first) - 1
  end

  local start, finish
  if period == 'hourly' then
    start = now - now % HOUR
    finish = start + HOUR
  elseif period == 'daily' then
    start = now - now % DAY
    finish = start + DAY
  elseif period == 'weekly' then
    local day = floor(now / DAY)
    start = (day - (day + 3) % 7) * DAY
    finish = start + 7 * DAY
  elseif period == 'monthly' then
    local today = floor(now / DAY)
    local year, month = civil_date(today)
    local this = anchor(year, month, billing_day)
    if today >= this then
      start, finish = this * DAY, anchor(year, month + 1, billing_day) * DAY
    else
      start, finish = anchor(year, month - 1, billing_day) * DAY, this * DAY
    end
  else
    start, finish = 0, NEVER_ENDS
  end
  if start < since then start = since end
  return start, finish
end

-- The window that holds `now` by a record's rule: its fields period, billing_day and since.
local function window_of(rule, now)
  return window_at(rule[1], now, tonumber(rule[2] or 1), tonumber(rule[3] or 0))
end
