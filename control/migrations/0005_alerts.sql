-- Alerts: thresholds that were crossed, where an organization wants to hear of them, and how far the telling is. Beside them,
-- what the ledger learns with limits that observe and usage that nobody reported.

-- Columns with a constant default are added without rewriting a row.
ALTER TABLE usage_events ADD COLUMN is_estimated boolean NOT NULL DEFAULT false;
ALTER TABLE refusals
    ADD COLUMN level    text    NOT NULL DEFAULT '',     -- whose limit it was; '': none's
    ADD COLUMN observed boolean NOT NULL DEFAULT false;  -- would have been refused, and was let through
ALTER TABLE usage_hourly ADD COLUMN observed bigint NOT NULL DEFAULT 0;  -- such requests; they are not in `refused`

-- One row for each threshold that an entity crossed in a window at a limit: the same crossing found again, because its event
-- was delivered twice or Redis forgot what it had told, is the same row. Written by drain, so nothing here refers to the
-- tables of rules and nothing is checked, as in the ledger; names and period are those of the moment.
CREATE TABLE alerts (
    id                  text COLLATE "C" PRIMARY KEY,
    organization        text COLLATE "C" NOT NULL,       -- its tag
    organization_name   text,
    level               text NOT NULL,                   -- key | account | organization
    entity              text COLLATE "C" NOT NULL,       -- key id, account id, organization tag
    name                text,
    account             text,                            -- whose key it is
    account_name        text,
    reset_period        text NOT NULL,
    billing_day         smallint NOT NULL,
    window_ms           bigint NOT NULL,                 -- start of the budget window
    threshold           smallint NOT NULL,               -- percent of the limit
    limit_microcredits  bigint NOT NULL,
    spent_microcredits  bigint NOT NULL,
    crossed_at          timestamptz(3) NOT NULL,
    fanned_out_at       timestamptz,                     -- when its deliveries were made; NULL: they are still to be
    UNIQUE (entity, window_ms, threshold, limit_microcredits, level)
);
CREATE INDEX alerts_newest ON alerts (organization, crossed_at DESC, id DESC);
CREATE INDEX alerts_new ON alerts (crossed_at, id) WHERE fanned_out_at IS NULL;

-- Where alerts of an organization go. `sealed` is AES-256-GCM under a key derived from the pepper: a webhook's signing
-- secret, or the whole URL of a Slack webhook. `failures` are those in a row, the first of them at `failing_since`.
CREATE TABLE alert_destinations (
    id               text COLLATE "C" PRIMARY KEY,
    organization     text COLLATE "C" NOT NULL REFERENCES organizations (tag),
    kind             text NOT NULL CHECK (kind IN ('webhook', 'email', 'slack')),
    name             text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 200),
    url              text CHECK (char_length(url) <= 2048),
    addresses        text[] CHECK (cardinality(addresses) BETWEEN 1 AND 20),
    hint             text,
    sealed           bytea,
    min_threshold    smallint NOT NULL DEFAULT 1 CHECK (min_threshold BETWEEN 1 AND 1000),
    disabled_at      timestamptz,
    disabled_reason  text CHECK (disabled_reason IN ('operator', 'failing', 'gone')),
    failures         integer NOT NULL DEFAULT 0,
    failing_since    timestamptz,
    last_error       text,
    delivered_at     timestamptz,                        -- the last time that it took something
    tested_at        timestamptz,
    created_by       text NOT NULL,
    created_at       timestamptz NOT NULL DEFAULT now(),
    updated_at       timestamptz NOT NULL DEFAULT now(),
    CHECK ((kind = 'webhook') = (url IS NOT NULL)),
    CHECK ((kind = 'email') = (addresses IS NOT NULL)),
    CHECK ((kind <> 'email') = (sealed IS NOT NULL)),
    CHECK ((disabled_at IS NULL) = (disabled_reason IS NULL))
);
CREATE INDEX alert_destinations_newest ON alert_destinations (organization, created_at DESC, id DESC);

-- One row for each alert and destination: that is what makes it told once. `leased_until` is set before something is sent and
-- cleared when it is known what became of it, so whoever is killed in between leaves a row that is tried again later.
CREATE TABLE alert_deliveries (
    alert             text COLLATE "C" NOT NULL REFERENCES alerts (id) ON DELETE CASCADE,
    destination       text COLLATE "C" NOT NULL REFERENCES alert_destinations (id) ON DELETE CASCADE,
    status            text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'delivered', 'failed')),
    attempts          integer NOT NULL DEFAULT 0,
    next_attempt_at   timestamptz,                       -- NULL: not as long as the destination is disabled, or none
    leased_until      timestamptz,
    first_attempt_at  timestamptz,
    last_attempt_at   timestamptz,
    last_error        text,
    delivered_at      timestamptz,
    PRIMARY KEY (alert, destination)
) WITH (fillfactor = 80);
CREATE INDEX alert_deliveries_due ON alert_deliveries (next_attempt_at) WHERE status = 'pending';
CREATE INDEX alert_deliveries_of_destination ON alert_deliveries (destination) WHERE status <> 'delivered';
