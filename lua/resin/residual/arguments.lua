--- Arguments of Record and Apply: by position, by name, or both in one table.
-- Their positional order is torchresidual's. A table is a list of options when it has no metatable, so tensors and modules
-- are always values.

local check = require "resin.check"
local class = require "resin.nn.class"

local arguments = {}

--- Reads a constructor's arguments.
---@param what string      name of the class, for messages
---@param names string[]   names of all arguments; the first `positional` may be given by position
---@param positional integer
---@return table values    by name; a new table
function arguments.read(what, names, positional, ...)
  local count, given = select("#", ...), {...}
  local named = {}
  local last = given[count]
  if class.is_plain(last) then
    if count == 1 then
      given, count = {}, 0
      for key, value in pairs(last) do
        if type(key) == "number" then
          given[key] = value
          count = math.max(count, key)
        else
          named[key] = value
        end
      end
    else
      named = last
      given[count] = nil
      count = count - 1
    end
  end
  check.options(named, names, what)
  if count > positional then
    check.fail("%s: takes at most %d values by position (%s), got %d", what, positional,
      table.concat(names, ", ", 1, positional), count)
  end
  local values = {}
  for name, value in pairs(named) do values[name] = value end
  for i = 1, count do
    local name = names[i]
    if given[i] ~= nil then
      if values[name] ~= nil then check.fail("%s: %s is given twice, by position and by name", what, name) end
      values[name] = given[i]
    end
  end
  return values
end

--- Keeps options of a class in a table of their own (`_fixed`), so that an assignment to one of them later is seen, and refused:
--- the plans of containers are made of them. For module classes; before they get subclasses.
---@param cls table
---@param names string[]
function arguments.fix(cls, names)
  local fixed = {}
  for _, name in ipairs(names) do fixed[name] = true end
  function cls.lookup(self, key)
    local values = fixed[key] and rawget(self, "_fixed")
    if values then return values[key] end
    return nil
  end
  cls.__index = function(self, key)
    local value = cls[key]
    if value ~= nil then return value end
    return cls.lookup(self, key)
  end
  local assign = cls.__newindex
  cls.__newindex = function(self, key, value)
    if not fixed[key] then return assign(self, key, value) end
    if value ~= cls.lookup(self, key) then
      check.fail("%s: %s cannot be changed, because plans of containers are made of it; put a new one in its place: "
        .. "block[i] = nn.%s{...}", self.type, key, self.type)
    end
  end
end

--- How a value of an option is written in a printed module.
---@param value any
---@return string
function arguments.text(value)
  if type(value) == "string" then return ("%q"):format(value) end
  if type(value) == "number" then return ("%.14g"):format(value) end
  if type(value) == "boolean" then return tostring(value) end
  if type(value) == "function" then return "function" end
  if class.is_module(value) then return value:label() end
  return check.describe(value)
end

--- "Record{name = "input", need_projection = true}" from pairs {name, value}; nil and false values are left out.
---@param what string
---@param list table[]
---@param n integer
---@return string
function arguments.label(what, list, n)
  local parts = {}
  for i = 1, n do
    local value = list[i][2]
    if value ~= nil and value ~= false then parts[#parts + 1] = list[i][1] .. " = " .. arguments.text(value) end
  end
  if #parts == 0 then return what .. "()" end
  return what .. "{" .. table.concat(parts, ", ") .. "}"
end

--- 'SaveInput("r", {export = true})': a call with one value by position, and the options that are given.
---@param what string
---@param first any
---@param list table[]
---@return string
function arguments.call(what, first, list)
  local parts = {}
  for _, entry in ipairs(list) do
    if entry[2] ~= nil and entry[2] ~= false then parts[#parts + 1] = entry[1] .. " = " .. arguments.text(entry[2]) end
  end
  local values = {}
  if first ~= nil then values[1] = arguments.text(first) end
  if #parts > 0 then values[#values + 1] = "{" .. table.concat(parts, ", ") .. "}" end
  return what .. "(" .. table.concat(values, ", ") .. ")"
end

return arguments
