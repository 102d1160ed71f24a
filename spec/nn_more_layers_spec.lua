-- What the fixtures cannot say about the layers beyond the first ones: options, initial values, texts, random layers, in-place
-- activations, declared shapes, derivatives of second order.

local resin = require "resin"
local nn, F = resin.nn, resin.F

local function fails(text, fn, ...)
  local ok, message = pcall(fn, ...)
  assert.is_false(ok)
  assert.is_truthy(message:find(text, 1, true), message)
end

local function shows(text, layer) assert.equal(text, (layer:label())) end

-- Does output_shape say what forward gives?
local function agrees(layer, ...)
  local shape = {...}
  local y = layer:eval()(resin.randn(shape))
  assert.same(y.shape, layer:output_shape(shape))
  local unknown = {false}
  for i = 2, #shape do unknown[i] = shape[i] end
  local declared = layer:output_shape(unknown)
  for i = 2, #declared do assert.equal(y.shape[i], declared[i]) end
end

describe("convolutions", function()
  it("print what was given", function()
    shows("Conv1d(3, 8, 3, {padding = \"same\"})", nn.Conv1d(3, 8, 3, {padding = "same"}))
    shows("Conv2d(3, 8, {3, 5}, {padding = 1, padding_mode = \"reflect\"})", nn.Conv2d(3, 8, {3, 5}, {padding = 1,
      padding_mode = "reflect"}))
    shows("Conv3d(3, 8, 3, {stride = {1, 2, 2}, bias = false})", nn.Conv3d(3, 8, {3, 3, 3}, {stride = {1, 2, 2}, bias = false}))
    shows("ConvTranspose2d(8, 4, 2, {stride = 2})", nn.ConvTranspose2d(8, 4, 2, {stride = 2}))
  end)

  it("declare their shapes", function()
    agrees(nn.Conv1d(3, 8, 4, {padding = "same"}), 2, 3, 9)
    agrees(nn.Conv1d(3, 8, 4, {padding = "valid", stride = 2}), 2, 3, 9)
    agrees(nn.Conv3d(3, 8, {3, 2, 1}, {stride = {2, 1, 2}, padding = {1, 0, 0}}), 2, 3, 7, 6, 5)
    agrees(nn.ConvTranspose1d(3, 8, 3, {stride = 3, output_padding = 2}), 2, 3, 9)
    agrees(nn.ConvTranspose2d(3, 8, {3, 2}, {stride = {2, 3}, padding = {1, 0}, output_padding = {1, 2}}), 2, 3, 5, 6)
    assert.equal("channels_first", nn.Conv3d.layout)
  end)

  it("have PyTorch's parameters and bounds", function()
    assert.same({4, 3, 2, 3, 5}, nn.Conv3d(6, 4, {2, 3, 5}, {groups = 2}).weight.shape)
    local m = nn.ConvTranspose2d(32, 64, 3, {groups = 2})      -- [in, out / groups, kh, kw]
    assert.same({32, 32, 3, 3}, m.weight.shape)
    assert.same({64}, m.bias.shape)
    local bound, high = 1 / math.sqrt(32 * 9), m.weight:detach():abs():max():item()
    assert.is_true(high <= bound and high > 0.98 * bound)
    assert.is_nil(nn.Conv1d(2, 2, 1, {bias = false}).bias)
  end)

  it("say what does not fit", function()
    fails('Conv1d: padding = "same" needs stride 1, got stride 2', nn.Conv1d, 3, 8, 3, {padding = "same", stride = 2})
    fails("Conv3d: kernel_size must be an integer of at least 1 or a table of three, got {3, 3}", nn.Conv3d, 3, 8, {3, 3})
    fails('Conv2d: padding must be one of', nn.Conv2d, 3, 8, 3, {padding = "full"})
    fails("ConvTranspose2d: output_padding 2 must be smaller than stride 2", nn.ConvTranspose2d, 3, 8, 3, {stride = 2,
      output_padding = 2})
    fails("conv1d: input must be [N, C, L], or that without the batch, got [2, 3, 4, 5]", nn.Conv1d(3, 8, 3), resin.zeros(2,
      3, 4, 5))
    fails("has 4 channels but weight", nn.Conv3d(3, 8, 3), resin.zeros(2, 4, 5, 5, 5))
    fails("conv_transpose2d: input [1, 4, 5, 5] has 4 channels but weight [3, 8, 3, 3] expects 3", nn.ConvTranspose2d(3, 8, 3),
      resin.zeros(1, 4, 5, 5))
    fails("ConvTranspose2d: output_size 12 is not possible: input [1, 3, 5, 5] gives 11 to 11", nn.ConvTranspose2d(3, 8, 7),
      resin.zeros(1, 3, 5, 5), {12, 11})
    fails("Conv1d: input [2, 4, 9] has 4 channels, expected 3", nn.Conv1d(3, 8, 3).output_shape, nn.Conv1d(3, 8, 3), {2, 4, 9})
  end)

  it("are functions too", function()
    local x, w = resin.randn(2, 3, 8), resin.randn(4, 3, 3)
    assert.same({2, 4, 4}, F.conv1d(x, w, nil, {stride = 2, padding = 1}).shape)
    assert.same({2, 5, 17}, F.conv_transpose1d(x, resin.randn(3, 5, 3), nil, {stride = 2}).shape)
    assert.same({2, 4, 8, 8, 8}, F.conv3d(resin.randn(2, 3, 8, 8, 8), resin.randn(4, 3, 3, 3, 3), nil, 1, 1).shape)
    fails('conv1d: unknown option "strid"', F.conv1d, x, w, nil, {strid = 2})
  end)
end)

