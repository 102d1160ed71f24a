-- resin.compile: which changes of modules, optimisers and arguments make it record again, and which do not. Eager is the measure.

local resin = require "resin"
local samples = require "spec.support.samples"

local nn, optim, F = resin.nn, resin.optim, resin.F
local EXACT = { passes = { "ssa", "clean", "hoist" } }

local function fails(pattern, fn, ...)
  local ok, message = pcall(fn, ...)
  assert.is_false(ok, "no error; wanted " .. pattern)
  assert.is_truthy(tostring(message):find(pattern), tostring(message))
end

local function same(a, b, what)
  assert.same(a.shape, b.shape, what)
  local d = samples.difference(a, b)
  if d ~= 0 then error((what or "tensor") .. " differs by " .. d, 2) end
end

local Scaled = nn.class("Scaled", nn.Module)

function Scaled:init()
  self.map = nn.Linear(3, 3)
  self.scale = nn.Parameter(resin.ones(3))
end

function Scaled:forward(x) return self.map(x) * self.scale end

-- A method that is no forward, as a model that computes its own loss has.
function Scaled:loss(x) return F.relu(self.map(x)):sum() * (self.training and 2 or 1) end

-- Both sides without gradients, and how often it was recorded since `recorded`.
local function check(fast, fn, x, recordings, what)
  local before = fast.recorded
  for _ = 1, 2 do same(resin.no_grad(fn, x), resin.no_grad(fast, x), what) end
  assert.equal(recordings, fast.recorded - before, what)
end

-- A compiled training step of a model of its own.
local function make_step(options)
  local model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0), nn.Linear(8, 3))
  local opt = optim.SGD(model, { lr = 0.1, momentum = 0.9 })
  local fast = resin.compile(function(x, y)
    opt:zero_grad()
    local loss = F.cross_entropy(model(x), y)
    loss:backward()
    opt:step()
    return loss
  end, options)
  return fast, model, opt
end

