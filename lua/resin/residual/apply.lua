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
local scope = require "resin.scope"
local create = require "resin.create"
local arguments = require "resin.residual.arguments"
local Record = require "resin.residual.record"
local combine = require "resin.residual.combine"
local fit = require "resin.residual.fit"
local LearnableAlpha = require "resin.residual.alpha"

-- The options of every Apply. The first three may be given by position.
local NAMES = {"operation", "record_name", "alpha", "scale", "dim", "projection", "broadcast", "outer", "coupled", "transform",
               "records", "weights", "drop_path", "layer_scale", "drop_path_mode"}

-- What plans are made of.
local FIXED = {"operation", "record_name", "records", "outer"}

--- Apply(operation = "add", record_name = nil, alpha = 1) or Apply{record_name = …, operation = …, …}.
--- operation    the name of one (combine.lua lists them), a registered name, a function of (current, saved), or a module whose
---              forward takes both
--- record_name  the most recent Record of the container by default
--- alpha, scale factors of the recorded and of the current value: a number, a tensor (one value, or one per channel), an
---              nn.Parameter, or a LearnableAlpha
--- layer_scale  a trained scale per channel that starts at this number (LayerScale); made when the channels are known
--- drop_path    probability that a sample leaves the branch out while training (stochastic depth). add, subtract, orthogonal: the
---              current value counts as zero there, and is divided by 1 - drop_path elsewhere. Other operations: the result is the
---              recorded value there. concat takes none
--- drop_path_mode  "row": each sample (the default), "batch": all of a batch together
--- dim          the dimension of the features, where the layout does not say it
--- transform    a module or a function that the recorded value goes through first
--- projection   a module for the recorded value, or function(inp, out, stride) that makes one when the shapes differ
--- broadcast    lets shapes that differ be broadcast
--- outer        the Record is one of an enclosing container; with records: those that its own container lacks are
--- coupled      highway: one gate, C = 1 - T
--- records      several names instead of one: add, concat, max, mean, min, a function of (current, a, b, …) or a module
--- weights      of add with records: numbers for the current value and each record; "softmax" (trained, all equal at first) or
---              "learned" (trained, at first 1 for the current value and 0 for the records)
---@class resin.nn.Apply: resin.nn.Module
local Apply = class.define("Apply", Module, true)

arguments.fix(Apply, FIXED)
Apply.option_names = NAMES
Apply.reads = "Record"      -- what a message calls the module that recorded

local function what(self, name) return self.type .. ": " .. name end

-- alpha or scale: kept under its name, registered when it is trained.
local function set_factor(self, name, value)
  if type(value) == "number" then
    rawset(self, name, check.number(value, what(self, name)))
  elseif class.is_module(value) and value:is(LearnableAlpha) then
    self:add_module(name, value)
  elseif Tensor.is(value) then
    check.tensor(value, what(self, name))
    if value.requires_grad then
      self:register_parameter(name, value)
    else
      self:register_buffer(name, value, false)
    end
  else
    check.fail("%s must be a number, a tensor or a LearnableAlpha, got %s", what(self, name), check.describe(value))
  end
end

local function refuse(self, definition, o, name)
  if o[name] ~= nil then
    check.fail("%s: operation %s = %s takes no %s", self.type, self.operation_name, definition.formula, name)
  end
end

local function set_projection(self, value)
  if class.is_module(value) then
    self:add_module("projection_layer", value)
    rawset(self, "own_projection", true)
  elseif type(value) == "function" or (type(value) == "table" and rawget(value, "module_class")) then
    rawset(self, "make_projection", value)
  else
    check.fail("%s: projection must be a module, a layer's class or a function(inp, out, stride), got %s", self.type,
      check.describe(value))
  end
end

local function unknown_operation(self, operation, given)
  if type(operation) == "string" then
    local hint = ""
    if given.record_name == nil and self.type == "Apply" then
      hint = ('; a record is named by the second value or by record_name: Apply("add", %q), Apply{record_name = %q}'):format(
        operation, operation)
    end
    check.fail('%s: unsupported operation "%s"; choose from %s%s', self.type, operation, combine.known(), hint)
  end
  check.fail("%s: operation must be one of %s, a function of (current, saved) or a module, got %s", self.type, combine.known(),
    check.describe(operation))
end

