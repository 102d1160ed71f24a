-- Checkpoint and Reversible: the same results and gradients as the layers written out, with less memory kept for backward.

local resin = require "resin"
local host = require "resin.host"
local nn = resin.nn

local function fails(text, fn, ...)
  local ok, message = pcall(fn, ...)
  assert.is_false(ok, "no error; expected: " .. text)
  assert.is_truthy(message:find(text, 1, true), message)
end

local function distance(a, b) return (a - b):abs():max():item() end

local function live()
  collectgarbage()
  collectgarbage()
  return resin.memory().live
end

-- Result and all gradients of fn(x) for parameters of `model`.
local function run(model, fn, x, seed)
  local input = x:clone():requires_grad_(true)
  model:zero_grad()
  local y = fn(input)
  y:backward(seed)
  local grads = {input.grad}
  for _, p in ipairs(model:parameters()) do grads[#grads + 1] = p.grad and p.grad:clone() or false end
  return y, grads
end

local function agree(model, by_hand, x, tolerance)
  local seed = resin.randn(unpack(resin.no_grad(model, x).shape))
  local y, grads = run(model, model, x, seed)
  local expected, wanted = run(model, by_hand, x, seed)
  assert.is_true(distance(y, expected) <= (tolerance or 0), "result")
  for i = 1, #wanted do
    if not wanted[i] or not grads[i] then
      assert.equal(wanted[i], grads[i], "gradient " .. i)
    else
      assert.is_true(distance(grads[i], wanted[i]) <= (tolerance or 1e-6), ("gradient %d: %g"):format(i, distance(grads[i], wanted[i])))
    end
  end
  live()
  assert.equal(0, host.count())
end

describe("Checkpoint", function()
  local x = resin.randn(5, 4)

  it("gives the layers' gradients", function()
    local m = nn.Checkpoint{nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3)}
    agree(m, function(t) return m.fn(t) end, x)
    assert.is_truthy(m:state_dict()["fn.0.weight"])
    assert.same({5, 3}, m:output_shape{5, 4})
  end)

  it("stands anywhere: beside a skip, in a row, one in another", function()
    local function block() return nn.Checkpoint{nn.Linear(4, 4), nn.Tanh()} end
    local m = nn.ResidualSequential(nn.Linear(4, 4), nn.Record(), block(), block(), nn.Apply(), nn.ResidualSequential(nn.Record(),
      nn.Checkpoint{nn.Linear(4, 4), block(), nn.Linear(4, 4)}, nn.Apply()), nn.Linear(4, 2))
    agree(m, function(t)
      local h = m[1](t)
      h = m[4].fn(m[3].fn(h)) + h
      local inner = m[6][2].fn
      h = inner[3](inner[2].fn(inner[1](h))) + h
      return m[7](h)
    end, x, 1e-6)
  end)

  it("drops what the first run dropped, and running statistics move once", function()
    local m = nn.Checkpoint{nn.Linear(4, 64), nn.BatchNorm1d(64), nn.Dropout(0.5)}
    local norm = m.fn[2]
    local input = x:clone():requires_grad_(true)
    local y = m(input)
    local zeros = y:eq(0):to("f32")
    local mean = norm.running_mean:clone()
    resin.randn(7)                                        -- somebody else draws numbers
    local state = resin.get_rng_state()
    y:sum():backward()
    assert.same(state, resin.get_rng_state())
    assert.equal(1, norm.num_batches_tracked:item())
    assert.equal(0, distance(mean, norm.running_mean))
    -- the gradient of the norm's bias says which elements stayed
    assert.same(((1 - zeros) * 2):sum(1):totable(), norm.bias.grad:totable())
  end)

  it("takes a gradient to its parameters when its input needs none, and several arguments", function()
    local m = nn.Checkpoint(nn.Linear(4, 2))
    m(x):sum():backward()
    local first = m.fn.weight.grad:clone()
    m:zero_grad()
    m.fn(x):sum():backward()
    assert.equal(0, distance(first, m.fn.weight.grad))
    local Two = nn.class("Two")
    function Two:forward(a, b, options) return a * b * options.k end -- luacheck: no self
    local two = nn.Checkpoint(Two())
    local a, b = resin.randn(3):requires_grad_(true), resin.randn(3)
    two(a, b, {k = 2}):sum():backward()
    assert.is_true(distance(a.grad, b * 2) < 1e-6)
    assert.is_nil(b.grad)
    b:requires_grad_(true)
    two(a, b, {k = 2}):sum():backward()
    assert.is_true(distance(b.grad, a * 2) < 1e-6)
  end)

  it("without gradients it is its function", function()
    local m = nn.Checkpoint(nn.Linear(4, 2))
    resin.no_grad(function() assert.equal(0, distance(m(x), m.fn(x))) end)
    assert.equal(0, host.count())
    m:requires_grad_(false)
    assert.is_false(m(x).requires_grad)
    local same = nn.Checkpoint(nn.Identity())
    local input = resin.ones(2):requires_grad_(true)
    same(input):sum():backward()
    assert.same({1, 1}, input.grad:totable())
    assert.is_nil(same(resin.ones(2)).grad)
  end)

  it("retain_graph runs it again; a second backward without it is an error", function()
    local m = nn.Checkpoint(nn.Linear(4, 2))
    local y = m(x):sum()
    y:backward{retain_graph = true}
    y:backward()
    local twice = m.fn.weight.grad:clone()
    m:zero_grad()
    m(x):sum():backward()
    assert.is_true(distance(twice, m.fn.weight.grad * 2) < 1e-5)
    fails("freed by an earlier backward", y.backward, y)
    assert.equal(0, host.count())
  end)

  it("keeps less: a deep stack needs the memory of one block", function()
    local function stack(wrap)
      local list = {}
      for i = 1, 8 do
        local block = {nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.GELU()}
        list[i] = wrap and nn.Checkpoint(block) or nn.Sequential(block)
      end
      return nn.Sequential(list)
    end
    local input = resin.randn(512, 64):requires_grad_(true)
    local function kept(model)
      local before = live()
      local y = model(input)
      local after = live()
      y:sum():backward()
      return after - before
    end
    local plain, wrapped = kept(stack(false)), kept(stack(true))
    assert.is_true(wrapped < 0.45 * plain, ("%d of %d bytes"):format(wrapped, plain))
  end)

  it("nothing is left of graphs that are dropped", function()
    local m = nn.Checkpoint(nn.Linear(4, 2))
    m(x):sum():backward()
    m:zero_grad()
    local before = live()
    for _ = 1, 40 do m(resin.randn(100, 4)) end
    live()
    assert.equal(0, host.count())
    assert.equal(before, live())
  end)

  it("errors leave the graph usable, and say where they come from", function()
    local broken = false
    local layer = nn.Linear(4, 4)
    local m = nn.Checkpoint(function(t)
      if broken then error("boom") end
      return layer(t)
    end)
    local y = m(layer(x)):sum()
    broken = true
    fails("boom", y.backward, y, {retain_graph = true})
    broken = false
    y:backward()
    assert.is_truthy(layer.weight.grad)
    fails("Checkpoint: fn is missing", nn.Checkpoint)
    fails("Checkpoint: Lambda returned nil; it must return a tensor", nn.Checkpoint(function() end), x:clone():requires_grad_(true))
    local input = x:clone():requires_grad_(true)
    fails("which only a plain backward can", resin.grad, nn.Checkpoint(nn.Linear(4, 1))(input):sum(), {input})
    local z = nn.Checkpoint(nn.Linear(4, 1))(input):sum()
    fails("which only a plain backward can", z.backward, z, {create_graph = true})
    local h = x * 1
    local late = nn.Checkpoint(nn.Linear(4, 1))(h):sum()
    h:relu_()
    fails("Checkpoint: argument 1 was overwritten in place before backward", late.backward, late)
    local outside = layer(x)
    local leak = nn.Checkpoint(function(t) return t * outside end)
    local w = (leak(outside) + outside):sum()
    fails("a checkpointed function must take every tensor that needs a gradient as an argument", w.backward, w)
  end)
end)

