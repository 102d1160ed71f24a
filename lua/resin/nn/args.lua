--- The arguments of constructors.
-- A layer declares its arguments once, in PyTorch's order and with PyTorch's names:
--   Layer.arguments = { {"in_features", "integer", min = 1}, {"bias", "boolean", default = true, hidden = true}, … }
-- The declaration parses positional, named and mixed calls, checks ranges, keeps the values on the module, and prints them.
-- Fields of an entry: [1] name, [2] kind, default, optional (may stay nil), min, max, choices, hidden (kept in
-- self.options only, because a field of that name is something else), rest (in a table of plain numbers the whole list is
-- this argument: nn.LayerNorm{5, 10}), words (strings that may stand for sizes).

local check = require "resin.check"
local class = require "resin.nn.class"

local args = {}

local DTYPES = {"f32", "f64", "bf16", "f16"}

local COUNTS = {"one", "two", "three"}

local function sizes_text(a, count)
  local words = ""
  for _, word in ipairs(a.words or {}) do words = words .. (', "%s"'):format(word) end
  return ("an integer%s or a table of %s%s"):format(a.min and (" of at least %d"):format(a.min) or "", COUNTS[count], words)
end

local function good_integer(value, a)
  return type(value) == "number" and value % 1 == 0 and (not a.min or value >= a.min) and (not a.max or value <= a.max)
end

-- kind → function(value, what, entry) → value to keep
local kinds = {}

function kinds.integer(value, what, a) return check.integer(value, what, a.min, a.max) end
function kinds.number(value, what, a) return check.number(value, what, a.min, a.max) end
function kinds.boolean(value, what) return check.boolean(value, what) end
function kinds.enum(value, what, a) return check.enum(value, what, a.choices) end
function kinds.dtype(value, what) return check.enum(value, what, DTYPES) end
function kinds.tensor(value, what) return check.tensor(value, what) end
kinds["function"] = function(value, what) return check.func(value, what) end
function kinds.any(value) return value end      -- checked by whoever takes it

-- A positive number, or a table of them.
function kinds.factor(value, what)
  if type(value) == "number" and value > 0 then return value end
  if class.is_plain(value) and #value >= 1 then
    local list = {}
    for i = 1, #value do
      if check.number(value[i], what .. "[" .. i .. "]") <= 0 then break end
      list[i] = value[i]
    end
    if #list == #value then return list end
  end
  check.fail("%s must be a positive number or a table of them, got %s", what, args.text(value))
end

-- A number that may be switched off with false.
function kinds.number_or_false(value, what, a)
  if value == false then return false end
  return check.number(value, what, a.min, a.max)
end

-- Sizes of `count` dimensions: an integer for all, or a table of one for each. Equal ones are kept as one integer. With
-- `words` one of these strings is possible too.
local function define_sizes(name, count)
  kinds[name] = function(value, what, a)
    if good_integer(value, a) then return value end
    if a.words and type(value) == "string" then return check.enum(value, what, a.words) end
    if class.is_plain(value) and #value == count then
      local list, equal = {}, true
      for i = 1, count do
        if not good_integer(value[i], a) then list = nil break end
        list[i], equal = value[i], equal and value[i] == value[1]
      end
      if list then return equal and list[1] or list end
    end
    check.fail("%s must be %s, got %s", what, sizes_text(a, count), args.text(value))
  end
end
define_sizes("single", 1)
define_sizes("pair", 2)
define_sizes("triple", 3)

-- A list of sizes; one integer stands for a list of one.
function kinds.shape(value, what, a)
  if good_integer(value, a) then return {value} end
  if class.is_plain(value) and #value >= 1 then
    local list = {}
    for i = 1, #value do list[i] = check.integer(value[i], what .. "[" .. i .. "]", a.min, a.max) end
    return list
  end
  check.fail("%s must be an integer or a table of integers, got %s", what, args.text(value))
end

--- How a value is written in a constructor call.
---@param value any
---@return string
function args.text(value)
  local kind = type(value)
  if kind == "number" then return ("%.14g"):format(value) end
  if kind == "string" then return ("%q"):format(value) end
  if class.is_plain(value) then
    local parts = {}
    for i = 1, #value do parts[i] = args.text(value[i]) end
    return "{" .. table.concat(parts, ", ") .. "}"
  end
  if kind == "boolean" then return tostring(value) end
  if kind == "function" then return "function" end
  return check.describe(value)
