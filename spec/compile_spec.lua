-- resin.compile: every behaviour that compile.lua documents, and its error texts.

local resin = require "resin"
local lib = require "resin.lib"
local samples = require "spec.support.samples"

local nn, optim, F = resin.nn, resin.optim, resin.F
local EXACT = { passes = { "ssa", "clean", "hoist" } }       -- these leave every bit as it is

local function same(a, b, what)
  assert.equal(a.dtype, b.dtype, what)
  assert.same(a.shape, b.shape, what)
  local d = samples.difference(a, b)
  if d ~= 0 then error((what or "tensor") .. " differs by " .. d, 2) end
end

local function fails(pattern, fn, ...)
  local ok, message = pcall(fn, ...)
  assert.is_false(ok, "no error; wanted " .. pattern)
  assert.is_truthy(tostring(message):find(pattern), tostring(message))
  return tostring(message)
end

local function mlp()
  return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.LayerNorm(16), nn.Linear(16, 4))
end

-- The same thing made twice from one seed, and random numbers that start alike.
local function twins(make, seed)
  resin.manual_seed(seed or 1)
  local a = make()
  resin.manual_seed(seed or 1)
  return a, make()
end

local function batches(n, seed)
  resin.manual_seed(seed or 77)
  local list = {}
  for i = 1, n do list[i] = { resin.randn(8, 6), resin.randint(1, 4, { 8 }) } end
  return list
end

-- A training step over {model, opt}; zero = "start", "end" or "none".
local function step_of(t, zero)
  return function(x, y)
    if zero == "start" then t.opt:zero_grad() end
    local loss = F.cross_entropy(t.model(x), y)
    loss:backward()
    t.opt:step()
    if zero == "end" then t.opt:zero_grad() end
    return loss
  end
end

local function same_parameters(a, b)
  local p, q = a:parameters(), b:parameters()
  for i = 1, #p do same(p[i], q[i], "parameter " .. i) end
end

local function same_gradients(a, b)
  local p, q = a:parameters(), b:parameters()
  for i = 1, #p do
    assert.equal(p[i].grad ~= nil, q[i].grad ~= nil, "gradient " .. i)
    if p[i].grad then same(p[i].grad, q[i].grad, "gradient " .. i) end
  end
end

-- Runs eager and compiled side by side over `count` batches; `each` may change something in both.
local function train_both(make, zero, count, each, options)
  local a, b = twins(make)
  local eager, fast = step_of(a, zero), resin.compile(step_of(b, zero), options or EXACT)
  local state = resin.get_rng_state()
  local other = state
  for i, batch in ipairs(batches(count or 6)) do
    if each then each(a, i) each(b, i) end
    resin.set_rng_state(state)
    local want = eager(batch[1], batch[2])
    state = resin.get_rng_state()
    resin.set_rng_state(other)
    local got = fast(batch[1], batch[2])
    other = resin.get_rng_state()
    assert.same(state, other)
    same(want:detach(), got, "loss of step " .. i)
    same_gradients(a.model, b.model)
  end
  same_parameters(a.model, b.model)
  return a, b, fast
end

