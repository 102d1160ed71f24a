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
