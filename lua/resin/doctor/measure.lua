--- Numbers that describe a tensor: all as plain Lua numbers, computed without recording gradients.

local lib = require "resin.lib"
local grad = require "resin.grad"
local ops = require "resin.ops"
local scope = require "resin.scope"

local C = lib.C
local measure = {}

local EMPTY = {norm = 0, mean = 0, max = 0, rms = 0, zeros = 0, finite = true}

-- The values are divided by the largest before they are squared, so that a norm of 1e30 or 1e-30 is still right in f32.
local function numbers(t)
  local n = tonumber(C.rs_tensor_numel(t.h))
  if n == 0 then return EMPTY end
  t = t:detach()
  if t.dtype == "bf16" or t.dtype == "f16" then t = t:to("f32") end
  local size = ops.abs(t)
  local max = ops.amax(size):item()
  local finite = ops.all(ops.isfinite(t)):item()
  finite = finite == true or finite == 1
  local out = {mean = ops.mean(size):item(), max = max, finite = finite, zeros = 0, norm = max, rms = max}
  if not finite then return out end
  out.zeros = ops.mean(ops.eq(t, 0):to("f32")):item()
  if max > 0 then
    out.norm = max * math.sqrt(ops.sum(ops.square(ops.div(size, max))):item())
    out.rms = out.norm / math.sqrt(n)
  end
  return out
end

local function inside(t) return scope.run(numbers, t) end

--- {norm, mean (of |t|), max (of |t|), rms, zeros (fraction of exact zeros), finite}
---@param t resin.Tensor
---@return {norm: number, mean: number, max: number, rms: number, zeros: number, finite: boolean}
function measure.of(t) return grad.no_grad(inside, t) end

local function product(a, b)
  local x, y = measure.of(a), measure.of(b)
  if x.norm == 0 or y.norm == 0 or not (x.finite and y.finite) then return nil end
  return ops.sum(ops.mul(ops.div(a:detach(), x.norm), ops.div(b:detach(), y.norm))):item()
end

--- The cosine of the angle between two tensors of one shape; nil where one of them is zero.
---@param a resin.Tensor
---@param b resin.Tensor
---@return number?
function measure.cosine(a, b) return grad.no_grad(scope.run, product, a, b) end

local EDGES = 12

local function decades(t)
  local counts = {zero = 0, total = 0}
  local values = ops.reshape(ops.abs(t:detach()):to("f64"), {-1}):totable()
  for i = 1, #values do
    local v = values[i]
    counts.total = counts.total + 1
    if v == 0 or v ~= v then
      counts.zero = counts.zero + 1
    else
      local decade = math.max(-EDGES, math.min(EDGES, math.floor(math.log10(v))))
      counts[decade] = (counts[decade] or 0) + 1
    end
  end
  return counts
end

--- How many values of |t| lie in each power of ten: {[-3] = number in [1e-3, 1e-2), …, zero = number, total = number}.
---@param t resin.Tensor
---@return table
function measure.histogram(t) return grad.no_grad(scope.run, decades, t) end

return measure
