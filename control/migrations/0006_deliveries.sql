-- Deliveries of alerts: a destination that fails is left alone for a while, whatever else waits for it; and what is looked for each
-- second is found by an index, however much waits.

ALTER TABLE alert_destinations ADD COLUMN paused_until timestamptz;  -- nothing is sent to it before; NULL: it is well
ALTER TABLE alert_deliveries ADD COLUMN refusals integer NOT NULL DEFAULT 0;  -- of this one alone, while others were taken

DROP INDEX alert_deliveries_due;
DROP INDEX alert_deliveries_of_destination;
CREATE INDEX alert_deliveries_waiting ON alert_deliveries (destination, next_attempt_at, alert) WHERE status = 'pending';
CREATE INDEX alert_deliveries_leased ON alert_deliveries (destination, leased_until) WHERE leased_until IS NOT NULL;
CREATE INDEX alert_deliveries_of_destination ON alert_deliveries (destination);

-- Why requests were refused is asked by organization and time.
CREATE INDEX refusals_of ON refusals (organization, minute);

-- Alerts of windows that ended long ago are removed, their deliveries with them. One of a window that never ends stays: it is
-- what keeps the threshold from being told twice.
CREATE INDEX alerts_oldest ON alerts (crossed_at) WHERE reset_period <> 'never';