describe("resin.compile notices", function()
  before_each(function() resin.manual_seed(3) end)

  local function sequential() return nn.Sequential(nn.Linear(3, 3), nn.ReLU()) end

  local CHANGES = {
    { "a layer without parameters", sequential, function(m) m[2] = nn.Tanh() end },
    { "a layer", sequential, function(m) m[1] = nn.Linear(3, 3) end },
    { "two layers that change places", sequential, function(m) m[1], m[2] = m[2], m[1] end },
    { "a parameter that is assigned", sequential, function(m) m[1].weight = nn.Parameter(resin.randn(3, 3)) end },
    { "a parameter that is registered", sequential, function(m) m[1]:register_parameter("bias", nn.Parameter(resin.ones(3))) end },
    { "a parameter that goes", sequential, function(m) m[1].bias = nil end },
    { "a layer that is taken out", sequential, function(m) m:remove(2) end },
    { "a layer that is added", sequential, function(m) m:append(nn.Tanh()) end },
    { "a child of the user's module", Scaled, function(m) m.map = nn.Linear(3, 3) end },
    { "a parameter of the user's module", Scaled, function(m) m.scale = nn.Parameter(resin.randn(3)) end },
    { "a tied weight", function() return nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)) end, function(m) m[2].weight = m[1].weight end },
    { "a layer inside a residual block", function()
      return nn.ResidualSequential(nn.Record("a"), nn.Linear(3, 3), nn.ReLU(), nn.Apply("add", "a"))
    end, function(m) m[3] = nn.Tanh() end },
  }
  for _, change in ipairs(CHANGES) do
    it(change[1] .. ", replaced in a compiled module and in a function that uses it", function()
      local x = resin.randn(2, 3)
      for _, kind in ipairs { "module", "function" } do
        local m = change[2]():eval()
        local fast = resin.compile(kind == "module" and m or function(v) return m(v) end, EXACT)
        check(fast, m, x, 1, kind)
        change[3](m)
        m:eval()
        check(fast, m, x, 1, kind)
        assert.equal(1, #fast.entries)         -- what cannot fit any more is gone
      end
    end)
  end

  it("parameters that a function reads without calling their module", function()
    local m, x = nn.ModuleList(nn.Linear(3, 3), nn.Linear(3, 3)), resin.randn(2, 3)
    local box = { m = m }
    local function fn(v) return F.linear(v, box.m[1].weight) + box.m[2].bias end
    local fast = resin.compile(fn, EXACT)
    check(fast, fn, x, 1)
    m[2].bias = nn.Parameter(resin.ones(3))
    check(fast, fn, x, 1)
    m[1] = nn.Linear(3, 3)
    check(fast, fn, x, 1)
  end)

  it("changes of a module of which a method is called", function()
    local m, x = Scaled(), resin.randn(2, 3)
    local box = { m = m }
    local function fn(v) return box.m:loss(v) end
    local fast = resin.compile(fn, EXACT)
    check(fast, fn, x, 1)
    m:eval()
    check(fast, fn, x, 1)
    m:train()
    check(fast, fn, x, 0)
    m.map = nn.Linear(3, 3)
    check(fast, fn, x, 1)
  end)

  it("a mode that is assigned", function()
    local drop, x = nn.Dropout(0.5), resin.ones(64)
    local box = { drop }
    local function fn(v) return box[1](v) end
    drop.training = false
    local fast = resin.compile(fn, EXACT)
    check(fast, fn, x, 1)
    drop.training = true
    assert.is_true(samples.difference(x, resin.no_grad(fast, x)) > 0)
    drop.training = false
    check(fast, fn, x, 0)
  end)

  it("bounds of a LearnableAlpha that are loaded, before and after it is recorded", function()
    local function make(low, high)
      return nn.ResidualSequential(nn.Record("a"), nn.Linear(3, 3), nn.Apply { record_name = "a", alpha = nn.LearnableAlpha(1, low, high) })
    end
    local x, m = resin.randn(2, 3), make(0, 1):eval()
    m:load_state_dict(make(0.5, 3):state_dict())
    local fast = resin.compile(m, EXACT)
    check(fast, m, x, 1, "loaded before")
    m:load_state_dict(make(0, 7):state_dict())
    check(fast, m, x, 1, "other bounds")
    m:load_state_dict(make(0.001, 5):state_dict())
    resin.no_grad(m, x)                         -- an eager call reads them first
    check(fast, m, x, 1, "logarithmic")
    m:load_state_dict(m:clone():state_dict())
    check(fast, m, x, 0, "the same bounds")
    local gated = nn.ResidualSequential(nn.Record("a"), nn.Linear(3, 3), nn.Apply { record_name = "a", operation = "gated" })
    resin.no_grad(gated, x)
    gated:load_state_dict(gated:clone():state_dict())
    resin.compile(function(v)
      local loss = gated(v):sum()
      loss:backward()
      return loss
    end)(x)
  end)

  it("parameters that an optimiser gets, also when another function uses them", function()
    local function run(compiled)
      resin.manual_seed(7)
      local a, b = nn.Linear(2, 2), nn.Linear(2, 2)
      local opt = optim.SGD(a, { lr = 0.5 })
      local update = function() opt:step() end
      if compiled then update = resin.compile(update, EXACT) end
      local function round()
        opt:zero_grad()
        b.weight.grad, b.bias.grad = nil, nil
        b(a(resin.ones(1, 2))):sum():backward()
        update()
      end
      round() round()
      opt:add_param_group { params = b, lr = 0.25 }
      round() round()
      opt.param_groups[1].maximize = true
      round()
      return a.weight, b.weight
    end
    local a, b = run(false)
    local c, d = run(true)
    same(a, c)
    same(b, d)
  end)
end)

