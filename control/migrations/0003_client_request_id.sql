-- X-Request-Id as the client gave it. The ledger's own request_id is made by the gateway, because a client may say the same
-- one twice; the upstream and the client know the request by this one.
--
-- A column without a default is added without rewriting a row.
ALTER TABLE usage_events ADD COLUMN client_request_id text;