end

--- "Linear(in_features, out_features, {bias, dtype})"
local function usage(type_name, list)
  local required, optional = {}, {}
  for _, a in ipairs(list) do
    local into = (a.default == nil and not a.optional) and required or optional
    into[#into + 1] = a[1]
  end
  local text = table.concat(required, ", ")
  if #optional > 0 then
    text = text .. (#required > 0 and ", " or "") .. "{" .. table.concat(optional, ", ") .. "}"
  end
  return type_name .. "(" .. text .. ")"
end

local function has_names(t)
  for key in pairs(t) do
    if type(key) ~= "number" then return true end
  end
  return false
end

-- Splits a call into positional values (1..count, nil for holes) and named ones.
-- (`...` is read before any other call: this LuaJIT's compiler may read it wrongly after one.)
local function split(self, list, ...)
  local count, given = select("#", ...), {...}
  local type_name = self.type
  local last = given[count]
  if count == 1 and class.is_plain(last) then
    local positional, named, n = {}, {}, 0
    for key, value in pairs(last) do
      if type(key) == "string" then
        named[key] = value
      elseif type(key) == "number" and key >= 1 and key % 1 == 0 then
        positional[key] = value
        if key > n then n = key end
      else
        check.fail("%s: %s is neither a position nor an option name", type_name, check.describe(key))
      end
    end
    if list[1] and list[1].rest and n > 0 and type(positional[1]) == "number" then
      return {positional}, 1, named
    end
    return positional, n, named
  end
  if class.is_plain(last) and (next(last) == nil or has_names(last)) then
    if last[1] ~= nil then
      check.fail("%s: the option table after positional arguments must hold names only, but its first entry is %s", type_name,
        args.text(last[1]))
    end
    given[count] = nil
    return given, count - 1, last
  end
  return given, count, {}
end

--- Parses a constructor's arguments, checks them and keeps them as fields of `self` and in self.options.
---@param self resin.nn.Module
---@param list table[]  the declaration
---@return table options
function args.accept(self, list, ...)
  local positional, count, named = split(self, list, ...)
  local type_name = self.type
  if count > #list then
    check.fail("%s: takes at most %d arguments, got %d: %s", type_name, #list, count, usage(type_name, list))
  end
  local names = {}
  for i, a in ipairs(list) do names[i] = a[1] end
  check.options(named, names, type_name)

  local options = {}
  for i, a in ipairs(list) do
    local name, value = a[1], positional[i]
    if named[name] ~= nil then
      if value ~= nil then check.fail("%s: %s is given twice, by position and by name", type_name, name) end
      value = named[name]
    end
    if value == nil then
      value = a.default
      if value == nil and not a.optional then
        check.fail("%s: %s is missing: %s", type_name, name, usage(type_name, list))
      end
    else
      value = kinds[a[2]](value, type_name .. ": " .. name, a)
    end
    options[name] = value
    if not a.hidden and value ~= nil then rawset(self, name, value) end
  end
  rawset(self, "options", options)
  return options
end

local function same(a, b)
  if class.is_plain(a) and class.is_plain(b) then
    if #a ~= #b then return false end
    for i = 1, #a do
      if a[i] ~= b[i] then return false end
    end
    return true
  end
  return a == b
end

--- The constructor call that made a module: "Conv2d(3, 64, 3, {padding = 1})".
---@param type_name string
---@param list table[]
---@param options table
---@return string
function args.print(type_name, list, options)
  local parts, named = {}, {}
  for _, a in ipairs(list) do
    local value = options[a[1]]
    if a.default == nil and not a.optional then
      if class.is_plain(value) and #value == 1 then value = value[1] end
      parts[#parts + 1] = args.text(value)
    elseif value ~= nil and not same(value, a.default) then
      named[#named + 1] = a[1] .. " = " .. args.text(value)
    end
  end
  if #named > 0 then parts[#parts + 1] = "{" .. table.concat(named, ", ") .. "}" end
  return type_name .. "(" .. table.concat(parts, ", ") .. ")"
end

return args
