--- The combine operations: how a recorded value r joins the current value x.
-- One table per operation, by name. An operation says its formula, the options it takes, what its shapes must be, and how
-- it runs; gates (layers of its own) are made before training by `gates`. Everything else, the error texts included, follows from
-- this table.
--
-- Fields of a definition:
--   formula  text
--   alpha    true: takes a factor of r; `default_alpha()` makes the one used when none is given (1 otherwise)
--   scale    true: takes a factor of x
--   options  {name = true}: further options of Apply it understands (coupled)
--   adds     true: linear in x, so that x = 0 leaves the skip alone (stochastic depth)
--   shapes   "same" (of r and x; the default), "concat" (they may differ in the feature dimension), or "any"
--   run      function(x, r, apply, layout, spatial) for resin's own; function(x, r, alpha, scale) for registered ones
--   shape    function(current, saved) → shape, for "any"
--   gates    function(apply, make): make(bias, multiple, name) gives a layer from the features of x to `multiple` times as many
--            (1 by default), its bias filled unless it is nil; name is that of the layer among the gates
--   many     function(x, list, apply, layout, spatial): joins several recorded values

local check = require "resin.check"
local class = require "resin.nn.class"
local Module = require "resin.nn.module"
local lib = require "resin.lib"
local ops = require "resin.ops"
local scope = require "resin.scope"
local grad = require "resin.grad"
local fit = require "resin.residual.fit"
local LearnableAlpha = require "resin.residual.alpha"

local C = lib.C
local Tensor, free = scope.Tensor, scope.free
local type, getmetatable = type, getmetatable
local add, sub, mul, div, sigmoid, cat = ops.add, ops.sub, ops.mul, ops.div, ops.sigmoid, ops.cat

local combine = {}

local registry, names = {}, {}

-- ---- factors --------------------------------------------------------------------------------------------------------------

-- One value per channel, shaped so that it meets the feature dimension of x.
local function per_channel(value, x, apply, layout, spatial, given)
  local ndim = C.rs_tensor_ndim(x.h)
  local at = fit.feature_dim(ndim, layout, spatial, apply.dim or nil)
  if C.rs_tensor_size(x.h, at - 1) ~= C.rs_tensor_numel(value.h) then
    check.fail("%s: %s has %d values, one per channel, but the value %s has %d channels (dimension %d)", apply.type,
      given == apply.alpha and "alpha" or "scale", C.rs_tensor_numel(value.h), check.shape_text(x),
      C.rs_tensor_size(x.h, at - 1), at)
  end
  if at == ndim then return value end
  local shape = {tonumber(C.rs_tensor_numel(value.h))}
  for i = 2, ndim - at + 1 do shape[i] = 1 end
  return ops.reshape(value, shape)
end

-- What alpha or scale is now: a number or a tensor, and whether the tensor was made for this call.
local function factor(value, x, apply, layout, spatial)
  if type(value) == "number" then return value, false end
  local given, made = value, getmetatable(value) ~= Tensor
  if made then value = value:forward() end
  if C.rs_tensor_ndim(value.h) == 1 and C.rs_tensor_numel(value.h) > 1 then
    local shaped = per_channel(value, x, apply, layout, spatial, given)
    if shaped ~= value then
      if made then free(value) end
      return shaped, true
    end
  end
  return value, made
end

-- f·t, and whether a tensor was made for it.
local function times(t, f)
  if f == 1 then return t, false end
  return mul(t, f), true
end

-- s·x + sign·a·r
local function weighted(x, r, apply, layout, spatial, sign)
  local left, left_made = x, false
  local s = apply.scale
  if s then
    local f, made = factor(s, x, apply, layout, spatial)
    left, left_made = times(x, f)
    if made then free(f) end
  end
  local a, a_made = factor(apply.alpha, x, apply, layout, spatial)
  local y
  if type(a) == "number" then
    y = add(left, r, sign * a)
  else
    local right = mul(r, a)
    y = add(left, right, sign)
    free(right)
    if a_made then free(a) end
  end
  if left_made then free(left) end
  return y
end

-- ---- the operations -------------------------------------------------------------------------------------------------------

