--- Activations. They keep the shape; only PReLU has a parameter.

local lib = require "resin.lib"
local check = require "resin.check"
local class = require "resin.nn.class"
local args = require "resin.nn.args"
local init = require "resin.nn.initialise"
local grad = require "resin.grad"
local Module = require "resin.nn.module"
local ops = require "resin.ops"
local shapes = require "resin.nn.shapes"
local spatial = require "resin.spatial"
local Tensor = require "resin.tensor"

local ffi, C = lib.ffi, lib.C
local info = ffi.new("rs_info")
local layers = {}

local function recorded(x) return C.rs_tensor_requires_grad(x.h) ~= 0 and grad.is_grad_enabled() end

-- May relu overwrite x? Not a view while gradients are recorded: then the base's value would be lost.
local function overwritable(x)
  if not Tensor.is(x) or not x.h then return true end      -- the op says what is wrong
  C.rs_tensor_info(x.h, info)
  return info.is_view == 0 or not recorded(x)
end

local function same_shape(self, shape)
  return shapes.copy(shapes.check(shape, self.type))
end

local function define(name, arguments)
  local cls = class.define(name, Module, true)
  cls.arguments = arguments
  cls.output_shape = same_shape
  function cls:init(...) args.accept(self, arguments, ...) end
  layers[name] = cls
  return cls
end

--- max(x, 0). nn.ReLU({inplace = false}): inplace overwrites the input.
---@class resin.nn.ReLU: resin.nn.Module
local ReLU = define("ReLU", {{"inplace", "boolean", default = false}})

function ReLU:forward(x)
  if self.inplace and overwritable(x) then return ops.relu_(x) end
  return ops.relu(x)
end

-- ---- those whose gradient needs their input -------------------------------------------------------------------------------

local INPLACE = {"inplace", "boolean", default = false}