describe("resin.compile does not record again", function()
  before_each(function() resin.manual_seed(3) end)

  it("a step when train() changes nothing, and for what happens to other modules and optimisers", function()
    local fast, model, opt = make_step()
    local x, y, other = resin.randn(5, 4), resin.randint(1, 3, { 5 }), nn.Linear(2, 2)
    for _ = 1, 3 do fast(x, y) end
    local before = fast.recorded
    for _ = 1, 5 do
      model:train()
      fast(x, y)
      other:eval()
      fast(x, y)
      nn.Sequential(nn.ReLU(), nn.Linear(1, 1))
      fast(x, y)
      model:clone():eval()
      fast(x, y)
      local mine = optim.Adam(other)
      other(resin.ones(1, 2)):sum():backward()
      mine:step()
      fast(x, y)
      model:load_state_dict(model:state_dict())
      fast(x, y)
      opt.lr = 0.01
      fast(x, y)
    end
    assert.equal(before, fast.recorded)
  end)

  it("a step after each evaluation: the program of the mode fits again", function()
    local fast, model = make_step()
    local x, y = resin.randn(5, 4), resin.randint(1, 3, { 5 })
    local test = resin.compile(model)
    for epoch = 1, 6 do
      model:train()
      for _ = 1, 3 do fast(x, y) end
      model:eval()
      test(x)
      if epoch == 2 then assert.is_true(fast.recorded <= 3) end
    end
    assert.is_true(fast.recorded <= 3, "recorded " .. fast.recorded)
    assert.equal(1, test.recorded)
  end)

  it("and keeps no memory of programs that cannot fit any more", function()
    local m, x = nn.Sequential(nn.Linear(64, 256), nn.Linear(256, 64)):eval(), resin.randn(4, 64)
    local fast = resin.compile(function(v) return m(v) end)
    local live
    for i = 1, 12 do
      m[1] = nn.Linear(64, 256):eval()
      resin.no_grad(fast, x)
      resin.trim()
      if i == 4 then live = resin.memory().live end
    end
    assert.equal(1, #fast.entries)
    assert.is_true(resin.memory().live <= live + 4096, ("%d, then %d bytes"):format(live, resin.memory().live))
  end)
end)

describe("resin.compile and an argument that is met otherwise too", function()
  local w
  before_each(function() w = resin.tensor { 1, 2, 3 } end)

  it("tells them apart where they are read", function()
    local other = resin.tensor { 10, 10, 10 }
    local function fn(x) return x * w end
    local fast = resin.compile(fn)
    same(fn(w), fast(w))
    same(fn(other), fast(other))
    same(fn(w), fast(w))
    assert.equal(1, fast.recorded)
    local l = nn.Linear(3, 3)
    local function apply(x) return l(x) end
    fast = resin.compile(apply, EXACT)
    for _, x in ipairs { l.weight, resin.randn(3, 3), l.weight } do same(resin.no_grad(apply, x), resin.no_grad(fast, x)) end
  end)

  it("refuses that the function frees it", function()
    local fast = resin.compile(function(x)
      local y = x * 2
      w:free()
      return y
    end)
    fails("the function frees argument 1", fast, w)
  end)

  it("refuses it where one of them is written", function()
    local s = resin.ones(3)
    local fast = resin.compile(function(x)
      local y = x:clone()
      s:add_(1)
      return y + s
    end)
    same(resin.tensor { 3, 4, 5 }, fast(w))
    fails("input 1 shares memory with bound tensor 1 %(s%), and the program writes to one of them; pass a clone", fast, s)
    fails("shares memory with bound tensor", fast, s:narrow(1, 1, 3))
    same(resin.tensor { 2, 2, 2 }, s)
    same(resin.tensor { 5, 5, 5 }, fast(s:clone()))
    local into = resin.compile(function(x)
      x:add_(1)
      return x + w
    end)
    same(resin.tensor { 5, 6, 7 }, into(resin.tensor { 3, 3, 3 }))
    fails("input 1 shares memory with bound tensor 1 %(w%)", into, w)
    same(resin.tensor { 1, 2, 3 }, w)
  end)
end)

describe("resin.compile says", function()
  local heard, before
  before_each(function()
    heard = {}
    before = resin.set_warnings(function(text) heard[#heard + 1] = text end)
  end)
  after_each(function() resin.set_warnings(before) end)

  it("once that programs are dropped as fast as they are made", function()
    local fast = resin.compile(function(x) return x + 1 end, { max_programs = 3 })
    for round = 1, 3 do
      for n = 1, 5 do fast(resin.ones(n)) end
      if round == 1 then assert.equal(0, #heard) end
    end
    assert.equal(1, #heard)
    assert.is_truthy(heard[1]:find("compile_met_spec.lua:%d+: compile: 3 programs were dropped .*max_programs = 12"))
  end)

  it("what to do instead of reading a value", function()
    fails("item: .*let the recorded function return the tensor", resin.compile(function(x) return x:sum():item() end), resin.ones(2))
    fails("reading values %(print, totable%): a value cannot be read", resin.compile(function(x) return tostring(x) end), resin.ones(2))
  end)

  it("which passes there are", function()
    fails('there is no pass "fast" %(known: ssa, clean,', resin.compile, function() end, { passes = { "fast" } })
  end)

  it("the number of an argument that was freed", function()
    local x = resin.ones(2)
    x:free()
    fails("compile: argument 2", resin.compile(function(a, b) return a + b end), resin.ones(2), x)
  end)

  it("that checkpoints and reversible layers are not recorded in training, at the line that calls them", function()
    local x = resin.randn(2, 4):requires_grad_(true)
    local layers = { Checkpoint = nn.Checkpoint(nn.Linear(4, 4)), Reversible = nn.Reversible { { nn.Linear(2, 2), nn.Linear(2, 2) } } }
    for name, layer in pairs(layers) do
      local line
      local fast = resin.compile(function(v)
        line = debug.getinfo(1, "l").currentline + 1
        local loss = layer(v):sum()
        loss:backward()
        return loss
      end)
      local ok, message = pcall(fast, x)
      assert.is_false(ok)
      local wanted = ("compile_met_spec.lua:%d: .*%s: it cannot be recorded where gradients"):format(line, name)
      assert.is_truthy(message:find(wanted), message)
      layer:eval()
      same(resin.no_grad(layer, x), resin.no_grad(resin.compile(layer, EXACT), x))
    end
  end)
end)
