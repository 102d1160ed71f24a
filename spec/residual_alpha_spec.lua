-- LearnableAlpha: bounds, logarithmic form, arithmetic, saving. Its numbers are in residual_golden_spec.lua.

local resin = require "resin"
local nn = resin.nn
local LearnableAlpha = nn.LearnableAlpha

local function fails(text, fn, ...)
  local ok, message = pcall(fn, ...)
  assert.is_false(ok, "no error; expected: " .. text)
  assert.is_truthy(message:find(text, 1, true), message)
end

describe("LearnableAlpha", function()
  it("takes its options by position, by name, or mixed", function()
    for _, alpha in ipairs{LearnableAlpha(0.3, 0, 2, false), LearnableAlpha{0.3, max_value = 2},
                           LearnableAlpha(0.3, {min_value = 0, max_value = 2}),
                           LearnableAlpha{initial_value = 0.3, min_value = 0, max_value = 2}} do
      assert.is_near(0.3, alpha():item(), 1e-6)
      assert.equal(2, alpha.max_val:item())
    end
    assert.is_near(0.9995, LearnableAlpha()():item(), 1e-6)
  end)

  it("must have as many values as there are channels", function()
    local function block(layer)
      return nn.ResidualSequential(nn.Record(), layer, nn.Apply{alpha = LearnableAlpha(0.5, {size = 3})})
    end
    assert.same({2, 3}, block(nn.Linear(3, 3))(resin.ones(2, 3)).shape)
    fails("Apply: alpha has 3 values, one per channel, but the value [2, 4] has 4 channels (dimension 2)", block(nn.Linear(4, 4)),
      resin.ones(2, 4))
  end)

  it("chooses the logarithmic form when the bounds are more than a factor of 100 apart", function()
    assert.is_true(LearnableAlpha(0.1, 1e-3, 10).use_log:item())
    assert.is_false(LearnableAlpha(0.5, 0.01, 1).use_log:item())
    assert.is_false(LearnableAlpha(0.5, 0, 1000).use_log:item())
    assert.is_true(LearnableAlpha(0.5, 0.1, 1, true).use_log:item())
    assert.is_false(LearnableAlpha(0.5, 1e-4, 1, {use_log_space = false}).use_log:item())
  end)

  it("stays within its bounds whatever the parameter is", function()
    for _, alpha in ipairs{LearnableAlpha(0.5, 0, 1), LearnableAlpha(0.1, 1e-3, 10), LearnableAlpha(0, -2, 3)} do
      for _, p in ipairs{-1e6, -3, 0, 3, 1e6} do
        resin.no_grad(function() alpha.param:fill_(p) end)
        local value = alpha():item()
        assert.is_true(value >= alpha.min_val:item() - 1e-4 and value <= alpha.max_val:item() * (1 + 1e-4))
      end
    end
  end)

  it("refuses what cannot be", function()
    fails("LearnableAlpha: min_value (1) must be less than max_value (0)", LearnableAlpha, 0.5, 1, 0)
    fails("LearnableAlpha: initial_value must be a number from 0 to 1, got number 2", LearnableAlpha, 2)
    fails("LearnableAlpha: use_log_space needs a min_value above 0, got 0", LearnableAlpha, 0.5, 0, 1, true)
    fails('LearnableAlpha: unknown option "min"', LearnableAlpha, 0.5, {min = 0})
    fails("LearnableAlpha: size must be an integer", LearnableAlpha, 0.5, {size = 1.5})
  end)

  it("has one value per channel with size", function()
    local alpha = LearnableAlpha(0.25, {size = 3})
    assert.same({3}, alpha.param.shape)
    assert.same({3}, alpha().shape)
    local model = nn.ResidualSequential(nn.Record(), nn.Conv2d(3, 3, 1), nn.Apply{alpha = alpha})
    model(resin.randn(2, 3, 4, 4)):sum():backward()
    assert.same({3}, alpha.param.grad.shape)
    assert.is_truthy(alpha:label():find("size = 3, values 0.2500 to 0.2500", 1, true))
  end)

  it("takes part in arithmetic", function()
    local alpha = LearnableAlpha(0.25)
    local function near(expected, t) assert.is_near(expected, t:item(), 1e-5) end
    near(1.25, alpha + 1)
    near(0.75, 1 - alpha)
    near(0.5, alpha * 2)
    near(4, 1 / alpha)
    near(0.0625, alpha ^ 2)
    near(-0.25, -alpha)
    near(0.5, alpha + alpha)
    near(0.5, alpha * resin.tensor(2))
    near(0.5, resin.tensor(2) * alpha)
    near(1.75, resin.tensor(2) - alpha)
    near(0.25, alpha())
    local base, bonus = resin.tensor(8), resin.tensor(4)
    local y = base * alpha() + bonus * (1 - alpha())
    near(5, y)
    y:backward()
    near(0.5 * (1 - 0.25) * 4, alpha.param.grad)       -- (base - bonus) · (1 - t²)/2 with t = -0.5
  end)

  it("loading a state restores bounds and form", function()
    local log, linear = LearnableAlpha(0.1, 1e-3, 10), LearnableAlpha(0.5, 0, 1)
    linear:load_state_dict(log:state_dict())
    assert.is_near(0.1, linear():item(), 1e-6)
    assert.is_truthy(linear:label():find("bounds = {0.001, 10}, log", 1, true), linear:label())
    local names = {}
    for name in log:state_dict()() do names[#names + 1] = name end
    assert.same({"param", "min_val", "max_val", "use_log"}, names)
    assert.equal("bool", log.use_log.dtype)
    local before = linear():item()
    assert.is_false((pcall(linear.load_state_dict, linear, {param = resin.ones(2)})))
    assert.equal(before, linear():item())
  end)

  it("is copied, converted and trained like every module", function()
    local alpha = LearnableAlpha(0.1, 1e-3, 10)
    assert.is_near(0.1, alpha:clone()():item(), 1e-6)
    assert.equal("f64", alpha:clone():double()().dtype)
    local optimiser = resin.optim.SGD(alpha, {lr = 1})
    alpha():backward()
    optimiser:step()
    assert.is_true(alpha():item() < 0.1)
  end)
end)
