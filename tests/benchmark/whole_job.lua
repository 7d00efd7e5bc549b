-- admit, forward, settle for nginx + Lua. Filled in and loaded by lua.py, which says what is compared and why it is fair.
local cjson = require "cjson"
local redis = require "nginx.redis"

local PEPPER = ("@PEPPER@"):gsub("%x%x", function(pair) return string.char(tonumber(pair, 16)) end)
local REDIS_PORT, REDIS_PASSWORD = tonumber("@REDIS_PORT@"), "@REDIS_PASSWORD@"
local ADMIT, SETTLE = "@ADMIT@", "@SETTLE@"
local ROUTE, PRICE, TTL_MS, SHARDS = "@ROUTE@", "@PRICE@", "60000", 16
local BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

-- What the gateway counts for every request, counted as nginx-lua's Prometheus client does: in tables of the worker.
local BUCKETS = {0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300}
local counts, sums = {}, {}

local function count(name, amount)
  counts[name] = (counts[name] or 0) + amount
end

local function observe(name, seconds)
  local bucket = #BUCKETS + 1
  for i = 1, #BUCKETS do
    if seconds <= BUCKETS[i] then bucket = i break end
  end
  count(name .. bucket, 1)
  sums[name] = (sums[name] or 0) + seconds
end

local function connect()
  local connection = redis:new()
  connection:set_timeout(1000)
  local ok, err = connection:connect("127.0.0.1", REDIS_PORT)
  if not ok then return nil, err end
  if connection:get_reused_times() == 0 then
    local authenticated, refused = connection:auth(REDIS_PASSWORD)
    if not authenticated then return nil, refused end
  end
  return connection
end

local function has_checksum(token)
  local value, digits = ngx.crc32_short(token:sub(1, -7)), {}
  for i = 6, 1, -1 do
    local digit = value % 62
    digits[i] = BASE62:sub(digit + 1, digit + 1)
    value = (value - digit) / 62
  end
  return table.concat(digits) == token:sub(-6)
end

-- digest -> who it is: facts that never change, as in the gateway.
local identities = {}

local function recognise(token, digest, connection)
  local key = token:sub(4, 19)
  local shard = ("tk:{%02d}:"):format(ngx.crc32_short(key:sub(1, 6)) % SHARDS)
  local record = shard .. "key:" .. key
  local facts, err = connection:hmget(record, "digest", "account", "account_name", "account_kind", "organization",
                                      "organization_name")
  if not facts then return nil, err end
  if facts[1] ~= digest then return nil end
  local identity = {
    key = key, account = facts[2], account_name = facts[3], tag = facts[5],
    account_kind = facts[4], principal = facts[4] .. "/" .. facts[6] .. "/" .. facts[3],
    record = record, account_record = shard .. "account:" .. facts[2], organization_record = shard .. "org:" .. facts[5],
    holds = shard .. "holds", events = shard .. "events",
  }
  identities[digest] = identity
  return identity
end

local function admit()
  local bearer = ngx.var.http_authorization
  local token = bearer and bearer:match("^Bearer (tk_%w+_%w+)$")
  if not token or #token ~= 69 or not has_checksum(token) then return ngx.exit(401) end
  local digest = ngx.hmac_sha1(PEPPER, token)
  local connection, err = connect()
  if not connection then
    ngx.log(ngx.ERR, "no Redis: ", err)
    return ngx.exit(503)
  end
  local who = identities[digest] or recognise(token, digest, connection)
  if not who then return ngx.exit(401) end
  local request = ngx.var.request_id
  local head = request .. "|" .. who.key .. "|" .. who.account .. "|" .. who.tag .. "|" .. ROUTE
  local hold, failed = connection:evalsha(ADMIT, 4, who.holds, who.record, who.account_record, who.organization_record,
                                          "", TTL_MS, digest, PRICE, head)
  if not hold then
    ngx.log(ngx.ERR, "admit failed: ", failed)
    return ngx.exit(503)
  end
  hold = hold[1]
  if type(hold) == "table" and hold[1] == "placed" then hold = hold[2] end
  connection:set_keepalive(60000, 256)
  if type(hold) ~= "string" then return ngx.exit(402) end
  ngx.req.clear_header("Authorization")
  ngx.req.set_header("X-Principal", who.principal)
  ngx.req.set_header("X-Principal-Id", who.account)
  ngx.req.set_header("X-Principal-Organization", who.tag)
  ngx.req.set_header("X-Principal-Key-Id", who.key)
  ngx.req.set_header("X-Request-Id", request)
  local ctx = ngx.ctx
  ctx.hold, ctx.who, ctx.request = hold, who, request
  ctx.admitted_after = ngx.now() - ngx.req.start_time()
end

local function settle_later(premature, who, hold, event)
  local connection, err = connect()
  if not connection then return ngx.log(ngx.ERR, "no Redis: ", err) end
  local done, failed = connection:evalsha(SETTLE, 5, who.holds, who.events, who.record, who.account_record,
                                          who.organization_record, "", hold, PRICE, event)
  if not done then return ngx.log(ngx.ERR, "settle failed: ", failed) end
  connection:set_keepalive(60000, 256)
end

local function settle()
  local ctx = ngx.ctx
  local hold, who = ctx.hold, ctx.who
  if not hold then return end
  local admitted, key_window, account_window, organization_window = hold:match("|(%d+)|(%d+)|(%d+)|(%d+)$")
  local var = ngx.var
  local total, upstream = tonumber(var.request_time), tonumber(var.upstream_header_time) or 0
  local sent = tonumber(var.body_bytes_sent)
  local event = cjson.encode {
    request_id = ctx.request, admitted_at_ms = tonumber(admitted), ended_at_ms = ngx.now() * 1000, organization = who.tag,
    account = who.account, account_name = who.account_name, account_kind = who.account_kind, key = who.key, route = ROUTE,
    method = var.request_method, path = var.uri, status = tonumber(var.status), outcome = "completed", bytes_in = 0,
    bytes_out = sent, upstream_ms = upstream * 1000, total_ms = total * 1000, held = tonumber(PRICE), cost = tonumber(PRICE),
    windows = {tonumber(key_window), tonumber(account_window), tonumber(organization_window)},
  }
  count("requests|" .. ROUTE .. "|completed|" .. var.status:sub(1, 1), 1)
  count("bytes_out", sent)
  count("cost", tonumber(PRICE))
  observe("whole", total)
  observe("upstream", upstream)
  observe("admission", ctx.admitted_after)
  local ok, err = ngx.timer.at(0, settle_later, who, hold, event)
  if not ok then ngx.log(ngx.ERR, "no timer: ", err) end
end

return { admit = admit, settle = settle }