describe("Reversible", function()
  local function blocks(n, make, options)
    local list = options or {}
    for i = 1, n do list[i] = {make(), make()} end
    return nn.Reversible(list)
  end

  local function by_hand(m, dim)
    return function(t)
      local n = t:size(dim) / 2
      local a, b = t:narrow(dim, 1, n), t:narrow(dim, n + 1, n)
      for i = 1, #m do
        a = a + m[i].f(b)
        b = b + m[i].g(a)
      end
      return resin.cat({a, b}, dim)
    end
  end

  it("gives the gradients of the blocks written out", function()
    local m = blocks(3, function() return nn.Sequential(nn.Linear(3, 3), nn.Tanh()) end)
    agree(m, by_hand(m, 2), resin.randn(5, 6), 1e-5)
    assert.is_truthy(m:state_dict()["0.f.0.weight"])
    local conv = blocks(2, function() return nn.Conv2d(2, 2, 3, {padding = 1}) end)
    agree(conv, by_hand(conv, 2), resin.randn(2, 4, 5, 5), 1e-4)
    local rows = blocks(1, nn.Tanh, {dim = 1})
    agree(rows, by_hand(rows, 1), resin.randn(4, 3), 1e-5)
    local around = nn.ResidualSequential(nn.Linear(6, 6), nn.Record(), m, nn.Apply())
    agree(around, function(t)
      local h = around[1](t)
      return by_hand(m, 2)(h) + h
    end, resin.randn(5, 6), 1e-5)
  end)

  it("with dropout: the masks of the forward", function()
    local m = blocks(2, function() return nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)) end)
    local x = resin.randn(4, 16)
    local seed = resin.randn(4, 16)
    resin.manual_seed(5)
    local y, grads = run(m, m, x, seed)
    resin.manual_seed(5)
    local expected, wanted = run(m, by_hand(m, 2), x, seed)
    assert.is_true(distance(y, expected) < 1e-6)
    for i = 1, #wanted do assert.is_true(distance(grads[i], wanted[i]) < 1e-4) end
  end)

  it("keeps its output only, however deep", function()
    local input = resin.randn(256, 64):requires_grad_(true)
    local function kept(depth)
      local m = blocks(depth, function() return nn.Sequential(nn.Linear(32, 32), nn.Tanh()) end)
      local before = live()
      local y = m(input)
      local bytes = live() - before
      y:sum():backward()
      return bytes
    end
    assert.is_near(kept(2), kept(12), 20000)
  end)

  it("errors", function()
    fails("Reversible: entry 1 must be a pair {f, g}", nn.Reversible, {nn.Tanh()})
    fails('Reversible: unknown option "dmi"', nn.Reversible, {dmi = 2})
    fails("Reversible: dimension 2 of the input [2, 3] must have an even size", blocks(1, nn.Tanh), resin.ones(2, 3))
    fails("in Reversible 1 (f: Linear): it makes [2, 3] of [2, 2]", nn.Reversible{{nn.Linear(2, 3), nn.Tanh()}}, resin.ones(2, 4))
    local m = blocks(1, nn.Tanh)
    local y = m(resin.randn(2, 4):requires_grad_(true))
    fails("freed", function()
      y:sum():backward()
      y:sum():backward()
    end)
  end)
end)
