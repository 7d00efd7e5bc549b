-- Limits: who enforces and who only observes, when somebody is told, how fast requests may come, and who pays in advance.
--
-- Columns with a constant default are added without rewriting a row. Thresholds are whole percents of the limit, ascending;
-- a NULL pace is no bound. `billing` NULL is a plain limit; a postpaid organization's limit is observed; a prepaid one's is the
-- sum of its grants, while `limit_microcredits` and `reset_period` keep what was set before and is in force again afterwards.

ALTER TABLE organizations
  ADD COLUMN enforcement      text NOT NULL DEFAULT 'enforce' CHECK (enforcement IN ('enforce', 'observe')),
  ADD COLUMN alert_thresholds integer[] NOT NULL DEFAULT '{80,100}'
    CHECK (cardinality(alert_thresholds) <= 10 AND 1 <= ALL (alert_thresholds) AND 1000 >= ALL (alert_thresholds)),
  ADD COLUMN billing           text CHECK (billing IN ('prepaid', 'postpaid')),
  ADD COLUMN lost_microcredits bigint NOT NULL DEFAULT 0 CHECK (lost_microcredits >= 0);  -- as Redis last said

ALTER TABLE accounts
  ADD COLUMN enforcement      text NOT NULL DEFAULT 'enforce' CHECK (enforcement IN ('enforce', 'observe')),
  ADD COLUMN alert_thresholds integer[] NOT NULL DEFAULT '{80,100}'
    CHECK (cardinality(alert_thresholds) <= 10 AND 1 <= ALL (alert_thresholds) AND 1000 >= ALL (alert_thresholds)),
  ADD COLUMN requests_per_minute integer CHECK (requests_per_minute BETWEEN 1 AND 1000000),
  ADD COLUMN burst               integer CHECK (burst BETWEEN 1 AND 1000000),
  ADD COLUMN requests_in_flight  integer CHECK (requests_in_flight BETWEEN 0 AND 1000000),
  ADD CHECK (burst IS NULL OR requests_per_minute IS NOT NULL);

ALTER TABLE keys
  ADD COLUMN enforcement      text NOT NULL DEFAULT 'enforce' CHECK (enforcement IN ('enforce', 'observe')),
  ADD COLUMN alert_thresholds integer[] NOT NULL DEFAULT '{80,100}'
    CHECK (cardinality(alert_thresholds) <= 10 AND 1 <= ALL (alert_thresholds) AND 1000 >= ALL (alert_thresholds)),
  ADD COLUMN requests_per_minute integer CHECK (requests_per_minute BETWEEN 1 AND 1000000),
  ADD COLUMN burst               integer CHECK (burst BETWEEN 1 AND 1000000),
  ADD COLUMN requests_in_flight  integer CHECK (requests_in_flight BETWEEN 0 AND 1000000),
  ADD CHECK (burst IS NULL OR requests_per_minute IS NOT NULL);

-- Credits paid in advance. `window_ms` is the organization's `period_since_ms` when the grant was made: every time that it
-- becomes prepaid, a new line of credits begins. `end_microcredits` is where the grant ends on that line. A closed grant has
-- nothing left to give or to lose; `lost_microcredits` is what of it expired unused.
-- `created_at` is taken under the organization's lock, so it is the order in which grants were made.
CREATE TABLE grants (
  id                  text COLLATE "C" PRIMARY KEY CHECK (id ~ '^gr_[0-9A-Za-z]{16}$'),
  organization        text COLLATE "C" NOT NULL REFERENCES organizations (tag),
  window_ms           bigint NOT NULL,
  amount_microcredits bigint NOT NULL CHECK (amount_microcredits BETWEEN 1 AND 1000000000000000),
  end_microcredits    bigint NOT NULL CHECK (end_microcredits BETWEEN 1 AND 1000000000000000),
  expires_at          timestamptz(3),
  note                text CHECK (char_length(note) <= 2000),
  idempotency_key     text COLLATE "C" CHECK (char_length(idempotency_key) BETWEEN 1 AND 255),
  lost_microcredits   bigint NOT NULL DEFAULT 0 CHECK (lost_microcredits BETWEEN 0 AND amount_microcredits),
  created_by          text NOT NULL,
  created_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
  closed_at           timestamptz,
  UNIQUE (organization, idempotency_key)
);
CREATE INDEX grants_newest ON grants (organization, created_at DESC, id DESC);
CREATE INDEX grants_expiring ON grants (expires_at) WHERE closed_at IS NULL;

-- What Redis holds was written without these fields: every rule is published once more.
UPDATE organizations SET version = nextval('rule_version');
UPDATE accounts SET version = nextval('rule_version');
UPDATE keys SET version = nextval('rule_version');
INSERT INTO outbox (kind, entity)
  SELECT 'organization', tag FROM organizations
  UNION ALL SELECT 'account', id FROM accounts
  UNION ALL SELECT 'key', id FROM keys;
