-- RNN, GRU, LSTM, their cells, and their states in containers. Numbers against PyTorch are in spec/fixtures.

local resin = require "resin"
local lib = require "resin.lib"
local nn = resin.nn

local function fails(text, fn, ...)
  local ok, message = pcall(fn, ...)
  assert.is_false(ok)
  assert.is_truthy(message:find(text, 1, true), message)
end

local function largest(a, b) return (a:detach() - b:detach()):abs():max():item() end
local function equal(a, b, tolerance) assert.is_true(largest(a, b) <= (tolerance or 1e-6), "differs by " .. largest(a, b)) end

local function sigmoid(x) return x:sigmoid() end

describe("recurrent layers", function()
  before_each(function() resin.manual_seed(5) end)

  it("have PyTorch's names, shapes and initial values", function()
    local m = nn.GRU(3, 100, {num_layers = 2, bidirectional = true})
    local names = {}
    for name, p in m:named_parameters() do
      names[#names + 1] = name
      assert.is_true(p:detach():abs():max():item() <= 0.1)
    end
    assert.same({"weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0", "weight_ih_l0_reverse", "weight_hh_l0_reverse",
      "bias_ih_l0_reverse", "bias_hh_l0_reverse", "weight_ih_l1", "weight_hh_l1", "bias_ih_l1", "bias_hh_l1", "weight_ih_l1_reverse",
      "weight_hh_l1_reverse", "bias_ih_l1_reverse", "bias_hh_l1_reverse"}, names)
    assert.same({300, 3}, m.weight_ih_l0.shape)
    assert.same({300, 200}, m.weight_ih_l1_reverse.shape)
    assert.same({7, 2, 200}, m:output_shape{7, 2, 3})
    assert.equal("LSTM(3, 4, {num_layers = 2, batch_first = true})", nn.LSTM(3, 4, 2, {batch_first = true}):label())
  end)

  it("compute their formulas", function()
    local x, h, c = resin.randn(1, 2, 3), resin.randn(1, 2, 4), resin.randn(1, 2, 4)
    local function sums(m) return resin.F.linear(x[1], m.weight_ih_l0, m.bias_ih_l0), resin.F.linear(h[1], m.weight_hh_l0, m.bias_hh_l0) end
    local lstm = nn.LSTM(3, 4)
    local a, b = sums(lstm)
    local s = (a + b):chunk(4, 2)
    local c1 = sigmoid(s[2]) * c[1] + sigmoid(s[1]) * s[3]:tanh()
    local y, state = lstm(x, {h, c})
    equal(c1, state[2][1])
    equal(sigmoid(s[4]) * c1:tanh(), y[1])
    local gru = nn.GRU(3, 4)
    a, b = sums(gru)
    a, b = a:chunk(3, 2), b:chunk(3, 2)
    local r, z = sigmoid(a[1] + b[1]), sigmoid(a[2] + b[2])
    local n = (a[3] + r * b[3]):tanh()
    equal((1 - z) * n + z * h[1], gru(x, h)[1])
    local rnn = nn.RNN(3, 4, {nonlinearity = "relu"})
    a, b = sums(rnn)
    equal((a + b):relu(), rnn(x, h)[1])
  end)

  it("go on from the state that they returned", function()
    for _, kind in ipairs{"RNN", "GRU", "LSTM"} do
      local m = nn[kind](3, 5, {num_layers = 2})
      local x = resin.randn(6, 2, 3)
      local whole, last = m(x)
      local first, state = m(x:narrow(1, 1, 4))
      local second, after = m(x:narrow(1, 5, 2), state)
      equal(whole, resin.cat({first, second}, 1))
      equal(kind == "LSTM" and last[2] or last, kind == "LSTM" and after[2] or after)
    end
  end)

  it("read a sequence from the end in the other direction", function()
    local m = nn.LSTM(3, 4, {bidirectional = true})
    local one = nn.LSTM(3, 4)
    local state = {}
    for _, name in ipairs{"weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"} do state[name] = m[name .. "_reverse"] end
    one:load_state_dict(state)
    local steps = {}
    local x = resin.randn(5, 2, 3)
    for t = 5, 1, -1 do steps[#steps + 1] = x:narrow(1, t, 1) end
    local y = one(resin.cat(steps, 1))
    equal(m(x):narrow(3, 5, 4):narrow(1, 1, 1), y:narrow(1, 5, 1))
  end)

  it("give the same for both orders of dimensions, and without a batch", function()
    local a = nn.GRU(3, 4, {num_layers = 2, bidirectional = true})
    local b = nn.GRU(3, 4, {num_layers = 2, bidirectional = true, batch_first = true})
    b:load_state_dict(a:state_dict())
    local x, h = resin.randn(5, 2, 3), resin.randn(4, 2, 4)
    local y, last = a(x, h)
    local y2, last2 = b(x:transpose(1, 2), h)
    equal(y, y2:transpose(1, 2))
    equal(last, last2)
    local y3, last3 = a(x:select(2, 1), h:select(2, 1))
    assert.same({5, 8}, y3.shape)
    equal(y:select(2, 1), y3)
    equal(last:select(2, 1), last3)
  end)

  it("drop between layers in training only", function()
    local m = nn.LSTM(3, 8, {num_layers = 2, dropout = 0.5})
    local x = resin.randn(4, 2, 3)
    assert.is_true(largest(m(x), m(x)) > 0)
    m:eval()
    equal(m(x), m(x), 0)
  end)

  it("give the same on any number of threads, in blocks of rows and of units", function()
    local threads = resin.get_num_threads()
    for _, case in ipairs{{24, 32, 40, 20}, {4, 16, 520, 6}} do         -- batch, in, hidden, steps
      local m = nn.LSTM(case[2], case[3])
      local x = resin.randn(case[4], case[1], case[2])
      local found = {}
      for i, n in ipairs{1, 3} do
        resin.set_num_threads(n)
        m:zero_grad()
        local y = m(x)
        y:sum():backward()
        found[i] = {y, m.weight_hh_l0.grad, m.bias_ih_l0.grad}
      end
      for k = 1, 3 do equal(found[1][k], found[2][k], 0) end
      local h, c, steps = nil, nil, nn.LSTMCell(case[2], case[3])       -- and what one step at a time gives
      steps:load_state_dict{weight_ih = m.weight_ih_l0, weight_hh = m.weight_hh_l0, bias_ih = m.bias_ih_l0, bias_hh = m.bias_hh_l0}
      for t = 1, case[4] do h, c = steps(x[t], h and {h, c} or nil) end
      equal(found[1][1][case[4]], h, 1e-5)
    end
    resin.set_num_threads(threads)
  end)

  it("have no second derivative, and say so", function()
    local m = nn.LSTM(2, 3, {dtype = "f64"})
    local x = resin.randn({3, 1, 2}, {dtype = "f64"}):requires_grad_(true)
    local g = resin.grad(m(x):square():sum(), {x}, {create_graph = true})[1]
    fails("derivative of lstm_backward is not defined (a second derivative was asked for)", function() g:sum():backward() end)
  end)

  it("say what is wrong", function()
    local m = nn.LSTM(3, 4)
    local x, h = resin.randn(5, 2, 3), resin.randn(1, 2, 4)
    fails("lstm: input [5, 2, 4] has 4 features but w_ih [16, 3] expects 3", m, resin.randn(5, 2, 4))
    fails("lstm: input [3] must be [T, B, features], or [T, features] without a batch", m, resin.randn(3))
    fails("LSTM: the state must be a table of two tensors {h, c}, got tensor [1, 2, 4] f32", m, x, h)
    fails("lstm: c0 [1, 3, 4] must be [1, 2, 4]", m, x, {h, resin.randn(1, 3, 4)})
    fails("GRU: the state must be a tensor h, got", nn.GRU(3, 4), x, {h, h})
    fails("GRU: the state h [1, 2, 4] must have 4 layers in its first dimension (num_layers 2, two directions)",
      nn.GRU(3, 4, {num_layers = 2, bidirectional = true}), x, h)
    fails("LSTM: proj_size is not supported", nn.LSTM, 3, 4, {proj_size = 2})
    fails("RNN: dropout acts between layers, but num_layers is 1", nn.RNN, 3, 4, {dropout = 0.5})
    fails("GRUCell: input [1, 1, 3] must be [B, features] or [features]", nn.GRUCell(3, 4), resin.randn(1, 1, 3))
  end)

  it("take bf16", function()
    local m = nn.GRU(3, 4)
    local half = m:clone():to("bf16")
    local x = resin.randn(5, 2, 3)
    equal(m(x), half(x:to("bf16")):to("f32"), 0.02)
  end)

  it("leave nothing behind", function()
    local m = nn.LSTM(3, 4, {num_layers = 2, bidirectional = true})
    local x = resin.randn(5, 2, 3)
    local function call() resin.scope(function() m(x)[1]:sum():item() end) end
    call()
    collectgarbage()
    collectgarbage()
    local before = lib.stats.live_blocks
    for _ = 1, 10 do call() end
    collectgarbage()
    collectgarbage()
    assert.equal(before, lib.stats.live_blocks)
  end)
end)

describe("recurrent layers in containers", function()
  before_each(function() resin.manual_seed(6) end)

  it("pass the output on and return the states by name", function()
    local inner = nn.ResidualSequential{{"gru", nn.GRU(4, 4)}}
    local model = nn.ResidualSequential{{"r", nn.Record("r")}, {"lstm", nn.LSTM(4, 4)}, {"inner", inner},
      {"skip", nn.Apply{record_name = "r"}}}
    local x = resin.randn(6, 2, 4)
    local whole, states = model(x)
    assert.same({1, 2, 4}, states.lstm[2].shape)
    assert.same({1, 2, 4}, states.inner.gru.shape)
    local first, middle = model(x:narrow(1, 1, 4))
    local second = model(x:narrow(1, 5, 2), {hidden = middle})
    equal(whole, resin.cat({first, second}, 1))
    local by_name = model(x:narrow(1, 5, 2), {hidden = {lstm = middle.lstm, inner = {gru = middle.inner.gru}}})
    equal(second, by_name, 0)
    equal(second, model(x:narrow(1, 5, 2), {hidden = {lstm = middle.lstm}, inner = {gru = {hidden = middle.inner.gru}}}), 0)
    fails('hidden: "lstn": there is no such child (children: r, lstm, inner, skip)', model, x, {hidden = {lstn = middle.lstm}})
    fails('hidden: "r": a Record or Apply has no state', model, x, {hidden = {r = middle.lstm}})
    fails("hidden must be a table {child = state}", model, x, {hidden = x})
  end)

  it("RecurrentWrapper returns the state when asked", function()
    local lstm = nn.LSTM(3, 4)
    local x = resin.randn(5, 2, 3)
    local quiet, loud = nn.RecurrentWrapper(lstm), nn.RecurrentWrapper(lstm, true)
    assert.equal(1, select("#", quiet(x)))
    assert.equal("RecurrentWrapper()", quiet:label())
    assert.equal("RecurrentWrapper{carry = true, detach = false}", nn.RecurrentWrapper(lstm, {carry = true, detach = false}):label())
    local y, state = loud(x)
    equal(y, quiet(x), 0)
    equal(lstm(x, state), quiet(x, state), 0)
    assert.same({"module.weight_ih_l0", "module.weight_hh_l0", "module.bias_ih_l0", "module.bias_hh_l0"},
      (function() local n = {} for name in loud:named_parameters() do n[#n + 1] = name end return n end)())
    local block = nn.ResidualSequential{{"rnn", loud}}
    local _, states = block(x)
    equal(y, (block(x)))
    equal(lstm(x, states.rnn), block(x, {hidden = states}), 0)
    fails("must return its output and its state", nn.RecurrentWrapper(nn.Linear(3, 4)), x)
    fails("RecurrentWrapper: module must be a recurrent layer", nn.RecurrentWrapper, 3)
  end)

  it("RecurrentWrapper carries the state, detached or not, until reset", function()
    local gru = nn.GRU(3, 4)
    local x = resin.randn(6, 2, 3)
    local whole = gru(x)
    local model = nn.ResidualSequential(nn.RecurrentWrapper(gru, {carry = true}))
    local first = model(x:narrow(1, 1, 3))
    local second = model(x:narrow(1, 4, 3))
    equal(whole, resin.cat({first, second}, 1))
    assert.is_true(largest(first, model(x:narrow(1, 1, 3))) > 0)
    model[1]:reset()
    equal(first, model(x:narrow(1, 1, 3)), 0)
    assert.same({"0.module.weight_ih_l0", "0.module.weight_hh_l0", "0.module.bias_ih_l0", "0.module.bias_hh_l0"},
      (function() local n = {} for name in model:state_dict()() do n[#n + 1] = name end return n end)())

    local early = resin.randn(2, 1, 3):requires_grad_(true)
    for _, detach in ipairs{true, false} do
      local wrapper = nn.RecurrentWrapper(gru, {carry = true, detach = detach})
      wrapper(early)
      wrapper(resin.randn(2, 1, 3)):sum():backward()
      assert.equal(detach, early.grad == nil)
    end
  end)
end)
