-- Gives REST answers what gRPC cannot say: statuses it has no code for, and the documented error bodies.
--
-- The filter stands before the transcoder, so it sees requests before it and answers after it. Headers must be used
-- before body(): that call yields, and afterwards they are out of scope.

-- `code` and OpenAI `type` of errors that Envoy or gRPC itself raises; the server's own come with their body.
local codes = {
  ["400"] = {"invalid_request", "invalid_request_error"},
  ["404"] = {"not_found", "invalid_request_error"},
  ["408"] = {"request_timeout", "timeout_error"},
  ["413"] = {"payload_too_large", "invalid_request_error"},
  ["415"] = {"unsupported_media_type", "invalid_request_error"},
  ["429"] = {"rate_limited", "rate_limit_error"},
  ["431"] = {"headers_too_large", "invalid_request_error"},
  ["499"] = {"cancelled", "invalid_request_error"},
  ["501"] = {"not_supported", "server_error"},
  ["503"] = {"unavailable", "server_error"},
  ["504"] = {"request_timeout", "timeout_error"},
}
local internal = {"internal", "server_error"}

-- Errors raised inside gRPC's core under a status that means something else here.
local remapped = {
  {"larger than max", "413"},
  {"metadata size exceeds", "431"},
}

local function is_grpc(content_type)
  return content_type:find("^application/grpc") ~= nil
end

-- LlamaHome's paths; /api/v1 is another road to LlamaFarm's.
local function is_home(path)
  return path:find("^/v1/api/") ~= nil or (path:find("^/api/") ~= nil and path:find("^/api/v1/") == nil)
end

function envoy_on_request(handle)
  local headers = handle:headers()
  headers:remove("x-http-status")
  headers:remove("x-http-body")
  local id = headers:get("x-request-id")
  if id ~= nil and (#id > 128 or not id:find("^%w[%w._:-]*$")) then headers:remove("x-request-id") end
  local content_type = headers:get("content-type")
  if content_type ~= nil and is_grpc(content_type) then return end
  handle:streamInfo():dynamicMetadata():set("llamastead", "path", headers:get(":path"))
  local method = headers:get(":method")
  local has_body = method == "POST" or method == "PUT" or method == "PATCH"
  if has_body and content_type ~= nil and headers:get("content-length") ~= "0"
     and not content_type:lower():find("^application/json") and not content_type:lower():find("^multipart/form%-data") then
    handle:respond({[":status"] = "415"},
      "This content type is not read here: send application/json, or multipart/form-data to upload a file.")
  end
end

function envoy_on_response(handle)
  local headers = handle:headers()
  local content_type = headers:get("content-type") or ""
  if is_grpc(content_type) then return end
  local status = headers:get("x-http-status") or headers:get(":status")
  headers:replace(":status", status)
  headers:remove("x-http-status")
  headers:remove("grpc-status")
  headers:remove("grpc-message")
  headers:remove("grpc-accept-encoding")
  headers:replace("x-content-type-options", "nosniff")
  if content_type:find("^text/event%-stream") then
    headers:replace("cache-control", "no-cache")
    headers:replace("x-accel-buffering", "no")
  end
  local body = headers:get("x-http-body")
  if body ~= nil then
    headers:remove("x-http-body")
    headers:replace("content-type", "application/json")
    handle:body(true):setBytes(body)
    return
  end
  if tonumber(status) < 400 or content_type:find("^application/json") == nil then return end
  local metadata = handle:streamInfo():dynamicMetadata():get("llamastead")
  if metadata == nil then return end
  local buffer = handle:body(true)
  local text = buffer:getBytes(0, buffer:length())
  -- Both forms hold the message as a JSON string, which goes over as it is.
  local message = text:match('^{"code":%d+,"message":(".*"),"details":%[') or text:match('^{"detail":(".*")}%s*$')
  if message == nil then return end
  for _, entry in ipairs(remapped) do
    if message:find(entry[1], 1, true) then
      status = entry[2]
      handle:headers():replace(":status", status)
    end
  end
  local code = codes[status] or internal
  if is_home(metadata["path"]) then
    buffer:setBytes('{"error":{"code":"' .. code[1] .. '","message":' .. message .. ',"details":{}}}')
  else
    buffer:setBytes('{"detail":' .. message .. ',"error":{"message":' .. message .. ',"type":"' .. code[2]
      .. '","code":"' .. code[1] .. '"}}')
  end
end
