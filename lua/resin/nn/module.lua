--- nn.Module: the base of every layer and model.
-- Parameters, buffers and children are fields of the module; `_parameters`, `_buffers` and `_children` hold their names in
-- the order of registration. A registered name whose field is nil counts as absent (a layer without bias). Nothing else is
-- kept: a forward leaves no tensor on the module.
--
-- Names in a state_dict are PyTorch's, unchanged, so that its files load: the children of a Sequential are "0", "1", … in
-- them, although Lua counts seq[1], seq[2].

local lib = require "resin.lib"
local check = require "resin.check"
local scope = require "resin.scope"
local grad = require "resin.grad"
local args = require "resin.nn.args"
local class = require "resin.nn.class"
local clone = require "resin.nn.clone"
local describe = require "resin.nn.describe"
local state = require "resin.nn.state"
local handles = require "resin.nn.handles"

local C, structure = lib.C, class.structure

---@class resin.nn.Module
---@field type string       name of the class
---@field training boolean  true in training mode (the default)
---@field options table     the constructor's arguments, by name
---@field layout "channels_first"|"features_last"|nil  what the layer makes of a value; nil: what came
---@field inplace boolean   the layer overwrites its input
local Module = class.define("Module", nil, false)

Module.training = true
Module.inplace = false
Module.options = {}

--- The constructor. A class of one's own overrides it; nothing needs to be called first.
function Module.init() end

--- A class that inherits from this one.
---@param name string
---@return table class
function Module.extend(parent, name)
  return class.user(name, parent)
end

--- Is this module an instance of `cls` or of a class that inherits from it?
---@param cls table
---@return boolean
function Module:is(cls)
  local c = getmetatable(self)
  while c do
    if c == cls then return true end
    c = rawget(c, "parent")
  end
  return false
end

--- What the module computes; m(x, ...) calls it.
function Module:forward()
  check.fail("%s: forward is not defined; write function %s:forward(x)", self.type, self.type)
end

--- Runs a child of a container: resin's own layers directly, the user's outside of the running scope.
---@param child resin.nn.Module
function Module.run(child, ...)
  local cls = getmetatable(child)
  local forward = rawget(child, "forward") or cls.forward
  if cls.builtin then return forward(child, ...) end
  return scope.call(forward, child, ...)
end

--- The shape of the output for an input of `shape` (a table; false stands for a size that is not known).
---@param shape (integer|false)[]
---@return (integer|false)[]
function Module:output_shape(shape) -- luacheck: no unused args
  check.fail("%s: its output shape is not known; write function %s:output_shape(shape)", self.type, self.type)
end

-- ---- registration ---------------------------------------------------------------------------------------------------------

--- Makes `tensor` a parameter of the module. nil registers the name only (a layer without it).
---@param name string
---@param tensor? resin.Tensor
---@return resin.nn.Module self
function Module:register_parameter(name, tensor)
  class.check_name(self, name, "parameter")
  if tensor ~= nil then
    check.tensor(tensor, self.type .. ": parameter " .. name)
    scope.promote(tensor)
  end
  class.list_name(self._parameters, name)
  rawset(self, name, tensor)
  return self
end

--- Makes `tensor` a buffer: state that is saved (unless persistent is false) but not trained.
---@param name string
---@param tensor? resin.Tensor
---@param persistent? boolean  true by default
---@return resin.nn.Module self
function Module:register_buffer(name, tensor, persistent)
  class.check_name(self, name, "buffer")
  if tensor ~= nil then
    check.tensor(tensor, self.type .. ": buffer " .. name)
    scope.promote(tensor)
  end
  class.list_name(self._buffers, name)
  if persistent == false then
    rawset(self, "_transient", rawget(self, "_transient") or {})
    self._transient[name] = true
  elseif rawget(self, "_transient") then
    self._transient[name] = nil
  end
  rawset(self, name, tensor)
  return self
end

