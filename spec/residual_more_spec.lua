-- What goes beyond the systems that resin replaces: more operations, several records at once, stochastic depth, containers around
-- functions, looking inside. Each against the same computation written by hand, gradients included.

local resin = require "resin"
local nn = resin.nn
local RS, Record, Apply, Residual = nn.ResidualSequential, nn.Record, nn.Apply, nn.Residual

local function fails(text, fn, ...)
  local ok, message = pcall(fn, ...)
  assert.is_false(ok, "no error; expected: " .. text)
  assert.is_truthy(message:find(text, 1, true), message)
end

local function distance(a, b) return (a - b):abs():max():item() end

-- The model and by_hand(x) give the same, and the same gradients of x and of every parameter.
local function agree(model, by_hand, x, tolerance)
  tolerance = tolerance or 1e-5
  local seed
  local function run(fn)
    local input = x:clone():requires_grad_(true)
    model:zero_grad()
    local y = fn(input)
    seed = seed or resin.randn(unpack(y.shape))
    y:backward(seed)
    local grads = {input.grad}
    for _, p in ipairs(model:parameters()) do grads[#grads + 1] = p.grad and p.grad:clone() or false end
    return y, grads
  end
  local y, grads = run(model)
  local expected, wanted = run(by_hand)
  assert.same(expected.shape, y.shape)
  assert.is_true(distance(expected, y) <= tolerance, "results differ by " .. distance(expected, y))
  for i = 1, #wanted do
    if not wanted[i] or not grads[i] then
      assert.equal(wanted[i], grads[i], "gradient " .. i)
    else
      local d = distance(wanted[i], grads[i])
      assert.is_true(d <= 10 * tolerance, ("gradient %d differs by %g"):format(i, d))
    end
  end
end

-- Finite differences of sum(model(x) * w) against the gradient, in f64.
local function finite(model, x, points)
  model:double()
  x = x:to("f64")
  local w = resin.randn(unpack(model(x).shape)):to("f64")
  local input = x:clone():requires_grad_(true)
  model:zero_grad();
  (model(input) * w):sum():backward()
  local tensors = {{input, input.grad}}
  for _, p in ipairs(model:parameters()) do tensors[#tensors + 1] = {p, p.grad} end
  for _, pair in ipairs(tensors) do
    local t, g = pair[1], pair[2]:reshape(-1)
    local n = t:numel()
    for k = 1, math.min(points or 3, n) do
      local at = (k * 7919) % n
      local function value(delta)
        local data = t:data()
        local former = data[at]
        data[at] = former + delta
        local y = resin.no_grad(function() return (model(input) * w):sum():item() end)
        data[at] = former
        return y
      end
      local slope = (value(1e-6) - value(-1e-6)) / 2e-6
      assert.is_near(slope, g:totable()[at + 1], 1e-5 * math.max(1, math.abs(slope)))
    end
  end
end

describe("operations", function()
  local function model_of(operation, options)
    local o = {operation = operation, record_name = "r"}
    for k, v in pairs(options or {}) do o[k] = v end
    return RS(Record("r"), nn.Linear(4, 4), nn.Tanh(), Apply(o))
  end

  local x = resin.randn(3, 4)
  local function branch(m, t) return m[2](t):tanh() end

  it("product", function()
    local m = model_of("product")
    agree(m, function(t) return branch(m, t) * t end, x)
  end)

  it("GRU gate: a GRU cell with the branch as input and the skip as state", function()
    local m = model_of("gru")
    local g = m[4].gate_layer
    assert.equal(2 * (4 * 12 + 12) + 20, m:num_parameters())
    assert.same({0, 0, 0, 0, 2, 2, 2, 2, 0, 0, 0, 0}, g.input.bias:totable())
    resin.no_grad(function() g.hidden.bias:uniform_(-1, 1) end)
    local function by_hand(t)
      local a, b = g.input(branch(m, t)), g.hidden(t)
      local function part(v, k) return v:narrow(2, 4 * (k - 1) + 1, 4) end
      local r = (part(a, 1) + part(b, 1)):sigmoid()
      local z = (part(a, 2) + part(b, 2)):sigmoid()
      local n = (part(a, 3) + r * part(b, 3)):tanh()
      return (1 - z) * n + z * t
    end
    agree(m, by_hand, x)
    finite(m, x)
  end)

  it("coupled highway", function()
    local m = model_of("highway", {coupled = true})
    agree(m, function(t)
      local f = branch(m, t)
      local T = m[4].gate_layer.transform_gate(f):sigmoid()
      return T * f + (1 - T) * t
    end, x)
  end)

  it("input-conditioned gate", function()
    local m = model_of("input_gated")
    local gates = m[4].gate_layer
    agree(m, function(t)
      local f = branch(m, t)
      local g = (gates.current_gate(f) + gates.saved_gate(t)):sigmoid()
      return g * f + (1 - g) * t
    end, x)
    finite(m, x)
  end)

  it("FiLM", function()
    local m = model_of("film")
    agree(m, function(t)
      local f, both = branch(m, t), m[4].gate_layer.modulation(t)
      return f * (1 + both:narrow(2, 1, 4)) + both:narrow(2, 5, 4)
    end, x)
    finite(m, x)
  end)

  it("orthogonal: only what is orthogonal to the skip is added", function()
    local m = model_of("orthogonal")
    agree(m, function(t)
      local f = branch(m, t)
      return f - (f * t):sum(2, true) / (t * t):sum(2, true) * t + t
    end, x)
    local added = m(x) - x
    assert.is_true((added * x):sum(2):abs():max():item() < 1e-5)
    finite(m, x)
  end)

  it("on channels: gates are 1×1 convolutions, products run over channels", function()
    local image = resin.randn(2, 3, 4, 5)
    for _, operation in ipairs{"gru", "film", "input_gated", "orthogonal"} do
      local m = RS(Record("r"), nn.Conv2d(3, 3, 3, {padding = 1}), Apply(operation, "r"))
      if operation ~= "orthogonal" then
        local _, layer = next(m[3].gate_layer:children())
        assert.equal("Conv2d", layer.type)
      end
      assert.same({2, 3, 4, 5}, m(image).shape)
      -- the same at each pixel as a features-last model at each row
      if operation == "orthogonal" then
        local added = m(image) - image
        assert.is_true((added * image):sum(2):abs():max():item() < 1e-5)
      end
    end
  end)

  it("their gates come before training and with a saved state", function()
    for _, operation in ipairs{"gru", "film", "input_gated", "highway"} do
      local m = model_of(operation)
      local fresh = RS(Record("r"), function(t) return t end, Apply(operation, "r"))
      assert.is_false(fresh[3].gate_layer)
      local state = {}
      for name, t in pairs(m:state_dict()) do
        if name:find("^3%.") then state[name:gsub("^3", "2")] = t end
      end
      fresh:load_state_dict(state)
      assert.equal(m[4].gate_layer:num_parameters(), fresh[3].gate_layer:num_parameters())
    end
  end)

  it("layer_scale: a factor of each channel, made with the shapes", function()
    local m = RS(Record("r"), nn.Linear(4, 4), Apply{record_name = "r", layer_scale = 1e-5})
    assert.same({4}, m[3].scale.shape)
    assert.is_near(1e-5, m[3].scale:mean():item(), 1e-9)
    resin.no_grad(function() m[3].scale:uniform_(-1, 1) end)
    agree(m, function(t) return m[2](t) * m[3].scale + t end, x)
    local conv = RS(Record("r"), nn.Conv2d(3, 3, 1), Apply{record_name = "r", layer_scale = 0.1})
    assert.same({3}, conv[3].scale.shape)
    local image = resin.randn(2, 3, 4, 4)
    agree(conv, function(t) return conv[2](t) * conv[3].scale:reshape(3, 1, 1) + t end, image)
    local late = RS(Record("r"), function(t) return t * 2 end, Apply{record_name = "r", layer_scale = 0.5})
    late:build{1, 4}
    assert.same({4}, late[3].scale.shape)
    assert.same({2, 2, 2, 2}, late(resin.ones(1, 4)):reshape(-1):totable())
    fails("scale and layer_scale exclude each other", Apply, {layer_scale = 1, scale = 1})
    fails("takes no layer_scale", Apply, {operation = "concat", layer_scale = 1})
  end)

  it("rezero, DeepNorm and drop_path numbers", function()
    local m = RS(Record("r"), nn.Linear(4, 4), Apply{record_name = "r", scale = nn.residual.rezero()})
    assert.equal(0, distance(m(x), x))
    assert.equal(3, #m:parameters())
    m(x):sum():backward()
    assert.is_true(m[3].scale.grad:abs():sum():item() > 0)
    local c = nn.residual.deepnorm(8)
    assert.is_near(2, c.alpha, 1e-12)
    assert.is_near(64 ^ -0.25, c.beta, 1e-12)
    local both = nn.residual.deepnorm(6, 6)
    assert.is_near(0.81 * (6 ^ 5) ^ (1 / 16), both.encoder.alpha, 1e-12)
    assert.is_near((72) ^ -0.25, both.decoder.beta, 1e-12)
    local rates = nn.residual.drop_path_rates(5, 0.2)
    for i, rate in ipairs{0, 0.05, 0.1, 0.15, 0.2} do assert.is_near(rate, rates[i], 1e-12) end
    assert.same({0.3}, nn.residual.drop_path_rates(1, 0.3))
  end)
end)

describe("several records", function()
  local x = resin.randn(3, 4)
  local function model_of(options)
    options.records = {"a", "b"}
    return RS(Record("a"), nn.Linear(4, 4), Record("b"), nn.Tanh(), Apply(options))
  end

  it("are added, with fixed weights too", function()
    local m = model_of{}
    agree(m, function(t)
      local h = m[2](t)
      return h:tanh() + t + h
    end, x)
    local w = model_of{weights = {0.5, 2, -1}}
    agree(w, function(t)
      local h = w[2](t)
      return 0.5 * h:tanh() + 2 * t - h
    end, x)
  end)

  it("with trained weights: softmax, or free (DenseFormer)", function()
    local soft = model_of{weights = "softmax"}
    assert.same({0, 0, 0}, soft[5].mix:totable())
    resin.no_grad(function() soft[5].mix:copy_{0.5, -1, 2} end)
    agree(soft, function(t)
      local h, p = soft[2](t), soft[5].mix:softmax(1)
      return p[1] * h:tanh() + p[2] * t + p[3] * h
    end, x)
    finite(soft, x)
    local free = model_of{weights = "learned"}
    assert.same({1, 0, 0}, free[5].mix:totable())
    agree(free, function(t)
      local h, p = free[2](t), free[5].mix
      return p[1] * h:tanh() + p[2] * t + p[3] * h
    end, x)
    assert.equal(3, #free:parameters())
  end)

  it("with the other operations", function()
    local function by(join)
      return function(m)
        return function(t)
          local h = m[2](t)
          return join(h:tanh(), t, h)
        end
      end
    end
    for operation, join in pairs{
      mean = by(function(a, b, c) return (a + b + c) / 3 end),
      max = by(function(a, b, c) return a:maximum(b):maximum(c) end),
      min = by(function(a, b, c) return a:minimum(b):minimum(c) end),
      concat = by(function(a, b, c) return resin.cat({a, b, c}, 2) end),
    } do
      local m = model_of{operation = operation}
      agree(m, join(m), x)
      assert.same(m(x).shape, m:output_shape{3, 4})
    end
    local custom = model_of{operation = function(current, a, b) return current * a + b end}
    agree(custom, by(function(a, b, c) return a * b + c end)(custom), x)
  end)

  it("DenseFormer: after each block a weighted sum of everything before it", function()
    local list = {Record("x0")}
    for i = 1, 3 do
      local names = {}
      for k = 0, i - 1 do names[k + 1] = "x" .. k end
      list[#list + 1] = Residual({nn.Linear(4, 4), nn.GELU()}, {norm = "pre"})
      list[#list + 1] = Apply{records = names, weights = "learned"}
      list[#list + 1] = Record("x" .. i)
    end
    local m = RS(list)
    agree(m, function(t)
      local outs, h = {t}, t
      for i = 1, 3 do
        local y, w = m[3 * i - 1](h), m[3 * i].mix
        h = w[1] * y
        for k = 1, i do h = h + w[k + 1] * outs[k] end
        outs[i + 1] = h
      end
      return h
    end, x)
  end)

  it("memory: each record goes after its last reader", function()
    local MB = 2 ^ 20
    local big = resin.zeros(MB / 4)
    local function peak(fn)
      collectgarbage()
      collectgarbage()
      resin.reset_peak()
      local before = resin.memory().live
      resin.no_grad(fn)
      return resin.memory().peak - before
    end
    local unit = peak(function() resin.zeros(MB / 4):free() end)
    local m = RS(nn.ReLU(), Record("a"), nn.ReLU(), Record("b"), nn.ReLU(), Apply{records = {"a", "b"}}, nn.ReLU(), nn.ReLU())
    assert.is_true(peak(function() m(big):free() end) <= 5.1 * unit)
    collectgarbage()
    collectgarbage()
    local before = resin.memory().live
    m(big):free()
    collectgarbage()
    assert.equal(before, resin.memory().live)
  end)

  it("errors", function()
    fails("Apply: records must be a table of names, got string", Apply, {records = "a"})
    fails('Apply: records names "a" twice', Apply, {records = {"a", "a"}})
    fails("joins one record; records works with add, concat, max, mean, min, a function or a module", Apply,
      {operation = "gated", records = {"a"}})
    fails("Apply: records and record_name exclude each other", Apply, {records = {"a"}, record_name = "b"})
    fails("Apply: weights must be 3 numbers, one for the current value and one for each of the 2 records, got 2", model_of,
      {weights = {1, 2}})
    fails('Apply: weights must be a table of numbers, "softmax" or "learned"', model_of, {weights = "soft"})
    fails("Apply: weights needs records", Apply, {weights = {1, 2}})
    fails('there is no Record "b" before it (known: "a")', RS(Record("a"), Apply{records = {"a", "b"}}), x)
    fails('Apply 5 (record "a"): recorded [?, 4] but current is [?, 6]; the records of one Apply must have the shape of the current value',
      RS, Record("a"), nn.Linear(4, 6), Record("b"), nn.Tanh(), Apply{records = {"a", "b"}})
  end)
end)

describe("drop_path", function()
  it("leaves whole samples of the branch out while training", function()
    local m = RS(Record("r"), function(t) return t * 2 end, Apply{record_name = "r", drop_path = 0.5})
    local y = m(resin.ones(400, 3)):totable()
    local dropped = 0
    for _, row in ipairs(y) do
      assert.is_true(row[1] == row[2] and row[2] == row[3])
      assert.is_true(row[1] == 1 or row[1] == 5)
      if row[1] == 1 then dropped = dropped + 1 end
    end
    assert.is_true(dropped > 140 and dropped < 260, tostring(dropped))
    m:eval()
    assert.same({{3, 3}}, m(resin.ones(1, 2)):totable())
    m:train()
    m[3].drop_path = 1
    assert.same({{1, 1}}, m(resin.ones(1, 2)):totable())
    fails("Apply: drop_path must be a number from 0 to 1", Apply, {drop_path = 2})
  end)

  it("its gradient is that of the samples that stayed", function()
    local m = RS(Record("r"), function(t) return t * 2 end, Apply{record_name = "r", drop_path = 0.5})
    local x = resin.ones(50, 1):requires_grad_(true)
    local y = m(x)
    y:sum():backward()
    assert.equal(0, distance(y, x.grad))      -- linear in x
  end)
end)

describe("Residual", function()
  local x = resin.randn(3, 4)

  it("is fn(x) + x, with norms before, behind or on both sides", function()
    local plain = Residual({nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4)})
    agree(plain, function(t) return plain.fn(t) + t end, x)
    local pre = Residual(nn.Linear(4, 4), {norm = "pre"})
    assert.equal("LayerNorm", pre.norm.type)
    agree(pre, function(t) return pre.fn(pre.norm(t)) + t end, x)
    local post = Residual(nn.Linear(4, 4), {norm = "post"})
    agree(post, function(t) return post.norm(post.fn(t) + t) end, x)
    local sandwich = Residual(nn.Linear(4, 4), {norm = "sandwich"})
    assert.is_true(sandwich.norm ~= sandwich.norm_after)
    agree(sandwich, function(t) return sandwich.norm_after(sandwich.fn(sandwich.norm(t))) + t end, x)
    assert.is_truthy(sandwich:state_dict()["fn.weight"])
  end)

  it("takes the options of Apply, an activation behind, and other norms", function()
    local m = Residual(nn.Linear(4, 4), {norm = "pre", scale = 0.5, alpha = 2, after = nn.ReLU(), norm_layer = function(n)
      return nn.LayerNorm(n, {elementwise_affine = false})
    end})
    agree(m, function(t) return (0.5 * m.fn(m.norm(t)) + 2 * t):relu() end, x)
    local projected = Residual(nn.Linear(4, 6), {need_projection = true})
    agree(projected, function(t) return projected.fn(t) + projected.join.projection_layer(t) end, x)
    local deep = nn.residual.deepnorm(4)
    local d = Residual(nn.Linear(4, 4), {norm = "post", alpha = deep.alpha})
    agree(d, function(t) return d.norm(d.fn(t) + deep.alpha * t) end, x)
    local conv = Residual(nn.Conv2d(3, 3, 3, {padding = 1}), {norm = "pre"})
    assert.equal("BatchNorm2d(3)", conv.norm:label())
    local shared = nn.LayerNorm(4)
    local two = Residual(nn.Linear(4, 4), {norm = "sandwich", norm_layer = shared})
    assert.is_true(two.norm == shared and two.norm_after ~= shared)
    assert.same({{3, 6}}, Residual(function(t) return t * 2 end)(resin.tensor{{1, 2}}):totable())
  end)

  it("stacks inside other containers, which share one plan", function()
    local m = RS(Record("all"), Residual(nn.Linear(4, 4), {norm = "pre"}), Residual(nn.Linear(4, 4), {norm = "pre"}),
      Apply("add", "all"))
    agree(m, function(t) return m[3](m[2](t)) + t end, x)
    assert.same({3, 4}, m:output_shape{3, 4})
  end)

  it("errors", function()
    fails("Residual: fn is missing", Residual, nil, {})
    fails("Residual: fn must be a module or a function, got number 3", Residual, 3)
    fails("Residual: norm must be one of", Residual, nn.Linear(2, 2), {norm = "before"})
    fails('Residual: norm_layer needs norm = "pre", "post" or "sandwich"', Residual, nn.Linear(2, 2), {norm_layer = nn.LayerNorm})
    fails("Residual: features is missing", Residual, function(t) return t end, {norm = "pre"})
    fails('Residual: unknown option "nrom"', Residual, nn.Linear(2, 2), {nrom = "pre"})
    fails("Residual: norm_layer must be a module", Residual, nn.Linear(2, 2), {norm = "pre", norm_layer = 3})
  end)
end)

describe("Parallel", function()
  local x = resin.randn(3, 4)

  it("joins what its children make of one value", function()
    local a, b = nn.Linear(4, 5), nn.Linear(4, 5)
    for join, by in pairs{
      add = function(u, v) return u + v end,
      mean = function(u, v) return (u + v) / 2 end,
      max = function(u, v) return u:maximum(v) end,
      multiply = function(u, v) return u * v end,
      cat = function(u, v) return resin.cat({u, v}, 2) end,
      stack = function(u, v) return resin.stack({u, v}, 1) end,
    } do
      local m = nn.Parallel(a, b, {join = join})
      agree(m, function(t) return by(a(t), b(t)) end, x)
      assert.same(m(x).shape, m:output_shape{3, 4})
    end
    local last = nn.Parallel{a, b, join = "stack", dim = -1}
    assert.same({3, 5, 2}, last(x).shape)
    assert.same({3, 5, 2}, last:output_shape{3, 4})
    local rows = nn.Parallel({{"left", a}, {"right", b}}, {join = "cat", dim = 1})
    assert.same({6, 5}, rows(x).shape)
    assert.is_true(rows.left == a)
  end)

  it("takes a function or a module that joins", function()
    local a, b = nn.Linear(4, 4), nn.Linear(4, 4)
    local m = nn.Parallel(a, b, {join = function(list) return list[1] - list[2] end})
    agree(m, function(t) return a(t) - b(t) end, x)
    local Join = nn.class("Join")
    function Join:init() self.layer = nn.Linear(8, 2) end
    function Join:forward(u, v) return self.layer(resin.cat({u, v}, 2)) end
    local owned = nn.Parallel(a, b, {join = Join()})
    agree(owned, function(t) return owned.join.layer(resin.cat({a(t), b(t)}, 2)) end, x)
    assert.is_truthy(owned:state_dict()["join.layer.weight"])
  end)

  it("concatenates channels behind convolutions; the identity is a child like any other", function()
    local m = nn.Parallel(nn.Conv2d(3, 4, 1), nn.Identity(), {join = "cat"})
    assert.same({2, 7, 5, 5}, m(resin.randn(2, 3, 5, 5)).shape)
    local attention_and_mlp = Residual(nn.Parallel(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))),
      {norm = "pre", features = 4})
    agree(attention_and_mlp, function(t)
      local n = attention_and_mlp.norm(t)
      return attention_and_mlp.fn[1](n) + attention_and_mlp.fn[2](n) + t
    end, x)
  end)

  it("errors", function()
    fails("Parallel: join must be one of", nn.Parallel, nn.Identity(), {join = "sub"})
    fails('Parallel: child 1 gives [3, 4] but child 2 gives [3, 5]; join = "add" needs equal shapes',
      nn.Parallel(nn.Identity(), nn.Linear(4, 5)), x)
    fails("Parallel: there are no children", nn.Parallel(), x)
    fails('Parallel: unknown option "jion"', nn.Parallel, nn.Identity(), {jion = "add"})
    fails("in Parallel 2 (Lambda): Lambda returned nil; it must return a tensor",
      nn.Parallel(nn.Identity(), function() end), x)
  end)
end)

describe("Dense", function()
  it("concatenates everything before", function()
    local x = resin.randn(2, 3)
    local m = nn.Dense(nn.Linear(3, 2), nn.Linear(5, 4), nn.Linear(9, 1))
    agree(m, function(t)
      local a = m[1](t)
      local b = m[2](resin.cat({t, a}, 2))
      local c = m[3](resin.cat({t, a, b}, 2))
      return resin.cat({t, a, b, c}, 2)
    end, x)
    assert.same({2, 10}, m:output_shape{2, 3})
    finite(m, x)
    local image = nn.Dense(nn.Conv2d(3, 2, 3, {padding = 1}), nn.Conv2d(5, 2, 1), {output = "last"})
    assert.same({1, 2, 4, 4}, image(resin.randn(1, 3, 4, 4)).shape)
    assert.same({1, 2, 4, 4}, image:output_shape{1, 3, 4, 4})
    fails("Dense: output must be one of", nn.Dense, nn.Identity(), {output = "none"})
    fails("in Dense 2 (Linear): linear:", nn.Dense(nn.Linear(3, 2), nn.Linear(4, 4)), x)
  end)
end)

describe("HyperConnections", function()
  it("starts as the plain residual sum of its streams", function()
    local a, b = nn.Linear(4, 4), nn.Linear(4, 4)
    local x = resin.randn(3, 4)
    local one = nn.HyperConnections(a, b, {streams = 1})
    local h = a(x) + x
    assert.is_true(distance(one(x), b(h) + h) < 1e-5)
  end)

  it("static: against the formula", function()
    local x = resin.randn(2, 3, 4)
    local m = nn.HyperConnections(nn.Linear(4, 4), nn.Linear(4, 4), {streams = 3})
    resin.no_grad(function()
      for _, p in ipairs(m:parameters()) do p:uniform_(-1, 1) end
    end)
    agree(m, function(t)
      local hs = {t, t, t}
      for k = 1, 2 do
        local c = m[k]
        local input = 0
        for s = 1, 3 do input = input + c.static_alpha[{s, 1}] * hs[s] end
        local y, out = c.branch(input), {}
        for target = 1, 3 do
          out[target] = c.static_beta[target] * y
          for s = 1, 3 do out[target] = out[target] + c.static_alpha[{s, target + 1}] * hs[s] end
        end
        hs = out
      end
      return hs[1] + hs[2] + hs[3]
    end, x)
    assert.is_truthy(m:state_dict()["0.branch.weight"])
    finite(m, x, 2)
  end)

  it("dynamic: against the formula", function()
    local x = resin.randn(2, 3, 4)
    local m = nn.HyperConnections(nn.Linear(4, 4), nn.Tanh(), {streams = 2, dynamic = true, features = 4})
    local static = nn.HyperConnections(m[1].branch, m[2].branch, {streams = 2})
    assert.is_true(distance(m(x), static(x)) < 1e-5)           -- at first
    resin.no_grad(function()
      for _, p in ipairs(m:parameters()) do p:uniform_(-1, 1) end
    end)
    local eps = 1.1920929e-07
    agree(m, function(t)
      local hs = {t, t}
      for k = 1, 2 do
        local c, alpha, beta = m[k], {}, {}
        for s = 1, 2 do
          local normed = hs[s] * ((hs[s] * hs[s]):mean(-1, true) + eps):rsqrt()
          alpha[s] = resin.matmul(normed, c.dynamic_alpha):tanh() * c.alpha_scale + c.static_alpha[s]
          beta[s] = resin.matmul(normed, c.dynamic_beta:reshape(4, 1)):tanh() * c.beta_scale + c.static_beta[s]
        end
        local function a(s, j) return alpha[s]:narrow(-1, j, 1) end
        local y, out = c.branch(a(1, 1) * hs[1] + a(2, 1) * hs[2]), {}
        for target = 1, 2 do out[target] = beta[target] * y + a(1, target + 1) * hs[1] + a(2, target + 1) * hs[2] end
        hs = out
      end
      return hs[1] + hs[2]
    end, x, 1e-4)
  end)

  it("a slice keeps what it is", function()
    local x = resin.randn(2, 4)
    local m = nn.HyperConnections(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), {streams = 2, dynamic = true, features = 4})
    assert.equal("HyperConnections{streams = 2, dynamic = true, features = 4}", m:slice(1, 2):label())
    assert.same({2, 4}, m:slice(2, 3)(x).shape)
    m:append(nn.Linear(4, 4))
    assert.same({2, 4}, m(x).shape)
    local p = nn.Parallel(nn.Linear(4, 1), nn.Linear(4, 2), nn.Linear(4, 3), {join = "cat"})
    assert.same({2, 5}, p:slice(2, 3)(x).shape)
    local d = nn.Dense(nn.Linear(4, 1), nn.Linear(5, 2), {output = "last"})
    assert.same({2, 1}, d:slice(1, 1)(x).shape)
  end)

  it("errors", function()
    fails("HyperConnections: dynamic = true needs features", nn.HyperConnections, nn.Identity(), {dynamic = true})
    fails("must keep the shape", nn.HyperConnections(nn.Linear(4, 5)), resin.randn(2, 4))
    fails("must keep the shape", function() return nn.HyperConnections(nn.Linear(4, 5)):output_shape{2, 4} end)
    fails("HyperConnections: streams must be an integer", nn.HyperConnections, nn.Identity(), {streams = 0})
    fails('HyperConnections: unknown option "stream"', nn.HyperConnections, nn.Identity(), {stream = 2})
  end)
end)

describe("depth", function()
  -- gradient of the first layer's weight over that of the last one
  local function ratio(make)
    resin.manual_seed(3)
    local list = {}
    for i = 1, 100 do list[i] = make() end
    local m = RS(list)
    m(resin.randn(16, 32)):sum():backward()
    local first, last = list[1].fn or list[1], list[100].fn or list[100]
    return (first[1].weight.grad:abs():mean() / last[1].weight.grad:abs():mean()):item()
  end

  local function block() return nn.Sequential(nn.Linear(32, 32), nn.GELU()) end

  it("100 layers: a small branch scale keeps the gradient, a plain stack loses it", function()
    assert.is_true(ratio(block) < 1e-6)
    local small = ratio(function() return Residual(block(), {layer_scale = 1e-2}) end)
    assert.is_true(small > 0.1 and small < 10, tostring(small))
    local rezero = ratio(function() return Residual(block(), {scale = nn.residual.rezero(1e-3)}) end)
    assert.is_true(rezero > 0.1 and rezero < 10, tostring(rezero))
  end)
end)

describe("containers and shapes", function()
  it("projections exist at construction beside them", function()
    for _, layer in ipairs{nn.Checkpoint(nn.Linear(4, 6)), nn.Parallel(nn.Linear(4, 6), nn.Linear(4, 6)), nn.Dense(nn.Linear(4, 2)),
                           nn.Checkpoint{nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6)}} do
      local m = RS(Record(true), layer, Apply())
      assert.equal("Linear(4, 6)", m[3].projection_layer:label())
      assert.same({2, 6}, m(resin.randn(2, 4)).shape)
    end
    local conv = RS(Record(true), nn.Checkpoint(nn.Conv2d(3, 6, 3, {padding = 1})), Apply())
    assert.equal("Conv2d(3, 6, 1)", conv[3].projection_layer:label())
  end)
end)

describe("residualize", function()
  local x = resin.randn(3, 4)

  it("puts a skip around every k layers; names stay, so a state loads", function()
    local plain = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    local m = nn.residualize(plain, {every = 2})
    agree(m, function(t)
      local h = plain[2](plain[1](t)) + t
      h = plain[4](plain[3](h)) + m.join_2.projection_layer(h)
      return plain[5](h)
    end, x)
    local other = nn.residualize(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)))
    other:load_state_dict(plain:state_dict(), {strict = false})
    assert.equal(0, distance(other["0"].weight, plain[1].weight))
  end)

  it("options: a range, a choice, what Apply takes", function()
    local plain = nn.Sequential{{"stem", nn.Linear(4, 4)}, {"a", nn.Linear(4, 4)}, {"b", nn.Linear(4, 4)}, {"head", nn.Linear(4, 2)}}
    local m = nn.residualize(plain, {every = 1, first = 2, last = 3, where = function(k) return k == 2 end, scale = 0.5,
      drop_path = {0.1, 0}})
    agree(m, function(t)
      local h = plain.a(plain.stem(t))
      return plain.head(0.5 * plain.b(h) + h)
    end, x)
    assert.equal(6, #m)
    fails("residualize: argument 1 must be a Sequential, got nil", nn.residualize)
    fails("residualize: every must be an integer", nn.residualize, plain, {every = 0})
    fails('residualize: unknown option "ever"', nn.residualize, plain, {ever = 2})
  end)
end)

describe("looking inside", function()
  it("record(x) keeps what is recorded, on request only", function()
    local m = RS(Record("in"), nn.Linear(3, 3), Record("unread"), RS(Record(), nn.Tanh(), Apply()), Apply("add", "in"))
    fails("get_recorded_tensor: nothing was kept; call model:record(x)", m.get_recorded_tensor, m, "in")
    local x = resin.randn(2, 3)
    assert.equal(0, distance(m:record(x), m(x)))
    local t, record = m:get_recorded_tensor("in")
    assert.equal(0, distance(t, x))
    assert.is_true(record == m[1])
    assert.equal(0, distance(m:get_recorded_tensor("unread"), m[2](x)))
    assert.equal(0, distance(m:get_recorded_tensor("3.record_1"), m[2](x)))
    assert.equal(0, distance(m:get_recorded_tensor(), m[2](x)))
    fails('nothing was recorded as "other" (known: "in", "unread", "3.record_1")', m.get_recorded_tensor, m, "other")
    assert.is_true(m:get_recorded_tensor("unread").requires_grad)
    m:forget_records()
    fails("nothing was kept", m.get_recorded_tensor, m)
    m.keep_records = true
    local y = m(x)
    y:sum():backward()
    assert.equal(0, distance(m:get_recorded_tensor("in"), x))
    assert.equal(0, distance(m:clone()(x), y))
    -- with options and extra results too
    local Both = nn.class("Both")
    function Both:forward(v, o) return v * (o and o.k or 1), v + 1 end -- luacheck: no self
    local e = RS{Record("r"), {"both", Both()}, Apply("add", "r")}
    local z, extras = e:record(x, {both = {k = 2}})
    assert.is_true(distance(z, 3 * x) < 1e-6)
    assert.equal(0, distance(extras[1], x + 1))
    assert.equal(0, distance(e:get_recorded_tensor("r"), x))
  end)

  it("get_residual_info lists Records and Applies, inner ones too", function()
    local m = RS{Record{name = "in", need_projection = true}, {"body", nn.Linear(3, 5)},
      nn.Sequential(RS(Record(), nn.Tanh(), Apply("gated"))), {"join", Apply("add", "in", 0.5)}}
    local info = m:get_residual_info{2, 3}
    assert.equal(2, #info.records)
    assert.equal(2, #info.applies)
    assert.equal("in", info.records[1].name)
    assert.is_true(info.records[1].need_projection)
    assert.same({2, 3}, info.records[1].shape)
    assert.same({"join"}, info.records[1].readers)
    assert.equal("2.0.0", info.records[2].path)
    assert.same({2, 5}, info.records[2].shape)
    assert.equal("gated", info.applies[1].operation)
    assert.equal("record_1", info.applies[1].record_name)
    assert.is_near(0.5, info.applies[1].alpha():item(), 1e-6)
    assert.equal("join", info.applies[2].path)
    assert.equal(0.5, info.applies[2].alpha)
    assert.is_false(info.applies[2].disabled)
    local Model = nn.class("Model")
    function Model:init() self.block = RS(Record("x"), Apply("add", "x")) end
    function Model:forward(t) return self.block(t) end
    local outer = RS(Model())
    assert.equal("0.block.0", outer:get_residual_info().records[1].path)
  end)

  it("disable_skip and enable_skip turn one skip off by name", function()
    local x = resin.randn(2, 3)
    local layer = nn.Linear(3, 3)
    local m = RS{Record("input"), layer, Record("mid"), nn.Tanh(), Apply("add", "mid"), {"out", Apply("concat", "input")}}
    m:disable_skip("mid")
    assert.is_true(distance(m(x), resin.cat({layer(x):tanh(), x}, 2)) < 1e-6)
    m:disable_skip("out")
    assert.is_true(distance(m(x), resin.cat({layer(x):tanh(), x * 0}, 2)) < 1e-6)
    assert.equal("bypass", m:get_residual_info().applies[1].disabled)
    m:enable_skip("mid"):enable_skip("input")
    assert.is_true(distance(m(x), resin.cat({layer(x):tanh() + layer(x), x}, 2)) < 1e-6)
    fails('disable_skip: there is no skip "inptu" (known: "mid", "input")', m.disable_skip, m, "inptu")
    fails("cannot be bypassed", m.disable_skip, m, "input", "bypass")
    local gated = RS(Record("r"), layer, Apply("gated", "r", 0.25))
    gated:disable_skip("r", "zero")
    assert.is_true(distance(gated(x), layer(x) * 0.75) < 1e-6)
    gated:disable_skip("r")
    assert.equal(0, distance(gated(x), layer(x)))
    local many = RS(Record("a"), layer, Record("b"), nn.Tanh(), Apply{records = {"a", "b"}})
    many:disable_skip("a")
    assert.is_true(distance(many(x), layer(x):tanh() + layer(x)) < 1e-6)
    many:disable_skip("b")
    assert.is_true(distance(many(x), layer(x):tanh()) < 1e-6)
    many:enable_skip("a"):enable_skip("b")
    assert.is_true(distance(many(x), layer(x):tanh() + layer(x) + x) < 1e-6)
    local circuit = nn.Circuit(nn.StartBlock("b", 2), nn.SaveInput("r"), function(t) return t * 2 end, nn.GetInput("r"),
      nn.EndBlock("b"))
    circuit:disable_skip("r_repeat_1")
    assert.is_true(distance(circuit(x), x * 6) < 1e-6)
  end)
end)
