--- nn.Sequential and nn.ModuleList: children by number.
-- The children are the array part of the module, seq[1] … seq[#seq], and nowhere else. `_names[i]` is the name of child i when
-- it has one of its own, false otherwise; an unnamed child is called by its position counted from 0, as in PyTorch's files.

local check = require "resin.check"
local class = require "resin.nn.class"
local Module = require "resin.nn.module"
local scope = require "resin.scope"
local Tensor = require "resin.tensor"
require "resin.nn.structural"   -- class.Lambda

local structure = class.structure

-- ---- children by number ---------------------------------------------------------------------------------------------------

---@class resin.nn.Numbered: resin.nn.Module
local Numbered = class.define("Numbered", Module, true)

Numbered.numbered = true

local function names_of(self)
  local names = rawget(self, "_names")
  if not names then
    names = {}
    rawset(self, "_names", names)
  end
  return names
end

-- seq["conv1"]: a child by name.
function Numbered.lookup(self, key)
  local names = rawget(self, "_names")
  if names == nil or type(key) ~= "string" then return nil end
  for i = 1, #self do
    if names[i] == key or (not names[i] and tostring(i - 1) == key) then return self[i] end
  end
  return nil
end

function Numbered.__index(self, key)
  local value = Numbered[key]
  if value ~= nil then return value end
  return Numbered.lookup(self, key)
end

function Numbered:child_list()
  local own, names, modules = names_of(self), {}, {}
  for i = 1, #self do
    if not class.is_module(self[i]) then
      check.fail("%s: entry %d must be a module, got %s", self.type, i, check.describe(self[i]))
    end
    names[i] = own[i] or tostring(i - 1)
    modules[i] = self[i]
  end
  local more, fields = Module.child_list(self)     -- fields of a subclass
  for i = 1, #more do
    names[#names + 1] = more[i]
    modules[#modules + 1] = fields[i]
  end
  return names, modules
end

-- A module as it is; a function as a Lambda.
local function to_module(self, value, position)
  if class.is_module(value) then return value end
  if type(value) == "function" then return class.Lambda(value) end
  local hint = ""
  if type(value) == "table" and rawget(value, "module_class") then
    hint = (" (call the class: nn.%s(...))"):format(value.type)
  end
  check.fail("%s: entry %d must be a module or a function, got %s%s", self.type, position, check.describe(value), hint)
end

local function check_new_name(self, name)
  class.check_name(self, name, "child")
  for i = 1, #self do
    if names_of(self)[i] == name then check.fail('%s: there are two children called "%s"', self.type, name) end
  end
end

-- seq[#seq + 1] = module; other new fields as in every module.
function Numbered.__newindex(self, key, value)
  if type(key) ~= "number" then return Module.__newindex(self, key, value) end
  check.integer(key, self.type .. ": position", 1, #self + 1)
  self:insert(key, value)
end

-- What a constructor was given: modules as arguments, or one table of modules or {name, module} pairs. Gives a list of
-- {module, name or false}.
local function entries(self, ...)
  local count, given = select("#", ...), {...}
  if count == 1 and class.is_plain(given[1]) then
    given = given[1]
    count = table.maxn(given)
    for key in pairs(given) do
      if type(key) ~= "number" then
        check.fail('%s: unknown option %s; children with names are given in order: {{"%s", module}, …}', self.type,
          check.describe(key), tostring(key))
      end
    end
  end
  local list = {}
  for i = 1, count do
    local entry = given[i]
    if class.is_plain(entry) then
      if type(entry[1]) ~= "string" or entry[2] == nil or #entry ~= 2 then
        check.fail("%s: entry %d must be a module, a function or a pair {name, module}", self.type, i)
      end
      list[i] = {to_module(self, entry[2], i), entry[1]}
    else
      list[i] = {to_module(self, entry, i), false}
    end
  end
  return list
end

function Numbered:init(...)
  for _, entry in ipairs(entries(self, ...)) do
    self:insert(#self + 1, entry[1], entry[2] or nil)
  end
end

--- Puts a module (or function) before position `position`.
---@param position integer
---@param module resin.nn.Module|function
---@param name? string
---@return resin.nn.Module self
function Numbered:insert(position, module, name)
  check.integer(position, self.type .. ": insert: position", 1, #self + 1)
  module = to_module(self, module, position)
  if name ~= nil then check_new_name(self, name) end
  local names = names_of(self)
  for i = #self, position, -1 do
    rawset(self, i + 1, self[i])
    names[i + 1] = names[i] or false
  end
  rawset(self, position, module)
  names[position] = name or false
  structure.version = structure.version + 1
  return self
end

--- Puts a module (or function) at the end.
---@param module resin.nn.Module|function
---@param name? string
---@return resin.nn.Module self
function Numbered:append(module, name)
  return self:insert(#self + 1, module, name)
end

--- Appends a child with a name.
---@param name string
---@param module resin.nn.Module|function
---@return resin.nn.Module self
function Numbered:add_module(name, module)
  return self:insert(#self + 1, module, name)
end

--- Takes the child at `position` (the last one by default) out and returns it.
---@param position? integer
---@return resin.nn.Module
function Numbered:remove(position)
  local n = #self
  if n == 0 then check.fail("%s: remove: there are no children", self.type) end
  position = position == nil and n or check.integer(position, self.type .. ": remove: position", 1, n)
  local removed, names = self[position], names_of(self)
  for i = position, n do
    rawset(self, i, self[i + 1])
    names[i] = names[i + 1]
  end
  structure.version = structure.version + 1
  return removed
end

--- Number of children; #seq is the same.
---@return integer
function Numbered:len() return #self end

--- for i, child in seq:iter() do … end
function Numbered:iter() return ipairs(self) end

--- A container of the same kind with the children from `first` to `last`, inclusive; the modules are shared.
---@param first? integer  1 by default; negative counts from the end
---@param last? integer   -1 by default
---@return resin.nn.Module
function Numbered:slice(first, last)
  local n = #self
  first = first == nil and 1 or check.integer(first, self.type .. ": slice: first", -n)
  last = last == nil and n or check.integer(last, self.type .. ": slice: last", -n, n)
  if first < 0 then first = n + 1 + first end
  if last < 0 then last = n + 1 + last end
  local out, names = getmetatable(self)(), names_of(self)
  for i = math.max(first, 1), last do out:append(self[i], names[i] or nil) end
  return out
end

-- ---- Sequential -----------------------------------------------------------------------------------------------------------

--- Runs its children one after another.
--- nn.Sequential(a, b, c), nn.Sequential{a, b, c}, or with names nn.Sequential{{"conv1", a}, {"head", b}}; a function becomes a
--- Lambda. seq[1] and seq["conv1"] give children; #seq or seq:len() their number.
---@class resin.nn.Sequential: resin.nn.Numbered
local Sequential = class.define("Sequential", Numbered, true)

local push, pop, current, call, free = check.push, check.pop, scope.current, scope.call, scope.free

local function bad_value(self, i, value)
  check.fail("%s: layer %d (%s) returned %s; a layer must return a value", self.type, i, self[i].type, check.describe(value))
end

-- An intermediate is freed right after its last reader when this call made it: it belongs to this scope, it is not the
-- container's input, and the layer did not return it again, alone or in a table.
local function run_steps(self, input)
  local here, name = current(), self.type
  local x = input
  for i = 1, #self do
    local layer = self[i]
    local mark = push(name, i, layer.type)
    local y
    if layer.builtin then y = layer:forward(x) else y = call(layer.forward, layer, x) end
    pop(mark)
    if y == nil then bad_value(self, i, y) end
    if y ~= x and x ~= input and getmetatable(x) == Tensor and x.s == here and getmetatable(y) == Tensor then free(x) end
    x = y
  end
  return x
end

function Sequential:forward(x)
  return scope.run(run_steps, self, x)
end

function Sequential:output_shape(shape)
  for i = 1, #self do
    local mark = push(self.type, i, self[i].type)
    shape = self[i]:output_shape(shape)
    pop(mark)
  end
  return shape
end

-- ---- ModuleList -----------------------------------------------------------------------------------------------------------

--- A list of modules whose parameters are found; it does not run them. nn.ModuleList{a, b} or nn.ModuleList(a, b);
--- for i, m in ipairs(list) do … end.
---@class resin.nn.ModuleList: resin.nn.Numbered
local ModuleList = class.define("ModuleList", Numbered, true)

function ModuleList:forward()
  check.fail("%s: it only holds modules; call them one by one, or use nn.Sequential", self.type)
end

class.ModuleList = ModuleList
class.Sequential = Sequential

return {Sequential = Sequential, ModuleList = ModuleList, Numbered = Numbered}
