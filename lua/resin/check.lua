-- The one place that raises errors, and the checks that raise through it.
-- An error names the user's line: the first frame whose source does not lie in one of resin's own directories. Containers
-- keep a path of what runs (push, pop) in three arrays, so that a message can name the layer; the path is formatted only
-- when something fails. Invariant: entries 1..depth of the arrays are the layers now running. Containers yield only while user code
-- runs in them; scope.lua then puts their entries aside, so the arrays never hold those of a coroutine that waits.

local lib = require "resin.lib"
local ffi, C = lib.ffi, lib.C

local type, tostring, getmetatable, pairs, error = type, tostring, getmetatable, pairs, error
local getinfo, traceback = debug.getinfo, debug.traceback
local concat, sort = table.concat, table.sort

local check = {
  depth = 0,        -- layers now running
  Tensor = nil,     -- the metatable of tensors, set by scope.lua
  last = nil,       -- {message, traceback} of the last failure
}

-- ---- the user's line -----------------------------------------------------------------------------------------------------

local own = {}      -- source prefixes of resin's own files

---Marks the directory of a source (as debug.getinfo gives it) as resin's own.
---@param source string
function check.add_source(source)
  local prefix = source:match("^(@.*/)[^/]*$")
  if not prefix then return end
  for _, known in ipairs(own) do
    if known == prefix then return end
  end
  own[#own + 1] = prefix
end

check.add_source(getinfo(1, "S").source)
check.add_source("@" .. (package.searchpath("resin.cdef", package.path) or "./resin/cdef.lua"))

local function is_own(source)
  for i = 1, #own do
    if source:sub(1, #own[i]) == own[i] then return true end
  end
  return false
end

---Whether a source (as debug.getinfo gives it) is one of resin's files or C.
---@param source string
---@return boolean
function check.is_own(source) return source == "=[C]" or is_own(source) end

local function position()
  for level = 2, 200 do
    local info = getinfo(level, "Sl")
    if not info then return "" end
    if info.what ~= "C" and info.currentline > 0 and not is_own(info.source) then
      return info.short_src .. ":" .. info.currentline .. ": "
    end
  end
  return ""
end

-- ---- the path of layers --------------------------------------------------------------------------------------------------

local containers, keys, layers = {}, {}, {}
check.keys = keys   -- a container that pushed itself once, with a function as layer, writes its step here: keys[check.depth] = step

---Says that layer `key` of a container runs now. Returns what pop wants.
---@param container string
---@param key string|integer
---@param layer string
---@return integer
function check.push(container, key, layer)
  local depth = check.depth
  local d = depth + 1
  containers[d], keys[d], layers[d] = container, key, layer
  check.depth = d
  return depth
end

---@param depth integer what push returned
function check.pop(depth) check.depth = depth end

---The entries as a table, false when there are none.
function check.copy_path()
  local n = check.depth
  if n == 0 then return false end
  local path = { n = n, containers = {}, keys = {}, layers = {} }
  for i = 1, n do path.containers[i], path.keys[i], path.layers[i] = containers[i], keys[i], layers[i] end
  return path
end

---Empties the path. Give the result to put_back.
function check.put_aside()
  local path = check.copy_path()
  check.depth = 0
  return path
end

function check.put_back(path)
  check.depth = path and path.n or 0
  for i = 1, check.depth do containers[i], keys[i], layers[i] = path.containers[i], path.keys[i], path.layers[i] end
end

-- coroutine → {path, outer}: what is around the code that it runs, put aside; outer is the next such table.
local around = setmetatable({}, { __mode = "k" })
check.around = around

local function add_parts(parts, path)
  for i = 1, path.n do
    local layer = path.layers[i]
    if type(layer) == "function" then
      parts[#parts + 1] = layer(path.containers[i], path.keys[i])     -- nil when there is nothing to say
    else
      parts[#parts + 1] = tostring(path.containers[i]) .. " " .. tostring(path.keys[i]) .. " (" .. tostring(layer) .. ")"
    end
  end
end

local function add_around(parts, entry)
  if not entry then return end
  add_around(parts, entry.outer)
  if entry.path then add_parts(parts, entry.path) end
end

local function path_text()
  local now = { n = check.depth, containers = containers, keys = keys, layers = layers }
  local co = coroutine.running()
  local entry = co and around[co]
  if check.depth == 0 and not entry then return "" end
  local parts = {}
  if check.in_scope() then      -- the entries are the coroutine's own
    add_around(parts, entry)
    add_parts(parts, now)
  else                          -- they are those of the code that resumed it
    add_parts(parts, now)
    add_around(parts, entry)
  end
  if #parts == 0 then return "" end
  return "in " .. concat(parts, ", ") .. ": "
end

-- ---- raising -------------------------------------------------------------------------------------------------------------

---Whether a scope is active, whose end resets the path after an error. Set by scope.lua.
function check.in_scope() return false end

---Ends the open scope that an error leaves; was there one? Set by scope.lua.
function check.unwind() return false end

local function raise(text)
  local message = position() .. path_text() .. text
  check.last = { message = message, traceback = traceback("", 3) }
  if not check.unwind() and not check.in_scope() then check.depth = 0 end     -- nobody further out would
  error(message, 0)
end

---Raises an error at the user's line.
---@param fmt string
function check.fail(fmt, ...)
  if select("#", ...) > 0 then fmt = fmt:format(...) end
  raise(fmt)
end

-- ---- warnings ------------------------------------------------------------------------------------------------------------

-- What a warning is given to, false for nothing; the warnings that were given, so that each comes once per place.
local function to_stderr(text) io.stderr:write("resin: warning: ", text, "\n") end

local receiver, given, count = to_stderr, {}, 0
local MOST_GIVEN = 1000     -- then it begins anew

---Calls fn(...) outside of any container. Set by scope.lua.
function check.call(fn, ...) return fn(...) end

---Warns of what may be meant otherwise, with the user's line in front, once for each place.
---@param fmt string
function check.warn(fmt, ...)
  if not receiver then return end
  if select("#", ...) > 0 then fmt = fmt:format(...) end
  local text = position() .. fmt
  if given[text] then return end
  if count == MOST_GIVEN then given, count = {}, 0 end
  given[text], count = true, count + 1
  check.call(receiver, text)
end

---Where warnings go: a function of the text, false for nowhere, nil for stderr (the default). Returns what it was before.
---@param fn? function|false
---@return function|false|nil before
function check.set_warnings(fn)
  if fn ~= nil and fn ~= false then check.func(fn, "set_warnings: argument 1") end
  local before = receiver
  if fn == nil then receiver = to_stderr else receiver = fn end
  given, count = {}, 0
  if before == to_stderr then return nil end
  return before
end

-- ---- around protected calls ----------------------------------------------------------------------------------------------

---The handler of protected calls: remembers where an error came from.
---@param co? thread the coroutine that failed, when it is not this one
function check.handler(err, co)
  local last = check.last
  if type(err) == "string" and not (last and last.message == err) then
    check.last = { message = err, traceback = co and traceback(co, "") or traceback("", 2) }
  end
  if not co then check.unwind() end
  return err
end

---Raises when a C call failed, with the text that it left.
---@param rc integer
function check.status(rc)
  if rc ~= 0 then raise(ffi.string(C.rs_last_error())) end
end

-- ---- describing values ---------------------------------------------------------------------------------------------------

local info = ffi.new("rs_info")

---"[2, 3]"
function check.shape_text(t)
  C.rs_tensor_info(t.h, info)
  local parts = {}
  for i = 1, info.ndim do parts[i] = ("%d"):format(tonumber(info.shape[i - 1])) end
  return "[" .. concat(parts, ", ") .. "]"
end

---A short text for messages: what a value is.
---@return string
function check.describe(value)
  local kind = type(value)
  if kind == "number" then return "number " .. (value == value and ("%.14g"):format(value) or "nan") end
  if kind == "string" then
    if #value > 40 then value = value:sub(1, 37) .. "..." end
    return ("string %q"):format(value)
  end
  if kind == "boolean" then return tostring(value) end
  if kind == "table" and getmetatable(value) == check.Tensor then
    if not value.h then return "a freed tensor" end
    return "tensor " .. check.shape_text(value) .. " " .. ffi.string(C.rs_dtype_name(C.rs_tensor_dtype(value.h)))
  end
  if kind == "table" then
    local mt = getmetatable(value)
    local name = type(mt) == "table" and (rawget(mt, "__name") or rawget(mt, "type"))
    return type(name) == "string" and name or "a table"
  end
  return kind == "nil" and "nil" or "a " .. kind
end
local describe = check.describe

-- ---- checks --------------------------------------------------------------------------------------------------------------

local function range_text(min, max)
  if min and max then return (" from %.14g to %.14g"):format(min, max) end
  if min then return (" of at least %.14g"):format(min) end
  if max then return (" of at most %.14g"):format(max) end
  return ""
end

---@param value any
---@param what string who wants it and its name: "Linear: in_features"
---@param min? integer
---@param max? integer
---@return integer value
function check.integer(value, what, min, max)
  if type(value) ~= "number" or value % 1 ~= 0 or (min and value < min) or (max and value > max) then
    raise(what .. " must be an integer" .. range_text(min, max) .. ", got " .. describe(value))
  end
  return value
end

---@return number value
function check.number(value, what, min, max)
  if type(value) ~= "number" or value ~= value or (min and value < min) or (max and value > max) then
    raise(what .. " must be a number" .. range_text(min, max) .. ", got " .. describe(value))
  end
  return value
end

local function of_type(name)
  return function(value, what)
    if type(value) ~= name then raise(what .. " must be a " .. name .. ", got " .. describe(value)) end
    return value
  end
end

check.boolean = of_type("boolean")
check.string = of_type("string")
check.table = of_type("table")

---A function or a callable table.
function check.func(value, what)
  local mt = type(value) == "table" and getmetatable(value)
  if type(value) ~= "function" and not (mt and mt.__call) then
    raise(what .. " must be a function, got " .. describe(value))
  end
  return value
end

---@param choices string[]
function check.enum(value, what, choices)
  for i = 1, #choices do
    if choices[i] == value then return value end
  end
  raise(what .. " must be one of " .. concat(choices, ", ") .. "; got " .. describe(value))
end

---@return resin.Tensor value
function check.tensor(value, what)
  if type(value) ~= "table" or getmetatable(value) ~= check.Tensor then
    raise(what .. " must be a tensor, got " .. describe(value))
  end
  if not value.h then check.freed(what) end
  return value
end

---Raises for a tensor whose memory is gone.
function check.freed(what)
  raise(what .. ": tensor was freed (by t:free(), or its scope ended: return it from the scope or use resin.keep)")
end

---Checks the names in an options table.
---@param options table|nil
---@param allowed table array of names, or a set {name = true}
---@param what string
---@return table options
function check.options(options, allowed, what)
  if options == nil then return {} end
  if type(options) ~= "table" or getmetatable(options) == check.Tensor then
    raise(what .. ": options must be a table, got " .. describe(options))
  end
  for name in pairs(options) do
    local known = allowed[1] == nil and allowed[name] and type(name) == "string"
    for i = 1, #allowed do known = known or allowed[i] == name end
    if not known then
      local names = {}
      if allowed[1] ~= nil then
        for i = 1, #allowed do names[i] = allowed[i] end
      else
        for key in pairs(allowed) do names[#names + 1] = key end
        sort(names)
      end
      raise(what .. ": unknown option " .. (type(name) == "string" and ("%q"):format(name) or "at position " .. tostring(name))
        .. " (known: " .. concat(names, ", ") .. ")")
    end
  end
  return options
end

return check
