--- nn.utils: limits on gradients.

local check = require "resin.check"
local class = require "resin.nn.class"
local grad = require "resin.grad"
local ops = require "resin.ops"
local scope = require "resin.scope"

local clip = {}

-- The parameters of a module, of a list, or a single tensor.
local function parameter_list(parameters, what)
  if class.is_module(parameters) then return parameters:parameters() end
  if class.is_tensor(parameters) then return {parameters} end
  if not class.is_plain(parameters) then
    check.fail("%s: parameters must be a module, a tensor or a list of tensors, got %s", what, check.describe(parameters))
  end
  for i = 1, #parameters do check.tensor(parameters[i], what .. ": parameters[" .. i .. "]") end
  return parameters
end

local function gradients(parameters)
  local list = {}
  for i = 1, #parameters do
    local g = parameters[i].grad
    if g then list[#list + 1] = g end
  end
  return list
end

-- ‖g‖ to the power p, of one gradient.
local function power_sum(g, p)
  if p == math.huge then return ops.amax(ops.abs(g)) end
  if p == 2 then return ops.sum(ops.square(g)) end
  return ops.sum(ops.pow(ops.abs(g), p))
end

local function clip_norm(parameters, max_norm, p)
  local grads = gradients(parameters)
  if #grads == 0 then return nil end
  local parts = {}
  for i = 1, #grads do
    local part = power_sum(grads[i], p)
    parts[i] = part.dtype == grads[1].dtype and part or part:to(grads[1].dtype)
  end
  local all = ops.stack(parts, 1)
  local total
  if p == math.huge then
    total = ops.amax(all)
  elseif p == 2 then
    total = ops.sqrt(ops.sum(all))
  else
    total = ops.pow(ops.sum(all), 1 / p)
  end
  local factor = ops.clamp(ops.mul(ops.reciprocal(ops.add(total, 1e-6)), max_norm), {max = 1})
  for i = 1, #grads do ops.mul_(grads[i], factor) end
  return total
end

--- Scales all gradients by one factor so that their common norm is at most max_norm.
---@param parameters resin.nn.Module|resin.Tensor|resin.Tensor[]
---@param max_norm number
---@param options? {norm_type: number}  2 by default; math.huge takes the largest absolute value
---@return resin.Tensor|nil norm  the norm before clipping, 0-d; nil when there is no gradient
function clip.clip_grad_norm_(parameters, max_norm, options)
  local what = "clip_grad_norm_"
  local list = parameter_list(parameters, what)
  check.number(max_norm, what .. ": max_norm", 0)
  local p = check.options(options, {"norm_type"}, what).norm_type
  if p == nil then p = 2 end
  check.number(p, what .. ": norm_type")
  if p <= 0 then check.fail("%s: norm_type must be greater than 0, got %g", what, p) end
  return grad.no_grad(scope.run, clip_norm, list, max_norm, p)
end

local function clip_value(parameters, value)
  for _, g in ipairs(gradients(parameters)) do ops.clamp_(g, -value, value) end
end

--- Limits every element of every gradient to -value … value.
---@param parameters resin.nn.Module|resin.Tensor|resin.Tensor[]
---@param value number
function clip.clip_grad_value_(parameters, value)
  local list = parameter_list(parameters, "clip_grad_value_")
  check.number(value, "clip_grad_value_: value", 0)
  grad.no_grad(scope.run, clip_value, list, value)
end

return clip
