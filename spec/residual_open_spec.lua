-- Open scopes: a residual container of resin's own layers runs without a protected call (lua/resin/scope.lua). Whatever goes wrong
-- in it, nothing stays behind.

local resin = require "resin"
local scope = require "resin.scope"
local check = require "resin.check"
local nn = resin.nn
local RS, Record, Apply = nn.ResidualSequential, nn.Record, nn.Apply

local function live()
  collectgarbage()
  collectgarbage()
  return resin.memory().live
end

-- Fails in its fourth layer for every input; three tensors are made before.
local function failing() return RS(Record "r", nn.ReLU(), nn.ReLU(), nn.LayerNorm(3), nn.BatchNorm2d(3)) end

-- What user code finds after an error: no scope, an empty path, and tensors that are its own.
local function nothing_left(active)
  assert.equal(active, scope.current())
  assert.equal(0, check.depth)
  assert.is_true(resin.ones(1).s == (active or false))
end

-- An error that nobody in resin raises: after n instructions. The tensor that C has just made and Lua does not yet hold is lost.
local ONE = 512
local function interrupted(n, fn, ...)
  local function run(...)
    debug.sethook(function()
      debug.sethook()
      error("interrupted", 0)
    end, "", n)
    local result = fn(...)
    debug.sethook()
    return result
  end
  jit.off(run, true)
  jit.off()
  jit.flush()
  local ok, message = pcall(run, ...)
  debug.sethook()
  jit.on()
  return ok, message
end

describe("an open scope", function()
  local x = resin.ones(2, 3)

  it("ends when a layer raises, and frees what it held", function()
    local model = failing()
    pcall(model, x)
    local start = live()
    for _ = 1, 300 do
      local ok, message = pcall(model, x)
      assert.is_false(ok)
      assert.truthy(message:find("in ResidualSequential 5 (BatchNorm2d): ", 1, true), message)
      assert.equal(start, resin.memory().live)       -- at once
    end
    nothing_left()
  end)

  it("ends in no_grad, in a coroutine, and inside containers that are not part of the plan", function()
    local nested = RS(nn.ReLU(), nn.Parallel(nn.ReLU(), nn.Sequential(nn.ReLU(), failing())))
    local start = live()
    for _, run in ipairs {
      function() resin.no_grad(failing(), x) end,
      function() nested(x) end,
      function() resin.no_grad(nested, x) end,
      coroutine.wrap(function() nested(x) end),
    } do
      local ok, message = pcall(run)
      assert.is_false(ok)
      assert.truthy(message:find("(BatchNorm2d): ", 1, true), message)
      nothing_left()
    end
    local _, message = pcall(nested, x)
    assert.truthy(message:find("in ResidualSequential 2 (Parallel), Parallel 2 (Sequential), Sequential 2 (ResidualSequential), "
      .. "ResidualSequential 5 (BatchNorm2d): ", 1, true), message)
    nested = nil -- luacheck: ignore 311
    assert.equal(start, live())
  end)

  it("leaves the user's scope as it was when user code there catches the error", function()
    local model, good = failing(), RS(Record "r", nn.ReLU(), Apply("add", "r"))
    local start, inside = live()
    local kept = resin.scope(function()
      local s = scope.current()
      local a = resin.ones(2)
      assert.is_false(pcall(model, x))
      assert.equal(s, scope.current())
      inside = a + 1
      assert.equal(s, inside.s)
      return good(inside)
    end)
    assert.is_false(inside.h)
    assert.same({ 4, 4 }, kept:totable())
    nothing_left()
    kept:free()
    assert.equal(start, live())
  end)

  it("is left by other errors and ended later: nobody loses a tensor", function()
    local inner = RS(Record "q", nn.ReLU(), Apply("add", "q"))
    local nested = RS(Record "r", nn.ReLU(), nn.Parallel(nn.ReLU(), inner), nn.ReLU(), Apply("add", "r"))
    nested(x)
    for _, after in ipairs {
      scope.collect,
      function() pcall(failing(), x) end,
      function() pcall(function() return x + resin.ones(7) end) end,
      function() resin.scope(function() end) end,
    } do
      local start, cut = live(), 0
      for n = 1, 1500, 13 do
        local ok, message = interrupted(n, nested, x)
        if not ok then
          assert.equal("interrupted", message)
          cut = cut + 1
        end
        local mine = resin.ones(2) + 1           -- perhaps in the stale scope
        local result = nested(mine)
        after()
        nothing_left()
        assert.same({ 2, 2 }, mine:totable())
        assert.same({ 8, 8 }, result:totable())
      end
      assert.is_true(cut > 10, "only " .. cut .. " calls were interrupted")
      assert.is_true(live() <= start + cut * ONE)
    end
  end)

  it("is left by other errors in the user's scope, which then owns what was in it", function()
    local model = RS(Record "r", nn.ReLU(), nn.ReLU(), Apply("add", "r"))
    model(x)
    local start, cut = live(), 0
    for n = 1, 600, 7 do
      local inside
      local result = resin.scope(function()
        if not interrupted(n, model, x) then cut = cut + 1 end
        inside = resin.ones(2)
        return inside * 3
      end)
      assert.is_false(inside.h)
      assert.same({ 3, 3 }, result:totable())
      nothing_left()
    end
    assert.is_true(cut > 10)
    assert.is_true(live() <= start + cut * ONE)
  end)
end)

