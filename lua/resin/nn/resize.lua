--- Layers that change the size of lines, images and volumes: padding (and cropping), Upsample.

local check = require "resin.check"
local class = require "resin.nn.class"
local args = require "resin.nn.args"
local Module = require "resin.nn.module"
local ops = require "resin.ops"
local shapes = require "resin.nn.shapes"
local spatial = require "resin.spatial"

local layers = {}

-- ---- padding --------------------------------------------------------------------------------------------------------------

-- The pairs (before, after) of `rank` dimensions, the last one's first, from one number or all of them.
local function pairs_of(self, rank)
  local given, list = self.padding, {}
  if #given ~= 1 and #given ~= 2 * rank then
    check.fail("%s: padding must be an integer or a table of %d, got %s", self.type, 2 * rank, args.text(given))
  end
  for i = 1, 2 * rank do list[i] = #given == 1 and given[1] or given[i] end
  return list
end

local function define_padding(name, rank, mode, arguments)
  local cls = class.define(("%s%dd"):format(name, rank), Module, true)
  cls.layout = "channels_first"
  cls.arguments = {{"padding", "shape", rest = true}}
  for _, a in ipairs(arguments) do cls.arguments[#cls.arguments + 1] = a end

  function cls:init(...)
    args.accept(self, cls.arguments, ...)
    self.op_pads = pairs_of(self, rank)
  end

  if mode == "circular" then
    function cls:forward(x) return spatial.pad_circular(x, self.op_pads) end
  else
    function cls:forward(x) return ops.pad(x, self.op_pads, mode, self.value or 0) end
  end

  function cls:output_shape(shape)
    local out = shapes.copy(shapes.check(shape, self.type, rank + 1, rank + 2))
    for i = 1, rank do
      local at = #out + 1 - i
      local size = out[at] and out[at] + self.op_pads[2 * i - 1] + self.op_pads[2 * i]
      if size and size < 0 then
        check.fail("%s: input %s is smaller than what padding %s cuts off", self.type, shapes.text(shape), args.text(self.padding))
      end
      out[at] = size
    end
    return out
  end

  layers[cls.type] = cls
end

--- Padding of the last dimensions: nn.ZeroPad2d(padding), nn.ConstantPad2d(padding, value), nn.ReflectionPad2d(padding),
--- nn.ReplicationPad2d(padding), nn.CircularPad2d(padding), each also as 1d and 3d. padding is an integer for all sides or
--- {left, right, top, bottom, front, back} (as many as there are); negative numbers cut off.
for rank = 1, 3 do
  define_padding("ZeroPad", rank, "constant", {})
  define_padding("ConstantPad", rank, "constant", {{"value", "number"}})
  define_padding("ReflectionPad", rank, "reflect", {})
  define_padding("ReplicationPad", rank, "replicate", {})
  define_padding("CircularPad", rank, "circular", {})
end

-- ---- upsample -------------------------------------------------------------------------------------------------------------

--- Lines [N, C, L] or images [N, C, H, W] in another size.
--- nn.Upsample({size, scale_factor, mode = "nearest", align_corners}); modes "nearest", "nearest-exact", "linear" (lines), "bilinear"
--- (images); size and scale_factor are a number or a table, one of them is needed.
---@class resin.nn.Upsample: resin.nn.Module
local Upsample = class.define("Upsample", Module, true)

Upsample.layout = "channels_first"
Upsample.arguments = {
  {"size", "shape", min = 1, optional = true},
  {"scale_factor", "factor", optional = true},
  {"mode", "enum", choices = {"nearest", "nearest-exact", "linear", "bilinear"}, default = "nearest"},
  {"align_corners", "boolean", optional = true},
}

function Upsample:init(...)
  args.accept(self, Upsample.arguments, ...)
  if (self.size == nil) == (self.scale_factor == nil) then
    check.fail("%s: give one of size and scale_factor", self.type)
  end
end

function Upsample:forward(x)
  return spatial.interpolate(x, self.size, self.scale_factor, self.mode, self.align_corners)
end

function Upsample:output_shape(shape)
  local out = shapes.copy(shapes.check(shape, self.type, 3, 4))
  local rank = #out - 2
  local sizes = spatial.resized(shape, rank, self.size, self.scale_factor, self.type)
  for i = 1, rank do out[i + 2] = sizes[i] end
  return out
end

layers.Upsample = Upsample

return layers
