local resin = require "resin"
local nn, doctor = resin.nn, resin.doctor

-- Weights that PyTorch's Linear layers get after manual_seed(123), for sizes 3, 3, 3, 3, 3, 1.
local REFERENCE = {
  {{{-0.235429645, 0.0191244762, -0.286745936}, {0.217726618, -0.49193421, 0.423223078}, {-0.419641405, -0.459017664, -0.364820182}},
   {0.261478186, -0.213326395, 0.216052175}},
  {{{-0.490014136, -0.350292057, -0.211989194}, {-0.11346072, -0.440439373, 0.378043622}, {-0.13615717, 0.185322329, 0.408269495}},
   {0.107563816, 0.157876849, 0.557292342}},
  {{{-0.260390401, 0.182876408, -0.256872445}, {0.41260317, 0.461104512, -0.532300949}, {0.492852628, 0.275693059, 0.251590222}},
   {0.237680584, 0.479950726, -0.0762330666}},
  {{{-0.488264233, -0.165670037, -0.406613141}, {0.0381667055, -0.107795618, -0.309681982}, {-0.052493494, 0.546983838, -0.0455387458}},
   {0.0183309186, -0.0900438726, 0.0907635093}},
  {{{0.51442641, 0.353045583, 0.204937115}}, {0.125464305}},
}

