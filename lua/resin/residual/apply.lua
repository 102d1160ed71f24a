--- Apply: joins a recorded value with the current one.
-- The container finds the Record and runs the operation (core.lua); this module holds the options and owns the layers that the
-- operation needs: `projection_layer`, which makes the recorded value fit, and `gate_layer`. They are made when the shapes are
-- known (infer.lua), or by the first forward, and are false until then.

local check = require "resin.check"
local class = require "resin.nn.class"
local init = require "resin.nn.initialise"
local Module = require "resin.nn.module"
local Tensor = require "resin.tensor"
local shapes = require "resin.nn.shapes"
local arguments = require "resin.residual.arguments"
local combine = require "resin.residual.combine"
local fit = require "resin.residual.fit"
local LearnableAlpha = require "resin.residual.alpha"

local NAMES = {"operation", "record_name", "alpha", "scale", "dim", "projection", "broadcast", "outer", "coupled"}

--- Apply(operation = "add", record_name = nil, alpha = 1) or Apply{record_name = …, operation = …, …}.
--- operation    add, concat, gated, highway, max, mean, min, multiply, subtract, a registered name, a function of
---              (current, saved), or a module whose forward takes both
--- record_name  the most recent Record of the container by default
--- alpha, scale factors of the recorded and of the current value: a number, a tensor (one value, or one per channel), an
---              nn.Parameter, or a LearnableAlpha
--- dim          the dimension of the features, where the layout does not say it
--- projection   a module for the recorded value, or function(inp, out, stride) that makes one when the shapes differ
--- broadcast    lets shapes that differ be broadcast
--- outer        the Record is one of an enclosing container
--- coupled      highway: one gate, C = 1 - T
---@class resin.nn.Apply: resin.nn.Module
local Apply = class.define("Apply", Module, true)

-- alpha or scale: kept under its name, registered when it is trained.
local function set_factor(self, name, value)
  if type(value) == "number" then
    rawset(self, name, check.number(value, "Apply: " .. name))
  elseif class.is_module(value) and value:is(LearnableAlpha) then
    self:add_module(name, value)
  elseif Tensor.is(value) then
    check.tensor(value, "Apply: " .. name)
    if value.requires_grad then
      self:register_parameter(name, value)
    else
      self:register_buffer(name, value, false)
    end
  else
    check.fail("Apply: %s must be a number, a tensor or a LearnableAlpha, got %s", name, check.describe(value))
  end
end

local function refuse(self, definition, o, name)
  if o[name] ~= nil then
    check.fail("Apply: operation %s = %s takes no %s", self.operation_name, definition.formula, name)
  end
end

local function set_projection(self, value)
  if class.is_module(value) then
    self:add_module("projection_layer", value)
    rawset(self, "own_projection", true)
  elseif type(value) == "function" or (type(value) == "table" and rawget(value, "module_class")) then
    rawset(self, "make_projection", value)
  else
    check.fail("Apply: projection must be a module, a layer's class or a function(inp, out, stride), got %s", check.describe(value))
  end
end

local function unknown_operation(operation, given)
  if type(operation) == "string" then
    local hint = ""
    if given.record_name == nil then
      hint = ('; a record is named by the second value or by record_name: Apply("add", %q), Apply{record_name = %q}'):format(
        operation, operation)
    end
    check.fail('Apply: unsupported operation "%s"; choose from %s%s', operation, combine.known(), hint)
  end
  check.fail("Apply: operation must be one of %s, a function of (current, saved) or a module, got %s", combine.known(),
    check.describe(operation))
end

function Apply:init(...)
  local o = arguments.read("Apply", NAMES, 3, ...)
  local operation = o.operation
  if operation == nil then operation = "add" end
  local definition = combine.find(operation)
  if not definition then unknown_operation(operation, o) end

  self.operation = definition.name == "custom" and "custom" or definition.name
  if type(operation) == "function" then rawset(self, "operation", operation) end
  rawset(self, "operation_name", definition.name)
  rawset(self, "op", false)
  if class.is_module(operation) then self:add_module("op", operation) end

  if o.record_name ~= nil then
    self.record_name = check.string(o.record_name, "Apply: record_name")
    if o.record_name == "" then check.fail("Apply: record_name must not be empty") end
  end
  rawset(self, "alpha", 1)
  if o.alpha ~= nil then
    if not definition.alpha then refuse(self, definition, o, "alpha") end
    set_factor(self, "alpha", o.alpha)
  elseif definition.default_alpha then
    set_factor(self, "alpha", definition.default_alpha())
  end
  rawset(self, "scale", false)
  if o.scale ~= nil then
    if not definition.scale then refuse(self, definition, o, "scale") end
    set_factor(self, "scale", o.scale)
  end
  rawset(self, "dim", false)
  if o.dim ~= nil then
    self.dim = check.integer(o.dim, "Apply: dim", -8, 8)
    if o.dim == 0 then check.fail("Apply: dim 0: dimensions count from 1 (-1 is the last)") end
  end
  for _, name in ipairs{"broadcast", "outer", "coupled"} do
    rawset(self, name, o[name] ~= nil and check.boolean(o[name], "Apply: " .. name))
  end
  if o.coupled ~= nil and not definition.options.coupled then refuse(self, definition, o, "coupled") end
  if self.outer and not self.record_name then check.fail("Apply: outer = true needs a record_name") end
  rawset(self, "projection_layer", false)
  rawset(self, "gate_layer", false)
  rawset(self, "own_projection", false)   -- the user's projection runs always, one of ours only where the shapes differ
  rawset(self, "make_projection", false)
  if o.projection ~= nil then set_projection(self, o.projection) end
