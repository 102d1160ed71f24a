-- resin.models: numbers and names of parameters, shapes, and outputs against PyTorch's.

local resin = require "resin"
local ffi = require "ffi"
local nn, models, blocks = resin.nn, resin.models, resin.blocks

local function entries(model)
  local n = 0
  for _ in model:state_dict()() do n = n + 1 end
  return n
end

local function fails(text, fn, ...)
  local ok, message = pcall(fn, ...)
  assert.is_false(ok, "no error; expected: " .. text)
  assert.is_truthy(message:find(text, 1, true), message)
  assert.is_truthy(message:find("models_spec.lua", 1, true), message)
end

-- fill(s)[k] = (((k·7919 + s·104729) mod 1000)/1000 - 0.5)·scale + offset, k from 0
local function fill(t, seed, scale, offset)
  local data = ffi.cast("float *", t:data())
  for k = 0, t:numel() - 1 do data[k] = (((k * 7919 + seed * 104729) % 1000) / 1000 - 0.5) * scale + offset end
end

-- The same values as in the reference: the i-th entry of the state is filled with seed i.
local function set_all(model)
  local i = 0
  for name, t in model:state_dict()() do
    i = i + 1
    if not name:find("num_batches_tracked$") then
      if t.ndim >= 2 then
        fill(t, i, math.sqrt(12 / (t:numel() / t:size(1))), 0)
      elseif name:find("running_var$") then
        fill(t, i, 0.4, 1)
      else
        fill(t, i, 0.2, name:find("weight$") and 1 or 0)
      end
    end
  end
  return model:eval()
end

describe("networks for images", function()
  it("have the numbers of parameters and state entries that torchvision's have", function()
    for name, expected in pairs{
      resnet18 = {11689512, 122}, resnet34 = {21797672, 218}, resnet50 = {25557032, 320}, resnet101 = {44549160, 626},
      resnet152 = {60192808, 932}, densenet121 = {7978856, 727}, mobilenet_v2 = {3504872, 314},
    } do
      local model = models[name]()
      assert.equal(expected[1], model:num_parameters(), name)
      assert.equal(expected[2], entries(model), name)
      assert.same({2, 1000}, model:output_shape{2, 3, 224, 224}, name)
    end
  end)

  it("resnet: names", function()
    local names = {}
    for name in models.resnet18():named_parameters() do names[name] = true end
    for _, name in ipairs{"conv1.weight", "bn1.bias", "layer1.0.conv1.weight", "layer1.1.bn2.weight", "layer2.0.downsample.0.weight",
                          "layer2.0.downsample.1.bias", "layer4.1.conv2.weight", "fc.weight", "fc.bias"} do
      assert.is_true(names[name], name)
    end
    assert.is_nil(names["layer1.0.downsample.0.weight"])
    local model = models.resnet50{num_classes = 5, in_channels = 1, stem_bias = true}
    assert.same({64, 1, 7, 7}, model.conv1.weight.shape)
    assert.same({64}, model.conv1.bias.shape)
    assert.same({512, 256, 1, 1}, model.layer2[1].downsample[1].weight.shape)
    assert.same({5, 2048}, model.fc.weight.shape)
  end)

  it("resnet: the stem for small images, blocks that begin as identity", function()
    local model = models.resnet18{num_classes = 10, small_images = true}
    assert.equal(11173962, model:num_parameters())
    assert.equal(11173962, models.resnet18_cifar():num_parameters())
    assert.same({2, 10}, model(resin.randn(2, 3, 32, 32)).shape)
    assert.same({1, 64, 32, 32}, model:slice(1, 3):output_shape{1, 3, 32, 32})
    local zero = models.resnet18{zero_init_residual = true}
    assert.equal(0, zero.layer1[1].bn2.weight:abs():sum():item())
    local x = resin.randn(1, 64, 8, 8):relu()
    assert.equal(0, (zero.layer1[1](x) - x):abs():max():item())
  end)

  it("weights are drawn from N(0, 2 / fan_out)", function()
    local weight = models.resnet18().layer3[2].conv1.weight
    assert.is_near(math.sqrt(2 / (256 * 9)), weight:std():item(), 1e-4)
    assert.is_near(0, weight:mean():item(), 1e-4)
  end)

  -- PyTorch 2.13 and torchvision 0.28 with set_all's values; the second row of logits.
  local LOGITS = {
    resnet18 = {0.4451102, -0.2402878, 0.5980566, -0.3957175, 0.8326194, -0.8587965, 0.8201173, -1.396245, 0.9175175, -1.486219},
    resnet50 = {3.362472, 5.777988, 0.8970434, -1.928316, -1.05538, -3.443345, -4.120636, -0.9843655, 2.168954, 3.555804},
    densenet121 = {0.4030987, 0.9003851, 1.082599, 0.8431363, 0.8333377, 0.6483139, 0.4253823, 0.3770231, -0.2254545, -0.5082617},
    mobilenet_v2 = {2.948732, 0.0808502, -2.541728, 2.375906, 0.06039182, -2.664354, 1.857313, 0.1209177, -2.527165, 1.029562},
    preact_resnet18 = {0.2131217, -0.151329, 0.680462, -0.4213594, 0.8336302, -0.5850099, 0.6383585, -0.6583649, 0.6570437, -0.7911792},
    wide_resnet = {-0.2779777, -0.3980432, 0.5401227, -0.7818673, 0.4076887, 0.4304875, -0.8685247, 0.8263695, 0.04527812, -0.5380408},
  }
  for name, expected in pairs(LOGITS) do
    it(name .. ": logits", function()
      local model
      if name == "wide_resnet" then model = models.wide_resnet(10, 2) else model = models[name]{num_classes = 10} end
      set_all(model)
      local x = resin.empty(2, 3, 40, 40)
      fill(x, 7, 2, 0)
      local y = resin.no_grad(function() return model(x) end)
      for i, value in ipairs(y[2]:totable()) do assert.is_near(expected[i], value, 1e-4, name .. " " .. i) end
    end)
  end

  it("small networks with norms before convolutions", function()
    assert.equal(36479194, models.wide_resnet(28, 10):num_parameters())
    assert.equal(272282, models.preact_resnet(20):num_parameters())
    assert.same({3, 7}, models.preact_resnet{depth = 14, num_classes = 7}(resin.randn(3, 3, 16, 16)).shape)
    local wide = models.wide_resnet(10, 1, {dropout = 0.5, in_channels = 1})
    assert.same({1, 10}, wide:output_shape{1, 1, 28, 28})
    assert.is_true(wide.layer1[1].dropout:is(nn.Dropout))
    fails("wide_resnet: depth must be 6n + 4 (10, 16, …), got 20", models.wide_resnet, 20)
  end)

  it("train: every parameter gets a gradient", function()
    for _, model in ipairs{models.resnet18_cifar(), models.preact_resnet(8), models.mobilenet_v2(),
                           models.densenet{blocks = {2, 2}, growth_rate = 8, init_features = 16, drop_rate = 0.1}} do
      model(resin.randn(2, 3, 32, 32)):square():sum():backward()
      for name, p in model:named_parameters() do assert.is_truthy(p.grad, name) end
    end
  end)

  it("run as a part of a residual container, and are copied whole", function()
    local block = models.resnet18_cifar().layer1
    local model = nn.ResidualSequential(nn.Record("x"), block, nn.Apply{record_name = "x"}):eval()
    local x = resin.randn(1, 64, 8, 8)
    assert.is_true((model(x) - (block(x) + x)):abs():max():item() < 1e-6)
    local copy = model:clone()
    assert.equal(0, (copy(x) - model(x)):abs():max():item())
    assert.equal(model:num_parameters(), copy:num_parameters())
  end)

  it("say at the caller's line what is wrong", function()
    fails('resnet18: unknown option "classes"', models.resnet18, {classes = 10})
    fails("resnet18: num_classes must be an integer of at least 1, got number 0", models.resnet18, 0)
    fails("BasicBlock conv1 (Conv2d)", function() models.resnet18().layer2(resin.randn(1, 3, 8, 8)) end)
  end)
end)

