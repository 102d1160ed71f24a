-- What is easy to get silently wrong in a tape: writes in place, aliases, shared gradients, views of a base that was written.

local resin = require "resin"
local F64 = { dtype = "f64" }

local function leaf(values, dtype) return resin.tensor(values, { dtype = dtype or "f64", requires_grad = true }) end
local function near(expected, t)
  local got = t:totable()
  for i = 1, #expected do assert.is_true(math.abs(expected[i] - got[i]) < 1e-6, i .. ": " .. got[i] .. " is not " .. expected[i]) end
end
local function fails(pattern, fn, ...)
  local ok, message = pcall(fn, ...)
  assert.is_false(ok)
  assert.is_truthy(tostring(message):find(pattern, 1, true), tostring(message))
end

describe("accumulation", function()
  it("never writes into a gradient that somebody else holds", function()
    local a, b, seed = leaf { 1 }, leaf { 2 }, resin.ones(1, F64)
    local s = a + b
    s:backward(seed, { create_graph = true })
    local t = a + b
    t:backward(seed)
    near({ 2 }, a.grad)
    near({ 2 }, b.grad)
    near({ 1 }, seed)
  end)

  it("adds to a gradient that came from an expanded one", function()
    local a, b = leaf { 1, 2, 3 }, leaf { 4, 5, 6 }
    local first = (a + b):sum()
    first:backward(nil, { create_graph = true })
    local second = (a * b):sum()
    second:backward()
    near({ 5, 6, 7 }, a.grad)
    near({ 2, 3, 4 }, b.grad)
  end)

  it("adds the same leaf used many times", function()
    local x = leaf { 1, 2 }
    local y = (x * x + x + x):sum()
    y:backward()
    near({ 4, 6 }, x.grad)
    local z = x:sum()
    z:backward()
    near({ 5, 7 }, x.grad)
  end)
end)

describe("in place", function()
  it("keeps what the gradient needs when an operand is an alias", function()
    local w = leaf { 2, 3, 4 }
    local x = w * 1
    x:mul_(x:detach())
    x:sum():backward()
    near({ 2, 3, 4 }, w.grad)
    w.grad = nil
    local y = w * 1
    y:div_(y:detach())
    y:sum():backward()
    near({ 1 / 2, 1 / 3, 1 / 4 }, w.grad)
  end)

  it("names both ops and versions when a saved value was overwritten", function()
    local x = leaf { 1, 2 }
    local y = x:exp()
    y:add_(1)
    local s = y:sum()
    fails("backward: exp needs its result of shape [2] as it was (version 0), but it was overwritten in place by add "
      .. "(now version 1)", s.backward, s)
  end)

  it("refuses a leaf, a view and an op that needs what it overwrites", function()
    local x = leaf { 1, 2 }
    fails("add: a leaf that requires a gradient cannot be changed in place", x.add_, x, 1)
    local y = x * 1
    local v = y:narrow(1, 1, 1)
    fails("add: a view cannot be changed in place while gradients are recorded", v.add_, v, 1)
    fails("mul: its gradient needs the value that it would overwrite", y.mul_, y, x * 2)
    fails("an expanded tensor cannot be written in place", function() return resin.zeros(1, 2):expand(3, 2):add_(1) end)
  end)

  it("refuses a view of a base that a recorded write reached", function()
    local w, z = leaf { 2, 3, 4 }, resin.zeros(3, F64)
    local v = z:narrow(1, 1, 2)
    z:add_(w)
    fails("is a view whose base was overwritten in place by add", function() return v * 2 end)
    near({ 4, 6 }, (z:narrow(1, 1, 2) * 2):detach())
  end)

  it("works in bf16 and f16", function()
    for _, dtype in ipairs { "bf16", "f16" } do
      local h = resin.tensor({ 1, 2, 3 }, { dtype = dtype })
      h:mul_(2)
      h:relu_()
      near({ 2, 4, 6 }, h)
      assert.equal(dtype, h.dtype)
      fails("a leaf that requires a gradient cannot be changed in place", function()
        local l = resin.tensor({ 1 }, { dtype = dtype, requires_grad = true })
        l:mul_(2)
      end)
    end
  end)
end)

describe("views", function()
  it("share the storage in every dtype", function()
    for _, dtype in ipairs { "f32", "f64", "bf16", "f16", "i64", "i32", "u8", "bool" } do
      local t = resin.zeros({ 2, 3 }, { dtype = dtype })
      t:select(1, 1):fill_(1)
      t:narrow(2, 3, 1):fill_(1)
      t:permute({ 2, 1 }):select(1, 2):fill_(1)
      t:reshape(6):narrow(1, 6, 1):fill_(1)
      local got = t:to("i64"):totable()
      assert.same({ { 1, 1, 1 }, { 0, 1, 1 } }, got, dtype)
    end
  end)
end)

describe("data of a parameter", function()
  it("can be replaced without disturbing a graph made before", function()
    local w = leaf { 1, 2, 3 }
    local old = (w * w):sum()
    w:set_data(resin.ones(5, F64))
    old:backward()
    assert.is_nil(w.grad)
    local s = (w * 3):sum()
    s:backward()
    near({ 3, 3, 3, 3, 3 }, w.grad)
  end)
end)

describe("many inputs", function()
  it("have gradients through cat", function()
    local parts = {}
    for i = 1, 60 do parts[i] = leaf({ i }, i % 2 == 0 and "f64" or "f32") end
    local s = (resin.cat(parts, 1) * 2):sum()
    s:backward()
    for i = 1, 60 do near({ 2 }, parts[i].grad) end
  end)

  it("release a long chain without recursion", function()
    local x = leaf { 1 }
    local y = x
    for _ = 1, 200000 do y = y + 1 end
    y:backward()
    near({ 1 }, x.grad)
    y = nil
    assert.is_nil(y)
    collectgarbage()
  end)
end)
