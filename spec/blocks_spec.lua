-- resin.blocks beyond torchlego's own samples (spec/seeds/torchlego_spec.lua).

local resin = require "resin"
local nn, blocks = resin.nn, resin.blocks
local Residual, ResidualAdd, ResidualCat, ResidualCat2d = blocks.Residual, blocks.ResidualAdd, blocks.ResidualCat, blocks.ResidualCat2d

local function fails(text, fn, ...)
  local ok, message = pcall(fn, ...)
  assert.is_false(ok, "no error; expected: " .. text)
  assert.is_truthy(message:find(text, 1, true), message)
  assert.is_truthy(message:find("blocks_spec.lua", 1, true), message)
end

local function labels(sequential)
  local list = {}
  for i, m in ipairs(sequential) do list[i] = m:label() end
  return list
end

local function names_of(model)
  local list = {}
  for name in model:named_parameters() do list[#list + 1] = name end
  return list
end

local function difference(a, b)
  assert.same(a.shape, b.shape)
  return (a - b):abs():max():item()
end

describe("conv blocks", function()
  it("pass everything else on to the convolution", function()
    assert.same({"Conv2d(3, 8, 3, {stride = 2, padding = 1, bias = false})", "BatchNorm2d(8)", "ReLU()"},
      labels(blocks.conv3x3_bn_act(3, 8, {stride = 2, padding = 1, bias = false})))
    assert.same({"Conv2d(3, 8, 1)", "BatchNorm2d(8)"}, labels(blocks.conv1x1_bn(3, 8)))
    assert.same({"Conv2d(3, 8, 1, {stride = 2})", "BatchNorm2d(8)", "Tanh()"},
      labels(blocks.conv1x1_bn_act{3, 8, stride = 2, act = "tanh"}))
    assert.same({"Conv2d(3, 8, 5, {stride = 2, padding = 1})", "BatchNorm2d(8)"}, labels(blocks.conv_bn(3, 8, 5, 2, 1)))
    assert.same({"Conv2d(3, 8, {3, 5})", "BatchNorm2d(8)", "ReLU()"}, labels(blocks.conv_bn_act(3, 8, {kernel_size = {3, 5}})))
  end)

  it("take any activation: name, class, function that makes one, module", function()
    for _, act in ipairs{"LeakyReLU", "leaky_relu", nn.LeakyReLU, function() return nn.LeakyReLU() end, nn.LeakyReLU()} do
      assert.equal("LeakyReLU()", blocks.conv3x3_bn_act(3, 8, {act = act})[3]:label())
    end
    local own = nn.GELU()
    assert.equal(own, blocks.conv3x3_bn_act(3, 8, {act = own})[3])
    fails('conv3x3_bn_act: act: there is no activation "relo"', blocks.conv3x3_bn_act, 3, 8, {act = "relo"})
    fails("conv3x3_bn_act: act must be a layer's class or a function that makes a layer, got number 3", blocks.conv3x3_bn_act, 3, 8,
      {act = 3})
  end)

  it("take volumes, and classes of norms whose first argument is not the channels", function()
    assert.same({"Conv3d(3, 8, 3, {padding = 1})", "BatchNorm3d(8)", "ReLU()"},
      labels(blocks.conv_bn_act(3, 8, 3, {padding = 1, conv = nn.Conv3d})))
    assert.same({2, 8, 4, 4, 4}, blocks.conv_bn_act(3, 8, 3, {padding = 1, conv = nn.Conv3d})(resin.randn(2, 3, 4, 4, 4)).shape)
    for channels, label in pairs{[8] = "GroupNorm(8, 8)", [64] = "GroupNorm(32, 64)", [48] = "GroupNorm(24, 48)"} do
      assert.equal(label, blocks.conv3x3_bn(3, channels, {norm = nn.GroupNorm})[2]:label())
      assert.equal(label, nn.Residual(nn.Conv2d(channels, channels, 1), {norm = "pre", norm_layer = nn.GroupNorm}).norm:label())
    end
    assert.equal("InstanceNorm2d(8)", blocks.conv3x3_bn(3, 8, {norm = nn.InstanceNorm2d})[2]:label())
    assert.equal("BatchNorm3d(4)", nn.Residual(nn.Conv3d(4, 4, 1), {norm = "pre"}).norm:label())
    assert.same({2, 4, 3, 3, 3}, nn.Residual(nn.Conv3d(4, 4, 1), {norm = "pre"})(resin.randn(2, 4, 3, 3, 3)).shape)
  end)

  it("take any convolution and norm", function()
    assert.same({"Conv1d(3, 8, 3)", "BatchNorm1d(8)", "ReLU()"}, labels(blocks.conv3x3_bn_act(3, 8, {conv = nn.Conv1d})))
    assert.same({"ConvTranspose2d(3, 8, 2, {stride = 2})", "BatchNorm2d(8)"},
      labels(blocks.conv_bn(3, 8, 2, {stride = 2, conv = nn.ConvTranspose2d})))
    assert.same({"Conv2d(3, 8, 3)", "Identity"}, {blocks.conv3x3_bn(3, 8, {norm = nn.Identity})[1]:label(),
      blocks.conv3x3_bn(3, 8, {norm = nn.Identity})[2].type})
    fails("conv_bn: Linear is no convolution", blocks.conv_bn, 3, 8, {conv = function(a, b) return nn.Linear(a, b) end})
  end)

  it("say what is wrong at the caller's line", function()
    fails("conv3x3: in_channels and out_channels are missing", blocks.conv3x3, 3)
    fails("conv3x3: kernel_size is 3", blocks.conv3x3, 3, 8, {kernel_size = 5})
    fails("conv3x3: kernel_size is 3", blocks.conv3x3, 3, 8, 5)
    fails('Conv2d: unknown option "act"', blocks.conv3x3_bn, 3, 8, {act = "relu"})
    fails("Conv2d: in_channels must be an integer of at least 1, got number 0", blocks.conv3x3, 0, 8)
  end)

  it("Conv2dPad computes its padding", function()
    assert.equal("Conv2d(3, 8, 3, {padding = 1})", blocks.Conv2dPad(3, 8, 3):label())
    assert.equal("Conv2d(3, 8, {3, 5}, {padding = {1, 2}})", blocks.Conv2dPad(3, 8, {3, 5}):label())
    assert.equal("Conv2d(3, 8, 3, {stride = 2, padding = 1, bias = false})", blocks.Conv2dPad(3, 8, 3, 2, {bias = false}):label())
    assert.equal("Conv2d(3, 8, 4, {padding = 2})", blocks.Conv2dPad(3, 8, 4):label())
    for _, dilation in ipairs{1, 2, 3} do
      assert.same({1, 8, 9, 7}, blocks.Conv2dPad{3, 8, kernel_size = 5, dilation = dilation}(resin.randn(1, 3, 9, 7)).shape)
    end
    fails("Conv2dPad: takes no padding", blocks.Conv2dPad, 3, 8, 3, {padding = 1})
    assert.equal("Conv2d(3, 8, 3, {padding = 1})", blocks.conv3x3_bn(3, 8, {conv = blocks.Conv2dPad})[1]:label())
  end)

  it("Conv2dPad with mode same gives ceil(size / stride)", function()
    for _, o in ipairs{{3, 1}, {3, 2}, {4, 2}, {5, 3}, {2, 2}, {1, 2}} do
      local conv = blocks.Conv2dPad(2, 4, o[1], {stride = o[2], mode = "same"})
      for _, size in ipairs{{7, 8}, {9, 12}} do
        local expected = {1, 4, math.ceil(size[1] / o[2]), math.ceil(size[2] / o[2])}
        assert.same(expected, conv(resin.randn(1, 2, size[1], size[2])).shape)
        assert.same(expected, conv:output_shape{1, 2, size[1], size[2]})
      end
    end
  end)
end)

describe("Residual", function()
  it("registers what it is given, in whatever table", function()
    local a, b = nn.Linear(4, 4), nn.Linear(4, 4)
    for _, model in ipairs{ResidualAdd{a, b}, ResidualAdd(nn.ModuleList{a, b}), ResidualAdd({a, b}), Residual({a, b}, "add"),
                           Residual{{a}, {b}}, blocks.Cat{a, b}, blocks.InputForward({a, b}, "add")} do
      assert.equal(40, model:num_parameters())
      assert.equal(4, #model:parameters())
    end
    assert.same({"blocks.0.weight", "blocks.0.bias", "blocks.1.weight", "blocks.1.bias"}, names_of(ResidualAdd{a, b}))
    assert.same({"blocks.0.0.weight", "blocks.0.0.bias", "blocks.1.0.weight", "blocks.1.0.bias", "shortcut.weight", "shortcut.bias"},
      names_of(Residual{{nn.Linear(4, 4)}, {nn.Linear(4, 4)}, shortcut = nn.Linear(4, 4)}))
  end)

  it("joins block by block, with one shortcut for all", function()
    local a, b, s, x = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), resin.randn(3, 4)
    local model = ResidualAdd({a, b}, {shortcut = s})
    local y = a(x) + s(x)
    assert.equal(0, difference(b(y) + s(y), model(x)))
    assert.equal(0, difference(model(x), ResidualAdd({a, b}, s)(x)))
    assert.equal(0, difference(model(x), ResidualAdd{a, b, shortcut = s}(x)))
    assert.equal(0, difference(model(x), model:clone()(x)))
    model(x):sum():backward()
    for _, p in ipairs(model:parameters()) do assert.is_truthy(p.grad) end
  end)

  it("takes functions, modules and operations by name as res_func", function()
    local a, x = nn.Linear(4, 4), resin.randn(3, 4)
    assert.equal(0, difference(a(x) * x, Residual(a, {res_func = function(y, res) return y * res end})(x)))
    assert.equal(0, difference(resin.F.maximum(a(x), x), Residual(a, {res_func = "max"})(x)))
    local gate = nn.class("Gate")
    function gate:init() self.g = nn.Linear(4, 4) end
    function gate:forward(y, res) return y + self.g(res) end
    local op = gate()
    assert.equal(0, difference(a(x) + op.g(x), Residual(a, {res_func = op})(x)))
    fails("Residual: res_func must be a function of (x, res), a module or the name of an operation, got number 3", Residual, a, 3)
  end)

  it("shows and saves what an operation itself learns", function()
    local model = Residual(nn.Linear(4, 4), "gated")
    assert.same({"blocks.0.weight", "blocks.0.bias", "apply_1.alpha.param"}, names_of(model))
    local highway = Residual(nn.Linear(4, 4), "highway")
    assert.equal(20 + 40, highway:num_parameters())
    local other = Residual(nn.Linear(4, 4), "highway")
    other:load_state_dict(highway:state_dict())
    local x = resin.randn(2, 4)
    assert.equal(0, difference(highway(x), other(x)))
  end)

  it("without res_func gives a block the residual as second argument", function()
    local x = resin.randn(2, 4)
    local model = Residual(function(y, res) return y * 2 + res end, {shortcut = function(r) return -r end})
    assert.equal(0, difference(x, model(x)))
  end)

  it("goes over levels of any length", function()
    local function down(x) return x * 2 end
    local function up(x, res) return res and x + res or x end
    local one = resin.tensor(1)
    assert.equal(4 + 2, Residual{{down, down}, {up}}(one):item())
    assert.equal(2 + 2, Residual{{down}, {up, up, up}}(one):item())
    assert.equal(8 + 8 + 4 + 2, Residual{{down, down, down}, {up, up, up}}(one):item())
    local add = function(x, res) return x + res end
    assert.equal((((8 + 8) * 3 + 4) * 3 + 2) * 3,      -- with res_func the layers of the second level run too
      Residual({{down, down, down}, {function(x) return x * 3 end, function(x) return x * 3 end, function(x) return x * 3 end}}, add)(one)
        :item())
    assert.equal(8 - 8 - 4 - 2, Residual{{down, down, down}, {up, up, up}, shortcut = function(r) return -r end}(one):item())
  end)

  it("says at construction what can never fit", function()
    fails("ResidualAdd: the residual [?, 4] does not fit the result [?, 6] of block 1; give a shortcut", ResidualAdd, nn.Linear(4, 6))
    local x = resin.randn(1, 3, 5, 5)
    fails("ResidualAdd: the residual [1, 3, 5, 5] does not fit the result [1, 3, 3, 3] of block 1; give a shortcut", function()
      ResidualAdd(nn.Conv2d(3, 3, 3))(x)
    end)
    assert.same({2, 4}, ResidualAdd(function(y) return y:narrow(1, 1, 1) end, {broadcast = true})(resin.randn(2, 4)).shape)
  end)

  it("names the layer that fails", function()
    fails("in ResidualAdd block_2 (Sequential), Sequential 1 (Linear): ", function()
      ResidualAdd{function(x) return x end, nn.Sequential(nn.Linear(4, 4))}(resin.randn(2, 5))
    end)
    fails("ResidualAdd: blocks must be a module, a list of modules, or a list of levels {{…}, {…}}, got an empty list", ResidualAdd, {})
    fails("ResidualAdd: block 2 must be a module or a function, got number 3", ResidualAdd, {nn.Linear(4, 4), 3})
    fails("ResidualAdd: block 1 must be a module, got the class Linear; call it: Linear(…)", ResidualAdd, {nn.Linear})
    fails('ResidualAdd: unknown option "short"', ResidualAdd, nn.Linear(4, 4), {short = nn.Linear(4, 4)})
    fails("Residual: level 2 is empty", Residual, {{nn.Linear(4, 4)}, {}})
  end)

  it("has fixed layers", function()
    local model = ResidualAdd(nn.Linear(4, 4))
    fails("ResidualAdd: its layers are given at construction", function() model:append(nn.ReLU()) end)
    fails("ResidualAdd: its layers are given at construction", function() model:remove() end)
    fails("the list of a block's layers is fixed", function() model.blocks:append(nn.ReLU()) end)
    assert.equal(1, #model.blocks:slice(1, 1))
  end)

  it("is laid out in the plan of the container around it", function()
    local inner = ResidualAdd(nn.Linear(4, 4))
    local model = nn.ResidualSequential(nn.Record("x"), nn.Sequential(inner, nn.ReLU()), nn.Apply{record_name = "x"})
    local x = resin.randn(2, 4)
    assert.equal(0, difference((inner.blocks[1](x) + x):relu() + x, model(x)))
    assert.same({2, 4}, model:output_shape{2, 4})
  end)

  it("prints its layers under their names", function()
    local text = tostring(ResidualAdd(nn.Linear(4, 4), {shortcut = nn.Linear(4, 4)}))
    assert.equal(table.concat({
      "ResidualAdd", "  blocks: ModuleList", "    [1] Linear(4, 4)  20", "  shortcut: Linear(4, 4)  20", "total: 40 parameters",
    }, "\n"), (text:gsub("  +(%d+)\n", "  %1\n")))
  end)
end)

describe("ResidualCat", function()
  it("puts the current value first, by default along the first dimension", function()
    local x = resin.randn(2, 3, 4)
    local function f(y) return y * 2 end
    assert.equal(0, difference(resin.cat({x * 2, x}, 1), ResidualCat(f)(x)))
    assert.equal(0, difference(resin.cat({x * 2, x}, 3), ResidualCat(f, {dim = 3})(x)))
    assert.equal(0, difference(resin.cat({x * 2, x}, 3), ResidualCat{f, dim = -1}(x)))
    fails("ResidualCat: the residual [2, 3, 4] does not fit the result [2, 3, 3] of block 1", function()
      ResidualCat(function(y) return y:narrow(3, 1, 3) end)(x)
    end)
  end)

  it("2d: channels, and sizes that differ", function()
    local conv = nn.Conv2d(3, 5, 3)
    local model, x = ResidualCat2d(conv), resin.randn(1, 3, 8, 9)
    local y = model(x)
    assert.same({1, 8, 6, 7}, y.shape)
    assert.same({1, 8, 6, 7}, model:output_shape{1, 3, 8, 9})
    assert.equal(0, difference(conv(x), y:narrow(2, 1, 5)))
    assert.equal(0, difference(x:narrow(3, 2, 6):narrow(4, 2, 7), y:narrow(2, 6, 3)))
    y = ResidualCat2d(nn.Conv2d(3, 5, 2))(x)       -- an odd difference: one row and column less, at the beginning
    assert.equal(0, difference(x:narrow(3, 2, 7):narrow(4, 2, 8), y:narrow(2, 6, 3)))
    y = ResidualCat2d(nn.Conv2d(3, 5, 1, {padding = 1}))(x)
    assert.equal(0, difference(x, y:narrow(2, 6, 3):narrow(3, 2, 8):narrow(4, 2, 9)))
    assert.equal(0, y:narrow(2, 6, 3):narrow(3, 1, 1):abs():sum():item())
  end)
end)

describe("InputForward", function()
  it("joins branches by name or function", function()
    local a, b, x = nn.Linear(4, 4), nn.Linear(4, 4), resin.randn(3, 4)
    local p, q = a(x), b(x)
    for kind, expected in pairs{
      add = p + q, mul = p * q, mean = (p + q) * 0.5, max = resin.F.maximum(p, q), min = resin.F.minimum(p, q),
      cat = resin.cat({p, q}, 1), stack = resin.stack({p, q}, 1),
    } do
      local model = blocks.InputForward({a, b}, kind)
      assert.equal(0, difference(expected, model(x)))
      if kind ~= "max" then assert.same(expected.shape, model:output_shape{3, 4}) end
    end
    assert.equal(0, difference(p - q, blocks.InputForward({a, b}, function(list) return list[1] - list[2] end)(x)))
  end)

  it("Cat along any dimension", function()
    local a, b, x = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 2, 3, {padding = 1}), resin.randn(2, 3, 5, 5)
    local model = blocks.Cat({a, b}, {dim = 2})
    assert.equal(0, difference(resin.cat({a(x), b(x)}, 2), model(x)))
    assert.same({2, 6, 5, 5}, model:output_shape{2, 3, 5, 5})
    assert.equal(0, difference(model(x), blocks.Cat{a, b, dim = 2}(x)))
    model(x):sum():backward()
    assert.is_truthy(a.weight.grad)
  end)

  it("says what is wrong", function()
    fails("InputForward: blocks must be a list of modules, got an empty list", blocks.InputForward, {}, "add")
    fails("InputForward: aggr_func is missing", blocks.InputForward, {nn.ReLU()})
    fails("InputForward: aggr_func must be one of add, cat", blocks.InputForward, {nn.ReLU()}, "sum")
    fails("in InputForward 2 (Linear): ", function()
      blocks.InputForward({nn.ReLU(), nn.Linear(3, 3)}, "add")(resin.randn(2, 4))
    end)
    fails("Cat: dim 0: dimensions count from 1", blocks.Cat, {nn.ReLU()}, {dim = 0})
  end)
end)

describe("SELayer", function()
  it("scales channels", function()
    local se, x = blocks.SELayer(32, 8), resin.randn(2, 32, 5, 4)
    assert.same({"fc.0.weight", "fc.2.weight"}, names_of(se))
    assert.equal(2 * 32 * 4, se:num_parameters())
    local gate = (se.fc[1](x:mean({3, 4})):relu():matmul(se.fc[3].weight:t())):sigmoid()
    assert.is_true(difference(x * gate:reshape(2, 32, 1, 1), se(x)) < 1e-6)
    assert.same({2, 32, 5, 4}, se:output_shape{2, 32, 5, 4})
    assert.equal(2 * 64 * 4, blocks.SELayer(64):num_parameters())
    fails("SELayer: reduction 16 leaves nothing of 8 channels", blocks.SELayer, 8)
    fails("SELayer: input must be [N, 32, …], got [2, 3, 5, 5]", function() se(resin.randn(2, 3, 5, 5)) end)
  end)
end)

describe("track", function()
  it("lists the leaves that ran, in their order, with shapes", function()
    local relu = nn.ReLU()
    local model = nn.Sequential(nn.Linear(4, 3), relu, ResidualAdd(nn.Sequential(nn.Linear(3, 3), relu)))
    local leaves = blocks.track(model, resin.randn(2, 4))
    local list = {}
    for i, leaf in ipairs(leaves) do list[i] = leaf.name .. " " .. leaf.type end
    assert.same({"0 Linear", "1 ReLU", "2.blocks.0.0 Linear", "1 ReLU"}, list)
    assert.same({2, 4}, leaves[1].input)
    assert.same({2, 3}, leaves[1].output)
    assert.equal("0 Linear(4, 3): [2, 4] -> [2, 3]", tostring(leaves):match("^[^\n]+"))
  end)

  it("leaves the model as it was", function()
    local model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5))
    model[2]:eval()
    blocks.track(model, resin.randn(2, 4))
    assert.equal(0, model[1].running_mean:abs():sum():item())
    assert.is_true(model[1].training)
    assert.is_false(model[2].training)
    assert.is_nil(rawget(model[1], "forward"))
    assert.is_false((pcall(blocks.track, model, resin.randn(2, 5))))
    assert.is_true(model[1].training)
    assert.is_nil(rawget(model[1], "forward"))
  end)

  it("Tracker", function()
    local tracker = blocks.Tracker(nn.Sequential(nn.Linear(4, 3), nn.ReLU()))
    tracker(resin.randn(1, 4))
    assert.equal(2, #tracker.traced)
    assert.equal(1, #tracker.parametrized)
  end)
end)

describe("transfer_weights", function()
  local function deep() return nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), ResidualAdd(nn.Conv2d(4, 4, 1))) end
  local function flat() return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), ResidualAdd(nn.Conv2d(4, 4, 1))) end

  it("between models that nest differently", function()
    local a, b, x = deep(), flat(), resin.randn(2, 3, 4, 4)
    a(x)      -- moves the running statistics
    a:eval()
    b:eval()
    assert.equal(9, blocks.transfer_weights(a, b))
    assert.equal(0, difference(a(x), b(x)))
    local c = flat():eval()
    assert.equal(9, blocks.transfer_weights(a, c, {input = x}))
    assert.equal(0, difference(a(x), c(x)))
  end)

  it("in the order of execution when that of registration differs", function()
    local Swapped = nn.class("Swapped")
    function Swapped:init()
      self.second = nn.Linear(3, 2)
      self.first = nn.Linear(4, 3)
    end
    function Swapped:forward(x) return self.second(self.first(x)) end
    local a, b, x = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), Swapped(), resin.randn(5, 4)
    fails("0 (Linear) weight is [3, 4] but second (Linear) weight is [2, 3]", blocks.transfer_weights, a, b)
    blocks.transfer_weights(a, b, {input = x})
    assert.equal(0, difference(a(x), b(x)))
  end)

  it("compares before it writes, and leaves classes out", function()
    local a, b = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 5))
    local before = b[1].weight:clone()
    fails("1 (Linear) weight is [2, 3] but 1 (Linear) weight is [5, 3]", blocks.transfer_weights, a, b)
    assert.equal(0, difference(before, b[1].weight))
    fails("(source: 2 layers with values, destination: 1)", blocks.transfer_weights, a, nn.Sequential(nn.Linear(4, 3)))
    fails("has 2 tensors but", blocks.transfer_weights, nn.Linear(4, 3), nn.Linear(4, 3, {bias = false}))
    assert.equal(4, blocks.transfer_weights(nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2)), a,
      {src_skip = {nn.LayerNorm}}))
    fails("transfer_weights: the destination must be a module, got nil", blocks.transfer_weights, a)
  end)
end)