describe("user code in an open scope", function()
  local behaviour
  nn.register("open_spec", { formula = "any", run = function(x, r) return behaviour(x, r) end })
  local function model()
    local inner = RS(Record "q", nn.ReLU(), Apply("open_spec", "q"))
    return RS(Record "r", nn.ReLU(), nn.ReLU(), nn.Parallel(nn.ReLU(), inner), Apply("add", "r"))
  end
  local x = resin.ones(2)

  it("makes tensors of its own, and may call containers", function()
    local kept, inner = nil, RS(Record "i", nn.ReLU(), Apply("add", "i"))
    behaviour = function(a, r)
      assert.is_nil(scope.current())
      kept = inner(a)
      return kept + r
    end
    assert.same({ 5, 5 }, model()(x):totable())
    assert.same({ 2, 2 }, kept:totable())
    nothing_left()
  end)

  it("raises errors of every kind", function()
    local m = model()
    local sizes = {}
    for round = 1, 3 do
      for _, raise in ipairs {
        function() error("user", 0) end,
        function() error({}) end,
        function() return resin.ones(2) + resin.ones(3) end,
        function() return failing()(resin.ones(2, 3)) end,
        function() return "no tensor" end,
      } do
        behaviour = raise
        for _, run in ipairs {
          function() m(x) end, function() resin.no_grad(m, x) end, function() resin.scope(m, x) end,
          function() nn.Sequential(nn.ReLU(), m)(x) end, coroutine.wrap(function() m(x) end),
          coroutine.wrap(function() resin.scope(m, x) end),
        } do
          assert.is_false(pcall(run))
          nothing_left()
        end
      end
      sizes[round] = live()
    end
    assert.equal(sizes[2], sizes[3])
  end)

  it("catches errors and goes on", function()
    local m = model()
    behaviour = function(a, r)
      assert.is_false(pcall(failing(), resin.ones(2, 3)))
      assert.is_nil(scope.current())
      return a + r
    end
    assert.same({ 4, 4 }, m(x):totable())
    assert.same({ 4, 4 }, resin.scope(m, x):totable())
    assert.same({ 4, 4 }, coroutine.wrap(function() return m(x) end)():totable())
    nothing_left()
  end)

  it("yields, and another container fails meanwhile", function()
    local m, sizes = model(), {}
    behaviour = function(a, r)
      coroutine.yield()
      return a + r
    end
    local function turns()
      local results, workers = {}, {}
      for i = 1, 6 do
        workers[i] = coroutine.create(function()
          if i % 2 == 0 then return resin.scope(m, x) end
          return m(x)
        end)
      end
      for round = 1, 2 do
        for i = 1, round == 1 and 6 or 4 do          -- the last two are abandoned
          local ok, y = coroutine.resume(workers[i])
          assert.is_true(ok, y)
          results[i] = y
          nothing_left()
          assert.is_false(pcall(failing(), resin.ones(2, 3)))
          nothing_left()
        end
      end
      for i = 1, 4 do assert.same({ 4, 4 }, results[i]:totable()) end
    end
    for i = 1, 4 do
      turns()
      sizes[i] = live()
    end
    assert.equal(sizes[2], sizes[4])
  end)

  it("fails after a yield", function()
    local m = model()
    local start = live()
    behaviour = function()
      coroutine.yield()
      error("late", 0)
    end
    local co = coroutine.create(function()
      local ok, message = pcall(m, x)
      nothing_left()
      coroutine.yield()
      return ok, message
    end)
    for _ = 1, 2 do
      coroutine.resume(co)
      nothing_left()
    end
    assert.same({ true, false, "late" }, { coroutine.resume(co) })
    co = nil -- luacheck: ignore 311
    assert.equal(start, live())
  end)
end)

describe("a plan that is made anew in an open scope", function()
  it("catches its own errors without ending it", function()
    local inner = RS(Record "q", nn.Linear(3, 3), Apply("add", "q"))
    local outer = RS(Record "r", nn.ReLU(), nn.Parallel(nn.ReLU(), inner), Apply("add", "r"))
    local x = resin.ones(2, 3)
    outer(x)
    inner:insert(2, nn.Conv2d(3, 3, 1))
    inner._plan = nil                       -- as after a change that nobody told it of
    assert.is_false(pcall(outer, x))
    nothing_left()
    inner:remove(2)
    inner._plan = nil
    assert.same({ 2, 3 }, outer(x).shape)
    nothing_left()
  end)
end)