describe("norms", function()
  it("print what was given and declare their shapes", function()
    shows("GroupNorm(2, 6, {affine = false})", nn.GroupNorm(2, 6, {affine = false}))
    shows("InstanceNorm2d(6, {affine = true, track_running_stats = true})", nn.InstanceNorm2d(6, {affine = true,
      track_running_stats = true}))
    shows("RMSNorm({4, 5}, {eps = 1e-06})", nn.RMSNorm({4, 5}, {eps = 1e-6}))
    shows("RMSNorm(5)", nn.RMSNorm(5))
    agrees(nn.GroupNorm(2, 6), 3, 6, 4, 5)
    agrees(nn.InstanceNorm1d(6), 3, 6, 4)
    agrees(nn.RMSNorm{4, 5}, 3, 4, 5)
    assert.equal("features_last", nn.RMSNorm.layout)
    assert.equal("channels_first", nn.GroupNorm.layout)
  end)

  it("say what does not fit", function()
    fails("GroupNorm: num_channels (6) must be divisible by num_groups (4)", nn.GroupNorm, 4, 6)
    fails("group_norm: weight [6] must have shape [4] for input [2, 4, 3]", nn.GroupNorm(2, 6), resin.zeros(2, 4, 3))
    fails("group_norm: the 5 channels of input [2, 5] cannot be divided into 2 groups", F.group_norm, resin.zeros(2, 5),
      nil, nil, 2)
    fails("InstanceNorm2d: input must be [N, C, H, W], or that without the batch, got [2, 3]", nn.InstanceNorm2d(3),
      resin.zeros(2, 3))
    fails("InstanceNorm1d: input [2, 3, 1] has one value per channel of a sample", nn.InstanceNorm1d(3), resin.zeros(2, 3, 1))
    fails("rms_norm: input [2, 4] must end with the normalized shape [3]", nn.RMSNorm(3), resin.zeros(2, 4))
  end)

  it("track running statistics only when asked", function()
    assert.equal(0, #nn.InstanceNorm2d(3):buffers())
    local m = nn.InstanceNorm1d(2, {track_running_stats = true, momentum = false})
    m(resin.randn(4, 2, 8))
    m(resin.randn(4, 2, 8))
    assert.equal(2, m.num_batches_tracked:item())
    m:reset_running_stats()
    assert.same({1, 1}, m.running_var:totable())
  end)

  it("have second derivatives", function()
    for _, m in ipairs{nn.GroupNorm(2, 4, {dtype = "f64"}), nn.InstanceNorm1d(4, {affine = true, dtype = "f64"}),
      nn.RMSNorm(5, {dtype = "f64"})} do
      local x = resin.randn({3, 4, 5}, {dtype = "f64"})
      local function penalty(at)
        local input = at:clone():requires_grad_(true)
        local gradient = resin.grad(m(input):square():sum() * 0.5 + m(input):pow(3):sum(), {input}, {create_graph = true})[1]
        return gradient:square():sum(), input
      end
      local value, input = penalty(x)
      value:backward()
      local v = resin.randn({3, 4, 5}, {dtype = "f64"})
      local eps = 1e-6
      local numeric = (penalty(x + v * eps):item() - penalty(x - v * eps):item()) / (2 * eps)
      local found = (input.grad * v):sum():item()
      assert.is_true(math.abs(numeric - found) < 1e-4 * math.max(1, math.abs(found)), m.type)
    end
  end)
end)

describe("activations", function()
  it("print what was given", function()
    shows("SiLU()", nn.SiLU())
    shows("LeakyReLU({negative_slope = 0.2, inplace = true})", nn.LeakyReLU(0.2, true))
    shows("Hardtanh({min_val = -2})", nn.Hardtanh{min_val = -2})
    shows("Softplus({beta = 2})", nn.Softplus(2))
    shows("PReLU({num_parameters = 3, init = 0.1})", nn.PReLU(3, 0.1))
    fails("Hardtanh: max_val (-1) must be larger than min_val (0)", nn.Hardtanh, 0, -1)
    fails("PReLU: input [2, 4] has 4 channels, expected 3", nn.PReLU(3), resin.zeros(2, 4))
  end)

  it("take PyTorch's side where the derivative jumps", function()
    local function slopes(m, ...)
      local x = resin.tensor({...}, {requires_grad = true})
      m(x):sum():backward()
      return x.grad:totable()
    end
    assert.same({0, 0}, slopes(nn.ReLU6(), 0, 6))
    assert.same({0, 0}, slopes(nn.Hardtanh(), -1, 1))
    assert.same({2}, slopes(nn.ELU(2), 0))
    assert.same({0.5}, slopes(nn.LeakyReLU(0.5), 0))
    assert.same({0.25}, slopes(nn.PReLU(), 0))
    assert.same({0, 0}, slopes(nn.Hardsigmoid(), -3, 3))
  end)

  it("stay finite far from 0", function()
    for _, m in ipairs{nn.SiLU(), nn.Mish(), nn.Softplus(), nn.Softplus{threshold = 200}, nn.ELU(), nn.SELU(), nn.Hardswish()} do
      local x = resin.tensor({-1e4, -100, 100, 1e4}, {requires_grad = true})
      local y = m(x)
      y:sum():backward()
      assert.is_true(y:isfinite():all():item() and x.grad:isfinite():all():item(), m.type)
      assert.is_true(math.abs(y:totable()[4] / 1e4 - 1) < 0.06, m.type)
    end
  end)

  it("overwrite the input only where no gradient needs it", function()
    for _, m in ipairs{nn.SiLU(true), nn.LeakyReLU(0.1, true), nn.ReLU6(true), nn.ELU(1, true)} do
      local x = resin.tensor{-1, 2}
      assert.equal(x, m(x))
      local layer = nn.Linear(2, 2)
      local before = layer(x)
      local y = m(before)
      assert.is_false(before == y)
      y:sum():backward()
      assert.is_truthy(layer.weight.grad)
    end
    local seq = nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(true), nn.MaxPool1d(2), nn.ReLU(true))      -- results that are views
    seq(resin.randn(2, 2, 8)):sum():backward()
    assert.is_truthy(seq[1].weight.grad)
  end)
end)

