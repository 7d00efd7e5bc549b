-- The ledger: one row for every admitted request, and what is summed from it in the same transaction.
--
-- Nothing here refers to the tables of 0001: history outlives organizations, accounts and keys, and carries their names.
-- Nothing here refuses what a gateway reports: the money was spent, so the row is kept (hence no CHECKs, and a default
-- partition for days that have none yet).

-- Days (UTC) are partitions made ahead by the partitions job, so that a day is dropped or archived as one table.
-- The primary key is what makes a second delivery change nothing. It begins with the time, so inserts go to its right
-- edge and "latest first" walks it backwards: no other index is worth its cost at every insert, because reports read
-- usage_hourly and rebuilds read usage_windows.
CREATE TABLE usage_events (
    admitted_at          timestamptz(3) NOT NULL,
    ended_at             timestamptz(3) NOT NULL,
    key_window           bigint NOT NULL,   -- start (ms since 1970) of the budget window in which it was admitted
    account_window       bigint NOT NULL,
    organization_window  bigint NOT NULL,
    held                 bigint NOT NULL,   -- microcredits
    cost                 bigint NOT NULL,   -- microcredits
    bytes_in             bigint NOT NULL,
    bytes_out            bigint NOT NULL,
    upstream_ms          bigint NOT NULL,
    total_ms             bigint NOT NULL,
    status               integer NOT NULL,
    request_id           text NOT NULL,
    organization         text NOT NULL,     -- its tag
    account              text NOT NULL,
    account_name         text NOT NULL,
    account_kind         text NOT NULL,
    key                  text NOT NULL,
    route                text NOT NULL,
    method               text NOT NULL,
    path                 text NOT NULL,
    outcome              text NOT NULL,
    units                jsonb NOT NULL,
    session              text,
    computer             text,
    trace                text,
    PRIMARY KEY (admitted_at, request_id)
) PARTITION BY RANGE (admitted_at);

CREATE TABLE usage_events_default PARTITION OF usage_events DEFAULT;

-- Requests that were refused, counted by the gateways: one row for a key, route, reason and minute of one gateway.
CREATE TABLE refusals (
    id            text PRIMARY KEY,
    minute        timestamptz(0) NOT NULL,
    count         bigint NOT NULL,
    organization  text NOT NULL,
    account       text NOT NULL,
    key           text NOT NULL,
    route         text NOT NULL,
    reason        text NOT NULL
);

-- Sums by hour (UTC, of admission), kept in the transaction that inserts the rows: what reports read. The organization
-- comes first because every report is of one. Counters are in no index and pages keep room, so an update stays on its page.
CREATE TABLE usage_hourly (
    hour          timestamptz(0) NOT NULL,
    requests      bigint NOT NULL DEFAULT 0,
    refused       bigint NOT NULL DEFAULT 0,
    cost          bigint NOT NULL DEFAULT 0,  -- microcredits
    bytes_in      bigint NOT NULL DEFAULT 0,
    bytes_out     bigint NOT NULL DEFAULT 0,
    organization  text NOT NULL,
    account       text NOT NULL,
    key           text NOT NULL,
    route         text NOT NULL,
    PRIMARY KEY (organization, hour, account, key, route)
) WITH (fillfactor = 70);

-- Sums by budget window, of the same transaction: what a rebuilt Redis starts its counters from. Windows that never end
-- would otherwise cost a scan of all history, and would be lost with the first day that is dropped.
CREATE TABLE usage_windows (
    window_ms  bigint NOT NULL,
    spent      bigint NOT NULL,             -- microcredits
    level      text NOT NULL,               -- key | account | organization
    id         text NOT NULL,               -- key id, account id, organization tag
    PRIMARY KEY (id, window_ms, level)
) WITH (fillfactor = 70);

-- Entries of a stream that could not be read as events: set aside so that they block nothing, kept so that nothing is lost.
CREATE TABLE rejected_events (
    at              timestamptz(3) NOT NULL DEFAULT now(),
    shard           integer NOT NULL,
    entry_id        text NOT NULL,
    payload_sha256  bytea NOT NULL,         -- of the whole payload; tells one entry from another of the same id
    payload         bytea NOT NULL,         -- its first 8 KiB
    reason          text NOT NULL,
    PRIMARY KEY (shard, entry_id, payload_sha256)
);
