-- Gradients that outlive a compiled function: accumulated, scaled and clipped in place, and of tensors that stop wanting one.

local resin = require "resin"
local nn, optim = resin.nn, resin.optim

local function leaf(...)
  local t = resin.ones(...)
  t.requires_grad = true
  return t
end

local function norm_of(m)
  local sum = 0
  for _, p in ipairs(m:parameters()) do sum = sum + p.grad:square():sum():item() end
  return math.sqrt(sum)
end

describe("gradients of a compiled function", function()
  it("of a parameter that is used twice add up, run after run", function()
    local w = leaf(3)
    local f = resin.compile(function()
      local loss = (w * w):sum()
      loss:backward()
      return loss
    end)
    for run = 1, 4 do
      f()
      assert.same({ 2 * run, 2 * run, 2 * run }, w.grad:totable())
    end
  end)

  it("of a layer that is used twice are those of eager", function()
    local function train(compiled)
      resin.manual_seed(5)
      local layer = nn.Linear(4, 4)
      local m = nn.Sequential(layer, nn.Tanh(), layer)
      local opt = optim.SGD(m, { lr = 0.1 })
      local pass = function(x)
        opt:zero_grad()
        local loss = m(x):square():mean()
        loss:backward()
        return loss
      end
      if compiled then pass = resin.compile(pass) end
      for _ = 1, 4 do
        pass(resin.randn(3, 4))
        opt:step()
      end
      return layer.weight:detach()
    end
    assert.is_true((train(false) - train(true)):abs():amax():item() < 1e-6)
  end)

  it("are scaled and clipped in place", function()
    resin.manual_seed(6)
    local m, x = nn.Linear(4, 4), resin.randn(3, 4)
    local f = resin.compile(function(input)
      m:zero_grad()
      local loss = m(input):square():sum() * 100
      loss:backward()
      nn.utils.clip_grad_norm_(m:parameters(), 0.1)
      m.weight.grad:mul_(2)
      return loss
    end)
    for _ = 1, 3 do f(x) end
    m.weight.grad:mul_(0.5)
    assert.is_true(math.abs(norm_of(m) - 0.1) < 1e-5)
  end)

  it("are not made for a parameter that was frozen meanwhile, nor missing when an input wants one", function()
    local m = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    local opt, x = optim.SGD(m, { lr = 0.1 }), resin.randn(3, 4)
    local step = resin.compile(function(input)
      opt:zero_grad()
      local loss = m(input):square():mean()
      loss:backward()
      opt:step()
      return loss
    end)
    step(x)
    m[1].weight.requires_grad = false
    local before = m[1].weight:clone()
    step(x)
    assert.equal(0, (before - m[1].weight):abs():amax():item())
    x.requires_grad = true
    step(x)
    assert.same({ 3, 4 }, x.grad.shape)
  end)
end)
