-- What a forward holds and for how long; entering a container again while it runs; training, saving and copying.

local resin = require "resin"
local nn, optim = resin.nn, resin.optim
local RS, Record, Apply = nn.ResidualSequential, nn.Record, nn.Apply

local MB = 2 ^ 20

local function live()
  collectgarbage()
  collectgarbage()
  return resin.memory().live
end

-- Bytes above the start at the peak of fn, without gradients.
local function peak(fn)
  collectgarbage()
  collectgarbage()
  resin.reset_peak()
  local before = resin.memory().live
  resin.no_grad(fn)
  return resin.memory().peak - before
end

local UNIT = peak(function() resin.zeros(MB / 4):free() end)     -- what a tensor of 1 MB takes

local function blow() return nn.Lambda(function(x) return x * 1 end) end

describe("memory of a forward", function()
  it("a record lives until its last reader, an intermediate until the next layer", function()
    local x = resin.zeros(MB / 4)                    -- 1 MB
    local function run(...)
      local model = RS(...)
      return peak(function() model(x):free() end) / UNIT
    end
    assert.is_near(2, run(nn.ReLU(), nn.ReLU(), nn.ReLU(), nn.ReLU()), 0.1)
    assert.is_near(3, run(nn.ReLU(), Record(), nn.ReLU(), nn.ReLU(), nn.ReLU(), Apply()), 0.1)
    -- after the Apply the record is gone
    assert.is_near(3, run(nn.ReLU(), Record(), nn.ReLU(), Apply(), nn.ReLU(), nn.ReLU(), nn.ReLU()), 0.1)
    -- with a second reader it stays, and goes after that
    assert.is_near(3, run(nn.ReLU(), Record(), nn.ReLU(), Apply(), nn.ReLU(), nn.ReLU(), Apply(), nn.ReLU()), 0.1)
    -- two records at a time
    assert.is_near(4, run(nn.ReLU(), Record("a"), nn.ReLU(), Record("b"), nn.ReLU(), nn.ReLU(), Apply("add", "b"),
      Apply("add", "a")), 0.1)
    -- nobody reads it
    assert.is_near(2, run(nn.ReLU(), Record("a"), nn.ReLU(), nn.ReLU(), nn.ReLU()), 0.1)
    -- user code in between
    assert.is_near(2, run(nn.ReLU(), nn.Sequential(nn.ReLU(), RS(nn.ReLU())), nn.ReLU()), 0.1)
  end)

  it("what operations make on the way is gone after them", function()
    local x = resin.zeros(MB / 4)
    for _, operation in ipairs{"add", "multiply", "gated", "subtract"} do
      local model = RS(nn.ReLU(), Record(), nn.ReLU(), Apply(operation, nil, 0.5), nn.ReLU())
      assert.is_true(peak(function() model(x):free() end) <= 4.1 * UNIT, operation)
    end
  end)

  it("nothing is kept afterwards", function()
    local model = RS(Record{need_projection = true, name = "in"}, nn.Linear(64, 128), nn.ReLU(), Record(), blow(),
      Apply("gated"), Apply("add", "in"), RS(Record(), nn.Linear(128, 128), Apply("highway")))
    local x = resin.randn(32, 64)
    model(x)
    local before = live()
    for _ = 1, 3 do
      local y = model(x)
      y:sum():backward()
      y:free()
      model:zero_grad()
    end
    assert.equal(before, live())
    assert.is_false((pcall(model, resin.randn(32, 65))))
    assert.equal(before, live())
  end)

  it("input and result are never freed", function()
    local x = resin.randn(2, 2)
    for _, model in ipairs{RS(Record(), Apply{operation = function(_, saved) return saved end}), RS(nn.Identity()), RS(),
                           RS(Record(), Record("b"), Apply{operation = function(current) return current end, record_name = "b"})} do
      local y = model(x)
      assert.equal(x, y)
      assert.equal(2, #y:totable())
    end
    local kept
    local model = RS(nn.ReLU(), Record(), function(t) kept = resin.keep(t) return t * 2 end, Apply())
    model(x)
    assert.same(x:relu():totable(), kept:totable())
    resin.scope(function()
      local inner = x * 1
      RS(Record(), nn.ReLU(), Apply(), Apply())(inner)
      assert.equal(2, #inner:totable())
    end)
    local same = RS(nn.ReLU(), Record("a"), Record("b"), nn.ReLU(), Apply("add", "a"), Apply("add", "b"))
    assert.same((x:relu() * 3):totable(), same(x):totable())
  end)

  it("extra results survive", function()
    local Both = nn.class("Both")
    function Both:forward(x) return x * 2, {x, x + 1} end -- luacheck: no self
    local y, extras = RS(nn.ReLU(), Record(), Both(), nn.ReLU(), Apply())(resin.ones(1))
    assert.equal(3, y:item())
    assert.equal(1, extras[1][1]:item())
    assert.equal(2, extras[1][2]:item())
  end)
end)

describe("entering again", function()
  it("eight coroutines that take turns in the middle get what each gets alone", function()
    local pause = function(x)
      coroutine.yield()
      return x * 1
    end
    local model = RS(Record{name = "in", need_projection = true}, nn.Linear(4, 6), pause, Record(), nn.Linear(6, 6), pause,
      Apply("gated"), RS(Record(), nn.Linear(6, 6), pause, Apply()), Apply("add", "in"))
    local function alone(x)
      local co = coroutine.wrap(function() return model(x) end)
      local y
      repeat y = co() until y
      return y
    end
    local inputs, expected, workers, results = {}, {}, {}, {}
    for i = 1, 8 do
      inputs[i] = resin.randn(2 + i, 4)
      expected[i] = alone(inputs[i]):totable()
      workers[i] = coroutine.create(function() return model(inputs[i]) end)
    end
    for round = 1, 4 do
      for i = 1, 8 do
        local k = (i * 3 + round) % 8 + 1
        local ok, y = coroutine.resume(workers[k])
        assert.is_true(ok, y)
        if y then results[k] = y:totable() end
      end
    end
    assert.same(expected, results)
  end)

  it("a model that calls itself", function()
    local model
    local depth = 0
    model = RS(Record(), function(x)
      depth = depth + 1
      if depth > 3 then return x end
      return model(x)
    end, Apply())
    assert.equal(5, model(resin.ones(1)):item())
  end)
end)

describe("training", function()
  local function described()
    return RS(Record{name = "in", need_projection = true}, nn.Linear(4, 6), nn.ReLU(), Apply("add", "in"), Record("h"),
      nn.Linear(6, 6), Apply("highway", "h"), Record("g"), nn.Linear(6, 6), Apply("gated", "g"))
  end

  local function step(model, optimiser, x)
    optimiser:zero_grad()
    local loss = nn.MSELoss()(model(x), resin.ones(x.shape[1], 6))
    loss:backward()
    optimiser:step()
    return loss:item()
  end

  it("an optimiser made before the first forward trains projections, gates and factors", function()
    resin.manual_seed(3)
    local model = described()
    local optimiser = optim.SGD(model, {lr = 0.1})
    local before = {}
    for name, p in model:named_parameters() do before[name] = p:clone() end
    local x = resin.randn(16, 4)
    local first = step(model, optimiser, x)
    local last
    for _ = 1, 30 do last = step(model, optimiser, x) end
    assert.is_true(last < first)
    local n = 0
    for name, p in model:named_parameters() do
      assert.is_true((p - before[name]):abs():sum():item() > 0, name)
      n = n + 1
    end
    assert.equal(3 * 2 + 2 + 4 + 1, n)
  end)

  it("an optimiser adopts layers that the first forward makes", function()
    local late = Apply("add", "in")
    local model = RS(Record{name = "in", need_projection = true}, nn.Lambda(function(x) return resin.cat({x, x}, -1) end),
      nn.Lambda(function(x) return x * 1 end), late)
    local optimiser = optim.SGD(model, {lr = 0.1})
    local y = model(resin.randn(8, 3))
    local before = late.projection_layer.weight:clone()
    y:sum():backward()
    optimiser:step()
    assert.is_true((late.projection_layer.weight - before):abs():sum():item() > 0)
  end)

  it("what was trained is saved, loads into a fresh model of the same description, and is copied", function()
    local model = described()
    local optimiser = optim.Adam(model, {lr = 0.01})
    local x = resin.randn(8, 4)
    for _ = 1, 3 do step(model, optimiser, x) end
    local path = os.tmpname()
    resin.save(path, model:state_dict())
    local size = io.open(path, "rb"):seek("end")
    local fresh = described()
    fresh:load_state_dict(resin.load(path))
    os.remove(path)
    assert.equal(0, (model(x) - fresh(x)):abs():sum():item())
    assert.is_true(size < model:num_parameters() * 4 + 4096)
    local copy = model:clone()
    assert.equal(0, (model(x) - copy(x)):abs():sum():item())
    step(model, optimiser, x)
    assert.is_true((model(x) - copy(x)):abs():sum():item() > 0)
    assert.equal(0, (fresh(x) - copy(x)):abs():sum():item())
  end)

  it("the state has torchresidual's names", function()
    local names = {}
    for name in described():state_dict()() do names[#names + 1] = name end
    assert.same({
      "1.weight", "1.bias", "3.projection_layer.weight", "3.projection_layer.bias", "5.weight", "5.bias",
      "6.gate_layer.transform_gate.weight", "6.gate_layer.transform_gate.bias", "6.gate_layer.carry_gate.weight",
      "6.gate_layer.carry_gate.bias", "8.weight", "8.bias", "9.alpha.param", "9.alpha.min_val", "9.alpha.max_val",
      "9.alpha.use_log"}, names)
  end)

  it("evaluation and training reach everything inside", function()
    local model = RS(Record(), nn.Dropout(0.5), nn.Linear(3, 3), Apply())
    model:eval()
    local x = resin.randn(4, 3)
    assert.equal(0, (model(x) - model(x)):abs():sum():item())
    assert.is_false(model[2].training)
    model:train()
    assert.is_true(model[2].training)
  end)
end)
