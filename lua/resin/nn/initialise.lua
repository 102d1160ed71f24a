--- nn.init: fills tensors with initial values, with PyTorch's names and distributions. Each function changes its tensor in
--- place, records no gradient, and returns the tensor.

local check = require "resin.check"
local create = require "resin.create"
local grad = require "resin.grad"
local ops = require "resin.ops"
local scope = require "resin.scope"

local init = {}

local no_grad = grad.no_grad

local function uniform(t, low, high) t:uniform_(low, high) end
local function normal(t, mean, std) t:normal_(mean, std) end
local function fill(t, value) t:fill_(value) end

---@param t resin.Tensor
---@param low? number
---@param high? number
---@return resin.Tensor
function init.uniform_(t, low, high)
  check.tensor(t, "init.uniform_: tensor")
  low = low == nil and 0 or check.number(low, "init.uniform_: low")
  high = high == nil and 1 or check.number(high, "init.uniform_: high", low)
  no_grad(uniform, t, low, high)
  return t
end

---@param t resin.Tensor
---@param mean? number
---@param std? number
---@return resin.Tensor
function init.normal_(t, mean, std)
  check.tensor(t, "init.normal_: tensor")
  mean = mean == nil and 0 or check.number(mean, "init.normal_: mean")
  std = std == nil and 1 or check.number(std, "init.normal_: std", 0)
  no_grad(normal, t, mean, std)
  return t
end

---@param t resin.Tensor
---@param value number
---@return resin.Tensor
function init.constant_(t, value)
  check.tensor(t, "init.constant_: tensor")
  no_grad(fill, t, check.number(value, "init.constant_: value"))
  return t
end

---@param t resin.Tensor
---@return resin.Tensor
function init.zeros_(t) return init.constant_(t, 0) end

---@param t resin.Tensor
---@return resin.Tensor
function init.ones_(t) return init.constant_(t, 1) end

--- How many inputs and outputs a weight connects: [out, in] or [out, in, kernel...].
---@param t resin.Tensor
---@return integer fan_in
---@return integer fan_out
function init.fans(t)
  local shape = t.shape
  if #shape < 2 then
    check.fail("init: fan in and fan out need a tensor of at least 2 dimensions, got %s", check.describe(t))
  end
  local field = 1
  for i = 3, #shape do field = field * shape[i] end
  return shape[2] * field, shape[1] * field
end

local GAINS = {
  linear = 1, sigmoid = 1, conv1d = 1, conv2d = 1, conv3d = 1, conv_transpose1d = 1, conv_transpose2d = 1, tanh = 5 / 3,
  relu = math.sqrt(2), selu = 3 / 4,
}

--- The recommended gain of a nonlinearity.
---@param nonlinearity string
---@param param? number  negative slope of leaky_relu, 0.01 by default
---@return number
function init.calculate_gain(nonlinearity, param)
  if nonlinearity == "leaky_relu" then return math.sqrt(2 / (1 + (param or 0.01) ^ 2)) end
  local gain = GAINS[nonlinearity]
  if gain then return gain end
  check.enum(nonlinearity, "init.calculate_gain: nonlinearity",
    {"linear", "conv2d", "sigmoid", "tanh", "relu", "leaky_relu", "selu"})
end

local KAIMING = {"a", "mode", "nonlinearity"}

local function kaiming_std(t, options, what)
  check.tensor(t, what .. ": tensor")
  options = check.options(options, KAIMING, what)
  local fan_in, fan_out = init.fans(t)
  local mode = options.mode or "fan_in"
  check.enum(mode, what .. ": mode", {"fan_in", "fan_out"})
  return init.calculate_gain(options.nonlinearity or "leaky_relu", options.a or 0) / math.sqrt(mode == "fan_in" and fan_in or fan_out)
end

--- He et al., 2015: uniform. Options: a = 0, mode = "fan_in" or "fan_out", nonlinearity = "leaky_relu".
---@param t resin.Tensor
---@param options? {a?: number, mode?: string, nonlinearity?: string}
---@return resin.Tensor
function init.kaiming_uniform_(t, options)
  local bound = math.sqrt(3) * kaiming_std(t, options, "init.kaiming_uniform_")
  return init.uniform_(t, -bound, bound)
