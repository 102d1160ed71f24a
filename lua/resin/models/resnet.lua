--- Residual networks for images (He and others 2015): resnet18, 34, 50, 101, 152.
-- Names of parameters and numbers of them are torchvision's, so its weights load unchanged; a block runs as a residual plan.

local class = require "resin.nn.class"
local init = require "resin.nn.initialise"
local nn = require "resin.nn"
local Front = require "resin.blocks.front"
local options = require "resin.models.options"

-- ---- blocks ---------------------------------------------------------------------------------------------------------------

local function conv3x3(inp, out, stride) return nn.Conv2d(inp, out, 3, {stride = stride, padding = 1, bias = false}) end

local function conv1x1(inp, out, stride) return nn.Conv2d(inp, out, 1, {stride = stride, bias = false}) end

-- What the input goes through where the block changes its shape.
local function make_downsample(inp, out, stride)
  if inp == out and stride == 1 then return nil end
  return nn.Sequential(conv1x1(inp, out, stride), nn.BatchNorm2d(out))
end

-- Fills a block: the layers, the addition, ReLU. The last norm is named last[1].
local function fill(self, layers, downsample, given)
  local steps = Front.around(layers, downsample, given)
  steps[#steps + 1] = {"relu", nn.ReLU{inplace = true}}
  local shown = {}
  for i, entry in ipairs(layers) do shown[i] = entry end
  shown[#shown + 1] = steps[#steps]
  if downsample then shown[#shown + 1] = {"downsample", downsample} end
  self:fill(steps, shown)
end

--- Two 3×3 convolutions: BasicBlock(in_channels, planes, stride, {drop_path, layer_scale, scale, alpha}). Gives `planes` channels.
---@class resin.models.BasicBlock: resin.blocks.Front
local BasicBlock = class.define("BasicBlock", Front, true)
BasicBlock.expansion = 1
BasicBlock.last_norm = "bn2"

function BasicBlock:init(inp, planes, stride, given)
  fill(self, {
    {"conv1", conv3x3(inp, planes, stride)}, {"bn1", nn.BatchNorm2d(planes)}, {"relu1", nn.ReLU{inplace = true}},
    {"conv2", conv3x3(planes, planes, 1)}, {"bn2", nn.BatchNorm2d(planes)},
  }, make_downsample(inp, planes, stride), given)
end

--- 1×1, 3×3 (which strides) and 1×1 convolutions: Bottleneck(in_channels, planes, stride, {drop_path, layer_scale, scale, alpha}). Gives
--- 4 planes channels.
---@class resin.models.Bottleneck: resin.blocks.Front
local Bottleneck = class.define("Bottleneck", Front, true)
Bottleneck.expansion = 4
Bottleneck.last_norm = "bn3"

function Bottleneck:init(inp, planes, stride, given)
  fill(self, {
    {"conv1", conv1x1(inp, planes, 1)}, {"bn1", nn.BatchNorm2d(planes)}, {"relu1", nn.ReLU{inplace = true}},
    {"conv2", conv3x3(planes, planes, stride)}, {"bn2", nn.BatchNorm2d(planes)}, {"relu2", nn.ReLU{inplace = true}},
    {"conv3", conv1x1(planes, 4 * planes, 1)}, {"bn3", nn.BatchNorm2d(4 * planes)},
  }, make_downsample(inp, 4 * planes, stride), given)
end

-- ---- the networks ---------------------------------------------------------------------------------------------------------

---@class resin.models.ResNet: resin.nn.Sequential
local ResNet = class.define("ResNet", nn.Sequential, true)

local ARGUMENTS = options.with_joins{
  {"num_classes", "integer", min = 1, default = 1000},
  {"in_channels", "integer", min = 1, default = 3},
  {"small_images", "boolean", default = false},
  {"stem_bias", "boolean", default = false},
  {"zero_init_residual", "boolean", default = false},
}

local function build(what, Block, counts, o)
  local model, join, at = ResNet(), options.joins(o, what, counts[1] + counts[2] + counts[3] + counts[4]), 0
  local stem = o.small_images and {3, 1, 1} or {7, 2, 3}
  model:add_module("conv1", nn.Conv2d(o.in_channels, 64, stem[1], {stride = stem[2], padding = stem[3], bias = o.stem_bias}))
  model:add_module("bn1", nn.BatchNorm2d(64))
  model:add_module("relu", nn.ReLU{inplace = true})
  if not o.small_images then model:add_module("maxpool", nn.MaxPool2d(3, 2, 1)) end
  local channels = 64
  for stage = 1, 4 do
    local layer, planes = nn.Sequential(), 64 * 2 ^ (stage - 1)
    for i = 1, counts[stage] do
      at = at + 1
      layer:append(Block(channels, planes, (i == 1 and stage > 1) and 2 or 1, join(at)))
      channels = planes * Block.expansion
    end
    model:add_module("layer" .. stage, layer)
  end
  model:add_module("avgpool", nn.AdaptiveAvgPool2d(1))
  model:add_module("flatten", nn.Flatten())
  model:add_module("fc", nn.Linear(channels, o.num_classes))
  options.kaiming(model, "fan_out")
  if o.zero_init_residual then
    for _, module in ipairs(model:modules()) do
      if module:is(Block) then init.zeros_(module[Block.last_norm].weight) end
    end
  end
  return model
end

local function define(name, Block, counts)
  return function(...)
    local o = options.read(name, ARGUMENTS, ...)
    return build(name, Block, counts, o)
  end
end

local resnet = {BasicBlock = BasicBlock, Bottleneck = Bottleneck, ResNet = ResNet}

--- resnet18{num_classes = 1000, in_channels = 3, small_images = false, stem_bias = false, zero_init_residual = false}.
--- small_images: a 3×3 stem without pooling, for images of 32 pixels. stem_bias: the first convolution has a bias.
--- zero_init_residual: each block is the identity at first. Weights are N(0, 2 / fan_out). 11,689,512 parameters.
--- Options of the skips, here and in all models that add: drop_path (stochastic depth: the probability at the last block, from 0 at the
--- first, or a table of one for each block), drop_path_mode, layer_scale, scale, alpha: numbers, or function(k, n) that makes a factor for
--- block k of n.
---   local model = resin.models.resnet18{num_classes = 10, small_images = true}
---   local scores = model(resin.randn(8, 3, 32, 32))     -- [8, 10]
resnet.resnet18 = define("resnet18", BasicBlock, {2, 2, 2, 2})
--- As resnet18, with 21,797,672 parameters.
resnet.resnet34 = define("resnet34", BasicBlock, {3, 4, 6, 3})
--- As resnet18, with 25,557,032 parameters.
resnet.resnet50 = define("resnet50", Bottleneck, {3, 4, 6, 3})
--- As resnet18, with 44,549,160 parameters.
resnet.resnet101 = define("resnet101", Bottleneck, {3, 4, 23, 3})
--- As resnet18, with 60,192,808 parameters.
resnet.resnet152 = define("resnet152", Bottleneck, {3, 8, 36, 3})

local CIFAR = options.with_joins{
  {"num_classes", "integer", min = 1, default = 10},
  {"in_channels", "integer", min = 1, default = 3},
}

--- resnet18 for images of 32 pixels and ten classes: resnet18_cifar{num_classes = 10, in_channels = 3}. 11,173,962 parameters.
function resnet.resnet18_cifar(...)
  local o = options.read("resnet18_cifar", CIFAR, ...)
  o.small_images = true
  return resnet.resnet18(o)
end

return resnet
