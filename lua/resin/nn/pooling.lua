--- Pooling over the last two dimensions of [N, C, H, W] (or [C, H, W]).

local class = require "resin.nn.class"
local args = require "resin.nn.args"
local Module = require "resin.nn.module"
local ops = require "resin.ops"
local shapes = require "resin.nn.shapes"

-- Moves a window; kernel and stride as an integer or {height, width}. stride is kernel_size unless given.
local function init(self, ...)
  args.accept(self, self.arguments, ...)
  if self.stride == nil then self.stride = self.kernel_size end
end

local function output_shape(self, shape)
  shapes.check(shape, self.type, 3, 4)
  return shapes.slide(self, shape, shape[#shape - 2])
end

--- The largest value of each window. nn.MaxPool2d(kernel_size, {stride = kernel_size, padding = 0, dilation = 1,
--- ceil_mode = false}).
---@class resin.nn.MaxPool2d: resin.nn.Module
local MaxPool2d = class.define("MaxPool2d", Module, true)

MaxPool2d.layout = "channels_first"
MaxPool2d.arguments = {
  {"kernel_size", "pair", min = 1},
  {"stride", "pair", min = 1, optional = true},
  {"padding", "pair", min = 0, default = 0},
  {"dilation", "pair", min = 1, default = 1},
  {"ceil_mode", "boolean", default = false},
}
MaxPool2d.init = init
MaxPool2d.output_shape = output_shape

function MaxPool2d:forward(x)
  return ops.max_pool2d(x, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)
end

--- The mean of each window. nn.AvgPool2d(kernel_size, {stride = kernel_size, padding = 0, ceil_mode = false,
--- count_include_pad = true}).
---@class resin.nn.AvgPool2d: resin.nn.Module
local AvgPool2d = class.define("AvgPool2d", Module, true)

AvgPool2d.layout = "channels_first"
AvgPool2d.arguments = {
  {"kernel_size", "pair", min = 1},
  {"stride", "pair", min = 1, optional = true},
  {"padding", "pair", min = 0, default = 0},
  {"ceil_mode", "boolean", default = false},
  {"count_include_pad", "boolean", default = true},
}
AvgPool2d.init = init
AvgPool2d.output_shape = output_shape

function AvgPool2d:forward(x)
  return ops.avg_pool2d(x, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad)
end

--- The mean of as many windows as give the wanted size. nn.AdaptiveAvgPool2d(output_size): an integer or {height, width}.
---@class resin.nn.AdaptiveAvgPool2d: resin.nn.Module
local AdaptiveAvgPool2d = class.define("AdaptiveAvgPool2d", Module, true)

AdaptiveAvgPool2d.layout = "channels_first"
AdaptiveAvgPool2d.arguments = {{"output_size", "pair", min = 1, rest = true}}

function AdaptiveAvgPool2d:init(...)
  args.accept(self, AdaptiveAvgPool2d.arguments, ...)
end

function AdaptiveAvgPool2d:forward(x)
  return ops.adaptive_avg_pool2d(x, self.output_size)
end

function AdaptiveAvgPool2d:output_shape(shape)
  local out = shapes.copy(shapes.check(shape, self.type, 3, 4))
  out[#out - 1], out[#out] = shapes.pair(self.output_size)
  return out
end

return {MaxPool2d = MaxPool2d, AvgPool2d = AvgPool2d, AdaptiveAvgPool2d = AdaptiveAvgPool2d}
