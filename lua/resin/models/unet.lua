--- unet: a network for segmentation (Ronneberger and others 2015) as a residual plan: each level's result is recorded on the way
--- down and joined on the way up. Works for every size of image.

local check = require "resin.check"
local class = require "resin.nn.class"
local nn = require "resin.nn"
local ops = require "resin.ops"
local scope = require "resin.scope"
local shapes = require "resin.nn.shapes"
local conv = require "resin.blocks.conv"
local Blocks = require "resin.blocks.list"
local Front = require "resin.blocks.front"
local Join = require "resin.blocks.join"
local options = require "resin.models.options"

-- Two 3×3 convolutions, each with norm and ReLU.
local function pair(inp, out, o, padding)
  return nn.Sequential(conv.conv3x3_bn_act(inp, out, {padding = padding, bias = o.bias}),
    conv.conv3x3_bn_act(out, out, {padding = padding, bias = o.bias}))
end

-- ---- one step up ----------------------------------------------------------------------------------------------------------

--- up(x, skip): x at twice the size and half the channels, beside the skip, through two convolutions. With same_size x is padded to
--- the size of the skip, otherwise the skip is cropped to that of x.
---@class resin.models.Up: resin.nn.Module
local Up = class.define("Up", nn.Module, true)
Up.layout = "channels_first"

function Up:init(inp, out, o)
  self.up = nn.ConvTranspose2d(inp, out, 2, 2)
  if o.plain_up then
    self.blocks = nn.Sequential(conv.conv3x3(2 * out, out, {padding = 1, bias = o.bias}),
      conv.conv3x3(out, out, {padding = 1, bias = o.bias}))
  else
    self.blocks = pair(2 * out, out, o, 1)
  end
  rawset(self, "same_size", o.same_size)
end

local function run(self, x, skip)
  local y = self.up:forward(x)
  if self.same_size then
    local shape = skip.shape
    y = Join.resize(y, shape[#shape - 1], shape[#shape])
  else
    local shape = y.shape
    skip = Join.resize(skip, shape[#shape - 1], shape[#shape])
  end
  return self.blocks:forward(ops.cat({skip, y}, -3))
end

function Up:forward(x, skip)
  check.tensor(x, "Up: input")
  check.tensor(skip, "Up: skip")
  return scope.run(run, self, x, skip)
end

--- The shape of the result.
---@param current (integer|false)[]
---@param saved (integer|false)[]
---@return (integer|false)[]
function Up:joined_shape(current, saved)
  local out = self.up:output_shape(current)
  local joined = shapes.copy(self.same_size and saved or out)
  joined[#joined - 2] = 2 * out[#out - 2]
  return self.blocks:output_shape(joined)
end

-- ---- the network ----------------------------------------------------------------------------------------------------------

---@class resin.models.UNet: resin.blocks.Front
local UNet = class.define("UNet", Front, true)

local ARGUMENTS = {
  {"in_channels", "integer", min = 1, default = 3},
  {"num_classes", "integer", min = 1, default = 2},
  {"base", "integer", min = 1, default = 32},
  {"depth", "integer", min = 1, max = 8, default = 4},
  {"same_size", "boolean", default = true},
  {"bias", "boolean", default = false},
  {"plain_up", "boolean", default = false},
}

function UNet:init(o)
  local down, up, steps = {}, {}, {}
  for level = 0, o.depth do
    local out = o.base * 2 ^ level
    local block
    if level == 0 then
      block = pair(o.in_channels, out, o, o.same_size and 1 or 0)
    else
      block = pair(out / 2, out, o, 1)
      block:insert(1, nn.MaxPool2d(2, 2))
    end
    down[level + 1] = block
    steps[#steps + 1] = {"down_" .. level + 1, block}
    if level < o.depth then steps[#steps + 1] = {"record_" .. level + 1, nn.Record("level_" .. level + 1)} end
  end
  for level = o.depth, 1, -1 do
    local out = o.base * 2 ^ (level - 1)
    local layer = Up(2 * out, out, o)
    up[#up + 1] = layer
    steps[#steps + 1] = {"up_" .. level, nn.Apply{operation = layer, record_name = "level_" .. level}}
  end
  local head = nn.Conv2d(o.base, o.num_classes, 1)
  steps[#steps + 1] = {"head", head}
  self:fill(steps, {{"down", Blocks(down)}, {"up", Blocks(up)}, {"head", head}})
end

local unet = {UNet = UNet, Up = Up}

--- unet{in_channels = 3, num_classes = 2, base = 32, depth = 4, same_size = true, bias = false, plain_up = false}.
--- base: channels of the first level; each of the `depth` levels below has twice as many. same_size: the result has the size of
--- the image, whatever it is; otherwise the first two convolutions are not padded and the skips are cropped. bias: the
--- convolutions before norms have biases. plain_up: no norm and ReLU on the way up. Gives [N, num_classes, H, W].
---   local model = resin.models.unet{num_classes = 2}
---   local scores = model(resin.randn(1, 3, 65, 47))     -- [1, 2, 65, 47]
function unet.unet(...)
  local o = options.read("unet", ARGUMENTS, ...)
  return UNet(o)
end

local SEED = {
  {"in_channels", "integer", min = 1, default = 3},
  {"num_classes", "integer", min = 1, default = 2},
}

--- The U-Net of torchlego's README: 64 channels, not padded at first, plain convolutions on the way up. Gives 240×240 for an
--- image of 256×256. 31,039,746 parameters.
function unet.unet_torchlego(...)
  local o = options.read("unet_torchlego", SEED, ...)
  return unet.unet{in_channels = o.in_channels, num_classes = o.num_classes, base = 64, same_size = false, bias = true,
                   plain_up = true}
end

return unet
