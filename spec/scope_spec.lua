-- Who frees a tensor: scopes, results, errors, coroutines, and the collector's view of C memory.

local resin = require "resin"
local scope = require "resin.scope"

local function freed(t) return t.h == false end

-- Tensors alive in C: cached blocks do not count.
local function live()
  collectgarbage()
  collectgarbage()
  return resin.memory().live
end

describe("resin.scope", function()
  it("frees what is not returned", function()
    local inside
    local result, list = resin.scope(function(n)
      inside = resin.ones(n)
      local kept = inside + 1
      return kept, { inside * 3, name = "x" }
    end, 4)
    assert.is_true(freed(inside))
    assert.same({ 2, 2, 2, 2 }, result:totable())
    assert.same({ 3, 3, 3, 3 }, list[1]:totable())
    assert.is_nil(scope.current())
    local ok, message = pcall(function() return inside + 1 end)
    assert.is_false(ok)
    assert.truthy(message:find("tensor was freed (by t:free(), or its scope ended", 1, true), message)
  end)

  it("nests: a result belongs to the scope around", function()
    local inner, outer
    resin.scope(function()
      inner = resin.scope(function() return resin.ones(2) end)
      assert.is_false(freed(inner))
      outer = resin.keep(resin.ones(3))
    end)
    assert.is_true(freed(inner))
    assert.is_false(freed(outer))
  end)

  it("ends after an error", function()
    local t
    local ok, message = pcall(resin.scope, function()
      t = resin.ones(2)
      resin.scope(function() error("inner") end)
    end)
    assert.is_false(ok)
    assert.truthy(message:find("inner", 1, true))
    assert.is_true(freed(t))
    assert.is_nil(scope.current())
  end)

  it("may be left by a yield", function()
    local before, after
    local co = coroutine.wrap(function()
      return resin.scope(function()
        before = resin.ones(2)
        coroutine.yield("first")
        after = resin.ones(2)
        return after * 2
      end)
    end)
    assert.equal("first", co())
    assert.is_nil(scope.current())
    local outside = resin.ones(1)
    assert.is_false(outside.s)
    local result = co()
    assert.is_true(freed(after))
    assert.is_false(freed(before))      -- the collector's since the yield
    assert.same({ 2, 2 }, result:totable())
    assert.is_nil(scope.current())
  end)

  it("keeps gradients working", function()
    local w = resin.ones(3, { requires_grad = true })
    local loss = resin.scope(function() return ((w * 2):relu() * 3):sum() end)
    loss:backward()
    assert.same({ 6, 6, 6 }, w.grad:totable())
  end)
end)

describe("the path of layers", function()
  local nn, check = resin.nn, require "resin.check"
  local wrong = function() return resin.ones(2) + resin.ones(3) end
  local function text_of(fn, ...)
    local ok, message = pcall(fn, ...)
    assert.is_false(ok)
    return (message:gsub("^[^ ]*:%d+: ", ""))
  end
  -- Waits in layer 2 of 3, inside layer 1 of the outer one.
  local function waiting()
    return nn.Sequential(nn.Sequential(nn.ReLU(), function(x)
      coroutine.yield()
      return x
    end, nn.Linear(3, 3)), nn.ReLU())
  end

  it("is empty while a coroutine waits in a container, and after it was abandoned", function()
    for _, via in ipairs { function(m, x) return m(x) end, function(m, x) return resin.scope(m, x) end } do
      local co = coroutine.wrap(function() return via(waiting(), resin.ones(1, 3)) end)
      co()
      assert.equal(0, check.depth)
      assert.truthy(text_of(wrong):find("^add: "))
      assert.truthy(text_of(nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), resin.ones(1, 3)):find("^in Sequential 2 %(Linear%): linear: "))
      assert.equal(0, check.depth)
    end
  end)

  it("is a coroutine's own when several take turns", function()
    local messages, workers = {}, {}
    for i = 1, 4 do
      workers[i] = coroutine.create(function()
        messages[i] = text_of(waiting(), resin.ones(1, i))     -- right for i = 3 only
        coroutine.yield()
        messages[i + 4] = text_of(wrong)
      end)
      if i == 3 then workers[i] = coroutine.create(function() waiting()(resin.ones(1, 3)) end) end
    end
    for _ = 1, 3 do
      for i = 4, 1, -1 do
        coroutine.resume(workers[i])
        assert.equal(0, check.depth)
      end
    end
    for _, i in ipairs { 1, 2, 4 } do
      assert.truthy(messages[i]:find("^in Sequential 1 %(Sequential%), Sequential 3 %(Linear%): linear: "), messages[i])
      assert.truthy(messages[i + 4]:find("^add: "), messages[i + 4])
    end
  end)

  it("stays whole around user code, in coroutines too", function()
    local model = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Sequential(nn.ReLU(), wrong)))
    local expected = "^in Sequential 2 %(Sequential%), Sequential 1 %(Sequential%), Sequential 2 %(Lambda%): add: "
    local x = resin.ones(2)
    for _, run in ipairs { model, function() return resin.scope(model, x) end,
      function() return resin.scope(resin.scope, model, x) end } do
      assert.truthy(text_of(run, x):find(expected))
      assert.equal(0, check.depth)
      coroutine.wrap(function() assert.truthy(text_of(run, x):find(expected)) end)()
      assert.equal(0, check.depth)
      local inner = nn.Sequential(nn.ReLU(), nn.ReLU(), function() return run(x) end)
      local whole = "^in Sequential 3 %(Lambda%), " .. expected:sub(5)
      assert.truthy(text_of(inner, x):find(whole))
      coroutine.wrap(function() assert.truthy(text_of(inner, x):find(whole)) end)()
      coroutine.wrap(function() assert.truthy(text_of(wrong):find("^add: ")) end)()
    end
  end)

  it("costs a coroutine none of its results, compiled too", function()
    local model = nn.Sequential(nn.ReLU(), function(x) return x * 1 end)
    coroutine.wrap(function()
      for i = 1, 400 do
        local x = resin.tensor { i }
        assert.equal(i, model(x):item())
        local a, b, c = scope.run(function(y) return i, scope.call(math.max, i, 3), y end, x)
        assert.is_true(a == i and b == math.max(i, 3) and c == x)
      end
    end)()
  end)

  it("is not disturbed by a coroutine that goes on inside a layer", function()
    local co = coroutine.wrap(function() return waiting()(resin.ones(1, 3)) end)
    co()
    local outer = nn.Sequential(nn.ReLU(), function(x)
      co()
      assert.equal(1, check.depth)
      return nn.Sequential(nn.Linear(7, 7))(x)
    end)
    assert.truthy(text_of(outer, resin.ones(1, 3)):find("^in Sequential 2 %(Lambda%), Sequential 1 %(Linear%): linear: "))
    assert.equal(0, check.depth)
  end)