describe("unet", function()
  it("gives the image's size, whatever it is", function()
    local model = models.unet{base = 4, num_classes = 3}:eval()
    for _, size in ipairs{{16, 16}, {17, 31}, {64, 66}, {47, 19}} do
      local shape = {1, 3, size[1], size[2]}
      assert.same(shape, model(resin.randn(shape)).shape)
      assert.same(shape, model:output_shape(shape))
    end
    assert.equal(7763074, models.unet():num_parameters())
    assert.same({2, 1, 20, 24}, models.unet{in_channels = 1, num_classes = 1, base = 2, depth = 2}(resin.randn(2, 1, 20, 24)).shape)
  end)

  it("without padding gives the seed's sizes", function()
    local model = models.unet{base = 2, same_size = false}:eval()
    for _, size in ipairs{{64, 66}, {64, 62}, {67, 65}} do
      local y = model(resin.randn(1, 3, size[1], size[2]))
      assert.same(y.shape, model:output_shape{1, 3, size[1], size[2]})
    end
    assert.same({1, 2, 240, 240}, model(resin.randn(1, 3, 256, 256)).shape)
  end)

  it("trains every parameter; its skips have names", function()
    local model = models.unet{base = 4, depth = 2}
    model(resin.randn(2, 3, 17, 18)):square():mean():backward()
    for name, p in model:named_parameters() do assert.is_truthy(p.grad, name) end
    local names = {}
    for name in model:named_parameters() do names[#names + 1] = name end
    assert.equal("down.0.0.0.weight", names[1])
    assert.equal("head.bias", names[#names])
    fails("UNet", function() models.unet{base = 2}(resin.randn(1, 3, 8, 8)) end)
  end)
end)

describe("networks of linear layers", function()
  it("mlp", function()
    local model = models.mlp({64, 256, 256, 18}, {act = "gelu", dropout = 0.1})
    assert.equal(64 * 256 + 256 + 256 * 256 + 256 + 256 * 18 + 18, model:num_parameters())
    assert.equal("GELU()", model[2]:label())
    assert.equal("Linear(256, 18)", model[#model]:label())
    fails("mlp: sizes[2] must be an integer of at least 1, got number 0.5", models.mlp, {4, 0.5, 2})
  end)

  it("highway_mlp", function()
    local model = models.highway_mlp(20, 8, 5, 3)
    assert.equal(20 * 8 + 8 + 5 * 2 * (8 * 8 + 8) + 8 * 3 + 3, model:num_parameters())
    assert.equal(20 * 8 + 8 + 5 * 3 * (8 * 8 + 8) + 8 * 3 + 3, models.highway_mlp(20, 8, 5, 3, {coupled = false}):num_parameters())
    model(resin.randn(4, 20)):sum():backward()
    for name, p in model:named_parameters() do assert.is_truthy(p.grad, name) end
  end)
end)

describe("networks for sequences", function()
  local function ids(...) return resin.randint(1, 20, {...}) end

  it("residual_lstm_tagger", function()
    local model = models.residual_lstm_tagger(20, 5, {size = 16, layers = 3, dropout = 0.1})
    local scores, states = model(ids(2, 7))
    assert.same({2, 7, 5}, scores.shape)
    assert.same({2, 2, 8}, states.lstm2[1].shape)
    scores:sum():backward()
    for name, p in model:named_parameters() do assert.is_truthy(p.grad, name) end
    fails("size must be even", models.residual_lstm_tagger, 20, 5, {size = 15})
  end)

  it("lstm_lm goes on where it ended", function()
    local model, x = models.lstm_lm(20, {embedding = 8, hidden = 12}), ids(2, 7)
    local whole = model(x)
    local first, states = model(x:narrow(2, 1, 4))
    local second = model(x:narrow(2, 5, 3), {hidden = states})
    assert.is_true((resin.cat({first, second}, 2) - whole):abs():max():item() < 1e-6)
    assert.equal(3477600, models.lstm_lm(96):num_parameters())
  end)

  it("transformer_encoder: a layer is nn.TransformerEncoderLayer", function()
    for _, norm_first in ipairs{true, false} do
      local theirs = nn.TransformerEncoderLayer(16, 4, {dim_feedforward = 32, batch_first = true, norm_first = norm_first, dropout = 0})
      local ours = models.EncoderLayer{size = 16, heads = 4, feedforward = 32, dropout = 0, norm_first = norm_first}
      ours:load_state_dict(theirs:state_dict())
      local x = resin.randn(2, 5, 16)
      assert.is_true((ours(x) - theirs(x)):abs():max():item() < 1e-5)
    end
    local model = models.transformer_encoder(20, {size = 16, layers = 2, num_classes = 3, max_length = 9}):eval()
    local x = ids(2, 7)
    local scores = model(x)
    assert.same({2, 7, 3}, scores.shape)
    assert.same({2, 7, 3}, model:output_shape{2, 7})
    local causal = model(x, {is_causal = true})
    assert.is_true((causal:narrow(2, 7, 1) - scores:narrow(2, 7, 1)):abs():max():item() > 0)
    local shorter = model(x:narrow(2, 1, 3), {is_causal = true})
    assert.is_true((causal:narrow(2, 1, 3) - shorter):abs():max():item() < 1e-5)
    fails("TransformerEncoder: 10 positions are more than max_length 9", function() model(ids(1, 10)) end)
    fails('unknown option "mask"', function() model(x, {mask = x}) end)
  end)

  it("gpt: a cache changes nothing", function()
    assert.equal(10819584, models.gpt(96, {size = 384, layers = 6, heads = 6, max_length = 256}):num_parameters())
    local model, x = models.gpt(20, {size = 32, layers = 2, max_length = 16, dropout = 0}), ids(2, 7)
    local whole, cache = model(x), model:new_cache()
    local parts = {}
    for i, range in ipairs{{1, 3}, {4, 1}, {5, 3}} do parts[i] = model(x:narrow(2, range[1], range[2]), {cache = cache}) end
    assert.is_true((resin.cat(parts, 2) - whole):abs():max():item() < 1e-5)
    assert.equal(7, cache.length)
    local more = model:generate(x, 4)
    assert.same({2, 11}, more.shape)
    for i = 8, 11 do
      local best = model(more:narrow(2, 1, i - 1)):narrow(2, i - 1, 1):argmax(-1)
      assert.same(more:narrow(2, i, 1):totable(), best:totable())
    end
    assert.is_true(model.training)
    fails("more than max_length 16", function() model:generate(x, 11) end)
    fails("cache must come from model:new_cache()", function() model(x, {cache = {}}) end)
  end)
end)

it("models give their leaves and their shapes without running", function()
  local model = models.resnet18_cifar()
  local leaves = blocks.track(model, resin.randn(1, 3, 32, 32))
  assert.equal("conv1", leaves[1].name)
  assert.same({1, 64, 32, 32}, leaves[1].output)
  assert.equal("fc", leaves[#leaves].name)
end)