end

--- He et al., 2015: normal. Options as for kaiming_uniform_.
---@param t resin.Tensor
---@param options? {a?: number, mode?: string, nonlinearity?: string}
---@return resin.Tensor
function init.kaiming_normal_(t, options)
  return init.normal_(t, 0, kaiming_std(t, options, "init.kaiming_normal_"))
end

local function xavier_std(t, gain, what)
  check.tensor(t, what .. ": tensor")
  gain = gain == nil and 1 or check.number(gain, what .. ": gain")
  local fan_in, fan_out = init.fans(t)
  return gain * math.sqrt(2 / (fan_in + fan_out))
end

--- Glorot and Bengio, 2010: uniform.
---@param t resin.Tensor
---@param gain? number
---@return resin.Tensor
function init.xavier_uniform_(t, gain)
  local bound = math.sqrt(3) * xavier_std(t, gain, "init.xavier_uniform_")
  return init.uniform_(t, -bound, bound)
end

--- Glorot and Bengio, 2010: normal.
---@param t resin.Tensor
---@param gain? number
---@return resin.Tensor
function init.xavier_normal_(t, gain)
  return init.normal_(t, 0, xavier_std(t, gain, "init.xavier_normal_"))
end

-- Rows made orthonormal one after another (modified Gram-Schmidt, twice for accuracy), in Lua: it is called once per weight.
local function orthonormal_rows(rows, cols)
  local values = scope.run(function()
    return create.randn({rows, cols}, {dtype = "f64"}):totable()
  end)
  for i = 1, rows do
    local row = values[i]
    for _ = 1, 2 do
      for j = 1, i - 1 do
        local other, dot = values[j], 0
        for k = 1, cols do dot = dot + row[k] * other[k] end
        for k = 1, cols do row[k] = row[k] - dot * other[k] end
      end
    end
    local norm = 0
    for k = 1, cols do norm = norm + row[k] * row[k] end
    norm = math.sqrt(norm)
    for k = 1, cols do row[k] = row[k] / norm end
  end
  return values
end

local function write_orthogonal(t, gain)
  local rows, cols = t.shape[1], t:numel() / t.shape[1]
  local flip = rows > cols
  local q = create.tensor(orthonormal_rows(flip and cols or rows, flip and rows or cols), {dtype = "f64"})
  if flip then q = ops.transpose(q, 1, 2) end
  t:copy_(ops.mul(ops.reshape(q, t.shape), gain))
end

--- Saxe et al., 2013: a (semi-)orthogonal matrix; further dimensions are flattened into the columns.
---@param t resin.Tensor
---@param gain? number
---@return resin.Tensor
function init.orthogonal_(t, gain)
  check.tensor(t, "init.orthogonal_: tensor")
  gain = gain == nil and 1 or check.number(gain, "init.orthogonal_: gain")
  if #t.shape < 2 or t:numel() == 0 then
    check.fail("init.orthogonal_: needs a tensor of at least 2 dimensions with elements, got %s", check.describe(t))
  end
  no_grad(scope.run, write_orthogonal, t, gain)
  return t
end

-- ---- for layers -----------------------------------------------------------------------------------------------------------

--- A new parameter of the given shape, drawn from U(-bound, bound).
---@param shape integer[]
---@param dtype string
---@param bound number
---@return resin.Tensor
function init.uniform_parameter(shape, dtype, bound)
  local t = scope.promote(create.empty(shape, {dtype = dtype}))
  t:uniform_(-bound, bound)
  return t:requires_grad_(true)
end

--- A new parameter that holds one value.
---@param shape integer[]
---@param dtype string
---@param value number
---@return resin.Tensor
function init.constant_parameter(shape, dtype, value)
  local t = scope.promote(create.full(shape, value, {dtype = dtype}))
  return t:requires_grad_(true)
end

--- A new buffer that holds one value.
---@param shape integer[]
---@param dtype string
---@param value number
---@return resin.Tensor
function init.constant_buffer(shape, dtype, value)
  return scope.promote(create.full(shape, value, {dtype = dtype}))
end

return init