local function define(name, definition)
  definition.name = name
  definition.builtin = true
  definition.shapes = definition.shapes or "same"
  definition.options = definition.options or {}
  registry[name] = definition
  names[#names + 1] = name
  table.sort(names)
end

-- Folds a function of two over x and a list; what is made on the way is freed.
local function fold(fn, x, list)
  local y = x
  for i = 1, #list do
    local next_y = fn(y, list[i])
    if y ~= x then free(y) end
    y = next_y
  end
  return y
end

-- w[1]·x + w[2]·list[1] + …; w are numbers, or the elements of a tensor.
local function mixed(x, list, apply)
  local weights = apply.weights
  if not weights then return fold(add, x, list) end
  if type(weights) == "table" then
    local y, made = times(x, weights[1])
    for i = 1, #list do
      local next_y = add(y, list[i], weights[i + 1])
      if made then free(y) end
      y, made = next_y, true
    end
    return y
  end
  local w = apply.mix
  local soft = weights == "softmax"
  if soft then w = ops.softmax(w, 1) end
  local y
  for i = 0, #list do
    local factor_i = ops.select(w, 1, i + 1)
    local part = mul(i == 0 and x or list[i], factor_i)
    free(factor_i)
    if y then
      local sum = add(y, part)
      free(y)
      free(part)
      y = sum
    else
      y = part
    end
  end
  if soft then free(w) end
  return y
end

define("add", {
  formula = "scale*x + alpha*r", alpha = true, scale = true, adds = true, many = mixed,
  run = function(x, r, apply, layout, spatial)
    if apply.alpha == 1 and not apply.scale then return add(x, r) end
    return weighted(x, r, apply, layout, spatial, 1)
  end,
})

define("subtract", {
  formula = "scale*x - alpha*r", alpha = true, scale = true, adds = true,
  run = function(x, r, apply, layout, spatial)
    if apply.alpha == 1 and not apply.scale then return sub(x, r) end
    return weighted(x, r, apply, layout, spatial, -1)
  end,
})

define("multiply", {
  formula = "x * (1 + alpha*r)", alpha = true,
  run = function(x, r, apply, layout, spatial)
    local a, made = factor(apply.alpha, x, apply, layout, spatial)
    local scaled, scaled_made = times(r, a)
    local gain = add(scaled, 1)
    if scaled_made then free(scaled) end
    if made then free(a) end
    local y = mul(x, gain)
    free(gain)
    return y
  end,
})

define("gated", {
  formula = "(1 - alpha)*x + alpha*r", alpha = true,
  default_alpha = function() return LearnableAlpha(0.5) end,
  run = function(x, r, apply, layout, spatial)
    local a, made = factor(apply.alpha, x, apply, layout, spatial)
    if type(a) == "number" then
      local left = mul(x, 1 - a)
      local y = add(left, r, a)
      free(left)
      return y
    end
    local rest = sub(1, a)
    local left, right = mul(x, rest), mul(r, a)
    local y = add(left, right)
    free(rest)
    free(left)
    free(right)
    if made then free(a) end
    return y
  end,
})

define("product", {formula = "x * r", run = function(x, r) return mul(x, r) end})

define("mean", {
  formula = "(x + r) / 2",
  many = function(x, list)
    local sum = fold(add, x, list)
    local y = mul(sum, 1 / (#list + 1))
    free(sum)
    return y
  end,
  run = function(x, r)
    local sum = add(x, r)
    local y = mul(sum, 0.5)
    free(sum)
    return y
  end,
})

define("max", {
  formula = "max(x, r)",
  run = function(x, r) return ops.maximum(x, r) end,
  many = function(x, list) return fold(ops.maximum, x, list) end,
})

define("min", {
  formula = "min(x, r)",
  run = function(x, r) return ops.minimum(x, r) end,
  many = function(x, list) return fold(ops.minimum, x, list) end,
})

define("concat", {
  formula = "cat(x, r)", shapes = "concat",
  run = function(x, r, apply, layout, spatial)
    local at = fit.feature_dim(C.rs_tensor_ndim(x.h), layout, spatial, apply.dim or nil)
    return cat({x, r}, at)
  end,
  many = function(x, list, apply, layout, spatial)
    local parts = {x}
    for i = 1, #list do parts[i + 1] = list[i] end
    return cat(parts, fit.feature_dim(C.rs_tensor_ndim(x.h), layout, spatial, apply.dim or nil))
  end,
})

--- The gates of a highway: two layers, or one when they are coupled.
local Gates = class.define("Gates", Module, true)

define("highway", {
  formula = "T(x)*x + C(r)*r", options = {coupled = true},
  gates = function(apply, make)
    local gates = Gates()
    gates:add_module("transform_gate", make(-1, 1, "transform_gate"))
    if not apply.coupled then gates:add_module("carry_gate", make(1, 1, "carry_gate")) end
    return gates
  end,
  run = function(x, r, apply)
    local gates = apply.gate_layer
    local open = gates.transform_gate:forward(x)
    local T = sigmoid(open)
    free(open)
    local carry
    if apply.coupled then
      carry = sub(1, T)
    else
      local shut = gates.carry_gate:forward(r)
      carry = sigmoid(shut)
      free(shut)
    end
    local left, right = mul(x, T), mul(r, carry)
    local y = add(left, right)
    free(T)
    free(carry)
    free(left)
    free(right)
    return y
  end,
})

define("input_gated", {
  formula = "g*x + (1 - g)*r, g = sigmoid(W(x) + V(r))",
  gates = function(_, make)
    local gates = Gates()
    gates:add_module("current_gate", make(nil, 1, "current_gate"))
    gates:add_module("saved_gate", make(nil, 1, "saved_gate"))
    return gates
  end,
  run = function(x, r, apply)
    local gates = apply.gate_layer
    local a, b = gates.current_gate:forward(x), gates.saved_gate:forward(r)
    local sum = add(a, b)
    local g = sigmoid(sum)
    local difference = sub(x, r)           -- r + g·(x - r)
    local part = mul(g, difference)
    local y = add(part, r)
    free(a)
    free(b)
    free(sum)
    free(g)
    free(difference)
    free(part)
    return y
  end,
})

-- The k-th of n equal parts of t along the features.
local function part_of(t, k, n, apply, layout, spatial)
  local at = fit.feature_dim(C.rs_tensor_ndim(t.h), layout, spatial, apply.dim or nil)
  local size = tonumber(C.rs_tensor_size(t.h, at - 1)) / n
  return ops.narrow(t, at, (k - 1) * size + 1, size)
end

define("film", {
  formula = "x*(1 + G(r)) + B(r)",
  gates = function(_, make)
    local gates = Gates()
    gates:add_module("modulation", make(nil, 2, "modulation"))
    return gates
  end,
  run = function(x, r, apply, layout, spatial)
    local both = apply.gate_layer.modulation:forward(r)
    local gain, shift = part_of(both, 1, 2, apply, layout, spatial), part_of(both, 2, 2, apply, layout, spatial)
    local scaled = mul(x, gain)
    local sum = add(x, scaled)
    local y = add(sum, shift)
    free(both)
    free(gain)
    free(shift)
    free(scaled)
    free(sum)
    return y
  end,
})

local function favour_state(bias)
  local n = bias:numel()
  local values = {}
  for i = 1, n do values[i] = i > n / 3 and i <= 2 * n / 3 and 2 or 0 end
  bias:copy_(values)
end

-- A GRU cell whose input is x and whose state is r; the parts of each layer are in PyTorch's order r, z, n. The gate z starts at
-- sigmoid(2), so that the skip dominates at first (Parisotto et al., Stabilizing Transformers for Reinforcement Learning).
define("gru", {
  formula = "(1 - z)*n + z*r",
  gates = function(_, make)
    local gates = Gates()
    local input = make(0, 3, "input")
    gates:add_module("input", input)
    gates:add_module("hidden", make(0, 3, "hidden"))
    if input.bias then grad.no_grad(favour_state, input.bias) end
    return gates
  end,
  run = function(x, r, apply, layout, spatial)
    local gates = apply.gate_layer
    local a, b = gates.input:forward(x), gates.hidden:forward(r)
    local made = {a, b}
    local function own(t)
      made[#made + 1] = t
      return t
    end
    local function part(t, k) return own(part_of(t, k, 3, apply, layout, spatial)) end
    local reset = own(sigmoid(own(add(part(a, 1), part(b, 1)))))
    local z = own(sigmoid(own(add(part(a, 2), part(b, 2)))))
    local n = own(ops.tanh(own(add(part(a, 3), own(mul(reset, part(b, 3)))))))
    local y = add(n, own(mul(z, own(sub(r, n)))))
    for i = 1, #made do free(made[i]) end
    return y
  end,
})

-- Only the part of x that is orthogonal to r is added; over the features of each position.
define("orthogonal", {
  formula = "scale*(x - (x·r / r·r) r) + alpha*r", alpha = true, scale = true, adds = true,
  run = function(x, r, apply, layout, spatial)
    local at = fit.feature_dim(C.rs_tensor_ndim(x.h), layout, spatial, apply.dim or nil)
    local xr, rr = mul(x, r), mul(r, r)
    local top, bottom = ops.sum(xr, at, true), ops.sum(rr, at, true)
    local safe = add(bottom, 1e-12)
    local ratio = div(top, safe)
    local along = mul(r, ratio)
    local rest = sub(x, along)
    local y = weighted(rest, r, apply, layout, spatial, 1)
    free(xr)
    free(rr)
    free(top)
    free(bottom)
    free(safe)
    free(ratio)
    free(along)
    free(rest)
    return y
  end,
})

-- ---- finding and registering ----------------------------------------------------------------------------------------------

--- The names of all operations, sorted, as text.
---@return string
function combine.known() return table.concat(names, ", ") end

-- A function or a module of the user's as operation.
local CUSTOM = {
  name = "custom", formula = "f(x, r)", shapes = "any", options = {},
}

function CUSTOM.many(x, list, apply)
  if apply.op then return Module.run(apply.op, x, unpack(list)) end
  return scope.call(apply._fixed.operation, x, unpack(list))
end

--- The definition of what an Apply was given as its operation.
---@param operation string|function|resin.nn.Module
---@return table? definition
function combine.find(operation)
  if type(operation) == "string" then return registry[operation:lower()] end
  if type(operation) == "function" or class.is_module(operation) then return CUSTOM end
  return nil
end

local FIELDS = {"formula", "run", "alpha", "scale", "shapes", "shape"}

--- Adds an operation for Apply{operation = name}.
--- register("squeeze", {formula = "x * sigmoid(r)", run = function(current, saved, alpha, scale) … end}); `alpha = true` and
--- `scale = true` let Apply take those options (run gets their values), `shapes` is "same" (the default), "concat" or "any",
--- and `shape = function(current, saved)` gives the shape of the result.
---@param name string
---@param definition table
function combine.register(name, definition)
  check.string(name, "register: name")
  local key = name:lower()
  if registry[key] then check.fail('register: there is an operation "%s" already', key) end
  if key == "" or key == "custom" then check.fail("register: %q cannot be the name of an operation", name) end
  if type(definition) == "function" then definition = {run = definition} end
  local what = "register: " .. key
  if definition == nil then check.fail("%s: the definition is missing: give a function or {run = function}", what) end
  check.options(definition, FIELDS, what)
  check.func(definition.run, what .. ": run")
  local own = {name = key, run = definition.run, options = {}, shape = definition.shape, formula = definition.formula or "f(x, r)"}
  check.string(own.formula, what .. ": formula")
  for _, field in ipairs{"alpha", "scale"} do
    own[field] = definition[field] ~= nil and check.boolean(definition[field], what .. ": " .. field)
  end
  own.shapes = definition.shapes == nil and "same" or check.enum(definition.shapes, what .. ": shapes", {"same", "concat", "any"})
  if own.shape ~= nil then check.func(own.shape, what .. ": shape") end
  registry[key] = own
  names[#names + 1] = key
  table.sort(names)
end

-- An operation of the user's, with the values of its factors.
local function run_registered(x, r, apply, layout, spatial)
  local definition = registry[apply._fixed.operation]
  local a, a_made, s, s_made
  if definition.alpha then a, a_made = factor(apply.alpha, x, apply, layout, spatial) end
  if apply.scale then s, s_made = factor(apply.scale, x, apply, layout, spatial) end
  local y = scope.call(definition.run, x, r, a, s)
  if a_made and a ~= y then free(a) end
  if s_made and s ~= y then free(s) end
  return y
end

local function run_function(x, r, apply) return scope.call(apply._fixed.operation, x, r) end

local function run_module(x, r, apply) return Module.run(apply.op, x, r) end

--- The function that runs an Apply's operation.
---@param apply resin.nn.Apply
---@return fun(x: resin.Tensor, r: resin.Tensor, apply: resin.nn.Apply, layout: string?, spatial: integer?): resin.Tensor
function combine.runner(apply)
  if apply.op then return run_module end
  if type(apply.operation) == "function" then return run_function end
  local definition = registry[apply.operation]
  return definition.builtin and definition.run or run_registered
end

--- The function that joins several records, or nil for an Apply of one.
---@param apply resin.nn.Apply
---@return function?
function combine.joiner(apply)
  return apply.records and combine.find(apply.op or apply.operation).many or nil
end

return combine
