-- Gives REST answers the statuses, bodies and headers that gRPC has no words for. Native gRPC and gRPC-Web pass untouched.
--
-- It stands before the transcoder in the filter chain, so it sees requests before they become gRPC and answers after
-- they have become JSON. Bodies of errors come from three places, and leave in one of two shapes:
--   the server's own errors, whole, in the metadata `x-http-status` and `x-http-body`;
--   errors that gRPC itself makes, as the transcoder's `{"code":5,"message":"…","details":[]}`;
--   errors that Envoy makes, as `{"detail":"…"}`.
--
-- `adapters/envoy_config.py` puts before this text `local ENDPOINTS = {{pattern, methods, raw, slashes}, …}`: a Lua pattern for each path
-- of the contract, the methods it takes, whether it takes bodies other than JSON, and whether its last name may hold slashes.

local KINDS = {
  ["400"] = {"invalid_request", "invalid_request_error"},
  ["403"] = {"permission_denied", "permission_error"},
  ["404"] = {"not_found", "invalid_request_error"},
  ["405"] = {"method_not_allowed", "invalid_request_error"},
  ["408"] = {"request_timeout", "timeout_error"},
  ["413"] = {"payload_too_large", "invalid_request_error"},
  ["415"] = {"unsupported_media_type", "invalid_request_error"},
  ["426"] = {"upgrade_required", "invalid_request_error"},
  ["429"] = {"rate_limited", "rate_limit_error"},
  ["431"] = {"headers_too_large", "invalid_request_error"},
  ["501"] = {"not_supported", "server_error"},
  ["502"] = {"unavailable", "server_error"},
  ["503"] = {"unavailable", "server_error"},
  ["504"] = {"timeout", "timeout_error"},
}

-- What Envoy says in these cases is either nothing or about its own insides.
local MESSAGES = {
  ["403"] = "The request comes from a web origin or for a host name that this server does not serve.",
  ["404"] = "Not Found",
  ["405"] = "Method Not Allowed",
  ["413"] = "The request's body is larger than this server takes.",
  ["426"] = "Speak HTTP/1.1 or HTTP/2.",
  ["431"] = "The request's headers are larger than this server takes.",
  ["502"] = "The server broke off its answer.",
  ["503"] = "The server is starting, stopping or overloaded; try again shortly.",
  ["504"] = "The server did not answer in time.",
}

-- Errors made inside gRPC that have a status of their own in HTTP, and where the status does not say it all a sentence.
local CORE_ERRORS = {
  {"larger than max", "413"},
  {"Sent message larger than max", "500", "The answer is larger than this server gives at once: ask for less of it."},
  {"metadata size exceeds", "431"},
}

local function contains(list, value)
  for _, item in ipairs(list) do
    if item == value then return true end
  end
  return false
end

local function is_grpc(content_type)
  return content_type:sub(1, 16) == "application/grpc"
end

local function endpoint(path)
  local bare = path:gsub("[?#].*$", ""):gsub("(.)/+$", "%1")
  local found = nil
  for _, entry in ipairs(ENDPOINTS) do
    if bare:find(entry[1]) then
      if found == nil then found = {methods = {}, raw = false, slashes = false} end
      for _, method in ipairs(entry[2]) do table.insert(found.methods, method) end
      found.raw = found.raw or entry[3]
      found.slashes = found.slashes or entry[4]
    end
  end
  return found
end

-- LlamaHome's paths are /api/… and /v1/api/…; LlamaFarm's are /v1/… and, as an alias, /api/v1/….
local function is_home(path)
  return path:sub(1, 8) == "/v1/api/" or (path:sub(1, 5) == "/api/" and path:sub(1, 8) ~= "/api/v1/")
end

local function error_body(path, status, literal)
  local kind = KINDS[status] or {"internal", "server_error"}
  if is_home(path) then
    return '{"error":{"code":"' .. kind[1] .. '","message":' .. literal .. ',"details":{}}}'
  end
  return '{"detail":' .. literal .. ',"error":{"message":' .. literal .. ',"type":"' .. kind[2] .. '","code":"'
    .. kind[1] .. '"}}'
end