describe("random layers", function()
  it("DropPath drops whole samples", function()
    resin.manual_seed(1)
    local m, x = nn.DropPath(0.25), resin.ones(4000, 2, 3)
    local y = m(x)
    local rows = y:reshape(4000, 6)
    assert.same(rows:amax(2):totable(), rows:amin(2):totable())
    local kept = y:gt(0):to("f32"):mean():item()
    assert.is_true(math.abs(kept - 0.75) < 0.03)
    assert.is_true(math.abs(y:max():item() - 1 / 0.75) < 1e-6)
    assert.equal(1, nn.DropPath(0.25, {scale_by_keep = false})(x):max():item())
    assert.equal(x, m:eval()(x))
    assert.equal(x, nn.DropPath()(x))
    assert.equal(0, nn.DropPath(1)(x):abs():sum():item())
    shows("DropPath({p = 0.1, mode = \"batch\"})", nn.DropPath(0.1, "batch"))
    fails("DropPath: mode must be one of", nn.DropPath, 0.1, "column")
  end)

  it("DropPath in mode batch drops all or nothing", function()
    resin.manual_seed(2)
    local m, seen = nn.DropPath(0.5, "batch"), {}
    for _ = 1, 40 do
      local y = m(resin.ones(5, 3))
      assert.equal(y:max():item(), y:min():item())
      seen[y:max():item()] = true
    end
    assert.is_true(seen[0] and seen[2])
  end)

  it("DropPath has the gradient of its mask", function()
    local x = resin.ones(50, 3):requires_grad_(true)
    local y = nn.DropPath(0.5)(x)
    y:sum():backward()
    assert.same(y:totable(), x.grad:totable())
  end)

  it("Dropout2d drops whole channels", function()
    resin.manual_seed(3)
    local x = resin.ones(50, 40, 4, 4)
    local y = nn.Dropout2d(0.25)(x)
    local planes = y:reshape(2000, 16)
    assert.same(planes:amax(2):totable(), planes:amin(2):totable())
    local kept = y:gt(0):to("f32"):mean():item()
    assert.is_true(math.abs(kept - 0.75) < 0.04)
    assert.is_true(planes:amax(2):reshape(50, 40):amin(2):max():item() == 0)      -- samples are not dropped as wholes
    assert.equal(x, nn.Dropout2d(0.25):eval()(x))
    fails("Dropout1d: input must have 3 dimensions, or 2 without the batch, got [2, 3, 4, 5]", nn.Dropout1d(0.5),
      resin.ones(2, 3, 4, 5))
  end)
end)