--- Adds a child. `self.name = child` does the same.
---@param name string
---@param child resin.nn.Module
---@return resin.nn.Module self
function Module:add_module(name, child)
  class.check_name(self, name, "child")
  if not class.is_module(child) then
    check.fail('%s: child "%s" must be a module, got %s', self.type, name, check.describe(child))
  end
  class.list_name(self._children, name)
  rawset(self, name, child)
  return self
end

-- ---- walking --------------------------------------------------------------------------------------------------------------

-- A field that held something else before its module was assigned escapes registration: find it, in order of names.
local function adopt(self)
  local late
  for key, value in next, self do
    if type(key) == "string" and class.is_module(value) then
      local known = false
      for i = 1, #self._children do known = known or self._children[i] == key end
      if not known then
        late = late or {}
        late[#late + 1] = key
      end
    end
  end
  if late then
    table.sort(late)
    for _, key in ipairs(late) do
      class.check_name(self, key, "child")
      class.list_name(self._children, key)
    end
  end
end

--- Names and modules of the children, as two arrays. Containers with numbered children override this.
---@return string[] names
---@return resin.nn.Module[] modules
function Module:child_list()
  adopt(self)
  local names, modules = {}, {}
  for _, name in ipairs(self._children) do
    local child = rawget(self, name)
    if child ~= nil then
      names[#names + 1] = name
      modules[#modules + 1] = child
    end
  end
  return names, modules
end

local function join(prefix, name)
  return prefix == "" and name or prefix .. "." .. name
end

-- Calls visit(name, module, extra) for the module and everything below, parents first, each module once.
local function walk(self, prefix, seen, visit, extra)
  if seen[self] then return end
  seen[self] = true
  local met = structure.met
  if met then met[self] = true end
  visit(prefix, self, extra)
  local names, modules = self:child_list()
  for i = 1, #modules do walk(modules[i], join(prefix, names[i]), seen, visit, extra) end
end

local function each(list)
  local i = 0
  return function()
    i = i + 1
    local entry = list[i]
    if entry then return entry[1], entry[2] end
  end
end

local function gather_module(name, module, found)
  found[#found + 1] = {name, module}
end

local function gather_fields(name, module, found)
  for _, field in ipairs(module[found.list]) do
    local tensor = rawget(module, field)
    if tensor ~= nil and not found.seen[tensor] then
      found.seen[tensor] = true
      found[#found + 1] = {join(name, field), tensor}
    end
  end
end

-- Pairs {name, tensor} of all parameters ("_parameters") or buffers ("_buffers"); a shared tensor once.
local function fields(self, list)
  local found = {list = list, seen = {}}
  walk(self, "", {}, gather_fields, found)
  return found
end

local function values(list)
  local out = {}
  for i = 1, #list do out[i] = list[i][2] end
  return out
end

--- All parameters, in order; a shared one once.
---@return resin.Tensor[]
function Module:parameters() return values(fields(self, "_parameters")) end

--- for name, tensor in m:named_parameters() do … end
function Module:named_parameters() return each(fields(self, "_parameters")) end

--- All buffers, in order.
---@return resin.Tensor[]
function Module:buffers() return values(fields(self, "_buffers")) end

--- for name, tensor in m:named_buffers() do … end
function Module:named_buffers() return each(fields(self, "_buffers")) end

-- Pairs {name, child}; one at two positions once, under its first name.
local function children(self)
  local names, modules = self:child_list()
  local found, seen = {}, {}
  for i = 1, #modules do
    if not seen[modules[i]] then
      seen[modules[i]] = true
      found[#found + 1] = {names[i], modules[i]}
    end
  end
  return found
end

--- The children, in order, each once.
---@return resin.nn.Module[]
function Module:children() return values(children(self)) end

--- for name, child in m:named_children() do … end
function Module:named_children() return each(children(self)) end

local function all_modules(self)
  local found = {}
  walk(self, "", {}, gather_module, found)
  return found
end

--- The module itself and everything below it, parents first, each once.
---@return resin.nn.Module[]
function Module:modules() return values(all_modules(self)) end

--- for name, module in m:named_modules() do … end; the module itself has the name "".
function Module:named_modules() return each(all_modules(self)) end

--- Number of values in all parameters.
---@param trainable? boolean  true: only those that require a gradient
---@return integer
function Module:num_parameters(trainable)
  local n = 0
  for _, entry in ipairs(fields(self, "_parameters")) do
    if not trainable or entry[2].requires_grad then n = n + tonumber(C.rs_tensor_numel(entry[2].h)) end
  end
  return n
end

-- ---- modes ----------------------------------------------------------------------------------------------------------------

local function set_training(_, module, mode)
  module.training = mode
end

--- Training mode (Dropout drops, BatchNorm uses the batch), or evaluation when mode is false.
---@param mode? boolean
---@return resin.nn.Module self
function Module:train(mode)
  if mode == nil then mode = true end
  check.boolean(mode, self.type .. ": train: mode")
  walk(self, "", {}, set_training, mode)
  return self
end

--- Evaluation mode.
---@return resin.nn.Module self
function Module:eval() return self:train(false) end

--- Lets all parameters require a gradient, or none.
---@param on? boolean
---@return resin.nn.Module self
function Module:requires_grad_(on)
  if on == nil then on = true end
  check.boolean(on, self.type .. ": requires_grad_: argument")
  for _, p in ipairs(self:parameters()) do p:requires_grad_(on) end
  return self
end

--- Drops the gradients of all parameters.
---@return resin.nn.Module self
function Module:zero_grad()
  handles.zero_grads(self:parameters())
  return self
end

local function apply_below(self, fn, seen)
  if seen[self] then return end
  seen[self] = true
  local _, modules = self:child_list()
  for i = 1, #modules do apply_below(modules[i], fn, seen) end
  fn(self)
end

--- Calls fn(module) for every module below and then for this one, each once.
---@param fn fun(module: resin.nn.Module)
---@return resin.nn.Module self
function Module:apply(fn)
  check.func(fn, self.type .. ": apply: argument")
  apply_below(self, fn, {})
  return self
end

local FLOATS = {f32 = true, f64 = true, bf16 = true, f16 = true}
local FLOAT_LIST = {"f32", "f64", "bf16", "f16"}

local function convert_all(self, dtype)
  for _, list in ipairs{"_parameters", "_buffers"} do
    for _, entry in ipairs(fields(self, list)) do
      local t = entry[2]
      if FLOATS[t.dtype] and t.dtype ~= dtype then
        t.grad = nil
        t:set_data(t:detach():to(dtype))
      end
    end
  end
  for _, module in ipairs(self:modules()) do
    if module.options.dtype then
      local options = {}
      for k, v in pairs(module.options) do options[k] = v end
      options.dtype = dtype
      rawset(module, "options", options)
    end
  end
end

--- Converts floating-point parameters and buffers. The tensors stay the same objects, so an optimiser keeps them; gradients
--- are dropped.
---@param dtype string
---@return resin.nn.Module self
function Module:to(dtype)
  check.enum(dtype, self.type .. ": to: dtype", FLOAT_LIST)
  grad.no_grad(convert_all, self, dtype)
  return self
end

---@return resin.nn.Module self
function Module:double() return self:to("f64") end

---@return resin.nn.Module self
function Module:float() return self:to("f32") end

--- The module's own line in a printed tree: "Linear(4, 2)".
---@return string
function Module:label()
  local list = self.arguments
  if list then return args.print(self.type, list, self.options) end
  return self.type
end

-- ---- written in files of their own ----------------------------------------------------------------------------------------

--- Everything that is saved: parameters and persistent buffers by name. The tensors are shared, not copied.
--- pairs(sd) sees names and tensors; `for name, tensor in sd() do` goes in order.
Module.state_dict = state.collect

--- Copies the values of a table {name = tensor} into the module.
Module.load_state_dict = state.load

--- A deep copy: its own parameters and buffers, shared ones still shared among themselves, no gradients or activations.
Module.clone = clone.module

--- The tree of layers with names, options and parameter counts; tostring(m) is the same.
Module.describe = describe.tree

class.Module = Module

return Module
