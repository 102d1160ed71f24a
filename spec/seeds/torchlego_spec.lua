-- torchlego: the samples of its README, and where resin is right and it is not (systems.md, ledger 3 and 12).

local resin = require "resin"
local nn, blocks, models = resin.nn, resin.blocks, resin.models
local counts = dofile("spec/golden/residual.lua").counts
local golden = dofile("spec/golden/residual.lua").torchlego
local ModuleList, Lambda = nn.ModuleList, blocks.Lambda
local Residual, ResidualAdd, Cat = blocks.Residual, blocks.ResidualAdd, blocks.Cat
local conv1x1, conv3x3, conv3x3_bn, conv3x3_bn_act = blocks.conv1x1, blocks.conv3x3, blocks.conv3x3_bn, blocks.conv3x3_bn_act

local function identity(x) return x end
local function plus_one(x) return x + 1 end
local function add(x, res) return x + res end
local function one() return resin.tensor(1, {dtype = "i64"}) end

local function entries(model)
  local n = 0
  for _ in model:state_dict()() do n = n + 1 end
  return n
end

describe("convolutions", function()
  it("conv3x3 and conv1x1", function()
    local conv = conv3x3(32, 64)
    assert.equal("Conv2d(32, 64, 3)", conv:label())
    assert.same({1, 64, 6, 6}, conv(resin.randn(1, 32, 8, 8)).shape)
    assert.equal("Conv2d(32, 64, 1)", conv1x1(32, 64):label())
  end)

  it("with batch norm, activation, and another activation", function()
    local block = conv3x3_bn(32, 64)
    assert.equal("Conv2d(32, 64, 3)", block[1]:label())
    assert.equal("BatchNorm2d(64)", block[2]:label())
    assert.equal(2, #block)
    block = conv3x3_bn_act(32, 64)
    assert.equal("ReLU()", block[3]:label())
    assert.equal("SELU()", conv3x3_bn_act(32, 64, {act = nn.SELU})[3]:label())
  end)
end)

describe("blocks", function()
  it("Cat", function()
    assert.same(golden["Cat([id,id])([1])"], Cat({Lambda(identity), Lambda(identity)})(resin.tensor{1}):totable())
  end)

  it("Residual, with and without a shortcut", function()
    local block = Lambda(identity)
    assert.equal(golden["Residual(id,add)(1)"], Residual(block, {res_func = add})(one()):item())
    assert.equal(golden["Residual(id,add,shortcut=x*2)(1)"],
      Residual(block, {res_func = add, shortcut = function(x) return x * 2 end})(one()):item())
  end)

  it("Residual over levels", function()
    local A = nn.class("A", ModuleList)
    function A.forward(_, x) return x + 1 end
    local B = nn.class("B", ModuleList)
    function B.forward(_, x, res) return res and x + res or x end
    local down, up = ModuleList{A(), A()}, ModuleList{B(), B()}
    assert.equal(golden["Residual([A,A],[B,B])(1)"], Residual{down, up}(one()):item())
    assert.equal(golden["Residual([A,A],[B])(1)"], Residual{down, ModuleList{B()}}(one()):item())
    assert.equal(golden["Residual 3 groups [A,A],[B,B],[B,B] (1)"], Residual{down, up, {B(), B()}}(one()):item())
    assert.equal(4, Residual{{A()}, {B(), B()}}(one()):item())      -- torchlego: IndexError
  end)

  it("ResidualAdd, of one block and of several", function()
    assert.equal(golden["ResidualAdd([id])(1)"], ResidualAdd{identity}(one()):item())
    assert.equal(golden["ResidualAdd([id,id])(1)"], ResidualAdd{identity, identity}(one()):item())
    assert.equal(golden["ResidualAdd([+1])(1)"], ResidualAdd{plus_one}(one()):item())
    assert.equal(golden["ResidualAdd([+1,+1])(1)"], ResidualAdd{plus_one, plus_one}(one()):item())
    local block = nn.Sequential(conv3x3_bn_act(64, 64, {padding = 1}))
    local layer = ResidualAdd{block}
    assert.same({1, 64, 8, 8}, layer(resin.rand(1, 64, 8, 8)).shape)
    assert.equal(block:num_parameters(), layer:num_parameters())    -- torchlego registers none of them (ledger 3)
  end)
end)

-- ---- the README's networks ------------------------------------------------------------------------------------------------

local function basic_block(inp, out)
  local shortcut = inp ~= out and blocks.conv_bn(inp, out, {kernel_size = 1, stride = 2, bias = false}) or nn.Identity()
  local stride = inp ~= out and 2 or 1
  return nn.Sequential(
    ResidualAdd(ModuleList{
      nn.Sequential(
        conv3x3_bn_act(inp, out, {stride = stride, padding = 1, bias = false}),
        conv3x3_bn(out, out, {padding = 1, bias = false}))},
      {shortcut = shortcut}),
    nn.ReLU())
end

local function repeated(n, size)
  local list = nn.Sequential()
  for _ = 1, n do list:append(basic_block(size, size)) end
  return list
end

local function resnet(inp, classes, sizes)
  return nn.Sequential(
    nn.Conv2d(inp, 64, 7, {stride = 2, padding = 3}), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, {stride = 2, padding = 1}),
    repeated(sizes[1], 64),
    basic_block(64, 128), repeated(sizes[2] - 1, 128),
    basic_block(128, 256), repeated(sizes[3] - 1, 256),
    basic_block(256, 512), repeated(sizes[4] - 1, 512),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))
