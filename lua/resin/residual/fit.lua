--- Where the features of a value are, and what makes a recorded value fit the current one.
-- Channels-first values ([N, C, H, W], or [C, H, W] after a 2-d layer, [C, L] after a 1-d one) have them in the dimension before the
-- image; features-last values, and all other ones of two dimensions, in the last one. Shapes are tables; a size that is not known is
-- false.

local check = require "resin.check"
local shapes = require "resin.nn.shapes"

local fit = {}

--- The dimension of the features, counted from 1.
---@param ndim integer
---@param layout? "channels_first"|"features_last"
---@param spatial? integer  dimensions of the image that the last channels-first layer works on
---@param dim? integer      given by the user: overrides
---@return integer
function fit.feature_dim(ndim, layout, spatial, dim)
  if dim then return dim < 0 and ndim + 1 + dim or dim end
  if layout ~= "channels_first" then return ndim end
  if spatial and ndim == spatial + 1 then return 1 end
  return math.min(ndim, 2)
end

--- Do two shapes agree? Unknown sizes agree with everything.
---@param a (integer|false)[]
---@param b (integer|false)[]
---@param except? integer  a dimension that may differ
---@return boolean
function fit.same(a, b, except)
  if #a ~= #b then return false end
  for i = 1, #a do
    if i ~= except and a[i] and b[i] and a[i] ~= b[i] then return false end
  end
  return true
end

--- Can two shapes be broadcast to one? Returns it, or nil.
---@param a (integer|false)[]
---@param b (integer|false)[]
---@return (integer|false)[]?
function fit.broadcast(a, b)
  local out, n = {}, math.max(#a, #b)
  for i = 1, n do
    local x, y = a[#a - n + i], b[#b - n + i]
    if x == nil then x = 1 end
    if y == nil then y = 1 end
    if x == y or y == 1 then
      out[i] = x
    elseif x == 1 then
      out[i] = y
    elseif x and y then
      return nil
    else
      out[i] = x or y
    end
  end
  return out
end

-- The stride that makes `from` positions `to`, as strided convolutions count them; nil when there is none.
local function stride(from, to)
  if not from or not to then return from == to and 1 or nil end
  if from == to then return 1 end
  if from < to or to < 1 then return nil end
  local s = math.ceil(from / to)
  if math.floor((from - 1) / s) + 1 == to then return s end
  return nil
end

---@class resin.residual.Projection
---@field kind "linear"|"conv"
---@field inp integer
---@field out integer
---@field stride integer[]   of a conv, one per dimension of the image

--- The projection that makes `saved` fit `current`.
---@param saved (integer|false)[]
---@param current (integer|false)[]
---@param at integer  dimension of the features
---@return resin.residual.Projection?
---@return string? why  there is none
function fit.projection(saved, current, at)
  local n = #current
  if #saved ~= n then return nil, "the numbers of dimensions differ" end
  if at < 1 or at > n then return nil, ("there is no dimension %d"):format(at) end
  local inp, out = saved[at], current[at]
  if not inp or not out then return nil, "their features are not known" end
  for i = 1, at - 1 do
    if saved[i] and current[i] and saved[i] ~= current[i] then
      return nil, at == n and "a projection changes the last dimension only" or "the sizes before the channels differ"
    end
  end
  if at == n then return {kind = "linear", inp = inp, out = out} end
  local strides = {}
  for i = at + 1, n do
    local s = stride(saved[i], current[i])
    if not s then
      return nil, ("dimension %d does not shrink by a whole factor"):format(i)
    end
    strides[#strides + 1] = s
  end
  return {kind = "conv", inp = inp, out = out, stride = strides}
end

--- The shape that a 1×1 convolution with strides makes.
---@param shape (integer|false)[]
---@param at integer
---@param p resin.residual.Projection
---@return (integer|false)[]
function fit.projected(shape, at, p)
  local out = shapes.copy(shape)
  out[at] = p.out
  if p.kind == "conv" then
    for i = at + 1, #shape do
      out[i] = shape[i] and math.floor((shape[i] - 1) / p.stride[i - at]) + 1
    end
  end
  return out
end

--- A layer that applies a 1×1 convolution, or a Linear, in front of `rest` dimensions of the image.
---@param p resin.residual.Projection
---@param dtype string
---@return resin.nn.Module
function fit.layer(p, dtype)
  if p.kind == "linear" then return require("resin.nn.linear").Linear(p.inp, p.out, {dtype = dtype}) end
  local rank = #p.stride
  local name = ("Conv%dd"):format(rank)
  local Conv = require("resin.nn.conv")[name]
  if not Conv then
    check.fail("Apply: a projection of channels over %d dimensions needs nn.%s, which does not exist; give a module as projection",
      rank, name)
  end
  local even = true
  for i = 2, rank do even = even and p.stride[i] == p.stride[1] end
  return Conv(p.inp, p.out, 1, {stride = even and p.stride[1] or p.stride, dtype = dtype})
end

return fit
