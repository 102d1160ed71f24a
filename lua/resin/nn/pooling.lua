--- Pooling over the last dimensions of [N, C, L] or [N, C, H, W], also without the batch.

local lib = require "resin.lib"
local class = require "resin.nn.class"
local args = require "resin.nn.args"
local Module = require "resin.nn.module"
local ops = require "resin.ops"
local shapes = require "resin.nn.shapes"
local spatial = require "resin.spatial"
local Tensor = require "resin.tensor"

local C = lib.C

local function is_image(x) return Tensor.is(x) and x.h and C.rs_tensor_ndim(x.h) == 3 end

-- Moves a window; kernel and stride as an integer or {height, width}. stride is kernel_size unless given.
local function init(self, ...)
  args.accept(self, self.arguments, ...)
  if self.stride == nil then self.stride = self.kernel_size end
end

local function accept(self, ...) args.accept(self, self.arguments, ...) end

local function output_shape(self, shape)
  shapes.check(shape, self.type, 3, 4)
  return shapes.slide(self, shape, shape[#shape - 2])
end

local function line_shape(self, shape)
  shapes.check(shape, self.type, 2, 3)
  return shapes.slide(self, shape, shape[#shape - 1], 1)
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
  if is_image(x) then
    return spatial.images(x, "MaxPool2d", ops.max_pool2d, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)
  end
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
  if is_image(x) then
    return spatial.images(x, "AvgPool2d", ops.avg_pool2d, self.kernel_size, self.stride, self.padding, self.ceil_mode,
      self.count_include_pad)
  end
  return ops.avg_pool2d(x, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad)
end

-- As many windows as give the wanted size.
local function define_adaptive(name, rank, what, op)
  local cls = class.define(name, Module, true)
  cls.layout = "channels_first"
  cls.arguments = {{"output_size", rank == 1 and "single" or "pair", min = 1, rest = rank == 2}}
  cls.init = accept

  function cls:forward(x)
    if rank == 1 then return op(x, self.output_size) end
    if is_image(x) then return spatial.images(x, what, op, self.output_size) end
    return op(x, self.output_size)
  end

  function cls:output_shape(shape)
    local out = shapes.copy(shapes.check(shape, self.type, rank + 1, rank + 2))
    for i, size in ipairs(shapes.list(self.output_size, rank)) do out[#out - rank + i] = size end
    return out
  end

  return cls
end

--- The mean of as many windows as give the wanted size. nn.AdaptiveAvgPool2d(output_size): an integer or {height, width}.
---@class resin.nn.AdaptiveAvgPool2d: resin.nn.Module
local AdaptiveAvgPool2d = define_adaptive("AdaptiveAvgPool2d", 2, "AdaptiveAvgPool2d", ops.adaptive_avg_pool2d)

--- The largest value of each of these windows. nn.AdaptiveMaxPool2d(output_size).
---@class resin.nn.AdaptiveMaxPool2d: resin.nn.Module
local AdaptiveMaxPool2d = define_adaptive("AdaptiveMaxPool2d", 2, "AdaptiveMaxPool2d", ops.adaptive_max_pool2d)

--- nn.AdaptiveAvgPool1d(output_size) over [N, C, L] (or [C, L]).
---@class resin.nn.AdaptiveAvgPool1d: resin.nn.Module
local AdaptiveAvgPool1d = define_adaptive("AdaptiveAvgPool1d", 1, "AdaptiveAvgPool1d", spatial.adaptive_avg_pool1d)

--- nn.AdaptiveMaxPool1d(output_size) over [N, C, L] (or [C, L]).
---@class resin.nn.AdaptiveMaxPool1d: resin.nn.Module
local AdaptiveMaxPool1d = define_adaptive("AdaptiveMaxPool1d", 1, "AdaptiveMaxPool1d", spatial.adaptive_max_pool1d)

--- nn.MaxPool1d(kernel_size, {stride = kernel_size, padding = 0, dilation = 1, ceil_mode = false}) over [N, C, L] (or [C, L]).
---@class resin.nn.MaxPool1d: resin.nn.Module
local MaxPool1d = class.define("MaxPool1d", Module, true)

MaxPool1d.layout = "channels_first"
MaxPool1d.arguments = {
  {"kernel_size", "single", min = 1},
  {"stride", "single", min = 1, optional = true},
  {"padding", "single", min = 0, default = 0},
  {"dilation", "single", min = 1, default = 1},
  {"ceil_mode", "boolean", default = false},
}
MaxPool1d.init = init
MaxPool1d.output_shape = line_shape

function MaxPool1d:forward(x)
  return spatial.max_pool1d(x, self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)
end

--- nn.AvgPool1d(kernel_size, {stride = kernel_size, padding = 0, ceil_mode = false, count_include_pad = true}) over [N, C, L]
--- (or [C, L]).
---@class resin.nn.AvgPool1d: resin.nn.Module
local AvgPool1d = class.define("AvgPool1d", Module, true)

AvgPool1d.layout = "channels_first"
AvgPool1d.arguments = {
  {"kernel_size", "single", min = 1},
  {"stride", "single", min = 1, optional = true},
  {"padding", "single", min = 0, default = 0},
  {"ceil_mode", "boolean", default = false},
  {"count_include_pad", "boolean", default = true},
}
AvgPool1d.init = init
AvgPool1d.output_shape = line_shape

function AvgPool1d:forward(x)
  return spatial.avg_pool1d(x, self.kernel_size, self.stride, self.padding, self.ceil_mode, self.count_include_pad)
end

return {
  MaxPool1d = MaxPool1d, MaxPool2d = MaxPool2d, AvgPool1d = AvgPool1d, AvgPool2d = AvgPool2d, AdaptiveAvgPool1d = AdaptiveAvgPool1d,
  AdaptiveAvgPool2d = AdaptiveAvgPool2d, AdaptiveMaxPool1d = AdaptiveMaxPool1d, AdaptiveMaxPool2d = AdaptiveMaxPool2d,
}
