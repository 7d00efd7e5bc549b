-- The rules: who there is, what each may spend, and what is still to be published to Redis.
--
-- Identifiers are base62 and compared byte by byte, hence COLLATE "C". Money is microcredits; a NULL limit is unlimited.
-- `version` orders the states of one row for the publish script: it is drawn under the row's lock, so it only grows.
-- `period_since_ms` is when the reset period was last changed: no window of the budget starts before it.

CREATE SEQUENCE rule_version;

CREATE TABLE organizations (
  tag                text COLLATE "C" PRIMARY KEY CHECK (tag ~ '^[0-9A-Za-z]{6}$'),
  name               text COLLATE "C" NOT NULL UNIQUE CHECK (name ~ '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'),
  display_name       text NOT NULL CHECK (char_length(display_name) BETWEEN 1 AND 200),
  description        text CHECK (char_length(description) <= 2000),
  status             text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'inactive', 'deleted')),
  limit_microcredits bigint CHECK (limit_microcredits BETWEEN 0 AND 1000000000000000),
  reset_period       text NOT NULL DEFAULT 'never' CHECK (reset_period IN ('never', 'hourly', 'daily', 'weekly', 'monthly')),
  period_since_ms    bigint NOT NULL DEFAULT 0,
  billing_day        smallint NOT NULL DEFAULT 1 CHECK (billing_day BETWEEN 1 AND 31),
  version            bigint NOT NULL DEFAULT nextval('rule_version'),
  created_by         text NOT NULL,
  created_at         timestamptz NOT NULL DEFAULT now(),
  updated_at         timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX organizations_newest ON organizations (created_at DESC, tag DESC);

-- Service accounts and members alike: whoever owns keys and has a budget. A row is never removed, so a name is never
-- used again and history keeps its owner.
CREATE TABLE accounts (
  id                 text COLLATE "C" PRIMARY KEY CHECK (id ~ '^(sa|mb)_[0-9A-Za-z]{16}$'),
  organization       text COLLATE "C" NOT NULL REFERENCES organizations (tag),
  kind               text NOT NULL CHECK (kind IN ('service-account', 'member')),
  name               text COLLATE "C" NOT NULL CHECK (name ~ '^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'),
  display_name       text NOT NULL CHECK (char_length(display_name) BETWEEN 1 AND 200),
  description        text CHECK (char_length(description) <= 2000),
  status             text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'inactive', 'deleted')),
  limit_microcredits bigint CHECK (limit_microcredits BETWEEN 0 AND 1000000000000000),
  reset_period       text NOT NULL DEFAULT 'never' CHECK (reset_period IN ('never', 'hourly', 'daily', 'weekly', 'monthly')),
  period_since_ms    bigint NOT NULL DEFAULT 0,
  version            bigint NOT NULL DEFAULT nextval('rule_version'),
  created_by         text NOT NULL,
  created_at         timestamptz NOT NULL DEFAULT now(),
  updated_at         timestamptz NOT NULL DEFAULT now(),
  deleted_at         timestamptz,
  UNIQUE (organization, name),
  CHECK ((status = 'deleted') = (deleted_at IS NOT NULL))
);
CREATE INDEX accounts_newest ON accounts (organization, kind, created_at DESC, id DESC);

-- A token is kept as its argon2id hash only. Revoked is final; deleted is revoked and hidden.
-- `last_used_at` is written by drain, often, hence the room left in each page.
CREATE TABLE keys (
  id                 text COLLATE "C" PRIMARY KEY CHECK (id ~ '^[0-9A-Za-z]{16}$'),
  organization       text COLLATE "C" NOT NULL REFERENCES organizations (tag),
  account            text COLLATE "C" NOT NULL REFERENCES accounts (id),
  name               text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 200),
  hint               text NOT NULL,
  token_hash         text NOT NULL CHECK (token_hash LIKE '$argon2id$%'),
  status             text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'disabled', 'revoked')),
  expires_at         timestamptz,
  limit_microcredits bigint CHECK (limit_microcredits BETWEEN 0 AND 1000000000000000),
  reset_period       text NOT NULL DEFAULT 'never' CHECK (reset_period IN ('never', 'hourly', 'daily', 'weekly', 'monthly')),
  period_since_ms    bigint NOT NULL DEFAULT 0,
  version            bigint NOT NULL DEFAULT nextval('rule_version'),
  created_by         text NOT NULL,
  created_at         timestamptz NOT NULL DEFAULT now(),
  updated_at         timestamptz NOT NULL DEFAULT now(),
  last_used_at       timestamptz,
  revoked_at         timestamptz,
  deleted_at         timestamptz,
  CHECK ((status = 'revoked') = (revoked_at IS NOT NULL)),
  CHECK (deleted_at IS NULL OR status = 'revoked')
) WITH (fillfactor = 80);
CREATE INDEX keys_newest ON keys (account, created_at DESC, id DESC);
CREATE INDEX keys_of_organization ON keys (organization);

-- What changed and is perhaps not in Redis yet. Written in the transaction of the change, removed once published.
CREATE TABLE outbox (
  id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  kind       text NOT NULL CHECK (kind IN ('organization', 'account', 'key')),
  entity     text COLLATE "C" NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now()
);

-- The one who may do everything, until there are members and management tokens.
CREATE TABLE operator_tokens (
  id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  token_hash text NOT NULL CHECK (token_hash LIKE '$argon2id$%'),
  created_at timestamptz NOT NULL DEFAULT now()
);
