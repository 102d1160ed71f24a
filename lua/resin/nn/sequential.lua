--- nn.Sequential and nn.ModuleList: children by number.
-- The children are the array part of the module, seq[1] … seq[#seq], and nowhere else. `_names[i]` is the name of child i when
-- it has one of its own, false otherwise; an unnamed child is called by its position counted from 0, as in PyTorch's files.
-- Lua does not tell of an assignment to a number that is there, seq[2] = nil or seq[2] = function: settle looks for what came of it.
-- After nil `_names` is longer than the children.

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

-- The position of the child called `key`, or nil.
local function position_of(self, key)
  local names = rawget(self, "_names")
  if names == nil or type(key) ~= "string" then return nil end
  for i = 1, #self do
    if names[i] == key or (not names[i] and tostring(i - 1) == key) then return i end
  end
  return nil
end

-- seq["conv1"]: a child by name.
function Numbered.lookup(self, key)
  local i = position_of(self, key)
  return i and self[i]
end

function Numbered.__index(self, key)
  local value = Numbered[key]
  if value ~= nil then return value end
  return Numbered.lookup(self, key)
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

--- Makes `_names` agree with the children after assignments to numbers, which nobody sees: functions become Lambdas; nil takes the last
--- children out, and is an error with children behind it.
function Numbered.settle(self)
  local names, n = names_of(self), 0
  while self[n + 1] ~= nil do
    n = n + 1
    if not class.is_module(self[n]) then rawset(self, n, to_module(self, self[n], n)) end
  end
  if #names <= n and #self == n then return end
  for i = n + 2, math.max(#names, #self) do
    if self[i] ~= nil then
      check.fail("%s: child %d was set to nil, which hides the children behind it; put it back and use remove(%d)", self.type, n + 1,
        n + 1)
    end
  end
  for i = #names, n + 1, -1 do names[i] = nil end
  structure.version = structure.version + 1
end
local settle = Numbered.settle

function Numbered:child_list()
  settle(self)
  local own, names, modules = names_of(self), {}, {}
  for i = 1, #self do
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

local function check_new_name(self, name)
  class.check_name(self, name, "child")
  for i = 1, #self do
    if names_of(self)[i] == name then check.fail('%s: there are two children called "%s"', self.type, name) end
  end
end

-- seq[#seq + 1] = module; seq.conv1 = module puts it in the place of the child of that name; other new fields as in every module.
function Numbered.__newindex(self, key, value)
  if type(key) ~= "number" then
    local position = position_of(self, key)
    if not position then return Module.__newindex(self, key, value) end
    if value == nil then
      check.fail('%s: a child cannot be set to nil; remove("%s") takes it out', self.type, key)
    end
    self:replace(position, value)
    return
  end
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
  settle(self)
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

-- Children's names for messages.
local function list_names(self)
  local names = self:child_list()
  return #names > 0 and table.concat(names, ", ") or "none"
end

-- A child's position from its position or name; the last one by default.
local function position_from(self, given, what)
  settle(self)
  local n = #self
  if n == 0 then check.fail("%s: %s: there are no children", self.type, what) end
  if given == nil then return n end
  if type(given) ~= "string" then return check.integer(given, ("%s: %s: position"):format(self.type, what), 1, n) end
  return position_of(self, given)
    or check.fail('%s: %s: there is no child "%s" (children: %s)', self.type, what, given, list_names(self))
end
Numbered.position_from = position_from

--- Puts a module (or function) in the place of a child, which is returned. The name stays.
---@param position integer|string  position or name
---@param module resin.nn.Module|function
---@return resin.nn.Module
function Numbered:replace(position, module)
  position = position_from(self, position, "replace")
  local former = self[position]
  rawset(self, position, to_module(self, module, position))
  structure.version = structure.version + 1
  return former
end

--- Takes a child (the last one by default) out and returns it.
---@param position? integer|string  position or name
---@return resin.nn.Module
function Numbered:remove(position)
  position = position_from(self, position, "remove")
  local n = #self
  local removed, names = self[position], names_of(self)
  for i = position, n do
    rawset(self, i, self[i + 1])
    names[i] = names[i + 1]
  end
  structure.version = structure.version + 1
  return removed
end

--- Forgets the states that RecurrentWrappers in it carry from call to call (and any module with carries_state = true and a reset of
--- its own): the next call starts anew.
---@return resin.nn.Module self
function Numbered:reset()
  for _, m in ipairs(self:modules()) do
    if m.carries_state and m ~= self then m:reset() end
  end
  return self
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
  settle(self)
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
  local names = rawget(self, "_names")
  if names and names[#self + 1] ~= nil then settle(self) end
  local here, name = current(), self.type
  local x = input
  for i = 1, #self do
    local layer = self[i]
    if type(layer) ~= "table" then
      settle(self)
      layer = self[i]
    end
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
  if getmetatable(self) == Tensor then
    check.fail("Sequential: forward was called with a dot: write seq:forward(x), or seq(x)")
  end
  return scope.run(run_steps, self, x)
end

function Sequential:output_shape(shape)
  settle(self)
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