-- run(op, self, x) calls ops[op] with the options of self. `inplace` overwrites the input when no gradient is recorded; otherwise
-- the gradient would need the value that is gone.
local function define_with_input(name, op, arguments, run)
  arguments[#arguments + 1] = INPLACE
  local cls = define(name, arguments)
  local plain, over = ops[op], ops[op .. "_"]
  function cls:forward(x)
    if self.inplace and Tensor.is(x) and x.h and not recorded(x) then return run(over, self, x) end
    return run(plain, self, x)
  end
  return cls
end

local function no_options(op, _, x) return op(x) end

--- x / (1 + exp(-x)). nn.SiLU({inplace = false}).
---@class resin.nn.SiLU: resin.nn.Module
define_with_input("SiLU", "silu", {}, no_options)

--- x·tanh(log(1 + exp(x))). nn.Mish({inplace = false}).
---@class resin.nn.Mish: resin.nn.Module
define_with_input("Mish", "mish", {}, no_options)

--- (x + 3) / 6 held between 0 and 1. nn.Hardsigmoid({inplace = false}).
---@class resin.nn.Hardsigmoid: resin.nn.Module
define_with_input("Hardsigmoid", "hardsigmoid", {}, no_options)

--- x·Hardsigmoid(x). nn.Hardswish({inplace = false}).
---@class resin.nn.Hardswish: resin.nn.Module
define_with_input("Hardswish", "hardswish", {}, no_options)

--- x, and on the left alpha (exp(x) - 1). nn.ELU({alpha = 1, inplace = false}).
---@class resin.nn.ELU: resin.nn.Module
define_with_input("ELU", "elu", {{"alpha", "number", default = 1}}, function(op, self, x) return op(x, self.alpha) end)

--- ELU with a slope of 1 on both sides of 0. nn.CELU({alpha = 1, inplace = false}).
---@class resin.nn.CELU: resin.nn.Module
define_with_input("CELU", "elu", {{"alpha", "number", default = 1}}, function(op, self, x)
  return op(x, self.alpha, 1, 1 / self.alpha)
end)

--- Scaled ELU that keeps mean 0 and variance 1. nn.SELU({inplace = false}).
---@class resin.nn.SELU: resin.nn.Module
local SELU_ALPHA, SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946
define_with_input("SELU", "elu", {}, function(op, _, x) return op(x, SELU_ALPHA, SELU_SCALE) end)

--- x, and on the left negative_slope x. nn.LeakyReLU({negative_slope = 0.01, inplace = false}).
---@class resin.nn.LeakyReLU: resin.nn.Module
define_with_input("LeakyReLU", "leaky_relu", {{"negative_slope", "number", default = 0.01}}, function(op, self, x)
  return op(x, self.negative_slope)
end)

--- x held between 0 and 6. nn.ReLU6({inplace = false}).
---@class resin.nn.ReLU6: resin.nn.Module
define_with_input("ReLU6", "hardtanh", {}, function(op, _, x) return op(x, 0, 6) end)

--- x held between min_val and max_val. nn.Hardtanh({min_val = -1, max_val = 1, inplace = false}).
---@class resin.nn.Hardtanh: resin.nn.Module
local Hardtanh = define_with_input("Hardtanh", "hardtanh",
  {{"min_val", "number", default = -1}, {"max_val", "number", default = 1}},
  function(op, self, x) return op(x, self.min_val, self.max_val) end)

function Hardtanh:init(...)
  args.accept(self, Hardtanh.arguments, ...)
  if self.max_val <= self.min_val then
    check.fail("%s: max_val (%g) must be larger than min_val (%g)", self.type, self.max_val, self.min_val)
  end
end

--- log(1 + exp(beta x)) / beta. nn.Softplus({beta = 1, threshold = 20}): x itself where beta x is above the threshold.
---@class resin.nn.Softplus: resin.nn.Module
local Softplus = define("Softplus", {{"beta", "number", default = 1}, {"threshold", "number", default = 20}})

function Softplus:forward(x)
  return ops.softplus(x, self.beta, self.threshold)
end

--- x, and on the left weight·x with a slope that is learned, one or one per channel. nn.PReLU({num_parameters = 1, init = 0.25,
--- dtype}).
---@class resin.nn.PReLU: resin.nn.Module
---@field weight resin.Tensor  [num_parameters]
local PReLU = define("PReLU", {
  {"num_parameters", "integer", min = 1, default = 1},
  {"init", "number", default = 0.25, hidden = true},
  {"dtype", "dtype", default = "f32", hidden = true},
})

function PReLU:init(...)
  local o = args.accept(self, PReLU.arguments, ...)
  self:register_parameter("weight", init.constant_parameter({o.num_parameters}, o.dtype, o.init))
end

function PReLU:forward(x)
  local weight, n = self.weight, self.num_parameters
  if n > 1 then
    local shape = check.tensor(x, "PReLU: input").shape
    local channels = #shape >= 2 and shape[2] or #shape == 1 and shape[1]
    if channels ~= n then
      check.fail("PReLU: input %s has %s channels, expected %d", check.shape_text(x), tostring(channels), n)
    end
    for i = 1, #shape do shape[i] = i == math.min(2, #shape) and n or 1 end
    weight = ops.reshape(weight, shape)
  end
  return ops.where(ops.gt(x, 0), x, ops.mul(x, weight))
end

-- ---- smooth ones and probabilities ----------------------------------------------------------------------------------------

--- x·Φ(x). nn.GELU({approximate = "none"}): "tanh" uses the tanh approximation.
---@class resin.nn.GELU: resin.nn.Module
local GELU = define("GELU", {{"approximate", "enum", choices = {"none", "tanh"}, default = "none"}})

function GELU:forward(x)
  return ops.gelu(x, self.approximate)
end

--- 1 / (1 + exp(-x)).
---@class resin.nn.Sigmoid: resin.nn.Module
local Sigmoid = define("Sigmoid", {})

function Sigmoid:forward(x) -- luacheck: no self
  return ops.sigmoid(x)
end

---@class resin.nn.Tanh: resin.nn.Module
local Tanh = define("Tanh", {})

function Tanh:forward(x) -- luacheck: no self
  return ops.tanh(x)
end

--- exp(x) divided by its sum along `dim`. nn.Softmax({dim = -1}).
---@class resin.nn.Softmax: resin.nn.Module
local Softmax = define("Softmax", {{"dim", "integer", default = -1}})

function Softmax:forward(x)
  return ops.softmax(x, self.dim)
end

--- The logarithm of Softmax. nn.LogSoftmax({dim = -1}).
---@class resin.nn.LogSoftmax: resin.nn.Module
local LogSoftmax = define("LogSoftmax", {{"dim", "integer", default = -1}})

function LogSoftmax:forward(x)
  return ops.log_softmax(x, self.dim)
end

--- While training, sets each value to zero with probability p and scales the others by 1 / (1 - p). nn.Dropout(p = 0.5).
---@class resin.nn.Dropout: resin.nn.Module
local Dropout = define("Dropout", {{"p", "number", min = 0, max = 1, default = 0.5}, {"inplace", "boolean", default = false}})

function Dropout:forward(x)
  if not self.training or self.p == 0 then return x end
  return ops.dropout(x, self.p)
end

--- While training, sets whole channels of [N, C, ...] to zero with probability p and scales the others by 1 / (1 - p).
--- nn.Dropout2d(p = 0.5); likewise Dropout1d and Dropout3d.
---@class resin.nn.Dropout2d: resin.nn.Module
for rank = 1, 3 do
  local ChannelDropout = define(("Dropout%dd"):format(rank), Dropout.arguments)

  function ChannelDropout:forward(x)
    if not self.training or self.p == 0 then return x end
    local n = check.tensor(x, self.type .. ": input").ndim
    if n ~= rank + 1 and n ~= rank + 2 then
      check.fail("%s: input must have %d dimensions, or %d without the batch, got %s", self.type, rank + 2, rank + 1,
        check.shape_text(x))
    end
    -- PyTorch's Dropout2d takes three dimensions as [N, C, L].
    return spatial.dropout_channels(x, self.p, true, n == rank + 2 or rank == 2)
  end
end

--- Stochastic depth (Huang and others 2016): while training, sets whole samples (mode "row") or the whole batch (mode "batch") to
--- zero with probability p and scales the others by 1 / (1 - p) unless scale_by_keep is false.
--- nn.DropPath(p = 0, {mode = "row", scale_by_keep = true}).
---@class resin.nn.DropPath: resin.nn.Module
local DropPath = define("DropPath", {
  {"p", "number", min = 0, max = 1, default = 0},
  {"mode", "enum", choices = {"row", "batch"}, default = "row"},
  {"scale_by_keep", "boolean", default = true},
})

function DropPath:forward(x)
  if not self.training or self.p == 0 then return x end
  return spatial.drop_path(check.tensor(x, "DropPath: input"), self.p, self.mode, true, self.scale_by_keep)
end

return layers
