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
--   shapes   "same" (of r and x; the default), "concat" (they may differ in the feature dimension), or "any"
--   run      function(x, r, apply, layout, spatial) for resin's own; function(x, r, alpha, scale) for registered ones
--   shape    function(current, saved) → shape, for "any"
--   gates    function(apply, make): make(bias) gives a layer from the features of x to as many, its bias filled

local check = require "resin.check"
local class = require "resin.nn.class"
local Module = require "resin.nn.module"
local lib = require "resin.lib"
local ops = require "resin.ops"
local scope = require "resin.scope"
local fit = require "resin.residual.fit"
local LearnableAlpha = require "resin.residual.alpha"

local C = lib.C
local Tensor, free = scope.Tensor, scope.free
local type, getmetatable = type, getmetatable
local add, sub, mul, sigmoid, cat = ops.add, ops.sub, ops.mul, ops.sigmoid, ops.cat

local combine = {}

local registry, names = {}, {}

-- ---- factors --------------------------------------------------------------------------------------------------------------

-- One value per channel, shaped so that it meets the feature dimension of x.
local function per_channel(value, x, apply, layout, spatial)
  local ndim = C.rs_tensor_ndim(x.h)
  local at = fit.feature_dim(ndim, layout, spatial, apply.dim or nil)
  if at == ndim then return value end
  local shape = {tonumber(C.rs_tensor_numel(value.h))}
  for i = 2, ndim - at + 1 do shape[i] = 1 end
  return ops.reshape(value, shape)
end

-- What alpha or scale is now: a number or a tensor, and whether the tensor was made for this call.
local function factor(value, x, apply, layout, spatial)
  if type(value) == "number" then return value, false end
  local made = getmetatable(value) ~= Tensor
  if made then value = value:forward() end
  if C.rs_tensor_ndim(value.h) == 1 and C.rs_tensor_numel(value.h) > 1 then
    local shaped = per_channel(value, x, apply, layout, spatial)
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

define("add", {
  formula = "scale*x + alpha*r", alpha = true, scale = true,
  run = function(x, r, apply, layout, spatial)
    if apply.alpha == 1 and not apply.scale then return add(x, r) end
    return weighted(x, r, apply, layout, spatial, 1)
  end,
})

define("subtract", {
  formula = "scale*x - alpha*r", alpha = true, scale = true,
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

define("mean", {
  formula = "(x + r) / 2",
  run = function(x, r)
    local sum = add(x, r)
    local y = mul(sum, 0.5)
    free(sum)
    return y
  end,
})

define("max", {formula = "max(x, r)", run = function(x, r) return ops.maximum(x, r) end})
define("min", {formula = "min(x, r)", run = function(x, r) return ops.minimum(x, r) end})

define("concat", {
  formula = "cat(x, r)", shapes = "concat",
  run = function(x, r, apply, layout, spatial)
    local at = fit.feature_dim(C.rs_tensor_ndim(x.h), layout, spatial, apply.dim or nil)
    return cat({x, r}, at)
  end,
})

--- The gates of a highway: two layers, or one when they are coupled.
local Gates = class.define("Gates", Module, true)

define("highway", {
  formula = "T(x)*x + C(r)*r", options = {coupled = true},
  gates = function(apply, make)
    local gates = Gates()
    gates:add_module("transform_gate", make(-1))
    if not apply.coupled then gates:add_module("carry_gate", make(1)) end
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

-- ---- finding and registering ----------------------------------------------------------------------------------------------

--- The names of all operations, sorted, as text.
---@return string
function combine.known() return table.concat(names, ", ") end

-- A function or a module of the user's as operation.
local CUSTOM = {
  name = "custom", formula = "f(x, r)", shapes = "any", options = {},
}

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
  local definition = registry[apply.operation]
  local a, a_made, s, s_made
  if definition.alpha then a, a_made = factor(apply.alpha, x, apply, layout, spatial) end
  if apply.scale then s, s_made = factor(apply.scale, x, apply, layout, spatial) end
  local y = scope.call(definition.run, x, r, a, s)
  if a_made and a ~= y then free(a) end
  if s_made and s ~= y then free(s) end
  return y
end

local function run_function(x, r, apply) return scope.call(apply.operation, x, r) end

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

return combine
