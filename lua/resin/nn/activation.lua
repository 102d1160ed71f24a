--- Activations. They keep the shape and have no parameters.

local class = require "resin.nn.class"
local args = require "resin.nn.args"
local Module = require "resin.nn.module"
local ops = require "resin.ops"
local shapes = require "resin.nn.shapes"

local layers = {}

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
  if self.inplace then return ops.relu_(x) end
  return ops.relu(x)
end

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

return layers