local function remember(handle, name, value)
  handle:streamInfo():dynamicMetadata():set("llamastead", name, value)
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local path = headers:get(":path") or "/"
  local content_type = headers:get("content-type")
  -- Only the server says these. (Envoy itself removes `x-envoy-…` headers that clients send.)
  headers:remove("x-http-status")
  headers:remove("x-http-body")
  local id = headers:get("x-request-id")
  if id ~= nil and (#id > 128 or not id:find("^%w[%w._:-]*$")) then headers:remove("x-request-id") end
  if content_type ~= nil and is_grpc(content_type) then return end
  -- gRPC's own: for REST the server keeps the time, and says in its own words when it is over.
  headers:remove("grpc-timeout")
  local method = headers:get(":method")
  remember(handle, "path", path)
  remember(handle, "method", method)
  local plain, query = path:match("^([^?#]*)(.*)$")
  local named = plain:lower()
  if named:find("%2f", 1, true) and not named:find("%5c", 1, true) then
    -- Clients escape a name whole; the transcoder would hand the escape on as it is.
    local spelled = plain:gsub("%%2[fF]", "/")
    local target = endpoint(spelled)
    if target ~= nil and target.slashes then
      named = ""
      path = spelled .. query
      headers:replace(":path", path)
    end
  end
  if named:find("%2f", 1, true) or named:find("%5c", 1, true) then
    handle:respond({[":status"] = "400"}, "a name in the path holds an escaped slash or backslash.")
    return
  end
  if method == "HEAD" then
    -- The contract knows GET; the answer loses its body below.
    local target = endpoint(path)
    if target ~= nil and contains(target.methods, "HEAD") then headers:replace(":method", "GET") end
    return
  end
  if content_type == nil or headers:get("content-length") == "0" then return end
  if method ~= "POST" and method ~= "PUT" and method ~= "PATCH" then return end
  if content_type:lower():find("^%s*application/json%s*$") or content_type:lower():find("^%s*application/json%s*;") then
    return
  end
  local target = endpoint(path)
  if target ~= nil and not target.raw and contains(target.methods, method) then
    handle:respond({[":status"] = "415"}, "Send the body as JSON, with the header Content-Type: application/json.")
  end
end

local function finish(headers, status)
  headers:remove("grpc-status")
  headers:remove("grpc-message")
  headers:remove("grpc-accept-encoding")
  headers:remove("grpc-status-details-bin")
  headers:replace("x-content-type-options", "nosniff")
  if status == "503" and headers:get("retry-after") == nil then headers:add("retry-after", "2") end
end

local function answer_head(handle, path, status, whole)
  local body = handle:body(true)
  local headers = handle:headers()
  local target = endpoint(path)
  if target ~= nil and not contains(target.methods, "HEAD") then
    status = "405"
    headers:replace(":status", status)
    headers:replace("allow", table.concat(target.methods, ", "))
  end
  finish(headers, status)
  if whole ~= nil then headers:replace("content-type", "application/json") end
  -- What the same GET would send; for errors that this script words, nobody needs to know.
  local length = whole ~= nil and #whole or body:length()
  body:setBytes("")
  if tonumber(status) < 400 or whole ~= nil then
    headers:replace("content-length", tostring(length))
  else
    headers:remove("content-length")
  end
end

function envoy_on_response(handle)
  local headers = handle:headers()
  local content_type = headers:get("content-type") or ""
  if is_grpc(content_type) then return end
  local memory = handle:streamInfo():dynamicMetadata():get("llamastead")
  -- Envoy refuses some upgrades before any filter sees them.
  local refused_upgrade = headers:get("x-refused-upgrade")
  headers:remove("x-refused-upgrade")
  local path = memory and memory["path"] or refused_upgrade or "/"
  local status = headers:get("x-http-status") or headers:get(":status")
  local whole = headers:get("x-http-body")
  headers:remove("x-http-status")
  headers:remove("x-http-body")
  headers:replace(":status", status)

  if memory and memory["method"] == "HEAD" then return answer_head(handle, path, status, whole) end
  if whole ~= nil then
    finish(headers, status)
    headers:replace("content-type", "application/json")
    -- `headers` is of no use after this call, which may wait.
    handle:body(true):setBytes(whole)
    return
  end
  if tonumber(status) < 400 then
    finish(headers, status)
    if content_type:sub(1, 17) == "text/event-stream" then
      headers:replace("cache-control", "no-cache")
      headers:replace("x-accel-buffering", "no")
    end
    return
  end

  if not content_type:find("^application/json") then return finish(headers, status) end
  local body = handle:body(true)
  headers = handle:headers()
  local text = body:getBytes(0, body:length())
  -- Both forms hold the message as a JSON string, which goes over as it is.
  local literal = text:match('^{"code":%d+,"message":(".*"),"details":%[')
  local by_envoy = literal == nil
  if by_envoy then literal = text:match('^{"detail":(".*")}%s*$') end
  if literal == nil then return finish(headers, status) end
  for _, known in ipairs(CORE_ERRORS) do
    if text:find(known[1], 1, true) then
      status = known[2]
      if known[3] ~= nil then literal = '"' .. known[3] .. '"' end
    end
  end
  if by_envoy and status == "404" and refused_upgrade == nil then
    local target = endpoint(path)
    if target ~= nil then
      status = "405"
      headers:replace("allow", table.concat(target.methods, ", "))
    end
  end
  if status == "400" and by_envoy then
    -- The transcoder puts the field's path before a colon, even where there is none.
    literal = literal == '""' and '"The request cannot be read."'
      or '"The request cannot be read: ' .. literal:sub(2):gsub("^: ", "")
  elseif MESSAGES[status] ~= nil and refused_upgrade == nil and (by_envoy or status ~= "404") then
    literal = '"' .. MESSAGES[status] .. '"'
  elseif literal == '""' then
    literal = '"The request cannot be served."'
  end
  headers:replace(":status", status)
  finish(headers, status)
  body:setBytes(error_body(path, status, literal))
end
