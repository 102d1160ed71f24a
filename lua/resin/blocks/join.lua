--- Join: the operation of an Apply that puts the current and the recorded value side by side.

local check = require "resin.check"
local class = require "resin.nn.class"
local Module = require "resin.nn.module"
local ops = require "resin.ops"
local shapes = require "resin.nn.shapes"

---@class resin.blocks.Join: resin.nn.Module
---@field dim integer           of the concatenation
---@field saved_first boolean   the recorded value comes first
---@field crop boolean          the recorded image is cropped or padded to the size of the current one
local Join = class.define("Join", Module, true)

function Join:init(options)
  rawset(self, "dim", options.dim)
  rawset(self, "saved_first", options.saved_first or false)
  rawset(self, "crop", options.crop or false)
end

--- Crops or pads the last two dimensions of x evenly to height × width; of an odd difference the side before gets the larger part of
--- a crop and the smaller of a padding.
---@param x resin.Tensor  [..., H, W]
---@return resin.Tensor
function Join.resize(x, height, width)
  local shape = x.shape
  local dy, dx = height - shape[#shape - 1], width - shape[#shape]
  if dx == 0 and dy == 0 then return x end
  local left, top = math.floor(dx / 2), math.floor(dy / 2)
  return ops.pad(x, {left, dx - left, top, dy - top})
end

function Join:forward(x, r)
  if self.crop then
    local shape = x.shape
    if #shape < 3 then check.fail("%s: needs images [N, C, H, W], got %s", self.type, check.shape_text(x)) end
    r = Join.resize(r, shape[#shape - 1], shape[#shape])
  end
  if self.saved_first then return ops.cat({r, x}, self.dim) end
  return ops.cat({x, r}, self.dim)
end

--- The shape of the result.
---@param current (integer|false)[]
---@param saved (integer|false)[]
---@return (integer|false)[]
function Join:joined_shape(current, saved)
  local out, at = shapes.copy(current), self.dim
  if at < 0 then at = #current + 1 + at end
  if #saved ~= #current or at > #current then
    check.fail("%s: %s and %s cannot be put side by side in dimension %d", self.type, shapes.text(current), shapes.text(saved),
      self.dim)
  end
  out[at] = current[at] and saved[at] and current[at] + saved[at]
  return out
end

function Join:label()
  return ("%s{dim = %d}"):format(self.type, self.dim)
end

return Join
