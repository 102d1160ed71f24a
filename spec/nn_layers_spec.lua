-- The layers, with numbers from PyTorch 2.13 (double precision). Inputs, parameters and upstream gradients come from
-- fill(s)[k] = ((k*7919 + s*104729) % 1000)/1000 - 0.5: x = fill(1), parameter number i (from 0) = fill(10 + i), upstream = fill(99).

local resin = require "resin"
local nn = resin.nn

local F64 = {dtype = "f64"}

local function fill(seed, ...)
  local n = 1
  for _, size in ipairs{...} do n = n * size end
  local values = {}
  for k = 0, n - 1 do values[k + 1] = ((k * 7919 + seed * 104729) % 1000) / 1000 - 0.5 end
  return resin.tensor(values, F64):reshape(...)
end

local function flat(t)
  local out = t:detach():contiguous():reshape(-1):totable()
  return out
end

local function near(expected, tensor, tolerance)
  if type(expected) == "number" then expected = {expected} end
  local got = flat(tensor)
  assert.equal(#expected, #got)
  for i = 1, #got do
    local difference = math.abs(expected[i] - got[i])
    if difference ~= difference or difference > (tolerance or 2e-8) then
      error(("element %d: expected %.10g, got %.10g"):format(i, expected[i], got[i]), 2)
    end
  end
end

local function set_parameters(m)
  resin.no_grad(function()
    for i, p in ipairs(m:parameters()) do p:copy_(fill(9 + i, unpack(p.shape))) end
  end)
  return m
end

-- Runs forward and backward; returns the output and the gradient of x.
local function run(m, x)
  if x.dtype == "f64" then x:requires_grad_(true) end
  local y = m(x)
  y:backward(fill(99, unpack(y.shape)))
  return y, x.dtype == "f64" and x.grad or nil
end

local function fails(text, fn, ...)
  local ok, message = pcall(fn, ...)
  assert.is_false(ok)
  assert.is_truthy(message:find(text, 1, true), message)
end

describe("Linear", function()
  it("agrees with PyTorch", function()
    local m = set_parameters(nn.Linear(3, 2, {dtype = "f64"}))
    local y, gx = run(m, fill(1, 2, 3))
    near({-0.597082, 0.429026, -0.384943, 0.332312}, y)
    near({0.25482, -0.095321, -0.035462, -0.090774, 0.342329, 0.347432}, gx)
    near({-0.068467, -0.002047, 0.064373, -0.099882, -0.10134, -0.102798}, m.weight.grad)
    near({-0.82, 0.018}, m.bias.grad)
  end)

  it("starts with U(-1/sqrt(in), 1/sqrt(in))", function()
    resin.manual_seed(1)
    local m = nn.Linear(100, 200)
    for _, p in ipairs(m:parameters()) do
      local low, high = p:detach():min():item(), p:detach():max():item()
      assert.is_true(low >= -0.1 and low < -0.095 and high <= 0.1 and high > 0.095)
    end
    assert.is_true(math.abs(m.weight:detach():var():item() - 0.01 / 3) < 1e-4)
    assert.is_nil(nn.Linear(2, 2, {bias = false}).bias)
    resin.manual_seed(1)
    assert.same(m.weight:totable(), nn.Linear(100, 200).weight:totable())
  end)
end)

describe("Conv2d", function()
  it("agrees with PyTorch", function()
    local m = set_parameters(nn.Conv2d(2, 4, 3, {stride = 2, padding = 1, groups = 2, dtype = "f64"}))
    local y, gx = run(m, fill(1, 1, 2, 4, 5))
    assert.same({1, 4, 2, 3}, y.shape)
    near({-0.393048, -0.735212, -0.757804, -0.015188, -0.224286, -0.421714, 0.133776, 0.167465, 0.396608, 0.220253, 0.142537,
      0.309609, 0.30152, 0.275362, 0.42606, 0.256594, 0.25572, 0.238512, 0.075264, 0.320919, 0.478392, 0.120915, -0.062637,
      0.341715}, y)
    near({-0.201969, -0.023503, -0.218412, 0.024611, -0.234855, -0.105365, -0.37386, -0.138251, -0.358632, -0.171137, 0.214702,
      0.052839, 0.198259, 0.100953, 0.181816, 0.066792, 0.201385, 0.008715, 0.166231, -0.049362, 0.057019, 0.077669, 0.033772,
      0.031175, 0.010525, 0.207199, 0.39266, 0.241705, 0.380672, 0.276211, -0.004722, -0.045813, -0.027969, -0.092307, -0.051216,
      -0.10824, -0.213483, -0.092121, -0.181245, -0.076002}, gx)
    near({-0.200633, -0.325614, -0.255389, 0.110296, 0.237615, 0.162784, 0.226936, 0.31416, 0.148204, 0.127903, 0.16719, 0.073147,
      -0.070632, -0.033777, -0.018144, 0.023328, 0.008748, -0.055404, 0.034659, 0.073494, 0.041463, -0.22544, -0.273149, -0.292832,
      0.13284, 0.265356, 0.177228, -0.006165, 0.012258, 0.000639, 0.072912, -0.054621, 0.00552, -0.049488, -0.008136, -0.0051},
      m.weight.grad)
    near({-0.189, -0.105, -0.021, 0.063}, m.bias.grad)
  end)

  it("starts with the fan-in of a group", function()
    local m = nn.Conv2d(8, 64, {3, 5}, {groups = 2})
    assert.same({64, 4, 3, 5}, m.weight.shape)
    local bound = 1 / math.sqrt(4 * 15)
    local high = m.weight:detach():abs():max():item()
    assert.is_true(high <= bound and high > 0.98 * bound)
    assert.is_true(m.bias:detach():abs():max():item() <= bound)
  end)

  it("names itself and the shapes", function()
    fails("conv2d: ", nn.Conv2d(4, 8, 3), resin.zeros(1, 3, 8, 8))
    fails("Conv2d: input [1, 8, 2, 2] is smaller than the kernel [3, 3] (padding [0, 0])", nn.Conv2d(8, 1, 3).output_shape,
      nn.Conv2d(8, 1, 3), {1, 8, 2, 2})
  end)
end)

describe("BatchNorm", function()
  it("agrees with PyTorch in training and in evaluation", function()
    local m = set_parameters(nn.BatchNorm2d(2, {dtype = "f64"}))
    local y, gx = run(m, fill(1, 2, 2, 2, 2))
    near({-0.612020275, -0.55773566, -0.503451045, -0.449166429, 0.518115601, 0.637186495, 0.756257389, 0.875328283, -0.177743352,
      -0.123458737, -0.739354559, -0.685069943, 0.000671716772, 0.119742611, 0.238813505, 0.357884399}, y)
    near({0.0789175607, 0.150346759, 0.221775958, -0.37697528, -0.385251509, -0.138532004, 0.1081875, 0.354907005, -0.0198292861,
      0.0515999127, -0.0886324118, -0.017203213, 0.0125957539, 0.259315259, 0.506034763, -0.717256768}, gx)
    near({-0.791712872, -1.69774656}, m.weight.grad)
    near({-1.196, 0.212}, m.bias.grad)
    near({0.00335, -0.00405}, m.running_mean)
    near({0.911220257, 0.9044774}, m.running_var)
    assert.equal(1, m.num_batches_tracked:item())
    near({-0.471023401, -0.453204117, 0.499180516, 0.523964821}, m:eval()(fill(2, 1, 2, 1, 2)))
    assert.equal(1, m.num_batches_tracked:item())
    m:reset_running_stats()
    assert.same({0, 0}, m.running_mean:totable())
    assert.equal(0, m.num_batches_tracked:item())
  end)

  it("over volumes agrees with PyTorch", function()
    local m, values = nn.BatchNorm3d(2, {dtype = "f64"}), {}
    resin.no_grad(function()
      m.weight:copy_(resin.tensor({0.5, 1.5}, {dtype = "f64"}))
      m.bias:copy_(resin.tensor({0.1, -0.2}, {dtype = "f64"}))
    end)
    for i = 0, 23 do values[i + 1] = ((i * 7) % 11) / 10 - 0.5 end
    local x = resin.tensor(values, {dtype = "f64"}):reshape{2, 2, 1, 2, 3}:requires_grad_(true)
    local y = m(x);
    (y * resin.arange(0, 23):to("f64"):reshape{2, 2, 1, 2, 3} / 24):sum():backward()
    near({-0.739385931, 0.345358964, -0.274495261, 0.810249634, 0.190395408, -0.429458818, 2.04487898, 0.120696998},
      y:reshape{-1}:narrow(1, 1, 8))
    near({-0.373857343, -0.535406752, -0.34162857, -0.503177979, -0.309399798, -0.115621617}, x.grad:reshape{-1}:narrow(1, 1, 6))
    near({0.00416666667, -0.00666666667}, m.running_mean)
    near({0.911356061, 0.910606061}, m.running_var)
    fails("BatchNorm3d: input must be [N, C, D, H, W], got [2, 2, 3, 4]", m, resin.zeros(2, 2, 3, 4))
    assert.same({false, 2, 4, 5, 6}, m:output_shape{false, 2, 4, 5, 6})
  end)

  it("averages all batches with momentum = false", function()
    local m = nn.BatchNorm1d(3, {momentum = false, affine = false, dtype = "f64"})
    assert.equal(0, #m:parameters())
    m(fill(1, 4, 3))
    m(fill(2, 4, 3))
    near({-0.021, 0.023, -0.058}, m.running_mean)
    near({0.103081667, 0.106581667, 0.106581667}, m.running_var)
  end)

  it("works without running statistics, also in evaluation", function()
    local m = nn.BatchNorm1d(2, {track_running_stats = false}):eval()
    assert.equal(0, #m:buffers())
    assert.is_true(math.abs(m(resin.tensor{{1, 5}, {3, 9}}):sum():item()) < 1e-5)
  end)

  it("says which input it takes", function()
    fails("BatchNorm2d: input must be [N, C, H, W], got [2, 3]", nn.BatchNorm2d(3), resin.zeros(2, 3))
    fails("BatchNorm1d: input must be [N, C] or [N, C, L], got [2, 3, 4, 4]", nn.BatchNorm1d(3), resin.zeros(2, 3, 4, 4))
    fails("input [1, 4, 2, 2] has 4 channels, expected 3 (weight [3])", nn.BatchNorm2d(3), resin.zeros(1, 4, 2, 2))
    fails("input [2, 4] has 4 channels, expected 3 (running_mean [3])", nn.BatchNorm1d(3, {affine = false}):eval(), resin.zeros(2, 4))
    fails("BatchNorm2d: input [1, 4, 2, 2] has 4 channels, expected 3", nn.BatchNorm2d(3).output_shape, nn.BatchNorm2d(3),
      {1, 4, 2, 2})
  end)
end)

describe("LayerNorm", function()
  it("agrees with PyTorch", function()
    local m = set_parameters(nn.LayerNorm({2, 3}, {dtype = "f64"}))
    local y, gx = run(m, fill(1, 2, 2, 3))
    near({-0.788328233, 0.182478526, 0.248117997, 0.408590181, -0.214185591, -0.449435095, -0.405766527, 0.606795437, 0.655288742,
      0.739713391, 0.890646529, 0.60333704}, y)
    near({-0.0749079251, 0.30511192, 0.779964476, -1.92418188, 0.662718469, 0.251294939, -0.046249624, -0.0422660681,
      -0.00235116964, 0.0734950714, 0.0457306376, -0.0283588473}, gx)
    near({-0.547758007, -0.42033859, -0.162155119, -0.0659011494, -0.512193707, -0.668903595}, m.weight.grad)
    near({-0.144, -0.306, -0.468, 0.37, 0.208, 0.046}, m.bias.grad)
    assert.is_nil(nn.LayerNorm(3, {bias = false}).bias)
    assert.equal(0, #nn.LayerNorm(3, {elementwise_affine = false}):parameters())
    fails("LayerNorm: the last dimensions of input [4, 2, 4] must be [2, 3]", m.output_shape, m, {4, 2, 4})
  end)
end)

describe("a constant input", function()
  -- PyTorch leaves 0 in LayerNorm; in GroupNorm up to about 2 units in the last place of the value, times 1/sqrt(eps). Here all leave 0.
  local function leaves_zero(m, x, isa)
    local largest = m(x):abs():max():item()
    assert.is_true(largest == 0, ("%s leaves %g on %s"):format(tostring(m), largest, isa))
  end

  it("is 0 after every normalisation, for f32 on every instruction set", function()
    local current = resin.get_isa()
    for _, isa in ipairs{"baseline", "avx2", "avx512"} do
      if pcall(resin.set_isa, isa) then
        for _, value in ipairs{0.1, 1 / 3, -3.7, 1000.3, 12345.678} do
          for _, n in ipairs{7, 33, 512, 1000, 4095, 10000} do
            leaves_zero(nn.LayerNorm(n), resin.full({3, n}, value), isa)
            leaves_zero(nn.GroupNorm(2, 4), resin.full({2, 4, n}, value), isa)
            leaves_zero(nn.InstanceNorm1d(4), resin.full({2, 4, n}, value), isa)
            leaves_zero(nn.BatchNorm1d(4), resin.full({2, 4, n}, value), isa)
            leaves_zero(nn.BatchNorm1d(3), resin.full({n, 3}, value), isa)
          end
        end
      end
    end
    resin.set_isa(current)
  end)
end)

describe("Embedding", function()
  it("agrees with PyTorch; ids count from 1", function()
    local m = set_parameters(nn.Embedding(4, 2, {padding_idx = 2, dtype = "f64"}))
    local y = run(m, resin.tensor({{1, 2}, {4, 4}}, {dtype = "i64"}))
    near({-0.21, -0.291, -0.372, -0.453, 0.304, 0.223, 0.304, 0.223}, y)
    near({-0.329, -0.41, 0, 0, 0, 0, 0.532, 0.37}, m.weight.grad)
    assert.same({2, 3, 2}, m:output_shape{2, 3})
  end)

  it("starts with N(0, 1) and zeros for the padding", function()
    resin.manual_seed(3)
    local m = nn.Embedding(500, 20, {padding_idx = -1})
    assert.equal(500, m.padding_idx)
    assert.equal(0, m.weight:detach():narrow(1, 500, 1):abs():sum():item())
    assert.is_true(math.abs(m.weight:detach():mean():item()) < 0.03)
    assert.is_true(math.abs(m.weight:detach():var():item() - 1) < 0.05)
  end)

  it("refuses an id outside of the table, in Lua's counting", function()
    fails("outside 1..4", nn.Embedding(4, 2), resin.tensor({0, 1}, {dtype = "i64"}))
    fails("outside 1..4", nn.Embedding(4, 2), resin.tensor({5}, {dtype = "i64"}))
  end)
end)

describe("activations", function()
  it("agree with PyTorch", function()
    local y, gx = run(nn.GELU(), (fill(1, 6) * 4):detach())
    near({0.751272562, 0.428060226, 0.162314291, -0.0267495706, -0.133749629, -0.169464336}, y)
    near({-0.348866754, -0.377727463, -0.348018547, 0.194896279, 0.073194179, 0.00572060277}, gx)
    y, gx = run(nn.GELU("tanh"), (fill(1, 6) * 4):detach())
    near({0.75114955, 0.428028795, 0.162312677, -0.0267495738, -0.133755829, -0.169520678}, y)
    near({-0.348750876, -0.37765173, -0.348007012, 0.194896378, 0.0732156579, 0.00578961296}, gx)
    y, gx = run(nn.Softmax(1), fill(1, 3, 2))
    near({0.388546965, 0.388546965, 0.330436349, 0.330436349, 0.281016686, 0.281016686}, y)
    near({-0.0530120235, -0.181402064, -0.0986142976, 0.122633871, 0.151626321, 0.0587681934}, gx)
    y, gx = run(nn.LogSoftmax(), fill(1, 3, 2))
    near({-0.653467081, -0.734467081, -0.653467081, -0.734467081, -0.653467081, -0.734467081}, y)
    near({0.0554565734, -0.0554565734, -0.458224947, 0.458224947, 0.0280935325, -0.0280935325}, gx)
    near({1 / (1 + math.exp(-2))}, nn.Sigmoid()(resin.tensor({2}, F64)))
    near({math.tanh(2)}, nn.Tanh()(resin.tensor({2}, F64)))
  end)

  it("work in place when asked", function()
    local x = resin.tensor{-1, 2}
    assert.equal(x, nn.ReLU{inplace = true}(x))
    assert.same({0, 2}, x:totable())
    assert.is_true(nn.ReLU(true).inplace)
    assert.is_false(nn.ReLU().inplace)
    local seq = nn.Sequential(nn.Linear(3, 4), nn.ReLU{inplace = true}, nn.Linear(4, 1))
    seq(resin.randn(2, 3)):sum():backward()
    assert.is_truthy(seq[1].weight.grad)
  end)

  it("drop only while training", function()
    resin.manual_seed(1)
    local m, x = nn.Dropout(0.25), resin.ones(10000)
    local y = m(x)
    local kept = y:gt(0):to("f32"):mean():item()
    assert.is_true(math.abs(kept - 0.75) < 0.03)
    assert.is_true(math.abs(y:max():item() - 1 / 0.75) < 1e-6)
    assert.equal(x, m:eval()(x))
    assert.equal(0, nn.Dropout(1)(x):sum():item())
  end)
end)

describe("pooling", function()
  it("agrees with PyTorch", function()
    local y, gx = run(nn.MaxPool2d(3, {stride = 2, padding = 1, ceil_mode = true}), fill(1, 1, 1, 4, 5))
    near({0.229, 0.148, -0.014, 0.419, 0.338, 0.176, 0.014, -0.067, -0.229}, y)
    near({-0.329, -0.41, 0, -0.491, 0, 0, 0, 0, 0, 0, 0.428, 0.347, 0, 0.266, 0, 0.185, 0.104, 0, 0.023, 0}, gx)
    y, gx = run(nn.AvgPool2d(3, {stride = 2, padding = 1, count_include_pad = false}), fill(1, 1, 1, 4, 5))
    near({-0.014, -0.1355, -0.257, 0.0451666667, -0.0763333333, -0.197833333}, y)
    near({-0.08225, -0.150583333, -0.0683333333, -0.191083333, -0.12275, -0.0109166667, -0.0406944444, -0.0297777778,
      -0.108194444, -0.0784166667, 0.0713333333, 0.109888889, 0.0385555556, 0.0828888889, 0.0443333333, 0.0713333333,
      0.109888889, 0.0385555556, 0.0828888889, 0.0443333333}, gx)
    y, gx = run(nn.AdaptiveAvgPool2d{2, 3}, fill(1, 1, 1, 4, 5))
    near({-0.014, -0.1355, -0.257, 0.176, 0.0545, -0.067}, y)
    near({-0.08225, -0.150583333, -0.0683333333, -0.191083333, -0.12275, -0.08225, -0.150583333, -0.0683333333, -0.191083333,
      -0.12275, 0.107, 0.164833333, 0.0578333333, 0.124333333, 0.0665, 0.107, 0.164833333, 0.0578333333, 0.124333333, 0.0665}, gx)
  end)

  it("tells its shapes as it makes them", function()
    for _, m in ipairs{
      nn.MaxPool2d(3, {stride = 2, padding = 1, ceil_mode = true}), nn.MaxPool2d(2), nn.MaxPool2d{{3, 2}, stride = {1, 2}},
      nn.AvgPool2d(3, {ceil_mode = true}), nn.AdaptiveAvgPool2d(2), nn.MaxPool2d(2, {stride = 2, dilation = 2}),
      nn.Conv2d(1, 2, {3, 2}, {padding = {1, 0}, dilation = {1, 2}}),
    } do
      for _, shape in ipairs{{2, 1, 7, 8}, {1, 1, 5, 5}} do
        assert.same(m(resin.zeros(shape)).shape, m:output_shape(shape))
      end
    end
  end)
end)

describe("structural layers", function()
  it("flatten", function()
    local x = resin.zeros(2, 3, 4, 5)
    assert.same({2, 60}, nn.Flatten()(x).shape)
    assert.same({2, 60}, nn.Flatten():output_shape(x.shape))
    assert.same({6, 4, 5}, nn.Flatten(1, 2)(x).shape)
    assert.same({6, 4, 5}, nn.Flatten(1, 2):output_shape(x.shape))
    assert.same({2, 3, 20}, nn.Flatten{-2, -1}:output_shape(x.shape))
    fails("Flatten: input [2, 3] has no dimensions from 3 to -1", nn.Flatten(3).output_shape, nn.Flatten(3), {2, 3})
  end)

  it("pass on", function()
    local x = resin.ones(2)
    assert.equal(x, nn.Identity()(x))
    assert.equal("Identity\ntotal: 0 parameters", tostring(nn.Identity(3, {any = 1})))
    assert.equal(4, nn.Lambda(function(t) return t:sum() * 2 end)(x):item())
  end)
end)

describe("losses", function()
  local function scores() return resin.tensor(flat(fill(1, 4, 3)), F64):reshape(4, 3):requires_grad_(true) end
  local labels = resin.tensor({1, 3, 2, 1}, {dtype = "i64"})

  local function loss(options)
    local x = scores()
    local value = nn.CrossEntropyLoss(options)(x * 3, labels)
    value:sum():backward()
    return value, x.grad
  end

  it("agree with PyTorch; labels count from 1", function()
    local value, gx = loss()
    near(1.68139208, value)
    near({-0.437415774, 0.245150904, 0.19226487, 0.312584226, 0.245150904, -0.55773513, 0.312584226, -0.504849096, 0.19226487,
      -0.724232792, 0.40589831, 0.318334482}, gx)
    value, gx = loss{weight = resin.tensor({0.5, 1, 2}, F64), label_smoothing = 0.1, ignore_index = 3}
    near(1.6680744, value)
    near({-0.345737878, 0.227837691, 0.117900187, 0, 0, 0, 0.610587926, -0.901526495, 0.29093857, -0.670797165, 0.410018085,
      0.26077908}, gx)
    near(6.7255683, (loss{reduction = "sum"}))
    near({0.875199251, 1.36119925, 1.11819925, 3.37097055}, (loss{reduction = "none"}))
    near(0.073441, nn.MSELoss()(fill(1, 2, 3), fill(2, 2, 3)))
    assert.same({2, 3}, nn.MSELoss("none")(fill(1, 2, 3), fill(2, 2, 3)).shape)
  end)

  it("name a bad label", function()
    fails("outside 1..3", nn.CrossEntropyLoss(), scores(), resin.tensor({1, 4, 1, 1}, {dtype = "i64"}))
    fails('CrossEntropyLoss: reduction must be one of mean, sum, none; got string "avg"', nn.CrossEntropyLoss, {reduction = "avg"})
  end)
end)

describe("nn.init", function()
  it("fills with the announced distributions", function()
    resin.manual_seed(5)
    local t = resin.empty(300, 100)
    local init = nn.init
    assert.equal(t, init.kaiming_uniform_(t, {nonlinearity = "relu"}))
    local bound = math.sqrt(6 / 100)
    assert.is_true(t:abs():max():item() <= bound and t:abs():max():item() > 0.99 * bound)
    init.kaiming_normal_(t, {mode = "fan_out", nonlinearity = "relu"})
    assert.is_true(math.abs(t:var():item() / (2 / 300) - 1) < 0.05)
    init.xavier_uniform_(t, 2)
    bound = 2 * math.sqrt(6 / 400)
    assert.is_true(t:abs():max():item() <= bound and t:abs():max():item() > 0.99 * bound)
    init.xavier_normal_(t)
    assert.is_true(math.abs(t:var():item() / (2 / 400) - 1) < 0.05)
    init.constant_(t, 3)
    assert.equal(3, t:mean():item())
    init.zeros_(t)
    assert.equal(0, t:abs():sum():item())
    local layer = nn.Linear(3, 3)
    init.ones_(layer.weight)
    assert.is_true(layer.weight.requires_grad and layer.weight.is_leaf)
    fails("init: fan in and fan out need a tensor of at least 2 dimensions", init.xavier_normal_, resin.empty(3))
    fails('unknown option "modus"', init.kaiming_normal_, t, {modus = "fan_in"})
  end)

  it("makes orthogonal matrices", function()
    for _, shape in ipairs{{4, 7}, {7, 4}, {3, 2, 2}} do
      local t = nn.init.orthogonal_(resin.empty(shape, F64), 2)
      local m = t:reshape(shape[1], -1)
      local rows, cols = m:size(1), m:size(2)
      local product = rows <= cols and m:matmul(m:transpose(1, 2)) or m:transpose(1, 2):matmul(m)
      assert.is_true((product - resin.eye(math.min(rows, cols), F64) * 4):abs():max():item() < 1e-12)
    end
  end)
end)

describe("a small network", function()
  it("agrees with PyTorch", function()
    local m = set_parameters(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)):double())
    local y, gx = run(m, fill(1, 2, 4))
    near({0.0597267, -0.0236853, -0.6207173, -0.048241764, 0.235212732, -0.357356772}, y)
    near({0.16155274, 0.13042201, 0.09929128, 0.06816055, -0.080331138, -0.079798401, -0.079265664, -0.078732927}, gx)
    near({0, 0.075861, 0.02817, 0.043479, 0.094496, 0.074097, 0.06165, 0}, m[1].bias.grad)
    near({0.099, -0.063, -0.225}, m[3].bias.grad)
  end)

  it("trains", function()
    resin.manual_seed(1)
    local m = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))
    local x = resin.tensor{{0, 0}, {0, 1}, {1, 0}, {1, 1}}
    local target = resin.tensor{{0}, {1}, {1}, {0}}
    local optimizer = resin.optim.Adam(m, {lr = 0.05})
    local loss
    for _ = 1, 200 do
      optimizer:zero_grad()
      loss = nn.MSELoss()(m(x), target)
      loss:backward()
      optimizer:step()
    end
    assert.is_true(loss:item() < 0.01)
  end)
end)