end

describe("the README's ResNet", function()
  it("basic block", function()
    local block = basic_block(32, 64)
    assert.same({2, 64, 4, 4}, block(resin.randn(2, 32, 8, 8)).shape)
    local names = {}
    for name in block:named_parameters() do names[#names + 1] = name end
    assert.same({
      "0.blocks.0.0.0.weight", "0.blocks.0.0.1.weight", "0.blocks.0.0.1.bias", "0.blocks.0.1.0.weight", "0.blocks.0.1.1.weight",
      "0.blocks.0.1.1.bias", "0.shortcut.0.weight", "0.shortcut.1.weight", "0.shortcut.1.bias",
    }, names)
  end)

  it("resnet34, by hand and from resin.models, with the weights of one in the other", function()
    local model = resnet(3, 1000, {3, 4, 6, 3}):eval()
    assert.equal(counts.resnet34_readme_params, model:num_parameters())
    assert.equal(counts.resnet34_readme_state_entries, entries(model))
    assert.same({1, 1000}, model:output_shape{1, 3, 224, 244})
    local ours = models.resnet34{stem_bias = true}:eval()
    assert.equal(counts.resnet34_readme_params, ours:num_parameters())
    assert.equal(counts.resnet34_readme_state_entries, entries(ours))
    local x = resin.randn(1, 3, 32, 32)
    assert.equal(counts.resnet34_readme_state_entries, blocks.transfer_weights(model, ours, {input = x}))
    resin.no_grad(function() assert.is_true((model(x) - ours(x)):abs():max():item() < 1e-4) end)
  end)
end)

describe("the README's U-Net", function()
  local Up = nn.class("UpStep")

  function Up:init(inp, out)
    self.up = nn.ConvTranspose2d(inp, out, 2, {stride = 2})
    self.blocks = nn.Sequential(conv3x3(out * 2, out, {padding = 1}), conv3x3(out, out, {padding = 1}))
  end

  function Up:forward(x, res)
    x = self.up(x)
    local dy, dx = x:size(3) - res:size(3), x:size(4) - res:size(4)
    local top, left = math.floor(dy / 2), math.floor(dx / 2)
    res = resin.F.pad(res, {left, dx - left, top, dy - top})
    return self.blocks(resin.cat({res, x}, 2))
  end

  local function down(inp, out)
    return nn.Sequential(nn.MaxPool2d(2, {stride = 2}), conv3x3_bn_act(inp, out, {padding = 1}),
      conv3x3_bn_act(out, out, {padding = 1}))
  end

  local function unet()
    return nn.Sequential(
      Residual{
        ModuleList{
          nn.Sequential(conv3x3_bn_act(3, 64), conv3x3_bn_act(64, 64)),
          down(64, 128), down(128, 256), down(256, 512), down(512, 1024)},
        ModuleList{Up(512 * 2, 512), Up(256 * 2, 256), Up(128 * 2, 128), Up(64 * 2, 64)}},
      conv1x1(64, 2))
  end

  it("registers every parameter, and takes odd sizes (ledger 3 and 12)", function()
    local model, x = unet():eval(), resin.randn(1, 3, 64, 66)
    assert.equal(counts.unet_readme_params, model:num_parameters())
    assert.equal(counts.unet_readme_param_tensors, #model:parameters())
    local ours = models.unet_torchlego():eval()
    assert.equal(counts.unet_readme_params, ours:num_parameters())
    assert.same(counts.unet_readme_out_256, ours:output_shape{1, 3, 256, 256})
    blocks.transfer_weights(model, ours, {input = x})
    resin.no_grad(function()
      local y = model(x)
      assert.same({1, 2, 48, 48}, y.shape)
      assert.is_true((y - ours(x)):abs():max():item() < 1e-5)
    end)
  end)
end)
