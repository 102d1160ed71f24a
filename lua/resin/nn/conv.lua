--- nn.Conv2d.

local check = require "resin.check"
local class = require "resin.nn.class"
local args = require "resin.nn.args"
local init = require "resin.nn.initialise"
local Module = require "resin.nn.module"
local ops = require "resin.ops"
local shapes = require "resin.nn.shapes"

--- 2-D convolution over [N, C, H, W] (or [C, H, W]).
--- nn.Conv2d(in_channels, out_channels, kernel_size, {stride = 1, padding = 0, dilation = 1, groups = 1, bias = true, dtype}).
--- Sizes are an integer or {height, width}. Initial values U(-1/√fan_in, 1/√fan_in).
---@class resin.nn.Conv2d: resin.nn.Module
---@field weight resin.Tensor  [out_channels, in_channels / groups, kh, kw]
---@field bias resin.Tensor?   [out_channels]
local Conv2d = class.define("Conv2d", Module, true)

Conv2d.layout = "channels_first"
Conv2d.arguments = {
  {"in_channels", "integer", min = 1},
  {"out_channels", "integer", min = 1},
  {"kernel_size", "pair", min = 1},
  {"stride", "pair", min = 1, default = 1},
  {"padding", "pair", min = 0, default = 0},
  {"dilation", "pair", min = 1, default = 1},
  {"groups", "integer", min = 1, default = 1},
  {"bias", "boolean", default = true, hidden = true},
  {"dtype", "dtype", default = "f32", hidden = true},
}

function Conv2d:init(...)
  local o = args.accept(self, Conv2d.arguments, ...)
  for _, name in ipairs{"in_channels", "out_channels"} do
    if o[name] % o.groups ~= 0 then
      check.fail("%s: %s (%d) must be divisible by groups (%d)", self.type, name, o[name], o.groups)
    end
  end
  local kh, kw = shapes.pair(o.kernel_size)
  local inner = o.in_channels / o.groups
  local bound = 1 / math.sqrt(inner * kh * kw)
  self:register_parameter("weight", init.uniform_parameter({o.out_channels, inner, kh, kw}, o.dtype, bound))
  self:register_parameter("bias", o.bias and init.uniform_parameter({o.out_channels}, o.dtype, bound) or nil)
end

function Conv2d:forward(x)
  return ops.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
end

function Conv2d:output_shape(shape)
  shapes.check(shape, self.type, 3, 4)
  local channels = shape[#shape - 2]
  if channels and channels ~= self.in_channels then
    check.fail("%s: input %s has %d channels, expected %d", self.type, shapes.text(shape), channels, self.in_channels)
  end
  return shapes.slide(self, shape, self.out_channels)
end

return {Conv2d = Conv2d}
