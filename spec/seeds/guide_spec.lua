-- The guide to residual connections: its networks, its analysis of gradients, and what it says about them.

local resin = require "resin"
local nn, models = resin.nn, resin.models
local golden = dofile("spec/golden/residual.lua")
local Improved, Example = models.ImprovedResidualNetwork, models.ExampleDeepNeuralNetwork
local SIZES = {128, 64, 32, 16, 8, 1}

local function fill(seed, shape, scale)
  local n, values = 1, {}
  for _, size in ipairs(shape) do n = n * size end
  for k = 0, n - 1 do values[k + 1] = ((k * 7919 + seed * 104729) % 1000 / 1000 - 0.5) * (scale or 1) end
  return resin.tensor(values):reshape(shape)
end

-- Mean of |gradient| of every weight, in the model's order, for the loss mean(model(x)^2).
local function gradient_means(model, x)
  model:zero_grad()
  local y = model(x)
  nn.MSELoss()(y, resin.zeros_like(y)):backward()
  local names, means = {}, {}
  for name, p in model:named_parameters() do
    if name:find("weight") and p.grad then
      names[#names + 1] = name
      means[#means + 1] = p.grad:abs():mean():item()
    end
  end
  return means, names
end

local function near(expected, actual, tolerance)
  assert.equal(#expected, #actual)
  for i, value in ipairs(expected) do
    assert.is_true(math.abs(value - actual[i]) <= tolerance * math.abs(value), ("%d: %g, got %g"):format(i, value, actual[i]))
  end
end

describe("ImprovedResidualNetwork", function()
  it("has the guide's parameters under its names", function()
    local plain, residual = Improved(SIZES, {use_shortcut = false}), Improved(SIZES, {use_shortcut = true})
    assert.equal(golden.counts.guide_plain, plain:num_parameters())
    assert.equal(golden.counts.guide_residual, residual:num_parameters())
    local _, names = gradient_means(residual, resin.randn(10, 128))
    assert.same({
      "layers.0.0.weight", "layers.1.0.weight", "layers.2.0.weight", "layers.3.0.weight", "layers.4.0.weight",
      "projections.0.weight", "projections.1.weight", "projections.2.weight", "projections.3.weight", "projections.4.weight",
    }, names)
    _, names = gradient_means(plain, resin.randn(10, 128))
    assert.equal(5, #names)
    assert.same({10, 1}, residual:output_shape{10, 128})
  end)

  it("gives the reference's output, loss and gradients", function()
    local case, model = golden.guide_use_True, Improved(SIZES, true)
    resin.no_grad(function()
      for i = 0, 4 do
        local k = 2 / math.sqrt(SIZES[i + 1])
        for offset, l in pairs{[70] = model.layers[i + 1][1], [170] = model.projections[i + 1]} do
          l.weight:copy_(fill(offset + 2 * i, l.weight.shape, k))
          l.bias:copy_(fill(offset + 1 + 2 * i, l.bias.shape, k))
        end
      end
    end)
    local x = fill(3, {10, 128}, 2)
    near(case.out.data, model(x):reshape(-1):totable(), 1e-4)
    assert.is_near(case.loss, nn.MSELoss()(model(x), resin.zeros(10, 1)):item(), 1e-6)
    local means = gradient_means(model, x)
    near(case.grad_mean_layers, {unpack(means, 1, 5)}, 1e-4)
    near(case.grad_mean_projections, {unpack(means, 6)}, 1e-4)
  end)

  it("projects only where sizes differ", function()
    local model = Improved{4, 4, 6, 6}
    local names = {}
    for name in model:named_parameters() do names[#names + 1] = name end
    assert.same({"layers.0.0.weight", "layers.0.0.bias", "layers.1.0.weight", "layers.1.0.bias", "layers.2.0.weight",
                 "layers.2.0.bias", "projections.1.weight", "projections.1.bias"}, names)
    local x = resin.randn(3, 4)
    local y = x
    for i = 1, 3 do
      local skip = i == 2 and model.projections["1"](y) or y
      y = model.layers[i](y) + skip
    end
    assert.equal(0, (model(x) - y):abs():max():item())
    assert.equal(0, (model:clone()(x) - y):abs():max():item())
  end)

  it("refuses what is no list of sizes", function()
    local ok, message = pcall(Improved, {128})
    assert.is_false(ok)
    assert.is_truthy(message:find("guide_spec.lua", 1, true), message)
    assert.is_truthy(message:find("ImprovedResidualNetwork: sizes must be a table of at least 2 sizes, got 1", 1, true), message)
    ok, message = pcall(Improved, {3, 3}, {shortcut = true})
    assert.is_false(ok)
    assert.is_truthy(message:find('unknown option "shortcut"', 1, true), message)
  end)
end)

describe("ExampleDeepNeuralNetwork", function()
  -- Weights that torch.manual_seed(123) gives to the layers 3-3-3-3-3-1, and the gradients published for x = {1, 0, -1}.
  local WEIGHTS = {
    {{-0.235429645, 0.019124476, -0.286745936, 0.217726618, -0.49193421, 0.423223078, -0.419641405, -0.459017664, -0.364820182},
     {0.261478186, -0.213326395, 0.216052175}},
    {{-0.490014136, -0.350292057, -0.211989194, -0.11346072, -0.440439373, 0.378043622, -0.13615717, 0.185322329, 0.408269495},
     {0.107563816, 0.157876849, 0.557292342}},
    {{-0.260390401, 0.182876408, -0.256872445, 0.41260317, 0.461104512, -0.532300949, 0.492852628, 0.275693059, 0.251590222},
     {0.237680584, 0.479950726, -0.076233067}},
    {{-0.488264233, -0.165670037, -0.406613141, 0.038166706, -0.107795618, -0.309681982, -0.052493494, 0.546983838, -0.045538746},
     {0.018330919, -0.090043873, 0.090763509}},
    {{0.51442641, 0.353045583, 0.204937115}, {0.125464305}},
  }
  local PUBLISHED = {
    [false] = {0.00020173587836325169, 0.00012011159560643137, 0.0007152040489017963, 0.0013988736318424344, 0.005049645435065031},
    [true] = {0.22169798612594604, 0.20694111287593842, 0.32897001504898071, 0.26657330989837646, 1.3258544206619263},
  }

  it("gives the published gradients", function()
    for use_shortcut, expected in pairs(PUBLISHED) do
      local model = Example({3, 3, 3, 3, 3, 1}, {use_shortcut = use_shortcut, approximate = "tanh"})
      resin.no_grad(function()
        for i, values in ipairs(WEIGHTS) do
          local linear = model.layers[i][1]
          linear.weight:copy_(resin.tensor(values[1]):reshape(linear.weight.shape))
          linear.bias:copy_(resin.tensor(values[2]))
        end
      end)
      near(expected, gradient_means(model, resin.tensor{{1, 0, -1}}), 1e-5)
    end
  end)

  it("has five layers", function()
    local ok, message = pcall(Example, {3, 3, 3, 3, 3, 3, 1}, true)
    assert.is_false(ok)
    assert.is_truthy(message:find("has five layers, which need 6 sizes, got 7", 1, true), message)
  end)
end)

describe("what the guide says", function()
  it("residuals keep the gradient of the first layer", function()
    local ratios = {}
    for seed = 1, 11 do
      resin.manual_seed(seed)
      local plain, residual, x = Improved(SIZES, false), Improved(SIZES, true), resin.randn(10, 128)
      ratios[seed] = gradient_means(residual, x)[1] / gradient_means(plain, x)[1]
    end
    table.sort(ratios)
    assert.is_true(ratios[1] > 2 and ratios[6] > 20, ("least %g, median %g"):format(ratios[1], ratios[6]))
  end)

  it("dL/dx = dL/dy (dF/dx + 1)", function()
    local layer = nn.Sequential(nn.Linear(5, 5), nn.GELU())
    local g = resin.randn(3, 5)
    local function input_gradient(f)
      local x = fill(1, {3, 5}):requires_grad_()
      f(x):backward(g)
      return x.grad
    end
    local with, without = input_gradient(resin.blocks.ResidualAdd(layer)), input_gradient(layer)
    assert.is_true((with - without - g):abs():max():item() < 1e-6)
  end)

  it("a stack of skips alone explodes with depth; ReZero holds it (ledger 16)", function()
    resin.manual_seed(3)
    local sizes = {}
    for i = 1, 21 do sizes[i] = 32 end
    local x = resin.randn(16, 32)
    assert.is_true(gradient_means(Improved(sizes, false), x)[1] < 1e-8)
    local means = gradient_means(Improved(sizes, true), x)
    assert.is_true(means[1] / means[20] > 0.01 and means[1] > 0.1)
    local rezero = nn.ResidualSequential()
    for i = 1, 20 do
      rezero:append(nn.Record("r" .. i)):append(nn.Linear(32, 32)):append(nn.GELU())
        :append(nn.Apply{record_name = "r" .. i, scale = nn.Parameter(resin.zeros(1))})
    end
    assert.equal(0, (rezero(x) - x):abs():max():item())
  end)

  it("dense connections put the input beside the result", function()
    local layer, x = nn.Linear(4, 6), resin.randn(2, 4)
    local dense = nn.ResidualSequential(nn.Record("x"), layer, nn.Apply{operation = "concat", record_name = "x"})
    assert.equal(0, (dense(x) - resin.cat({layer(x), x}, -1)):abs():max():item())
  end)
end)