describe("resin.compile", function()
  before_each(function() resin.manual_seed(5) end)

  describe("a module", function()
    it("gives what it gives eagerly, from the first call on", function()
      local model = mlp():eval()
      local fast = resin.compile(model, EXACT)
      for _ = 1, 4 do
        local x = resin.randn(3, 6)
        same(model(x):detach(), fast(x))
      end
      assert.equal(1, fast.recorded)
    end)

    it("returns tensors without gradients, a new one for each call", function()
      local model = mlp():eval()
      local fast = resin.compile(model)
      local x = resin.randn(3, 6)
      local first, second = fast(x), fast(x)
      assert.is_false(first.requires_grad)
      assert.is_false(second.requires_grad)
      local kept = second:clone()
      local third = fast(resin.randn(3, 6))
      same(kept, second)
      assert.equal(0, lib.C.rs_tensor_same_storage(second.h, third.h))
    end)

    it("records once per shape and dtype, and keeps max_programs of them", function()
      local model = mlp():eval()
      local fast = resin.compile(model, { max_programs = 2 })
      for _, n in ipairs { 1, 2, 1, 2, 1 } do fast(resin.randn(n, 6)) end
      assert.equal(2, fast.recorded)
      fast(resin.randn(3, 6))             -- in the place of the one used least recently, of 2
      assert.equal(3, fast.recorded)
      assert.equal(2, #fast.entries)
      fast(resin.randn(1, 6))
      assert.equal(3, fast.recorded)
      fast(resin.randn(2, 6))
      assert.equal(4, fast.recorded)
      local double = resin.compile(function(x) return x * 2 end)
      for _ = 1, 3 do double(resin.randn(2)) double(resin.randn(2):to("f64")) end
      assert.equal(2, double.recorded)
      assert.equal("f64", double(resin.ones({ 2 }, { dtype = "f64" })).dtype)
    end)

    it("runs as it is while it trains and gradients are on", function()
      local model = mlp()
      local fast = resin.compile(model)
      local y = fast(resin.randn(2, 6))
      assert.is_true(y.requires_grad)
      y:sum():backward()
      assert.is_truthy(model[1].weight.grad)
      assert.equal(0, fast.recorded)
      resin.no_grad(fast, resin.randn(2, 6))
      assert.equal(1, fast.recorded)
    end)

    it("follows train() and eval()", function()
      local model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
      local fast = resin.compile(model, EXACT)
      local x = resin.randn(5, 6)
      for round = 1, 2 do
        model:eval()
        local want = resin.no_grad(model, x)
        for _ = 1, 2 do same(want, resin.no_grad(fast, x), "eval, round " .. round) end
        model:train()
        resin.manual_seed(round)
        local running = model[2].running_mean:clone()
        want = resin.no_grad(model, x)
        model[2].running_mean:copy_(running)
        resin.manual_seed(round)
        same(want, resin.no_grad(fast, x), "train, round " .. round)
      end
    end)

    it("sees parameters that are written in place, also those that its prologue read", function()
      local model = nn.Sequential(nn.Linear(4, 4))
      model:eval()
      local fast = resin.compile(function(x) return x + (model[1].weight * 2):sum() end, EXACT)
      local x = resin.randn(3)
      for i = 1, 4 do
        resin.no_grad(function() model[1].weight:fill_(i) end)
        same(x + 32 * i, resin.no_grad(fast, x))
      end
      assert.equal(1, fast.recorded)
      model[1].weight:data()[0] = 104           -- past resin: refresh says so
      fast:refresh()
      same(x + 328, resin.no_grad(fast, x))
    end)

    it("takes over a state_dict that is loaded into the model", function()
      local a, b = mlp():eval(), mlp():eval()
      local fast = resin.compile(a, EXACT)
      local x = resin.randn(2, 6)
      fast(x)
      a:load_state_dict(b:state_dict())
      same(b(x):detach(), fast(x))
    end)

    it("records again when a layer is replaced or added", function()
      local model = nn.Sequential(nn.Linear(6, 6)):eval()
      local fast = resin.compile(model, EXACT)
      local x = resin.randn(2, 6)
      fast(x)
      model:append(nn.Tanh())
      model:eval()
      same(model(x):detach(), fast(x))
      same(model(x):detach(), fast(x))
      assert.equal(2, fast.recorded)
    end)

    it("does not record again because another module changed", function()
      local model = mlp():eval()
      local fast = resin.compile(model, EXACT)
      local x = resin.randn(2, 6)
      fast(x)
      mlp():eval()
      fast(x)
      assert.equal(1, fast.recorded)
    end)
  end)

  describe("a training step", function()
    for _, zero in ipairs { "start", "end", "none" } do
      it("equals eager with zero_grad at " .. zero, function()
        train_both(function()
          local model = mlp()
          return { model = model, opt = optim.Adam(model, { lr = 1e-2 }) }
        end, zero)
      end)
    end

    it("equals eager for SGD with momentum, AdamW and two groups", function()
      train_both(function()
        local model = mlp()
        return { model = model, opt = optim.SGD(model, { lr = 0.1, momentum = 0.9, nesterov = true, weight_decay = 0.01 }) }
      end, "start")
      train_both(function()
        local model = mlp()
        return { model = model, opt = optim.AdamW({ { params = model[1], lr = 0.1 }, { params = { model[4].weight, model[4].bias } } }) }
      end, "start")
    end)

    it("equals eager with all passes, within rounding", function()
      local a, b = twins(function()
        local model = mlp()
        return { model = model, opt = optim.SGD(model, { lr = 0.05 }) }
      end)
      local eager, fast = step_of(a, "start"), resin.compile(step_of(b, "start"))
      for _, batch in ipairs(batches(8)) do
        local want, got = eager(batch[1], batch[2]), fast(batch[1], batch[2])
        assert.is_true(samples.difference(want:detach(), got) < 1e-5)
      end
      for i, p in ipairs(a.model:parameters()) do assert.is_true(samples.difference(p, b.model:parameters()[i]) < 1e-4) end
    end)

    it("reads learning rates, and what a schedule writes, at each run", function()
      local _, _, fast = train_both(function()
        local model = mlp()
        return { model = model, opt = optim.Adam(model, { lr = 1e-2 }) }
      end, "start", 8, function(t, i)
        t.opt.lr = 0.05 * (1 + math.cos(i / 8 * math.pi))
        t.opt.param_groups[1].betas = { 0.9 - 0.01 * i, 0.99 }
        if i == 6 then t.opt.param_groups[1].weight_decay = 0.1 end
      end)
      assert.is_true(fast.recorded <= 2)
    end)

    it("draws the random numbers that eager draws", function()
      train_both(function()
        local model = nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.3), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 4))
        return { model = model, opt = optim.SGD(model, { lr = 0.1 }) }
      end, "start", 7)
    end)

    it("updates BatchNorm's statistics", function()
      local a, b = train_both(function()
        local model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
        return { model = model, opt = optim.SGD(model, { lr = 0.1 }) }
      end, "start")
      same(a.model[2].running_mean, b.model[2].running_mean)
      same(a.model[2].running_var, b.model[2].running_var)
      same(a.model[2].num_batches_tracked, b.model[2].num_batches_tracked)
    end)

    it("accumulates over two calls when another one steps", function()
      local a, b = twins(function()
        local model = mlp()
        return { model = model, opt = optim.SGD(model, { lr = 0.1 }) }
      end)
      local function parts(t)
        return function(x, y)
          local loss = F.cross_entropy(t.model(x), y)
          loss:backward()
          return loss
        end, function() t.opt:step() t.opt:zero_grad() end
      end
      local eager_add, eager_step = parts(a)
      local add, update = parts(b)
      local fast_add, fast_step = resin.compile(add, EXACT), resin.compile(update, EXACT)
      for i, batch in ipairs(batches(12)) do
        same(eager_add(batch[1], batch[2]):detach(), fast_add(batch[1], batch[2]))
        same_gradients(a.model, b.model)
        if i % 2 == 0 then
          eager_step()
          fast_step()
          same_gradients(a.model, b.model)
          same_parameters(a.model, b.model)
        end
      end
      assert.is_true(fast_add.recorded <= 4, "recorded " .. fast_add.recorded)
    end)

    it("mixes with eager steps", function()
      local a, b = twins(function()
        local model = mlp()
        return { model = model, opt = optim.Adam(model, { lr = 1e-2 }) }
      end)
      local eager, plain = step_of(a, "start"), step_of(b, "start")
      local fast = resin.compile(plain, EXACT)
      for i, batch in ipairs(batches(12)) do
        local want = eager(batch[1], batch[2])
        local got = (i % 3 == 0 and plain or fast)(batch[1], batch[2])
        same(want:detach(), got:detach(), "step " .. i)
        same_gradients(a.model, b.model)
      end
      same_parameters(a.model, b.model)
    end)

    it("leaves gradients that can be read, changed and dropped", function()
      local a, b = train_both(function()
        local model = mlp()
        return { model = model, opt = optim.SGD(model, { lr = 0.1 }) }
      end, "start", 6, function(t, i)
        if i == 4 then t.model[1].weight.grad = nil end
        if i == 5 then t.model[1].weight.grad = resin.ones(16, 6) end
        if i == 6 then t.opt:zero_grad() end
      end)
      assert.is_truthy(a.model[1].weight.grad and b.model[1].weight.grad)
    end)

    it("takes a loaded optimiser state", function()
      local function make()
        local model = mlp()
        return { model = model, opt = optim.Adam(model, { lr = 1e-2 }) }
      end
      local saved
      train_both(make, "start", 8, function(t, i)
        if i == 3 then
          saved = saved or {}
          saved[t] = {}
          for name, value in pairs(t.opt:state_dict()) do saved[t][name] = value:clone() end
        elseif i == 6 then
          t.opt:load_state_dict(saved[t])
        end
      end)
    end)

    it("is recorded again when a switch of the optimiser changes", function()
      for _, case in ipairs { { "SGD", "maximize", true }, { "SGD", "momentum", 0.9 }, { "Adam", "maximize", true },
        { "SGD", "nesterov", true, { lr = 0.1, momentum = 0.9 } } } do
        local name, key, value, options = case[1], case[2], case[3], case[4] or { lr = 0.1 }
        local _, _, fast = train_both(function()
          local model = mlp()
          return { model = model, opt = optim[name](model, options) }
        end, "start", 8, function(t, i)
          if i >= 5 then t.opt.param_groups[1][key] = value end
        end)
        assert.is_true(fast.recorded <= 4, name .. " " .. key .. ": " .. fast.recorded)
      end
    end)

    it("trains parameters that are added later", function()
      local extra = {}
      train_both(function()
        local model = mlp()
        return { model = model, opt = optim.Adam({ model[1].weight, model[1].bias }, { lr = 1e-2 }) }
      end, "start", 8, function(t, i)
        if i == 5 then
          t.opt:add_param_group { params = t.model[4], lr = 0.5 }
          extra[#extra + 1] = t
        end
      end)
      assert.equal(2, #extra)
    end)

    it("clips gradients", function()
      local function make()
        local model = mlp()
        return { model = model, opt = optim.SGD(model, { lr = 1 }) }
      end
      local a, b = twins(make)
      local function step(t)
        return function(x, y)
          t.opt:zero_grad()
          local loss = F.cross_entropy(t.model(x), y)
          loss:backward()
          nn.utils.clip_grad_norm_(t.model:parameters(), 0.1)
          t.opt:step()
          return loss
        end
      end
      if not (nn.utils and nn.utils.clip_grad_norm_) then return end
      local eager, fast = step(a), resin.compile(step(b), EXACT)
      for _, batch in ipairs(batches(5)) do same(eager(batch[1], batch[2]):detach(), fast(batch[1], batch[2])) end
    end)
  end)

  describe("gradients", function()
    it("are what they were when recording fails", function()
      local w = resin.randn({ 3 }, { requires_grad = true })
      local x = resin.ones(3)
      for _, drop in ipairs { true, false } do
        w.grad = nil
        (w * x):sum():backward()
        local before = w.grad
        local fast = resin.compile(function(a)
          if drop then w.grad = nil end
          (w * a):sum():backward()
          error("after backward")
        end)
        fails("after backward", fast, resin.randn(3))
        same(x, before)
        same(x, w.grad)
      end
    end)

    it("are not changed by a recording that does not run", function()
      local w = resin.randn({ 3 }, { requires_grad = true })
      local x = resin.full({ 3 }, 2)
      local fast = resin.compile(function(a)
        local loss = (w * a):sum()
        loss:backward()
        return loss
      end, EXACT)
      for i = 1, 5 do
        fast(x)
        same(x * i, w.grad)
      end
      assert.equal(2, fast.recorded)          -- without a gradient before, and with one
    end)
  end)

  describe("arguments and results", function()
    it("may be nested tables, numbers, strings, booleans and nil", function()
      local calls = 0
      local fast = resin.compile(function(a, options, flag, none, last)
        calls = calls + 1
        local y = a.x * options.scale + a.list[1] - a.list[2]
        if flag then y = -y end
        return { sum = y:sum(), parts = { y, name = options.name } }, none, last + 1, "text"
      end, EXACT)
      local function given(scale)
        return { x = resin.ones(3), list = { resin.full({ 3 }, 4), resin.randn(3) } }, { scale = scale, name = "s" }
      end
      for _ = 1, 4 do
        local a, options = given(2)
        local r, none, number, word = fast(a, options, true, nil, 7)
        same(-(a.x * 2 + a.list[1] - a.list[2]), r.parts[1])
        assert.equal("s", r.parts.name)
        assert.is_nil(none)
        assert.equal(8, number)
        assert.equal("text", word)
        assert.is_true(math.abs(r.sum:item() - r.parts[1]:sum():item()) < 1e-6)
      end
      assert.equal(1, fast.recorded)
      assert.equal(1, calls)
      local a, options = given(3)
      local r = fast(a, options, true, nil, 7)          -- another number is another program
      same(-(a.x * 3 + a.list[1] - a.list[2]), r.parts[1])
      assert.equal(2, fast.recorded)
      r = fast(a, options, false, nil, 7)
      same(a.x * 3 + a.list[1] - a.list[2], r.parts[1])
      assert.equal(3, fast.recorded)
    end)

    it("tell keys from values, and nil at the end from nothing", function()
      local fast = resin.compile(function(t, ...) return t.a or t.b, select("#", ...) end, EXACT)
      local x, y = resin.ones(2), resin.zeros(2)
      for _ = 1, 3 do
        same(x, (fast({ a = x })))
        same(y, (fast({ b = y })))
        assert.equal(1, select(2, fast({ a = x }, nil)))
        assert.equal(0, select(2, fast({ a = x })))
      end
    end)

    it("may be keyword tables of a module", function()
      local layer = nn.MultiheadAttention(8, 2):eval()
      local fast = resin.compile(layer, EXACT)
      local x = resin.randn(5, 3, 8)
      for _ = 1, 3 do
        local want = layer(x, x, x, { need_weights = false })
        local got = fast(x, x, x, { need_weights = false })
        if type(want) == "table" and want.h == nil then want, got = want[1], got[1] end
        same(want:detach(), got)
      end
      assert.equal(1, fast.recorded)
    end)

    it("may be strided, and the same tensor twice", function()
      local fast = resin.compile(function(a, b) return a * 2 + b end, EXACT)
      for _ = 1, 3 do
        local a, b = resin.randn(4, 3), resin.randn(3, 4)
        same(a * 2 + b:t(), fast(a, b:t()))
        same(a * 2 + a, fast(a, a))
        local row = resin.randn(3):expand(4, 3)
        same(row * 2 + a, fast(row, a))
      end
      assert.equal(1, fast.recorded)
    end)

    it("may require a gradient: it is computed as eagerly, and seen where the function looks at it", function()
      local w = resin.randn({ 3 }, { requires_grad = true })
      local fast = resin.compile(function(x)
        local loss = (x * w):sum()
        loss:backward()
        return loss
      end, EXACT)
      for i = 1, 4 do
        w.grad = nil
        local x = resin.full({ 3 }, i)
        fast(x)
        same(x, w.grad)
      end
    end)

    it("are at most 64 tensors and nested at most 6 deep", function()
      local fast = resin.compile(function(list) return list[1] end)
      local many = {}
      for i = 1, 65 do many[i] = resin.ones(1) end
      fails("compile: 65 tensors were given; at most 64 are possible", fast, many)
      fails("compile: 65 tensors were given; at most 64 are possible", fast.begin, fast, many)
      local deep = resin.ones(1)
      for _ = 1, 8 do deep = { deep } end
      fails("compile: argument 1 is nested too deeply", fast, deep)
      local wide = resin.compile(function(x)
        local list = {}
        for i = 1, 65 do list[i] = x + i end
        return list
      end)
      fails("compile: the function returns 65 tensors; at most 64 are possible", wide, resin.ones(1))
      assert.equal(0, lib.C.rs_is_tracing(lib.ctx))
    end)

    it("cannot be functions or modules", function()
      local fast = resin.compile(function(x) return x end)
      fails("compile: argument 2 must be made of tensors, numbers, strings, booleans and plain tables, got a function", fast, resin.ones(1),
        print)
      fails("compile: argument 1 must be made of .*, got Linear", fast, nn.Linear(2, 2))
    end)

    it("are ordered by their keys, 1 apart from \"1\", and told from lists of them", function()
      local fast = resin.compile(function(t) return t[1] - t["1"] end, EXACT)
      for i = 1, 4 do
        local x, y = resin.randn(2), resin.randn(2)
        local t = {}
        if i % 2 == 0 then t["1"], t[1] = y, x else t[1], t["1"] = x, y end
        same(x - y, fast(t))
      end
      assert.equal(1, fast.recorded)
      fails("compile: argument 1: the keys of tables must be numbers and strings, got true", fast, { [true] = 1 })
      local first = resin.compile(function(a, b) return b and a - b or a[1] + a[2] end, EXACT)
      local x, y = resin.randn(2), resin.randn(2)
      same(x - y, first(x, y))
      same(x + y, first({ x, y }, nil))
    end)

    it("that are results cannot be objects, cycles or freed", function()
      local x = resin.ones(2)
      fails("compile: result 2 must be made of tensors, numbers, strings, booleans and plain tables, got a function",
        resin.compile(function(a) return a, { print } end), x)
      fails("compile: result 1 must be made of .*, got Linear", resin.compile(function() return nn.Linear(2, 2) end), x)
      fails("compile: result 1 is nested too deeply", resin.compile(function(a)
        local t = { a }
        t[2] = t
        return t
      end), x)
      fails("compile: result: tensor was freed", resin.compile(function(a)
        local y = a * 2
        y:free()
        return y
      end), x)
      assert.equal(0, lib.C.rs_is_tracing(lib.ctx))
    end)

    it("are results of their own, each", function()
      local fast = resin.compile(function(x)
        local y = x * 2
        return y, y, y:t()
      end, EXACT)
      for _ = 1, 3 do
        local x = resin.randn(2, 3)
        local a, b, c = fast(x)
        a:zero_()
        same(x * 2, b)
        same((x * 2):t(), c)
      end
    end)

    it("stay as they are when the function runs again", function()
      local weight = nn.Parameter(resin.randn(2, 3))
      local function f(x)
        local y = x * 2
        return y:t(), y:sum(), weight:detach() * 3
      end
      local fast = resin.compile(f, EXACT)
      fast(resin.randn(2, 3))
      local given = {}
      for i = 1, 4 do
        local x = resin.randn(2, 3)
        if i % 2 == 0 then
          fast:begin(x)
          given[i] = { x = x, select(2, fast:step()) }
        else
          given[i] = { x = x, fast(x) }
        end
        if i == 2 then given[i][3]:zero_() end       -- made once for all runs, so each result is a copy
      end
      for i, g in ipairs(given) do
        same((g.x * 2):t(), g[1])
        same((g.x * 2):sum(), g[2])
        same(i == 2 and resin.zeros(2, 3) or weight:detach() * 3, g[3])
      end
    end)

    it("are written in place where they are contiguous and given once", function()
      local fast = resin.compile(function(a, b) return a:add_(b) end, EXACT)
      local wanted = "compile: the function writes into an argument in place, so argument %d must be contiguous and not be given twice"
      for _ = 1, 3 do                    -- the first time while it is recorded
        local a, b = resin.zeros(2, 3), resin.ones(3, 2):t()
        fails(wanted:format(2), fast, a, b)
        fails(wanted:format(1), fast, resin.zeros(3, 2):t(), b:contiguous())
        fails("write", fast, a, a)
        fails(wanted:format(2), fast.begin, fast, a, b)
        same(resin.zeros(2, 3), a)
        fast(a, b:contiguous())
        same(resin.ones(2, 3), a)
      end
      assert.equal(1, fast.recorded)
    end)

    it("cannot be freed by the function", function()
      local fast = resin.compile(function(_, t)
        local y = t.x * 2
        t.x:free()
        return y
      end)
      fails("compile: the function frees argument 2; a program needs it at each run, so free it after the call", fast, resin.ones(2),
        { x = resin.ones(2) })
      assert.equal(0, lib.C.rs_is_tracing(lib.ctx))
      same(resin.ones(2) * 2, resin.compile(function(t) return t * 2 end)(resin.ones(2)))
    end)

    it("may be no tensors at all", function()
      local x = resin.ones(3)
      local fast = resin.compile(function() return x + 1 end, EXACT)
      for i = 1, 4 do
        x:fill_(i)
        same(x + 1, fast())
      end
    end)

    it("give an argument or a parameter back as itself", function()
      local w = resin.ones(2)
      local fast = resin.compile(function(x) return x, w, x:t() end, EXACT)
      for _ = 1, 3 do
        local x = resin.randn(2, 3)
        local a, b, c = fast(x)
        same(x, a)
        assert.equal(1, lib.C.rs_tensor_same_storage(b.h, w.h))
        same(x:t(), c)
      end
    end)
  end)

  describe("what happens in Lua", function()
    it("happens only while it is recorded", function()
      local calls = 0
      local fast = resin.compile(function(x)
        calls = calls + 1
        return x + calls
      end, EXACT)
      for _ = 1, 5 do fast(resin.zeros(1)) end
      assert.equal(1, calls)
      assert.equal(1, fast(resin.zeros(1)):item())
    end)

    it("cannot read a value: the error names the line", function()
      local fast = resin.compile(function(x)
        if x:sum():item() > 0 then return x end       -- the line that the error must name
        return -x
      end)
      local here = debug.getinfo(1, "l").currentline - 3
      local message = fails("item: a value cannot be read or written from outside while a program is recorded", fast, resin.ones(2))
      assert.is_truthy(message:find("compile_spec.lua:" .. here .. ":", 1, true), message)
      assert.equal(0, lib.C.rs_is_tracing(lib.ctx))
    end)

    it("cannot look at values by totable or by printing", function()
      for _, look in ipairs { function(x) return x:totable() end, function(x) return tostring(x) end } do
        local fast = resin.compile(function(x)
          look(x)
          return x
        end)
        fails("cannot be read or written from outside while a program is recorded", fast, resin.ones(2))
        assert.equal(0, lib.C.rs_is_tracing(lib.ctx))
      end
    end)

    it("cannot look behind values by data()", function()
      local w, kept = resin.ones(2), nil
      for _, look in ipairs { function(x) return x:data() end, function(x) return (x * 2):data() end, function() return w:data() end } do
        fails("data: a value cannot be read or written from outside while a program is recorded", resin.compile(function(x)
          look(x)
          return x
        end), resin.ones(2))
      end
      resin.compile(function(x)
        kept = x * 2
        return x
      end)(resin.ones(2))
      fails("data: this tensor was made while a program was recorded, so it has a shape but no values", kept.data, kept)
      assert.equal(1, w:data()[0])
    end)

    it("cannot set the machine or the random numbers", function()
      local state = resin.get_rng_state()
      for name, value in pairs { manual_seed = 1, set_rng_state = state, set_num_threads = 1, set_isa = "best", set_backends = "all",
        set_precision = "default" } do
        fails(name .. ": not while a program is recorded", resin.compile(function(x)
          resin[name](value)
          return x
        end), resin.ones(2))
      end
      assert.equal(0, lib.C.rs_is_tracing(lib.ctx))
      assert.same(state, resin.get_rng_state())
    end)

    it("cannot yield, and leaves nothing behind then", function()
      local w = resin.randn({ 2 }, { requires_grad = true })
      local layer = nn.Sequential(nn.Linear(2, 2), function(x)
        coroutine.yield(1)
        return x
      end)
      local here = debug.getinfo(1, "l").currentline + 3
      local ways = {
        function(x)
          coroutine.yield(1)
          return x
        end,
        function(x) return resin.scope(function() coroutine.yield(1) return x end) end,
        function(x) return resin.no_grad(function() coroutine.yield(1) return x end) end,
        function(x) return layer(x:reshape(1, 2)) end,
      }
      for i, way in ipairs(ways) do
        local fast = resin.compile(way)
        local co = coroutine.create(function() return fast(resin.ones(2)) end)
        local message = fails("compile: a function cannot yield while it is recorded", function() assert(coroutine.resume(co)) end)
        if i == 1 then assert.is_truthy(message:find("compile_spec.lua:" .. here .. ":", 1, true), message) end
        assert.equal("dead", coroutine.status(co))
        assert.equal(0, lib.C.rs_is_tracing(lib.ctx))
        assert.is_true(resin.is_grad_enabled())
        local y = w * 2                  -- is computed
        assert.equal(2, #y:totable())
      end
      local inside = resin.compile(function(x)      -- coroutines of its own are its own
        local co = coroutine.wrap(function(a) coroutine.yield(a * 2) end)
        return co(x)
      end)
      same(resin.full({ 2 }, 2), inside(resin.ones(2)))
      local fast = resin.compile(nn.Linear(2, 2):eval())
      local line = debug.getinfo(1, "l").currentline + 2
      local message = fails("linear", function()
        local y = fast(resin.ones(1, 3))
        return y
      end)
      assert.is_truthy(message:find("compile_spec.lua:" .. line .. ":", 1, true), message)
    end)

    it("cannot be BatchNorm's plain average of all batches", function()
      local norm = nn.BatchNorm1d(2, { momentum = false })
      fails("item: a value cannot be read", resin.no_grad, resin.compile(norm), resin.ones(3, 2))
      norm:eval()
      assert.is_truthy(resin.compile(norm)(resin.ones(3, 2)))
    end)

    it("leaves no recording behind after an error, and the next call records", function()
      local bad = true
      local fast = resin.compile(function(x)
        local y = x * 2
        if bad then error("mine") end
        return y
      end, EXACT)
      fails("mine", fast, resin.ones(2))
      fails("mine", fast, resin.ones(2))
      assert.equal(0, lib.C.rs_is_tracing(lib.ctx))
      bad = false
      for _ = 1, 3 do same(resin.full({ 2 }, 2), fast(resin.ones(2))) end
      assert.equal(1, fast.recorded)
      local model = nn.Sequential(nn.Linear(6, 6)):eval()
      local compiled = resin.compile(model)
      local grads = resin.is_grad_enabled()
      fails("Linear", compiled, resin.ones(2, 5))
      assert.equal(grads, resin.is_grad_enabled())
      assert.equal(0, lib.C.rs_is_tracing(lib.ctx))
    end)

    it("may make parameters and state, once", function()
      local made = 0
      local fast = resin.compile(function(x)
        made = made + 1
        return nn.Linear(2, 2)(x)
      end, EXACT)
      local x = resin.ones(1, 2)
      local want = fast(x)
      for _ = 1, 3 do same(want, fast(x)) end
      assert.equal(1, made)
    end)

    it("leaves tensors without values: only what is returned has some", function()
      local kept
      local fast = resin.compile(function(x)
        kept = x * 2
        return kept + 1
      end, EXACT)
      same(resin.full({ 2 }, 3), fast(resin.ones(2)))
      assert.same({ 2 }, kept.shape)
      fails("read: this tensor was made while a program was recorded, so it has a shape but no values", kept.totable, kept)
      fails("an input was made while a program was recorded, so it has a shape but no values", function() return kept + 1 end)
      fails("made while a program was recorded, so it has no values", fast, kept)
    end)

    it("may call another compiled function, which becomes part of the recording", function()
      local model = mlp():eval()
      local inner = resin.compile(model, EXACT)
      local outer = resin.compile(function(x) return inner(x) * 2 end, EXACT)
      local x = resin.randn(2, 6)
      for _ = 1, 4 do same(model(x):detach() * 2, resin.no_grad(outer, x)) end
      assert.equal(1, outer.recorded)
      local twice = resin.compile(inner, EXACT)
      for _ = 1, 3 do same(model(x):detach(), twice(x)) end
    end)

    it("keeps constants that the function makes of numbers", function()
      local fast = resin.compile(function(x)
        local c = resin.tensor { 1, 2, 3 }
        local y = x * c + 0.5
        c:free()
        return y
      end, EXACT)
      for _ = 1, 4 do
        local x = resin.randn(3)
        same(x * resin.tensor { 1, 2, 3 } + 0.5, fast(x))
        collectgarbage()
      end
    end)
  end)

  describe("surroundings", function()
    it("works inside resin.scope", function()
      local model = mlp():eval()
      local fast = resin.compile(model, EXACT)
      local x = resin.randn(2, 6)
      for _ = 1, 4 do
        local kept = resin.scope(function()
          local y = fast(x)
          return y * 2
        end)
        same(model(x):detach() * 2, kept)
      end
      local function make()
        local m = mlp()
        return { model = m, opt = optim.Adam(m, { lr = 0.01 }) }
      end
      local a, b = twins(make)
      local eager, step = step_of(a, "start"), resin.compile(step_of(b, "start"), EXACT)
      for _, batch in ipairs(batches(5)) do
        local want = eager(batch[1], batch[2]):item()
        assert.equal(want, (resin.scope(function() return step(batch[1], batch[2]) end)):item())
      end
    end)

    it("works in coroutines that take turns", function()
      local model = mlp():eval()
      local fast = resin.compile(model, EXACT)
      local threads = {}
      for i = 1, 4 do
        threads[i] = coroutine.create(function()
          for k = 1, 5 do
            local x = resin.randn(i, 6)
            same(model(x):detach(), fast(x))
            coroutine.yield(k)
          end
        end)
      end
      for _ = 1, 5 do
        for i = 1, 4 do assert(coroutine.resume(threads[i])) end
      end
    end)

    it("works as a layer of a container and inside no_grad", function()
      local inner = nn.Linear(4, 4):eval()
      local fast = resin.compile(inner, EXACT)
      local model = nn.Sequential(nn.Linear(4, 4), nn.ReLU()):eval()
      local whole = function(x) return fast(model(x)) end
      local x = resin.randn(2, 4)
      for _ = 1, 3 do same(inner(model(x)):detach(), resin.no_grad(whole, x)) end
    end)

    it("tells gradients on from gradients off", function()
      local w = resin.ones({ 2 }, { requires_grad = true })
      local fast = resin.compile(function(x)
        local y = (x * w):sum()
        if resin.is_grad_enabled() then y:backward() end
        return y
      end, EXACT)
      local x = resin.full({ 2 }, 3)
      for _ = 1, 3 do
        w.grad = nil
        fast(x)
        same(x, w.grad)
        w.grad = nil
        resin.no_grad(fast, x)
        assert.is_nil(w.grad)
      end
    end)
  end)

  describe("a parameter that is not what it was", function()
    local x
    before_each(function() x = resin.randn(3, 4) end)

    it("freed: an error at the next call", function()
      local model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)):eval()
      local fast = resin.compile(model, EXACT)
      fast(x) fast(x)
      model[2].weight:free()
      local message = fails("freed", fast, x)
      assert.is_truthy(message:find("compile_spec.lua:", 1, true), message)
      local w = resin.randn({ 4 }, { requires_grad = true })
      local f = resin.compile(function(a) return a * w end, EXACT)
      f(x) f(x) f(x)
      w:free()
      fails("freed", f, x)
      assert.equal(0, lib.C.rs_is_tracing(lib.ctx))
    end)

    it("freed gradients, results and constants are no error", function()
      local w = resin.randn({ 4 }, { requires_grad = true })
      local f = resin.compile(function(a)
        w.grad = nil
        local loss = (a * w):sum()
        loss:backward()
        return loss
      end, EXACT)
      for _ = 1, 4 do
        local loss = f(x)
        loss:free()
        local g = w.grad
        same(x:sum(1), g)
        g:free()
      end
      assert.equal(1, f.recorded)
    end)

    it("of another size or dtype: an error, not a crash", function()
      local w = resin.randn(4)
      local f = resin.compile(function(a) return a * w end, EXACT)
      f(x) f(x)
      w:set_data(resin.ones(1))
      fails("bound tensor 1 %(w%) is f32 %[1%], but was recorded as f32 %[4%]; record again", f, x)
      w:set_data(resin.ones({ 4 }, { dtype = "f64" }))
      fails("bound tensor 1 %(w%) is f64 %[4%], but was recorded as f32 %[4%]; record again", f, x)
      f:reset()
      f(x)
      assert.equal("f64", f(x).dtype)
      local m = resin.randn(4, 4)
      local g = resin.compile(function(a) return a:matmul(m) end, EXACT)
      g(x) g(x)
      m:set_data(m:narrow(2, 1, 2))           -- the same memory, other strides and shape
      fails("bound tensor 1", g, x)
      local n = resin.randn(4, 4)
      g = resin.compile(function(a) return a:matmul(n) end, EXACT)
      g(x) g(x)
      n:set_data(n:narrow(1, 1, 3))
      fails("bound tensor 1 %(n%) is f32 %[3, 4%]", g, x)
    end)

    it("moved: an error that says so", function()
      local w = resin.randn(4)
      local f = resin.compile(function(a) return a * w end, EXACT)
      f(x) f(x)
      w:set_data(resin.ones(4))
      fails("bound tensor 1 %(w%), f32 %[4%], was given other memory since it was recorded; record again: fast:reset%(%)", f, x)
      f:reset()
      same(x, f(x))
      same(x, f(x))
    end)

    it("of a module that changed its dtype: runs with the new one or says so", function()
      local model = nn.Sequential(nn.Linear(4, 4)):eval()
      local fast = resin.compile(model, EXACT)
      fast(x)
      model:to("f64")
      local ok, result = pcall(fast, x:to("f64"))
      if ok then assert.equal("f64", result.dtype) else assert.is_truthy(result:find("record again"), result) end
      fast:reset()
      same(model(x:to("f64")):detach(), fast(x:to("f64")))
    end)

    it("collected with its model: the program goes on", function()
      local fast
      do
        local model = mlp():eval()
        fast = resin.compile(model)
        fast(resin.ones(1, 6))
      end
      collectgarbage()
      assert.is_truthy(fast(resin.ones(1, 6)))
    end)
  end)

  describe("a run in steps", function()
    local model, fast, x

    before_each(function()
      model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)):eval()
      fast = resin.compile(model, EXACT)
      x = resin.randn(3, 6)
    end)

    it("gives what a whole run gives, an instruction at a time", function()
      local want = fast(x)
      for _, budget in ipairs { 1e-3, 0, 1e6 } do
        fast:begin(x)
        local steps, done, result = 0, false, nil
        while not done do
          done, result = fast:step(budget)
          steps = steps + 1
          assert.is_true(steps < 100)
        end
        same(want, result)
        if budget == 1e-3 then assert.equal(5, steps) else assert.equal(1, steps) end
      end
    end)

    it("keeps the arguments, which may go meanwhile", function()
      local want = fast(x)
      fast:begin(x:clone())
      local done, result = fast:step(1e-3)
      while not done do
        collectgarbage()
        local junk = resin.randn(3, 6)
        done, result = fast:step(1e-3)
        junk:free()
      end
      same(want, result)
    end)

    it("says what is missing", function()
      fails("compile: begin: nothing was recorded for these arguments; call the compiled function once with them first", fast.begin,
        fast, x)
      fails("compile: step: no run is under way; call begin first", fast.step, fast)
      fast(x)
      fast:begin(x)
      fails("compile: step: budget_us must be a number of at least 0, got number %-1", fast.step, fast, -1)
      fast:step(1e-3)
      fails("a run in steps is under way in this workspace; finish or cancel it first", fast, x)
      fails("a run in steps is under way in this workspace; finish or cancel it first", fast.begin, fast, x)
      assert.is_true((fast:step()))
      fast(x)
    end)

    it("keeps its memory from other programs of the function", function()
      local want = fast(x)
      local y = resin.randn(5, 6)
      fast(y)
      fast:begin(x)
      fast:step(1e-3)
      fails("a run in steps is under way in a workspace that shares its memory with this one; finish or cancel it first", fast, y)
      fails("compile: these arguments must be recorded, but a run in steps is under way; finish it or call fast:cancel%(%) first", fast,
        resin.randn(50, 6))
      assert.equal(2, fast.recorded)
      assert.equal(0, lib.C.rs_is_tracing(lib.ctx))
      local _, result = fast:step()
      same(want, result)
      same(model(y):detach(), fast(y))
    end)

    it("can be given up", function()
      fast(x)
      fast:begin(x)
      fast:step(1e-3)
      fast:cancel()
      fails("no run is under way", fast.step, fast)
      same(model(x):detach(), fast(x))
      fast:begin(x)
      fast:step(1e-3)
      fast:reset()
      fails("compile: step: the program was dropped since begin", fast.step, fast)
      same(model(x):detach(), fast(x))
      fast:cancel()
    end)

    it("notices threads that change meanwhile", function()
      fast(x)
      fast:begin(x)
      fast:step(1e-3)
      local n = resin.get_num_threads()
      resin.set_num_threads(n + 1)
      local ok, message = pcall(fast.step, fast)
      resin.set_num_threads(n)
      assert.is_false(ok)
      assert.is_truthy(message:find("threads or instruction set were changed during a run in steps; begin again"), message)
      same(model(x):detach(), fast(x))
    end)

    it("cannot be part of a recording", function()
      fast(x)
      local outer = resin.compile(function(a)
        fast:begin(a)
        return select(2, fast:step())
      end)
      fails("compile: begin: a run in steps cannot be part of a recording", outer, x)
      assert.equal(0, lib.C.rs_is_tracing(lib.ctx))
    end)
  end)

  describe("memory", function()
    it("is not allocated by a run in C", function()
      local ffi, C = lib.ffi, lib.C
      local function make()
        local model = mlp()
        return { model = model, opt = optim.Adam(model, { lr = 1e-2 }) }
      end
      local fast = resin.compile(step_of(make(), "start"))
      local x, y = resin.randn(8, 6), resin.randint(1, 4, { 8 })
      for _ = 1, 3 do fast(x, y) end
      local entry = fast.entries[1]
      local args, outs = ffi.new("rs_tensor *[2]", x.h, y.h), ffi.new("rs_tensor *[1]")
      assert.equal(0, tonumber(C.rs_program_run(entry.program, entry.workspace, args, 2, outs, 1)))
      C.rs_tensor_release(outs[0])
      local before = lib.stats.allocations
      for _ = 1, 100 do
        assert.equal(0, tonumber(C.rs_program_run(entry.program, entry.workspace, args, 2, outs, 1)))
        C.rs_tensor_release(outs[0])
      end
      assert.equal(before, lib.stats.allocations)
    end)

    it("stays flat over 100,000 runs #slow", function()
      local function make()
        local model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))
        return { model = model, opt = optim.SGD(model, { lr = 1e-3 }) }
      end
      local fast = resin.compile(step_of(make(), "start"))
      local x, y = resin.randn(2, 4), resin.randint(1, 2, { 2 })
      for _ = 1, 100 do fast(x, y) end
      collectgarbage() collectgarbage()
      local blocks, lua, live = lib.stats.live_blocks, collectgarbage("count"), lib.stats.live_bytes
      for _ = 1, 100000 do fast(x, y) end
      collectgarbage() collectgarbage()
      assert.equal(blocks, lib.stats.live_blocks)
      assert.equal(live, lib.stats.live_bytes)
      assert.is_true(collectgarbage("count") < lua + 200)
    end)

    it("is given back with the compiled function", function()
      local model = mlp():eval()
      collectgarbage() collectgarbage()
      local blocks = lib.stats.live_blocks
      for _ = 1, 3 do
        local fast = resin.compile(model)
        for n = 1, 12 do fast(resin.randn(n, 6)) end
      end
      collectgarbage() collectgarbage() collectgarbage()
      assert.equal(blocks, lib.stats.live_blocks)
      local fast = resin.compile(model)
      for n = 1, 12 do fast(resin.randn(n, 6)) end
      fast:reset()
      collectgarbage() collectgarbage()
      assert.equal(blocks, lib.stats.live_blocks)
    end)

    it("survives each of its allocations failing", function()
      local C, ctx = lib.C, lib.ctx
      local model = mlp():eval()
      local x = resin.randn(2, 6)
      local want = model(x):detach()
      collectgarbage() collectgarbage()
      local done
      for k = 1, 400 do
        local fast = resin.compile(model, EXACT)
        C.rs_fail_allocation(ctx, k, 1)
        local ok, result = pcall(fast, x)
        C.rs_fail_allocation(ctx, 0, 0)
        assert.equal(0, C.rs_is_tracing(ctx))
        if ok then same(want, result) else assert.is_truthy(tostring(result):find("memory"), result) end
        same(want, fast(x))
        if ok then
          done = k
          break
        end
      end
      assert.is_truthy(done)
    end)
  end)

  describe("options and text", function()
    it("are checked", function()
      fails("compile: argument 1, when it is no module, must be a function, got number 3", resin.compile, 3)
      fails('compile: unknown option "pases"', resin.compile, print, { pases = true })
      fails("compile: max_programs must be an integer from 1 to 1024, got number 0", resin.compile, print, { max_programs = 0 })
      fails('compile: there is no pass "nothing"', resin.compile, print, { passes = { "nothing" } })
      fails("compile: passes must be a table, got number 1", resin.compile, print, { passes = 1 })
    end)

    it("say which passes run", function()
      local function wasteful(x) return (x * 2 + x * 2) - (x * 2) end
      local x = resin.randn(3)
      local lengths = {}
      for _, passes in ipairs { false, { "clean" }, { "hoist" }, { "clean", "hoist" }, true, "all" } do
        local fast = resin.compile(wasteful, { passes = passes })
        for _ = 1, 3 do same(wasteful(x), fast(x)) end
        lengths[#lengths + 1] = lib.C.rs_program_length(fast.entries[1].program)
      end
      assert.is_true(lengths[2] < lengths[1])
      assert.equal(lengths[2], lengths[4])
    end)

    it("describe what is kept", function()
      local fast = resin.compile(mlp():eval())
      assert.equal("resin.compile(Sequential): 0 programs", tostring(fast))
      assert.is_truthy(fast:explain():find("nothing is recorded yet: call it first"))
      fast(resin.randn(2, 6))
      assert.equal(1, #fast.entries)
      assert.is_truthy(tostring(fast):find("resin.compile%(Sequential%): 1 program, the last of %d+ instructions"))
      fast(resin.randn(3, 6))
      assert.is_truthy(tostring(fast):find("2 programs"))
      fast:reset()
      assert.equal("resin.compile(Sequential): 0 programs", tostring(fast))
    end)

    it("explain programs: instructions, shapes, attributes, prologue, memory", function()
      local function make()
        local model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.25), nn.Linear(16, 4))
        return { model = model, opt = optim.Adam(model, { lr = 1e-2 }) }
      end
      local t = make()
      local model, opt = t.model, t.opt
      local fast = resin.compile(function(x, y)
        opt:zero_grad()
        local loss = F.cross_entropy(model(x), y)
        loss:backward()
        opt:step()
        return loss
      end, EXACT)
      local x, y = resin.randn(8, 6), resin.randint(1, 4, { 8 })
      for _ = 1, 3 do fast(x, y) end
      local text = fast:explain()
      for _, part in ipairs { "program 1 of 1 (x1[8,6], x2[8] i64), gradients on", "0.weight[16,6]", "grad of 0.weight[16,6]", "p = 0.25",
        "adam_step", "Adam options", "and %d+ more %-> in place", "returns t%d+%[%]", "at each run", "ops: ",
        "memory: temporaries .* in an arena of .*, prologue .*, %d+ bindings .*, workspace " } do
        assert.is_truthy(text:find(part, 1, not part:find("%", 1, true)), part .. "\n" .. text)
      end
      local short = fast:explain { lines = 4 }
      assert.is_truthy(short:find("more: explain{all = true}", 1, true), short)
      assert.is_truthy(select(2, short:gsub("\n", "")) < select(2, text:gsub("\n", "")))
      assert.is_nil(fast:explain({ all = true }):find("more: explain", 1, true))
      fails('explain: unknown option "al"', fast.explain, fast, { al = true })
      fails("explain: lines must be an integer of at least 4", fast.explain, fast, { lines = 1 })
    end)
  end)
end)
