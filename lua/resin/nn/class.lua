--- Classes of modules.
-- A class is the metatable of its instances; it inherits methods from its parent through its own metatable. An instance
-- keeps parameters, buffers and children under their names as plain fields (`self.weight`), and three lists of names in
-- the order of registration, so that a field assigned later is found under the same name. `class.structure.version`
-- grows whenever something is registered anywhere: an optimiser compares it to learn that new parameters may exist.

local lib = require "resin.lib"
local check = require "resin.check"
local Tensor = require "resin.tensor"

local C, ctx = lib.C, lib.ctx

local class = {}

--- version grows with every registration of a parameter, buffer or child and whenever an optimiser makes or replaces state; `met` is
--- false, or while a function is recorded the set of the modules that it calls or walks through and the optimisers that it uses.
class.structure = {version = 0, met = false}
local structure = class.structure

--- Every module that there is, as weak keys.
class.instances = setmetatable({}, {__mode = "k"})
local instances = class.instances

-- Tensors marked by nn.Parameter. Weak keys; the values refer to nothing.
local marked = setmetatable({}, {__mode = "k"})

--- Is `value` a module (an instance, not a class)?
---@param value any
---@return boolean
function class.is_module(value)
  if type(value) ~= "table" then return false end
  local mt = getmetatable(value)
  return type(mt) == "table" and rawget(mt, "module_class") == true
end
local is_module = class.is_module

--- Is `value` a table without a metatable (an option table or a list, not a tensor or a module)?
---@param value any
---@return boolean
function class.is_plain(value)
  return type(value) == "table" and getmetatable(value) == nil
end

--- Marks a tensor as a parameter and lets it require a gradient. Assigned to a field of a module it is registered.
---@param tensor resin.Tensor
---@return resin.Tensor
function class.Parameter(tensor)
  check.tensor(tensor, "Parameter: value")
  marked[tensor] = true
  return tensor:requires_grad_(true)
end

--- Adds `name` to a list of names unless it is there.
---@param list string[]
---@param name string
function class.list_name(list, name)
  structure.version = structure.version + 1
  for i = 1, #list do
    if list[i] == name then return end
  end
  list[#list + 1] = name
end

--- Takes `name` out of a list of names.
---@param list string[]
---@param name string
function class.unlist_name(list, name)
  structure.version = structure.version + 1
  for i = #list, 1, -1 do
    if list[i] == name then table.remove(list, i) end
  end
end

--- Refuses names that cannot be part of a state_dict or would hide a method.
---@param self resin.nn.Module
---@param name any
---@param what string  "parameter", "buffer" or "child"
function class.check_name(self, name, what)
  if type(name) ~= "string" or name == "" then
    check.fail("%s: the name of a %s must be a string, got %s", self.type, what, check.describe(name))
  end
  if name:find(".", 1, true) then
    check.fail('%s: the %s name "%s" must not contain a dot', self.type, what, name)
  end
  if getmetatable(self)[name] ~= nil then
    check.fail('%s: "%s" cannot be the name of a %s because modules have a method or field of that name', self.type, name,
      what)
  end
end

-- Assignment of a new field: modules and marked tensors are registered in the order in which they come.
local function assign(self, key, value)
  if type(value) == "table" then
    if is_module(value) then
      if type(key) == "number" then
        check.fail("%s: a child needs a name (self.block = …); for numbered children use nn.ModuleList", self.type)
      end
      class.check_name(self, key, "child")
      class.list_name(self._children, key)
    elseif marked[value] then
      class.check_name(self, key, "parameter")
      class.list_name(self._parameters, key)
    elseif class.is_plain(value) and is_module(value[1]) and type(key) == "string" and key:sub(1, 1) ~= "_" then
      value = class.ModuleList(value)
      class.check_name(self, key, "child")
      class.list_name(self._children, key)
    end
  end
  rawset(self, key, value)
end

-- The forward of a module. It is looked up in the class, whose chain of parents makes no call, because this LuaJIT's compiler
-- may read `...` wrongly after one.
local function call(self, ...)
  local met = structure.met
  if met then met[self] = true end
  return (rawget(self, "forward") or getmetatable(self).forward)(self, ...)
end

local function text(self)
  return self:describe()
end

-- Parameters that come to be while a program is recorded are made as always: the recording does not see it.
local function construct(cls, ...)
  local self = setmetatable({_parameters = {}, _buffers = {}, _children = {}}, cls)
  instances[self] = true
  local former = C.rs_trace_pause(ctx, 1)
  cls.init(self, ...)
  C.rs_trace_pause(ctx, former)
  return self
end
jit.off(construct)      -- it reads `...` after a call

local function class_text(cls)
  return "class nn." .. cls.type
end

--- Makes a class. Used by resin's own layers; users call nn.class or Module:extend.
---@param name string
---@param parent? table  a class
---@param builtin? boolean  true: a container runs its forward directly; false: as user code, outside of the scope
---@return table class
function class.define(name, parent, builtin)
  local cls = {type = name, parent = parent, builtin = builtin == true, module_class = true}
  local lookup = parent and parent.lookup
  if lookup then
    cls.__index = function(self, key)
      local value = cls[key]
      if value ~= nil then return value end
      return lookup(self, key)
    end
  else
    cls.__index = cls
  end
  cls.__newindex = parent and parent.__newindex or assign
  cls.__call = call
  cls.__tostring = text
  return setmetatable(cls, {__index = parent, __call = construct, __tostring = class_text})
end

--- nn.class(name, parent): a class of the user's own.
---@param name string
---@param parent table
---@return table class
function class.user(name, parent)
  check.string(name, "class: name")
  if type(parent) ~= "table" or rawget(parent, "module_class") ~= true then
    check.fail("class: the parent of %s must be a class such as nn.Module, got %s", name, check.describe(parent))
  end
  return class.define(name, parent, false)
end

--- Is `tensor` a tensor that a module may register?
class.is_tensor = Tensor.is

return class