end)

describe("scope.run", function()
  local made
  local function forward(x)
    made = x * 2
    return made + 1
  end
  local function outer(x)
    local y = scope.run(forward, x)
    return y + 1, y
  end

  it("frees intermediate results and moves results outwards", function()
    local a, b = scope.run(outer, resin.ones(2))
    assert.is_true(freed(made))
    assert.same({ 4, 4 }, a:totable())
    assert.same({ 3, 3 }, b:totable())
    assert.is_false(a.s)
  end)

  it("gives user code tensors of its own", function()
    local kept
    local function user(x)
      kept = x + 1
      return kept
    end
    local result = scope.run(function(x) return scope.call(user, x) * 2 end, resin.ones(1))
    assert.is_false(freed(kept))
    assert.equal(4, result:item())
  end)

  it("leaves nothing behind after an error in user code", function()
    local a, b
    local function user() error("user") end
    local function deep()
      b = resin.ones(1)
      scope.call(user)
    end
    assert.is_false(pcall(scope.run, function()
      a = resin.ones(1)
      scope.run(deep)
    end))
    assert.is_true(freed(a))
    assert.is_true(freed(b))
    assert.is_nil(scope.current())
  end)

  it("takes results in tables", function()
    local state = scope.run(function() return { h = resin.ones(1), list = { resin.ones(2) } } end)
    assert.equal(1, state.h:item())
    assert.same({ 2 }, state.list[1].shape)
  end)
end)

describe("memory", function()
  it("does not leak through scopes, errors and garbage", function()
    local function once()
      resin.scope(function()
        local x = resin.randn(64, { requires_grad = true })
        local y = (x * x + 1):sum()
        y:backward()
        return y
      end)
      local t = resin.ones(100) + 1
      pcall(function() return t + resin.ones(3) end)
    end
    for _ = 1, 10 do once() end
    local start = live()
    for _ = 1, 100 do once() end
    assert.equal(start, live())
  end)

  it("is collected when C holds much", function()
    resin.trim()
    local survived, peak = resin.memory().live, 0
    for _ = 1, 300 do
      resin.empty(2 ^ 18)
      peak = math.max(peak, resin.memory().live)
    end
    assert.is_true(peak < math.max(1.5 * survived, 64 * 2 ^ 20) + 4 * 2 ^ 20, "peak was " .. peak)
  end)

  it("is collected before an allocation fails", function()
    collectgarbage()
    resin.set_budget(resin.memory().live + 8 * 2 ^ 20)
    local ok, message = pcall(function()
      for _ = 1, 50 do resin.empty(2 ^ 18) end
    end)
    resin.set_budget(0)
    assert.is_true(ok, message)
  end)
end)