local function reference_network(use_shortcut)
  local model = nn.ResidualSequential()
  for _, values in ipairs(REFERENCE) do
    local linear = nn.Linear(#values[1][1], #values[1])
    resin.no_grad(function()
      linear.weight:copy_(resin.tensor(values[1]))
      linear.bias:copy_(resin.tensor(values[2]))
    end)
    local skips = use_shortcut and #values[1] == 3
    if skips then model:append(nn.Record()) end
    model:append(linear):append(nn.GELU{approximate = "tanh"})
    if skips then model:append(nn.Apply()) end
  end
  return model
end

local function stack(depth, width, skip, scale)
  local model = nn.ResidualSequential()
  for _ = 1, depth do
    if skip then model:append(nn.Record()) end
    model:append(nn.Linear(width, width)):append(nn.GELU())
    if skip then model:append(nn.Apply{scale = scale and scale() or nil}) end
  end
  return model
end

local function near(expected, got, tolerance)
  assert.is_true(math.abs(expected - got) <= tolerance * math.abs(expected), ("expected %g, got %g"):format(expected, got))
end

local function printed(fn)
  local lines, original = {}, print
  _G.print = function(...) -- luacheck: ignore
    lines[#lines + 1] = tostring((...))
  end
  local ok, result = pcall(fn)
  _G.print = original -- luacheck: ignore
  assert(ok, result)
  return table.concat(lines, "\n"), result
end

describe("doctor.print_gradients", function()
  local x = resin.tensor{{1, 0, -1}}

  local function means(report)
    local list = {}
    for _, p in ipairs(report.parameters) do
      if p.name:find("weight", 1, true) then list[#list + 1] = p.mean end
    end
    return list
  end

  it("gives the published numbers without shortcuts", function()
    local _, report = printed(function() return doctor.print_gradients(reference_network(false), x) end)
    local expected = {2.0173587e-4, 1.2011160e-4, 7.152040e-4, 1.3988733e-3, 5.0496454e-3}
    local got = means(report)
    assert.equal(5, #got)
    for i = 1, 5 do near(expected[i], got[i], 1e-4) end
    assert.equal("vanishing", report.verdict)
  end)

  it("gives the published numbers with shortcuts", function()
    local _, report = printed(function() return doctor.print_gradients(reference_network(true), x) end)
    local expected = {0.221698, 0.206941, 0.328970, 0.266573, 1.325854}
    local got = means(report)
    assert.equal(5, #got)
    for i = 1, 5 do near(expected[i], got[i], 1e-4) end
    assert.equal("healthy", report.verdict)
  end)

  it("prints the guide's table", function()
    local out = printed(function() doctor.print_gradients(reference_network(false), x) end)
    assert.equal(table.concat({
      "Gradient Analysis:", ("-"):rep(50),
      "0.weight: gradient mean = 2.017e-04", "2.weight: gradient mean = 1.201e-04", "4.weight: gradient mean = 7.152e-04",
      "6.weight: gradient mean = 1.399e-03", "8.weight: gradient mean = 5.050e-03",
    }, "\n"), out)
  end)

  it("is the only function that prints", function()
    local out = printed(function()
      local report = doctor.examine(reference_network(true), x)
      assert(tostring(report) and report:bars() and report:plot() and tostring(doctor.compare(report, report)))
    end)
    assert.equal("", out)
  end)
end)

describe("doctor.examine", function()
  before_each(function() resin.manual_seed(7) end)

  it("describes each parameter", function()
    local model = nn.Sequential(nn.Linear(3, 2))
    local x = resin.randn(4, 3)
    local report = doctor.examine(model, x)
    model(x):square():mean():backward()
    local g, w = model[1].weight.grad, model[1].weight
    local p = report.parameters[1]
    assert.equal("0.weight", p.name)
    assert.same({2, 3}, p.shape)
    assert.equal(6, p.numel)
    near(g:square():sum():item() ^ 0.5, p.norm, 1e-5)
    near(g:abs():mean():item(), p.mean, 1e-5)
    near(g:abs():amax():item(), p.max, 1e-6)
    near(p.norm / w:square():sum():item() ^ 0.5, p.ratio, 1e-5)
    assert.equal(0, p.zeros)
  end)

  it("leaves gradients and running statistics as they were", function()
    local model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model(resin.randn(5, 3)):square():mean():backward()
    local gradient, mean = model[1].weight.grad:totable(), model[2].running_mean:totable()
    doctor.examine(model, resin.randn(5, 3))
    assert.same(gradient, model[1].weight.grad:totable())
    assert.same(mean, model[2].running_mean:totable())
    assert.equal(1, model[2].num_batches_tracked:item())
    model:zero_grad()
    doctor.examine(model, resin.randn(5, 3))
    assert.is_nil(model[1].weight.grad)
  end)

  it("leaves the model as it was when it fails", function()
    local model = nn.ResidualSequential(nn.Record(), nn.Linear(3, 3), nn.Apply())
    assert.has_error(function() doctor.examine(model, resin.randn(2, 4)) end)
    assert.has_error(function() doctor.examine(model, resin.randn(2, 3), function() error("no loss") end) end)
    assert.is_nil(rawget(model[2], "forward"))
    assert.is_nil(model[2].weight.grad)
    assert.same({2, 3}, model(resin.randn(2, 3)).shape)
  end)

  it("takes a loss of one's own", function()
    local model, target = nn.Linear(3, 2), resin.randn(4, 2)
    local x, mse = resin.randn(4, 3), nn.MSELoss()
    local report = doctor.examine(model, x, function(y) return mse(y, target) end)
    near(mse(model(x), target):item(), report.loss, 1e-6)
  end)

  it("sees what skip and branch contribute", function()
    local x = resin.randn(4, 8)
    local linear = nn.Linear(8, 8)
    local y = linear(x)
    local function norm(t) return t:square():sum():item() ^ 0.5 end
    local function path_of(...)
      return doctor.examine(nn.ResidualSequential(nn.Record("in"), linear, nn.Apply(...)), x).paths[1]
    end

    local p = path_of{record_name = "in", alpha = 0.5, scale = 3}
    assert.equal("2", p.name)
    assert.equal("in", p.record)
    assert.equal("add", p.operation)
    near(0.5 * norm(x), p.skip, 1e-4)
    near(3 * norm(y), p.branch, 1e-4)
    near(0.5, p.alpha, 1e-4)
    near(3, p.scale, 1e-4)
    near((x * y):sum():item() / (norm(x) * norm(y)), p.cosine, 1e-3)

    p = path_of{operation = "gated", alpha = 0.25}
    near(0.25, p.alpha, 1e-4)
    near(0.75, p.scale, 1e-4)

    p = path_of("concat")
    near(norm(x), p.skip, 1e-4)
    near(norm(y), p.branch, 1e-4)

    p = path_of{operation = function(a, b) return a - b * 2 end}
    near(2, p.alpha, 1e-4)
  end)

  it("sees the gradients into skip and branch apart", function()
    local model = nn.ResidualSequential(nn.Linear(4, 4), nn.Record(), nn.Linear(4, 4), nn.Apply{alpha = 0.5, scale = 2})
    local p = doctor.examine(model, resin.randn(3, 4)).paths[1]
    near(4, p.branch_gradient / p.skip_gradient, 1e-4)
  end)

  it("knows Applys of several records, repeats, and blocks of other fronts", function()
    local function paths(model, ...) return doctor.examine(model, resin.randn(...)).paths end
    local p = paths(nn.ResidualSequential(nn.Record("a"), nn.Linear(8, 8), nn.Record("b"), nn.Linear(8, 8),
      nn.Apply{records = {"a", "b"}}), 4, 8)
    assert.equal("a, b", p[1].record)
    assert.is_true(p[1].skip > 0 and p[1].branch > 0 and p[1].skip_gradient > 0)
    p = paths(nn.Circuit(nn.StartBlock("o", 2), nn.SaveInput("x"), nn.Linear(8, 8), nn.GetInput("x"), nn.EndBlock("o")), 4, 8)
    assert.equal(2, #p)
    p = paths(nn.Sequential(resin.blocks.ResidualAdd{nn.Linear(4, 4), nn.Linear(4, 4)}), 2, 4)
    assert.same({"0.apply_1", "0.apply_2"}, {p[1].name, p[2].name})
    local x = resin.randn(64, 8)
    p = doctor.examine(nn.Residual(nn.Linear(8, 8), {drop_path = 0.5}), x).paths
    near(x:square():sum():item() ^ 0.5, p[1].skip, 1e-4)
  end)

  it("names paths of inner containers", function()
    local model = nn.Sequential{{"stem", nn.Linear(4, 4)}, {"body", nn.ResidualSequential{
      {"r", nn.Record("r")}, {"inner", nn.ResidualSequential{{"l", nn.Linear(4, 4)}, {"join", nn.Apply("add", "r")}}},
    }}}
    local report = doctor.examine(model, resin.randn(3, 4))
    assert.equal("body.inner.join", report.paths[1].name)
  end)
end)

describe("verdicts of a stack of 100 layers", function()
  local x
  before_each(function()
    resin.manual_seed(1)
    x = resin.randn(16, 32)
  end)

  it("vanishing: without skips", function()
    local report = doctor.examine(stack(100, 32, false), x)
    assert.equal("vanishing", report.verdict)
    assert.is_true(report.depth_ratio < 1e-20)
  end)

  it("exploding: with skips that are not scaled", function()
    local report = doctor.examine(stack(100, 32, true), x)
    assert.equal("exploding", report.verdict)
    assert.is_true(report.growth > 1e6)
    assert.equal("exploding", doctor.examine(stack(20, 32, true), x).verdict)
  end)

  it("vanishing: 20 layers without skips", function()
    assert.equal("vanishing", doctor.examine(stack(20, 32, false), x).verdict)
  end)

  local function trained(model)
    local optimiser = resin.optim.Adam(model, {lr = 1e-3})
    for _ = 1, 3 do
      optimiser:zero_grad()
      model(x):square():mean():backward()
      optimiser:step()
    end
    return model
  end

  it("ReZero: the first and the last gradient stay within 10", function()
    local model = stack(100, 32, true, function() return nn.Parameter(resin.zeros(1)) end)
    local report = doctor.examine(model, x)
    assert.equal("healthy", report.verdict)
    assert.equal("skips", report.profile)          -- the weights have no gradient before the first step
    near(1, report.depth_ratio, 1e-3)
    assert.is_true(report.paths[1].closed and report.parameters[1].closed)
    report = doctor.examine(trained(model), x)
    assert.is_true(report.depth_ratio > 0.1 and report.depth_ratio < 10)
    assert.equal("healthy", report.verdict)
  end)

  it("LayerScale: the first and the last gradient stay within 10", function()
    local model = stack(100, 32, true, function() return nn.Parameter(resin.full({32}, 1e-5)) end)
    local report = doctor.examine(model, x)
    assert.is_true(report.depth_ratio > 0.1 and report.depth_ratio < 10)
    assert.equal("healthy", report.verdict)        -- small, but behind a trained scale
    assert.is_true(report.paths[1].skip > 100 * report.paths[1].branch and report.paths[1].opening)
    assert.equal("small", report.paths[1].note:match("^%a+"))
    report = doctor.examine(trained(model), x)
    assert.is_true(report.depth_ratio > 0.1 and report.depth_ratio < 10)
    assert.equal("healthy", report.verdict)
    assert.equal("healthy", doctor.examine(stack(100, 32, true, function() return 0.1 end), x).verdict)
  end)
end)

describe("verdicts of fresh networks", function()
  before_each(function() resin.manual_seed(3) end)

  local models = resin.models

  it("are healthy: models of words, whose embeddings get small gradients", function()
    local ids = resin.randint(1, 100, {4, 12})
    for _, model in ipairs{
      models.residual_lstm_tagger(100, 12, {size = 32}), models.transformer_encoder(100, {size = 32, num_classes = 5, dropout = 0}),
      models.transformer_encoder(100, {size = 32, norm_first = false, num_classes = 5}), models.gpt(100, {size = 32}),
      models.lstm_lm(100, {hidden = 64}),
    } do
      local report = doctor.examine(model, ids)
      assert.equal("healthy", report.verdict, model.type .. ": " .. tostring(report.verdicts[1] and report.verdicts[1].text))
    end
  end)

  it("are healthy: branches behind a small scale that is trained, not behind a fixed one", function()
    local x = resin.randn(16, 32)
    for name, scale in pairs{layer_scale = {layer_scale = 0.01}, rezero = {}, gated = {operation = "gated", alpha = {}}} do
      local model = nn.ResidualSequential()
      for _ = 1, 20 do
        if name == "rezero" then scale = {scale = resin.nn.residual.rezero(0.001)} end
        if name == "gated" then scale = {operation = "gated", alpha = nn.LearnableAlpha(0.9995)} end
        model:append(nn.Record()):append(nn.Linear(32, 32)):append(nn.Apply(scale))
      end
      assert.equal("healthy", doctor.examine(model, x).verdict, name)
      if name == "rezero" then
        for i = 3, #model, 3 do model[i].scale:requires_grad_(false) end
        assert.equal("skip dominates", doctor.examine(model, x).verdict)
      end
    end
  end)

  it("vanishing: a plain part beside healthy skips, and skips that shrink", function()
    local model = stack(20, 32, false)
    for _ = 1, 4 do model:append(nn.Record()):append(nn.Linear(32, 32)):append(nn.Apply()) end
    local x = resin.randn(8, 32)
    assert.equal("vanishing", doctor.examine(model, x).verdict)
    local shrinking = nn.ResidualSequential()
    for _ = 1, 20 do shrinking:append(nn.Record()):append(nn.Linear(32, 32)):append(nn.Apply{alpha = 0.3}) end
    assert.equal("vanishing", doctor.examine(shrinking, x).verdict)
  end)
end)

describe("other verdicts", function()
  before_each(function() resin.manual_seed(3) end)

  it("dead: a layer that gets no gradient", function()
    local model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    resin.no_grad(function() model[1].bias:fill_(-100) end)
    local report = doctor.examine(model, resin.randn(8, 4))
    assert.equal("dead", report.verdict)
    assert.equal("dead", report.parameters[1].verdict)
    assert.equal("0.weight: no value gets a gradient", report.verdicts[1].text)
  end)

  it("dead: a parameter that the loss does not depend on", function()
    local Model = nn.class("Model")
    function Model:init()
      self.used = nn.Linear(2, 2)
      self.unused = nn.Linear(2, 2)
    end
    function Model:forward(x) return self.used(x) end
    local report = doctor.examine(Model(), resin.randn(3, 2))
    assert.same({"unused.weight", "unused.bias"}, report.without_gradient)
    assert.equal("dead", report.verdict)
  end)

  it("an embedding's unused vectors are not dead", function()
    local model = nn.Sequential(nn.Embedding(100, 4), nn.Linear(4, 2))
    local ids, loose = resin.tensor({{1, 2, 3}}, {dtype = "i64"}), {vanishing = 1e6, exploding = 1e6}
    assert.equal("healthy", doctor.examine(model, ids, {thresholds = loose}).verdict)
  end)

  it("skip dominates", function()
    local model = nn.ResidualSequential(nn.Record("in"), nn.Linear(4, 4), nn.Apply{record_name = "in", scale = 1e-4})
    local report = doctor.examine(model, resin.randn(8, 4))
    assert.equal("skip dominates", report.verdict)
    assert.equal("skip dominates", report.paths[1].verdict)
    assert.truthy(report.verdicts[1].text:find('Apply 2 (record "in"): the skip contributes', 1, true))
  end)

  it("exploding: a gradient that is not finite", function()
    local model = nn.Linear(2, 2)
    local report = doctor.examine(model, resin.full({1, 2}, 1e30))
    assert.equal("exploding", report.verdict)
  end)

  it("thresholds can be given", function()
    local model, x = stack(5, 8, false), resin.randn(4, 8)
    assert.equal("vanishing", doctor.examine(model, x).verdict)
    assert.equal("healthy", doctor.examine(model, x, {thresholds = {vanishing = 1e9}}).verdict)
  end)
end)

describe("doctor.gradients", function()
  it("reads the gradients that are there", function()
    local model = nn.Linear(2, 2)
    model(resin.randn(3, 2)):sum():backward()
    local report = doctor.gradients(model)
    assert.equal(2, #report.parameters)
    assert.same({}, report.paths)
  end)
end)

describe("two models", function()
  before_each(function() resin.manual_seed(2) end)

  it("are compared side by side", function()
    local c = doctor.compare(stack(5, 8, false), stack(5, 8, true), {x = resin.randn(4, 8)})
    local out = tostring(c)
    assert.truthy(out:find("mean |g| of", 1, true))
    assert.truthy(out:find("0.weight / 1.weight", 1, true))
    assert.truthy(out:find("without: vanishing", 1, true))
    assert.truthy(out:find("with: healthy", 1, true))
  end)

  it("are drawn in one picture", function()
    local c = doctor.compare(stack(3, 8, false), stack(3, 8, true), {x = resin.randn(4, 8), names = {"plain", "a < b"}})
    local svg = c:plot()
    assert.truthy(svg:find("^<svg "))
    assert.truthy(svg:find("a &lt; b", 1, true))
    assert.equal(6, select(2, svg:gsub("<title>", "")))
    local path = os.tmpname()
    assert.equal(svg, c:plot(path))
    local file = assert(io.open(path))
    assert.equal(svg, file:read("*a"))
    file:close()
    os.remove(path)
    assert.equal(2 + 6 + 1, select(2, (c:bars() .. "\n"):gsub("\n", "")))
  end)
end)

describe("a histogram", function()
  it("counts powers of ten", function()
    local h = doctor.histogram(resin.tensor{0, 0.5, -0.25, 3, 0.011})
    assert.same({[-1] = 2, [0] = 1, [-2] = 1, zero = 1, total = 5}, h)
  end)
end)

describe("errors", function()
  local function message(fn, ...)
    local ok, err = pcall(fn, ...)
    assert.is_false(ok)
    return err
  end

  it("say what is wrong", function()
    assert.truthy(message(doctor.examine, 3):find("doctor.examine: the model must be a module, got number 3", 1, true))
    assert.truthy(message(doctor.examine, nn.Linear(2, 2), 3):find("doctor.examine: x must be a tensor, got number 3", 1, true))
    assert.truthy(message(doctor.gradients, nn.Linear(2, 2)):find(
      "doctor.gradients: no parameter of Linear has a gradient; call backward first, or use doctor.examine(model, x)", 1, true))
    assert.truthy(message(doctor.examine, nn.Linear(2, 2), resin.randn(2, 2), function(y) return y end):find(
      "doctor.examine: the loss must be one number, got tensor [2, 2] f32", 1, true))
    assert.truthy(message(doctor.examine, nn.Linear(2, 2), resin.randn(2, 2), {thresholds = {deep = 3}}):find(
      'doctor.examine: thresholds: unknown option "deep"', 1, true))
  end)
end)