local function set_weights(self, weights, n)
  if weights == "softmax" or weights == "learned" then
    local values = {}
    for i = 1, n + 1 do values[i] = weights == "learned" and i == 1 and 1 or 0 end
    self:register_parameter("mix", scope.promote(create.tensor(values)):requires_grad_(true))
  elseif class.is_plain(weights) then
    if #weights ~= n + 1 then
      check.fail("%s: weights must be %d numbers, one for the current value and one for each of the %d records, got %d", self.type,
        n + 1, n, #weights)
    end
    for i = 1, n + 1 do check.number(weights[i], what(self, "weights[" .. i .. "]")) end
  else
    check.fail('%s: weights must be a table of numbers, "softmax" or "learned", got %s', self.type, check.describe(weights))
  end
  rawset(self, "weights", weights)
end

-- Several records instead of one.
local function set_records(self, definition, o)
  local names = o.records
  if not class.is_plain(names) or #names == 0 then
    check.fail("%s: records must be a table of names, got %s", self.type, check.describe(names))
  end
  local seen = {}
  for i = 1, #names do
    check.string(names[i], what(self, "records[" .. i .. "]"))
    if seen[names[i]] then check.fail('%s: records names "%s" twice', self.type, names[i]) end
    seen[names[i]] = true
  end
  if not definition.many then
    check.fail("%s: operation %s = %s joins one record; records works with add, concat, max, mean, min, a function or a module",
      self.type, self.operation_name, definition.formula)
  end
  for _, name in ipairs{"record_name", "alpha", "scale", "layer_scale", "projection"} do
    if o[name] ~= nil then check.fail("%s: records and %s exclude each other", self.type, name) end
  end
  self._fixed.records = names
  if o.weights ~= nil then
    if definition.name ~= "add" then check.fail("%s: weights are for operation add, not for %s", self.type, self.operation_name) end
    set_weights(self, o.weights, #names)
  end
end

-- What an option that is not given is: every field exists, so that a forward reads it without a walk through the classes.
local function defaults(self)
  for _, name in ipairs{"op", "scale", "dim", "transform", "projection_layer", "gate_layer", "own_projection", "make_projection",
                        "weights", "layer_scale", "off", "auto", "unsure"} do
    rawset(self, name, false)
  end
  rawset(self, "alpha", 1)
  rawset(self, "drop_path", 0)
  rawset(self, "drop_path_mode", "row")
  rawset(self, "_fixed", {records = false, outer = false})
  -- own_projection: the user's projection runs always, one of ours only where the shapes differ
  -- auto: what made the projection when it is one of ours (fit.projection); unsure: the container changed since
  -- off: "bypass" or "zero" while the skip is disabled
end

-- Stochastic depth: an option that the operation cannot follow.
local function check_drop_path(self, definition, o)
  if o.drop_path ~= nil then rawset(self, "drop_path", check.number(o.drop_path, what(self, "drop_path"), 0, 1)) end
  if o.drop_path_mode ~= nil then
    rawset(self, "drop_path_mode", check.enum(o.drop_path_mode, what(self, "drop_path_mode"), {"row", "batch"}))
  end
  if self.drop_path == 0 then return end
  if definition.shapes == "concat" then
    check.fail("%s: operation %s = %s takes no drop_path, because no recorded value has the shape of its result", self.type,
      self.operation_name, definition.formula)
  elseif self.records and not definition.adds then
    check.fail("%s: drop_path with records works with operation add, not with %s", self.type, self.operation_name)
  end
end

local function set_factors(self, definition, o)
  if o.alpha ~= nil then
    if not definition.alpha then refuse(self, definition, o, "alpha") end
    set_factor(self, "alpha", o.alpha)
  elseif definition.default_alpha then
    set_factor(self, "alpha", definition.default_alpha())
  end
  if o.scale ~= nil then
    if not definition.scale then refuse(self, definition, o, "scale") end
    set_factor(self, "scale", o.scale)
  end
  if o.layer_scale ~= nil then
    if not definition.scale then refuse(self, definition, o, "layer_scale") end
    if o.scale ~= nil then check.fail("%s: scale and layer_scale exclude each other", self.type) end
    rawset(self, "layer_scale", check.number(o.layer_scale, what(self, "layer_scale")))
  end
  check_drop_path(self, definition, o)
end

--- Takes over the options of `o`, a table by name. For the constructors.
---@param o table
function Apply:configure(o)
  local operation = o.operation
  if operation == nil then operation = "add" end
  local definition = combine.find(operation)
  if not definition then unknown_operation(self, operation, o) end

  defaults(self)
  local fixed = self._fixed
  fixed.operation = type(operation) == "function" and operation or definition.name
  rawset(self, "operation_name", definition.name)
  rawset(self, "adds", definition.adds or false)
  if class.is_module(operation) then self:add_module("op", operation) end

  if o.record_name ~= nil then
    fixed.record_name = check.string(o.record_name, what(self, "record_name"))
    if o.record_name == "" then check.fail("%s: record_name must not be empty", self.type) end
  end
  if o.records ~= nil then
    set_records(self, definition, o)
  elseif o.weights ~= nil then
    check.fail("%s: weights needs records; one record has alpha and scale", self.type)
  end
  set_factors(self, definition, o)
  if o.dim ~= nil then
    self.dim = check.integer(o.dim, what(self, "dim"), -8, 8)
    if o.dim == 0 then check.fail("%s: dim 0: dimensions count from 1 (-1 is the last)", self.type) end
  end
  for _, name in ipairs{"broadcast", "coupled"} do
    rawset(self, name, o[name] ~= nil and check.boolean(o[name], what(self, name)))
  end
  fixed.outer = o.outer ~= nil and check.boolean(o.outer, what(self, "outer"))
  if o.coupled ~= nil and not definition.options.coupled then refuse(self, definition, o, "coupled") end
  if fixed.outer and not fixed.record_name and not fixed.records then check.fail("%s: outer = true needs a record_name", self.type) end
  if o.transform ~= nil then self:add_module("transform", Record.as_module(o.transform, what(self, "transform"))) end
  if o.projection ~= nil then set_projection(self, o.projection) end
end

function Apply:init(...) self:configure(arguments.read("Apply", NAMES, 3, ...)) end

function Apply:forward()
  check.fail("%s must be used inside %s; put it into the container's list, after its %s", self.type,
    self.reads == "Record" and "ResidualSequential" or "Circuit", self.reads)
end

Apply.output_shape = Apply.forward

--- The definition of its operation.
---@return table
function Apply:definition()
  return combine.find(self.op or self.operation)
end

--- Turns the skip off: bypass = the current value goes on as it is; zero = the recorded value counts as zeros. By default
--- bypass, or zero where the result has another shape than the current value.
---@param how? "bypass"|"zero"
function Apply:disable(how)
  if how == nil then
    how = (self.records or self:definition().shapes ~= "same") and "zero" or "bypass"
  end
  check.enum(how, self.type .. ": disable: how", {"bypass", "zero"})
  if how == "bypass" and self:definition().shapes ~= "same" then
    check.fail("%s: disable: operation %s cannot be bypassed, because it may change the shape; use \"zero\"", self.type,
      self.operation_name)
  end
  rawset(self, "off", how)
end

--- Turns the skip on again.
function Apply:enable() rawset(self, "off", false) end

-- ---- layers that follow from shapes ---------------------------------------------------------------------------------------

-- Gives a layer to this Apply and to the copies of it that share weights (repeats of a Circuit's block).
local function own(self, name, layer)
  for _, twin in ipairs(rawget(self, "twins") or {self}) do twin:add_module(name, layer) end
end

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
      check.fail("%s: projection must return a module, got %s", self.type, check.describe(layer))
    end
  else
    layer = fit.layer(p, dtype)
  end
  if not self.training then layer:eval() end
  own(self, "projection_layer", layer)
  for _, twin in ipairs(rawget(self, "twins") or {self}) do
    rawset(twin, "auto", p)
    rawset(twin, "unsure", false)
  end
end

--- Takes a projection of ours out, which changes of the container have made useless.
function Apply:drop_projection()
  for _, twin in ipairs(rawget(self, "twins") or {self}) do
    if twin.auto then
      class.unlist_name(twin._children, "projection_layer")
      for _, name in ipairs{"projection_layer", "auto", "unsure", "stride_unknown"} do rawset(twin, name, false) end
    end
  end
end

--- After a change of the container: keeps the projection, or lets it go when it is of another kind or size than p, what is wanted
--- now (nil: none).
---@param p resin.residual.Projection?
function Apply:review_projection(p)
  local auto = self.auto
  if auto and (not p or p.kind ~= auto.kind or p.inp ~= auto.inp or p.out ~= auto.out or #(p.stride or {}) ~= #(auto.stride or {})) then
    self:drop_projection()
  elseif auto and p.stride and not self.make_projection then
    self:set_stride(p)
  end
  rawset(self, "unsure", false)
end

--- Gives a projection of ours the stride of p.
---@param p resin.residual.Projection
function Apply:set_stride(p)
  local s, even = p.stride, true
  for i = 2, #s do even = even and s[i] == s[1] end
  rawset(self.projection_layer, "stride", even and s[1] or s)
  rawset(self, "stride_unknown", false)
  if self.auto then self.auto.stride = s end
end

--- Makes the gates, or the scale per channel, for values of `shape` whose features are in dimension `at`.
---@param shape (integer|false)[]
---@param at integer
---@param dtype string
function Apply:add_gates(shape, at, dtype)
  local size, rank = shape[at], #shape - at
  if self.layer_scale then
    local values = scope.promote(create.full({size}, self.layer_scale, {dtype = dtype})):requires_grad_(true)
    for _, twin in ipairs(rawget(self, "twins") or {self}) do twin:register_parameter("scale", values) end
  end
  local definition = self:definition()
  if not definition.gates then return end
  local gates = definition.gates(self, function(bias, multiple)
    local p = {kind = rank == 0 and "linear" or "conv", inp = size, out = size * (multiple or 1), stride = {}}
    for i = 1, rank do p.stride[i] = 1 end
    local layer = fit.layer(p, dtype)
    if bias then init.constant_(layer.bias, bias) end
    return layer
  end)
  own(self, "gate_layer", gates)
end

--- Does it still need layers that follow from shapes?
---@return boolean
function Apply:incomplete()
  return (self:definition().gates ~= nil and not self.gate_layer) or (self.layer_scale and not self.scale) and true or false
end

-- A layer of the shapes that a saved weight has.
local function layer_for(weight, dtype)
  local shape = weight.shape
  local p = {kind = #shape == 2 and "linear" or "conv", inp = shape[2], out = shape[1], stride = {}}
  for i = 3, #shape do p.stride[i - 2] = 1 end
  return fit.layer(p, dtype), p
end

--- Before load_state_dict: makes the layers that the state holds and this model does not have yet. The stride of a
--- convolution is not in the state; the first forward sets it.
---@param values table<string, resin.Tensor>
---@param prefix string
function Apply:before_load(values, prefix)
  local weight = values[prefix .. "projection_layer.weight"]
  if not self.projection_layer and not self.make_projection and Tensor.is(weight) and weight.ndim >= 2 then
    local layer, p = layer_for(weight, weight.dtype)
    own(self, "projection_layer", layer)
    for _, twin in ipairs(rawget(self, "twins") or {self}) do
      rawset(twin, "stride_unknown", weight.ndim > 2)
      rawset(twin, "auto", p)
    end
  end
  local scale = values[prefix .. "scale"]
  if self.layer_scale and not self.scale and Tensor.is(scale) then
    self:register_parameter("scale", scope.promote(create.zeros(scale.shape, {dtype = scale.dtype})):requires_grad_(true))
  end
  local definition = self:definition()
  if not definition.gates or self.gate_layer then return end
  -- the gates of any operation: their order says which of the saved weights each is for
  local complete = true
  local gates = definition.gates(self, function(_, _, name)
    local saved = values[prefix .. "gate_layer." .. name .. ".weight"]
    complete = complete and Tensor.is(saved) and saved.ndim >= 2
    return complete and (layer_for(saved, saved.dtype)) or Module()
  end)
  if complete then own(self, "gate_layer", gates) end
end

-- ---- printing -------------------------------------------------------------------------------------------------------------

--- The options that differ from the default, as pairs {name, value}, for printing.
---@return table[]
function Apply:shown()
  local operation = self.operation_name
  if type(self.operation) == "function" then operation = self.operation elseif self.op then operation = nil end
  return {
    {"operation", operation}, {"record_name", self.record_name},
    {"records", self.records and "{" .. table.concat(self.records, ", ") .. "}"},
    {"weights", type(self.weights) == "string" and self.weights or self.weights and "{" .. table.concat(self.weights, ", ") .. "}"},
    {"alpha", not class.is_module(self.alpha) and self.alpha ~= 1 and self.alpha or nil},
    {"scale", not class.is_module(self.scale) and not self.layer_scale and self.scale or nil},
    {"layer_scale", self.layer_scale}, {"drop_path", self.drop_path ~= 0 and self.drop_path},
    {"drop_path_mode", self.drop_path_mode ~= "row" and self.drop_path_mode},
    {"dim", self.dim}, {"broadcast", self.broadcast}, {"outer", self.outer}, {"coupled", self.coupled}, {"disabled", self.off},
  }
end

function Apply:label()
  local list = self:shown()
  return arguments.label("Apply", list, #list)
end

--- Both shapes of a mismatch and what can be done about it.
---@param name string   of the Apply in its container
---@param record table  {name, key, module}
---@param saved (integer|false)[]
---@param current (integer|false)[]
---@param why? string   there is no projection
function Apply:mismatch(name, record, saved, current, why)
  local text = ('%s %s (record "%s"): recorded %s but current is %s; '):format(self.type, name, record.name, shapes.text(saved),
    shapes.text(current))
  if why then
    text = text .. "no projection fits, because " .. why .. "; give a module as projection, or make the shapes equal"
  elseif self.projection_layer then
    text = text .. "its projection " .. self.projection_layer:label() .. " does not make them fit"
  elseif self.records then
    text = text .. "the records of one Apply must have the shape of the current value"
  else
    text = ('%sset need_projection=true on %s "%s" (layer %s) to project it'):format(text, record.module.type, record.name, record.key)
    if self:definition().shapes == "same" and fit.broadcast(saved, current) then
      text = text .. ", or broadcast=true on the " .. self.type .. " to broadcast"
    end
  end
  check.fail("%s", text)
end

return Apply
