-- Draws the pictures of the README into docs/pictures. Needs the program dot (apt-get install graphviz).
-- Run it with: build/resin examples/pictures.lua [folder]

local resin = require "resin"
local nn = resin.nn
local folder = arg and arg[1] or "docs/pictures"

-- ---- a ResNet -------------------------------------------------------------------------------------------------------------

local function block(inp, out, stride)
  return nn.ResidualSequential(
    nn.Record{name = "x", need_projection = inp ~= out},
    nn.Conv2d(inp, out, 3, {stride = stride, padding = 1, bias = false}), nn.BatchNorm2d(out), nn.ReLU(),
    nn.Conv2d(out, out, 3, {padding = 1, bias = false}), nn.BatchNorm2d(out),
    nn.Apply("add", "x"),
    nn.ReLU())
end

local resnet = nn.Sequential{
  {"stem", nn.Conv2d(3, 16, 3, {padding = 1})},
  {"stage1", nn.Sequential(block(16, 16, 1), block(16, 16, 1), block(16, 16, 1))},
  {"stage2", nn.Sequential(block(16, 32, 2))},
  {"pool", nn.AdaptiveAvgPool2d(1)},
  {"flatten", nn.Flatten()},
  {"head", nn.Linear(32, 10)},
}

-- ---- a U-Net --------------------------------------------------------------------------------------------------------------

local function double(inp, out)
  return nn.Sequential(nn.Conv2d(inp, out, 3, {padding = 1}), nn.ReLU(), nn.Conv2d(out, out, 3, {padding = 1}), nn.ReLU())
end

local unet = nn.ResidualSequential{
  {"down1", double(3, 16)}, {"skip1", nn.Record("d1")}, {"pool1", nn.MaxPool2d(2)},
  {"down2", double(16, 32)}, {"skip2", nn.Record("d2")}, {"pool2", nn.MaxPool2d(2)},
  {"bottom", double(32, 32)},
  {"up2", nn.Upsample{scale_factor = 2}}, {"cat2", nn.Apply("concat", "d2")}, {"conv2", double(64, 16)},
  {"up1", nn.Upsample{scale_factor = 2}}, {"cat1", nn.Apply("concat", "d1")}, {"conv1", double(32, 16)},
  {"head", nn.Conv2d(16, 2, 1)},
}

-- ---- a nested circuit -----------------------------------------------------------------------------------------------------

local circuit = nn.Circuit(
  nn.Linear(32, 64),
  nn.SaveInput("far"),
  nn.StartBlock("outer", 3),
    nn.SaveInput("near"),
    nn.StartBlock("inner", 2, {share = false}),
      nn.SaveInput("x"), nn.LayerNorm(64), nn.Linear(64, 64), nn.GELU(), nn.GetInput("x"),
    nn.EndBlock("inner"),
    nn.GetInput("near", "mul"),
  nn.EndBlock("outer"),
  nn.LayerNorm(64),
  nn.GetInput("far", "add", nn.Linear(64, 64)),
  nn.Linear(64, 10))

for _, picture in ipairs{
  {"resnet", resnet, {8, 3, 32, 32}}, {"unet", unet, {1, 3, 64, 64}}, {"circuit", circuit, {8, 32}},
} do
  local name, model, shape = picture[1], picture[2], picture[3]
  model:visualize{path = ("%s/%s.svg"):format(folder, name), shape = shape}
  print(name)
  print(model:visualize{shape = shape})
end
