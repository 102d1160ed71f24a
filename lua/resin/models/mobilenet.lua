--- MobileNetV2 (Sandler and others 2018): wide depthwise convolutions between narrow skips. Names are torchvision's.

local class = require "resin.nn.class"
local init = require "resin.nn.initialise"
local nn = require "resin.nn"
local Front = require "resin.blocks.front"
local options = require "resin.models.options"

local function conv_bn_relu6(inp, out, kernel, stride, groups)
  return nn.Sequential(
    nn.Conv2d(inp, out, kernel, {stride = stride, padding = (kernel - 1) / 2, groups = groups, bias = false}),
    nn.BatchNorm2d(out), nn.ReLU6{inplace = true})
end

--- 1×1 to `expand` times the channels, depthwise 3×3, 1×1; the input is added where the shape is kept.
---@class resin.models.InvertedResidual: resin.blocks.Front
local InvertedResidual = class.define("InvertedResidual", Front, true)

function InvertedResidual:init(inp, out, stride, expand, given)
  local hidden, conv = inp * expand, nn.Sequential()
  if expand ~= 1 then conv:append(conv_bn_relu6(inp, hidden, 1, 1, 1)) end
  conv:append(conv_bn_relu6(hidden, hidden, 3, stride, hidden))
  conv:append(nn.Conv2d(hidden, out, 1, {bias = false}))
  conv:append(nn.BatchNorm2d(out))
  local layers = {{"conv", conv}}
  self:fill(stride == 1 and inp == out and Front.around(layers, nil, given) or layers, layers)
end

---@class resin.models.MobileNetV2: resin.nn.Sequential
local MobileNetV2 = class.define("MobileNetV2", nn.Sequential, true)

local ARGUMENTS = options.with_joins{
  {"num_classes", "integer", min = 1, default = 1000},
  {"in_channels", "integer", min = 1, default = 3},
  {"dropout", "number", min = 0, max = 1, default = 0.2},
}

-- Per row: factor of the hidden channels, channels, number of blocks, stride of the first.
local STAGES = {{1, 16, 1, 1}, {6, 24, 2, 2}, {6, 32, 3, 2}, {6, 64, 4, 2}, {6, 96, 3, 1}, {6, 160, 3, 2}, {6, 320, 1, 1}}

local mobilenet = {MobileNetV2 = MobileNetV2, InvertedResidual = InvertedResidual}

--- mobilenet_v2{num_classes = 1000, in_channels = 3, dropout = 0.2}. 3,504,872 parameters. Options of its ten skips as for resnet18:
--- drop_path, layer_scale, scale, alpha.
---   local scores = resin.models.mobilenet_v2()(resin.randn(1, 3, 224, 224))     -- [1, 1000]
function mobilenet.mobilenet_v2(...)
  local o = options.read("mobilenet_v2", ARGUMENTS, ...)
  local features, channels = nn.Sequential(conv_bn_relu6(o.in_channels, 32, 3, 2, 1)), 32
  local skips, at = 0, 0
  for _, stage in ipairs(STAGES) do skips = skips + stage[3] - 1 end      -- the first block of a stage has none
  local join = options.joins(o, "mobilenet_v2", skips)
  for _, stage in ipairs(STAGES) do
    for i = 1, stage[3] do
      if i > 1 then at = at + 1 end
      features:append(InvertedResidual(channels, stage[2], i == 1 and stage[4] or 1, stage[1], i > 1 and join(at) or nil))
      channels = stage[2]
    end
  end
  features:append(conv_bn_relu6(channels, 1280, 1, 1, 1))
  local model = MobileNetV2()
  model:add_module("features", features)
  model:add_module("avgpool", nn.AdaptiveAvgPool2d(1))
  model:add_module("flatten", nn.Flatten())
  model:add_module("classifier", nn.Sequential(nn.Dropout(o.dropout), nn.Linear(1280, o.num_classes)))
  options.kaiming(model, "fan_out", true)
  local head = model.classifier[2]
  init.normal_(head.weight, 0, 0.01)
  init.zeros_(head.bias)
  return model
end

mobilenet.mobilenetv2 = mobilenet.mobilenet_v2

return mobilenet