describe("pooling and size", function()
  it("declare their shapes", function()
    agrees(nn.MaxPool1d(3, {stride = 2, padding = 1, ceil_mode = true}), 2, 3, 10)
    agrees(nn.AvgPool1d(3), 2, 3, 10)
    agrees(nn.AdaptiveAvgPool1d(4), 2, 3, 10)
    agrees(nn.AdaptiveMaxPool2d{3, 5}, 2, 3, 10, 7)
    agrees(nn.ZeroPad2d{-1, 2, 0, -3}, 2, 3, 10, 7)
    agrees(nn.ReflectionPad1d(2), 2, 3, 10)
    agrees(nn.CircularPad2d{1, 0, 2, 3}, 2, 3, 10, 7)
    agrees(nn.Upsample{scale_factor = {1.5, 2}}, 2, 3, 10, 7)
    agrees(nn.Upsample{size = 5, mode = "bilinear"}, 2, 3, 10, 7)
    agrees(nn.Upsample{scale_factor = 3, mode = "linear", align_corners = true}, 2, 3, 10)
  end)

  it("print what was given", function()
    shows("MaxPool1d(3, {stride = 2})", nn.MaxPool1d(3, 2))
    shows("AdaptiveMaxPool2d({3, 5})", nn.AdaptiveMaxPool2d{3, 5})
    shows("ZeroPad2d({1, 2, 0, -3})", nn.ZeroPad2d{1, 2, 0, -3})
    shows("ConstantPad1d(2, 0.5)", nn.ConstantPad1d(2, 0.5))
    shows("Upsample({scale_factor = 2, mode = \"bilinear\", align_corners = false})",
      nn.Upsample{scale_factor = 2, mode = "bilinear", align_corners = false})
  end)

  it("crop back what was padded", function()
    local x = resin.randn(2, 3, 5, 6)
    assert.same(x:totable(), nn.ZeroPad2d(-2)(nn.ReplicationPad2d(2)(x)):totable())
  end)

  it("say what does not fit", function()
    fails("ZeroPad2d: padding must be an integer or a table of 4, got {1, 2}", nn.ZeroPad2d, {1, 2})
    fails("ZeroPad1d: input [1, 2, 3] is smaller than what padding {-4} cuts off", nn.ZeroPad1d(-4).output_shape,
      nn.ZeroPad1d(-4), {1, 2, 3})
    fails("Upsample: give one of size and scale_factor", nn.Upsample)
    fails("Upsample: give one of size and scale_factor", nn.Upsample, {size = 2, scale_factor = 2})
    fails("Upsample: scale_factor must be a positive number or a table of them, got -1", nn.Upsample, {scale_factor = -1})
    fails('interpolate: mode "bilinear" is for [N, C, H, W], got [1, 2, 3]', nn.Upsample{size = 2, mode = "bilinear"},
      resin.zeros(1, 2, 3))
    fails("max_pool1d: input must be [N, C, L], or that without the batch, got [2]", nn.MaxPool1d(2), resin.zeros(2))
    fails("pad_circular: padding (4, 4) of dimension 3 of input [1, 2, 3] must not be larger than its size", nn.CircularPad1d(4),
      resin.zeros(1, 2, 3))
  end)

  it("interpolates as a function", function()
    local x = resin.tensor{{{{0, 2}, {4, 6}}}}
    assert.same({{{{0, 1, 2}, {2, 3, 4}, {4, 5, 6}}}}, F.interpolate(x, {size = 3, mode = "bilinear",
      align_corners = true}):totable())
    assert.same({{{{0, 0, 2, 2}, {0, 0, 2, 2}, {4, 4, 6, 6}, {4, 4, 6, 6}}}}, F.interpolate(x, nil, 2):totable())
  end)
end)

