--- Residual networks for small images with norm and activation before each convolution (He and others 2016): preact_resnet and
--- wide_resnet (Zagoruyko and Komodakis 2016).

local check = require "resin.check"
local class = require "resin.nn.class"
local nn = require "resin.nn"
local Front = require "resin.blocks.front"
local options = require "resin.models.options"

local small = {}

--- BN, ReLU, 3×3, BN, ReLU, dropout, 3×3, and the input added: PreActBlock(in_channels, out_channels, stride, dropout, {drop_path,
--- layer_scale, scale, alpha}). Where the shape changes, the input goes through the first norm and ReLU and a 1×1 convolution.
---@class resin.models.PreActBlock: resin.blocks.Front
local PreActBlock = class.define("PreActBlock", Front, true)

function PreActBlock:init(inp, out, stride, dropout, given)
  local bn1, relu1 = {"bn1", nn.BatchNorm2d(inp)}, {"relu1", nn.ReLU{inplace = true}}
  local conv1 = {"conv1", nn.Conv2d(inp, out, 3, {stride = stride, padding = 1, bias = false})}
  local bn2, relu2 = {"bn2", nn.BatchNorm2d(out)}, {"relu2", nn.ReLU{inplace = true}}
  local conv2 = {"conv2", nn.Conv2d(out, out, 3, {padding = 1, bias = false})}
  local shortcut = (inp ~= out or stride ~= 1) and nn.Conv2d(inp, out, 1, {stride = stride, bias = false}) or nil
  local record = {"save_input", nn.Record("input")}
  local steps = shortcut and {bn1, relu1, record, conv1, bn2, relu2} or {record, bn1, relu1, conv1, bn2, relu2}
  local shown = {bn1, relu1, conv1, bn2, relu2}
  if dropout > 0 then
    steps[#steps + 1] = {"dropout", nn.Dropout(dropout)}
    shown[#shown + 1] = steps[#steps]
  end
  steps[#steps + 1] = conv2
  steps[#steps + 1] = {"add_input", Front.join("input", shortcut, given)}
  shown[#shown + 1] = conv2
  if shortcut then shown[#shown + 1] = {"shortcut", shortcut} end
  self:fill(steps, shown)
end

---@class resin.models.PreActResNet: resin.nn.Sequential
local PreActResNet = class.define("PreActResNet", nn.Sequential, true)

-- A 3×3 stem, stages of blocks (all but the first halve the image), norm, ReLU, mean, linear.
local function build(what, o, stem, widths, counts, dropout)
  local model, total, at = PreActResNet(), 0, 0
  for _, count in ipairs(counts) do total = total + count end
  local join = options.joins(o, what, total)
  model:add_module("conv1", nn.Conv2d(o.in_channels, stem, 3, {padding = 1, bias = false}))
  local channels = stem
  for stage = 1, #widths do
    local layer = nn.Sequential()
    for i = 1, counts[stage] do
      at = at + 1
      layer:append(PreActBlock(channels, widths[stage], (i == 1 and stage > 1) and 2 or 1, dropout, join(at)))
      channels = widths[stage]
    end
    model:add_module("layer" .. stage, layer)
  end
  model:add_module("bn", nn.BatchNorm2d(channels))
  model:add_module("relu", nn.ReLU{inplace = true})
  model:add_module("avgpool", nn.AdaptiveAvgPool2d(1))
  model:add_module("flatten", nn.Flatten())
  model:add_module("fc", nn.Linear(channels, o.num_classes))
  return options.kaiming(model, "fan_out")
end

local PREACT = options.with_joins{
  {"num_classes", "integer", min = 1, default = 10},
  {"in_channels", "integer", min = 1, default = 3},
}

--- The 18 layers of resnet18 with norms before convolutions, for images of 32 pixels:
--- preact_resnet18{num_classes = 10, in_channels = 3}. 11,172,170 parameters. Options of the skips as for resnet18: drop_path,
--- layer_scale, scale, alpha; likewise for the others here.
function small.preact_resnet18(...)
  local o = options.read("preact_resnet18", PREACT, ...)
  return build("preact_resnet18", o, 64, {64, 128, 256, 512}, {2, 2, 2, 2}, 0)
end

local function blocks_of(what, depth, least)
  local n = (depth - least) / 6
  if n < 1 or n % 1 ~= 0 then
    check.fail("%s: depth must be 6n + %d (%d, %d, …), got %d", what, least, 6 + least, 12 + least, depth)
  end
  return n
end

local DEEP = options.with_joins{
  {"depth", "integer", min = 1, default = 20},
  {"num_classes", "integer", min = 1, default = 10},
  {"in_channels", "integer", min = 1, default = 3},
}

--- The narrow networks for CIFAR: three stages of 16, 32 and 64 channels. preact_resnet(depth = 20, {num_classes = 10,
--- in_channels = 3}); depth is 6n + 2. 272,282 parameters for depth 20.
function small.preact_resnet(...)
  local o = options.read("preact_resnet", DEEP, ...)
  local n = blocks_of("preact_resnet", o.depth, 2)
  return build("preact_resnet", o, 16, {16, 32, 64}, {n, n, n}, 0)
end

local WIDE = options.with_joins{
  {"depth", "integer", min = 1, default = 28},
  {"widen", "integer", min = 1, default = 10},
  {"num_classes", "integer", min = 1, default = 10},
  {"in_channels", "integer", min = 1, default = 3},
  {"dropout", "number", min = 0, max = 1, default = 0},
}

--- wide_resnet(depth = 28, widen = 10, {num_classes = 10, in_channels = 3, dropout = 0}): stages of 16, 32 and 64 times
--- `widen` channels; depth is 6n + 4. 36,479,194 parameters for 28 and 10.
function small.wide_resnet(...)
  local o = options.read("wide_resnet", WIDE, ...)
  local n, k = blocks_of("wide_resnet", o.depth, 4), o.widen
  return build("wide_resnet", o, 16, {16 * k, 32 * k, 64 * k}, {n, n, n}, o.dropout)
end

small.PreActBlock = PreActBlock
small.PreActResNet = PreActResNet

return small
