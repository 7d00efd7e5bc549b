-- admit, forward, settle for nginx + Lua. Filled in and loaded by lua.py, which says what is compared and why it is fair.
local redis = require "nginx.redis"

local PEPPER = ("@PEPPER@"):gsub("%x%x", function(pair) return string.char(tonumber(pair, 16)) end)
local REDIS_PORT, REDIS_PASSWORD = tonumber("@REDIS_PORT@"), "@REDIS_PASSWORD@"
local ADMIT, SETTLE = "@ADMIT@", "@SETTLE@"
local ROUTE, PRICE, TTL_MS, SHARDS = "@ROUTE@", "@PRICE@", "60000", 16
local BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

-- The template of the event, cut once into literal pieces and names of values, which alternate.
local pieces = {}
do
  local template, from = [==[@EVENT@]==], 1
  for before, name, after in template:gmatch("()%$([a-z_]+)()") do
    pieces[#pieces + 1] = template:sub(from, before - 1)
    pieces[#pieces + 1] = name
    from = after
  end
  pieces[#pieces + 1] = template:sub(from)
end

local function encode(values)
  local out = {}
  for i = 1, #pieces, 2 do
    out[i] = pieces[i]
    local name = pieces[i + 1]
    if name then out[i + 1] = values[name] end
  end
  return table.concat(out)
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
    principal = facts[4] .. "/" .. facts[6] .. "/" .. facts[3],
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
  local hold, failed = connection:evalsha(ADMIT, 4, who.record, who.account_record, who.organization_record, who.holds,
                                          digest, PRICE, TTL_MS, head)
  if not hold then
    ngx.log(ngx.ERR, "admit failed: ", failed)
    return ngx.exit(503)
  end
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
end

local function settle_later(premature, who, hold, event)
  local connection, err = connect()
  if not connection then return ngx.log(ngx.ERR, "no Redis: ", err) end
  local done, failed = connection:evalsha(SETTLE, 5, who.record, who.account_record, who.organization_record, who.holds,
                                          who.events, hold, PRICE, event, "")
  if not done then return ngx.log(ngx.ERR, "settle failed: ", failed) end
  connection:set_keepalive(60000, 256)
end

local function settle()
  local ctx = ngx.ctx
  local hold, who = ctx.hold, ctx.who
  if not hold then return end
  local admitted, key_window, account_window, organization_window = hold:match("|(%d+)|(%d+)|(%d+)|(%d+)$")
  local var = ngx.var
  local event = encode {
    request = ctx.request, admitted_at = admitted, ended_at = ("%.0f"):format(ngx.now() * 1000), tag = who.tag,
    account = who.account, account_name = who.account_name, key = who.key, method = var.request_method, path = var.uri,
    status = var.status, bytes_in = "0", bytes_out = var.body_bytes_sent,
    upstream_ms = ("%.0f"):format((tonumber(var.upstream_header_time) or 0) * 1000),
    total_ms = ("%.0f"):format(tonumber(var.request_time) * 1000),
    key_window = key_window, account_window = account_window, organization_window = organization_window,
  }
  local ok, err = ngx.timer.at(0, settle_later, who, hold, event)
  if not ok then ngx.log(ngx.ERR, "no timer: ", err) end
end

return { admit = admit, settle = settle }