describe("containers", function()
  it("train with the new layers in them", function()
    resin.manual_seed(4)
    local net = nn.Sequential(nn.Conv1d(2, 8, 3, {padding = "same"}), nn.GroupNorm(2, 8), nn.SiLU(true), nn.DropPath(0.1),
      nn.ConvTranspose1d(8, 4, 2, {stride = 2}), nn.InstanceNorm1d(4, {affine = true}), nn.LeakyReLU(0.1, true),
      nn.AdaptiveAvgPool1d(4), nn.Flatten(), nn.RMSNorm(16), nn.Linear(16, 1))
    assert.same({5, 1}, net:output_shape{5, 2, 12})
    local x, target = resin.randn(16, 2, 12), resin.randn(16, 1)
    local optimizer = resin.optim.Adam(net:parameters(), {lr = 1e-2})
    local first, last
    for _ = 1, 60 do
      optimizer:zero_grad()
      local loss = (net(x) - target):square():mean()
      loss:backward()
      optimizer:step()
      first, last = first or loss:item(), loss:item()
    end
    assert.is_true(last < 0.5 * first)
  end)

  it("keep a copy and a state_dict apart", function()
    local m = nn.Sequential(nn.Conv3d(1, 2, 2, {padding = "same"}), nn.PReLU(2))
    local copy = m:clone()
    copy[1].weight:detach():zero_()
    assert.is_true(m[1].weight:detach():abs():sum():item() > 0)
    local names = {}
    for name in m:state_dict()() do names[#names + 1] = name end
    assert.same({"0.weight", "0.bias", "1.weight"}, names)
    assert.same({1, 2, 3, 3, 3}, copy(resin.randn(1, 1, 3, 3, 3)).shape)
  end)
end)