end

function Apply:forward() -- luacheck: no self
  check.fail("Apply must be used inside ResidualSequential; put it into the container's list, after its Record")
end

Apply.output_shape = Apply.forward

--- The definition of its operation.
---@return table
function Apply:definition()
  return combine.find(self.op or self.operation)
end

-- ---- layers that follow from shapes ---------------------------------------------------------------------------------------

--- Makes the projection.
---@param p resin.residual.Projection
---@param dtype string
function Apply:add_projection(p, dtype)
  local layer
  local make = self.make_projection
  if make then
    local stride = p.stride and (p.stride[1] or 1) or 1
    if type(make) == "function" then
      layer = make(p.inp, p.out, p.stride and #p.stride > 1 and p.stride[1] ~= p.stride[2] and p.stride or stride)
    elseif make.layout == "channels_first" then
      layer = make(p.inp, p.out, 1, {stride = p.stride or stride})
    else
      layer = make(p.inp, p.out)
    end
    if not class.is_module(layer) then
      check.fail("Apply: projection must return a module, got %s", check.describe(layer))
    end
  else
    layer = fit.layer(p, dtype)
  end
  if not self.training then layer:eval() end
  self:add_module("projection_layer", layer)
end

--- Makes the gates for values of `shape` whose features are in dimension `at`.
---@param shape (integer|false)[]
---@param at integer
---@param dtype string
function Apply:add_gates(shape, at, dtype)
  local size, rank = shape[at], #shape - at
  local p = {kind = rank == 0 and "linear" or "conv", inp = size, out = size, stride = {}}
  for i = 1, rank do p.stride[i] = 1 end
  local gates = self:definition().gates(self, function(bias)
    local layer = fit.layer(p, dtype)
    init.constant_(layer.bias, bias)
    return layer
  end)
  self:add_module("gate_layer", gates)
end

-- A layer of the shapes that a saved weight has.
local function layer_for(weight, dtype)
  local shape = weight.shape
  local p = {kind = #shape == 2 and "linear" or "conv", inp = shape[2], out = shape[1], stride = {}}
  for i = 3, #shape do p.stride[i - 2] = 1 end
  return fit.layer(p, dtype)
end

--- Before load_state_dict: makes the layers that the state holds and this model does not have yet. The stride of a
--- convolution is not in the state; the first forward sets it.
---@param values table<string, resin.Tensor>
---@param prefix string
function Apply:before_load(values, prefix)
  local weight = values[prefix .. "projection_layer.weight"]
  if not self.projection_layer and not self.make_projection and Tensor.is(weight) and weight.ndim >= 2 then
    self:add_module("projection_layer", layer_for(weight, weight.dtype))
    rawset(self, "stride_unknown", weight.ndim > 2)
  end
  local gate = values[prefix .. "gate_layer.transform_gate.weight"]
  local definition = self:definition()
  if not self.gate_layer and definition.gates and Tensor.is(gate) and gate.ndim >= 2 then
    self:add_module("gate_layer", definition.gates(self, function() return layer_for(gate, gate.dtype) end))
  end
end

-- ---- printing -------------------------------------------------------------------------------------------------------------

function Apply:label()
  local operation = self.operation_name
  if type(self.operation) == "function" then operation = self.operation elseif self.op then operation = nil end
  local list = {
    {"operation", operation}, {"record_name", self.record_name},
    {"alpha", not class.is_module(self.alpha) and self.alpha ~= 1 and self.alpha or nil},
    {"scale", not class.is_module(self.scale) and self.scale or nil},
    {"dim", self.dim}, {"broadcast", self.broadcast}, {"outer", self.outer}, {"coupled", self.coupled},
  }
  return arguments.label("Apply", list, #list)
end

--- Both shapes of a mismatch and what can be done about it.
---@param name string   of the Apply in its container
---@param record table  {name, key, module}
---@param saved (integer|false)[]
---@param current (integer|false)[]
---@param why? string   there is no projection
function Apply:mismatch(name, record, saved, current, why)
  local text = ('Apply %s (record "%s"): recorded %s but current is %s; '):format(name, record.name, shapes.text(saved),
    shapes.text(current))
  if why then
    text = text .. "no projection fits, because " .. why .. "; give a module as projection, or make the shapes equal"
  elseif self.projection_layer then
    text = text .. "its projection " .. self.projection_layer:label() .. " does not make them fit"
  else
    text = ('%sset need_projection=true on Record "%s" (layer %s) to project it'):format(text, record.name, record.key)
    if self:definition().shapes == "same" then text = text .. ", or broadcast=true on the Apply to broadcast" end
  end
  check.fail("%s", text)
end

return Apply
