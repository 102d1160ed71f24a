--- DenseNet (Huang and others 2017): each layer sees the features of all layers before it. Names are torchvision's.

local class = require "resin.nn.class"
local init = require "resin.nn.initialise"
local nn = require "resin.nn"
local Front = require "resin.blocks.front"
local Join = require "resin.blocks.join"
local options = require "resin.models.options"

--- BN, ReLU, 1×1, BN, ReLU, 3×3; the new features come after the old ones.
---@class resin.models.DenseLayer: resin.blocks.Front
local DenseLayer = class.define("DenseLayer", Front, true)

function DenseLayer:init(inp, growth, bn_size, drop_rate)
  local layers = {
    {"norm1", nn.BatchNorm2d(inp)}, {"relu1", nn.ReLU{inplace = true}},
    {"conv1", nn.Conv2d(inp, bn_size * growth, 1, {bias = false})},
    {"norm2", nn.BatchNorm2d(bn_size * growth)}, {"relu2", nn.ReLU{inplace = true}},
    {"conv2", nn.Conv2d(bn_size * growth, growth, 3, {padding = 1, bias = false})},
  }
  if drop_rate > 0 then layers[#layers + 1] = {"dropout", nn.Dropout(drop_rate)} end
  local steps = {{"save_features", nn.Record("features")}}
  for _, entry in ipairs(layers) do steps[#steps + 1] = entry end
  steps[#steps + 1] = {"cat_features", nn.Apply{operation = Join{dim = 2, saved_first = true}, record_name = "features"}}
  self:fill(steps, layers)
end

---@class resin.models.DenseNet: resin.nn.Sequential
local DenseNet = class.define("DenseNet", nn.Sequential, true)

local ARGUMENTS = {
  {"num_classes", "integer", min = 1, default = 1000},
  {"in_channels", "integer", min = 1, default = 3},
  {"growth_rate", "integer", min = 1, default = 32},
  {"blocks", "shape", min = 1, default = {6, 12, 24, 16}},
  {"init_features", "integer", min = 1, default = 64},
  {"bn_size", "integer", min = 1, default = 4},
  {"drop_rate", "number", min = 0, max = 1, default = 0},
}

local function build(o)
  local features, channels = nn.Sequential(), o.init_features
  features:add_module("conv0", nn.Conv2d(o.in_channels, channels, 7, {stride = 2, padding = 3, bias = false}))
  features:add_module("norm0", nn.BatchNorm2d(channels))
  features:add_module("relu0", nn.ReLU{inplace = true})
  features:add_module("pool0", nn.MaxPool2d(3, 2, 1))
  for b, count in ipairs(o.blocks) do
    local block = nn.Sequential()
    for i = 1, count do
      block:add_module("denselayer" .. i, DenseLayer(channels, o.growth_rate, o.bn_size, o.drop_rate))
      channels = channels + o.growth_rate
    end
    features:add_module("denseblock" .. b, block)
    if b < #o.blocks then
      local half = math.floor(channels / 2)
      features:add_module("transition" .. b, nn.Sequential{
        {"norm", nn.BatchNorm2d(channels)}, {"relu", nn.ReLU{inplace = true}},
        {"conv", nn.Conv2d(channels, half, 1, {bias = false})}, {"pool", nn.AvgPool2d(2, 2)}})
      channels = half
    end
  end
  features:add_module("norm5", nn.BatchNorm2d(channels))
  local model = DenseNet()
  model:add_module("features", features)
  model:add_module("relu", nn.ReLU{inplace = true})
  model:add_module("avgpool", nn.AdaptiveAvgPool2d(1))
  model:add_module("flatten", nn.Flatten())
  model:add_module("classifier", nn.Linear(channels, o.num_classes))
  options.kaiming(model, "fan_in")
  init.zeros_(model.classifier.bias)
  return model
end

local densenet = {DenseNet = DenseNet, DenseLayer = DenseLayer}

--- densenet{num_classes = 1000, in_channels = 3, growth_rate = 32, blocks = {6, 12, 24, 16}, init_features = 64, bn_size = 4,
--- drop_rate = 0}.
function densenet.densenet(...)
  return build(options.read("densenet", ARGUMENTS, ...))
end

--- densenet121, with the options of densenet. 7,978,856 parameters.
---   local scores = resin.models.densenet121()(resin.randn(1, 3, 224, 224))     -- [1, 1000]
function densenet.densenet121(...)
  return build(options.read("densenet121", ARGUMENTS, ...))
end

return densenet
