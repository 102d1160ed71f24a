-- Programs beside eager: one model made several times from one seed, run eagerly, as a program whose passes leave every bit as it
-- is, and as a program with all passes. Forward in evaluation mode, and training steps with their losses, gradients, parameters,
-- buffers and random numbers.

local resin = require "resin"
local assert = require "luassert"
local samples = require "spec.support.samples"

local optim, F = resin.optim, resin.F

local compiled = {}

compiled.EXACT = { passes = { "ssa", "clean", "hoist" } }
local EXACT = compiled.EXACT
local STEPS = 4
local NEAR = 2e-4           -- of forward results and losses with all passes, relative to the largest
local NEAR_AFTER = 2e-3     -- of gradients and parameters, after some steps

local function close(want, got, tolerance, what)
  assert.equal(want.dtype, got.dtype, what)
  assert.same(want.shape, got.shape, what)
  local d = samples.difference(want, got)
  if d > tolerance then error(("%s differs by %g"):format(what, d), 0) end
end

local function state_close(a, b, tolerance, what)
  local other = {}
  for name, t in b:named_parameters() do other[name] = t end
  for name, t in b:named_buffers() do other[name] = t end
  for name, t in a:named_parameters() do
    close(t, other[name], tolerance, what .. name)
    assert.equal(t.grad ~= nil, other[name].grad ~= nil, what .. name)
    if t.grad then close(t.grad, other[name].grad, tolerance, what .. "gradient of " .. name) end
  end
  for name, t in a:named_buffers() do close(t, other[name], tolerance, what .. name) end
end

local function made(make, seed, adam)
  resin.manual_seed(seed)
  local model = make()
  return { model = model, opt = adam and optim.Adam(model, { lr = 1e-3 }) or optim.SGD(model, { lr = 0.02, momentum = 0.5 }) }
end

local function step_of(t, classes)
  return function(x, target)
    t.opt:zero_grad()
    local y = t.model(x)       -- the first result
    local loss = classes and F.cross_entropy(y, target) or (y - target):square():mean()
    loss:backward()
    t.opt:step()
    return loss, y
  end
end

local function forward(t, x) return (resin.no_grad(t.model, x)) end

-- make() gives a model, input() an input of it; `number` seeds everything. The first result of the model is what counts.
function compiled.check(make, input, number, adam)
  local eager, exact, all = made(make, number, adam), made(make, number, adam), made(make, number, false)
  local plain = adam and made(make, number, false) or eager       -- the partner of `all`: Adam would magnify rounding
  local fast_exact, fast_all = resin.compile(exact.model, EXACT), resin.compile(all.model)

  for _, t in ipairs { eager, exact, all, plain } do t.model:eval() end
  local y
  for round = 1, 3 do
    resin.manual_seed(number * 31 + round)
    local x = input()
    y = forward(eager, x)
    close(y, (resin.no_grad(fast_exact, x)), 0, "forward " .. round)
    close(y, (resin.no_grad(fast_all, x)), NEAR, "forward with all passes " .. round)
  end

  assert.equal(1, fast_exact.recorded)
  assert.equal(1, fast_all.recorded)

  for _, t in ipairs { eager, exact, all, plain } do t.model:train() end
  local classes = y.ndim == 2 and y.shape[2] > 1
  local run, run_plain = step_of(eager, classes), step_of(plain, classes)
  local run_exact, run_all = resin.compile(step_of(exact, classes), EXACT), resin.compile(step_of(all, classes))
  for i = 1, STEPS do
    resin.manual_seed(number * 17 + i)
    local x = input()
    local target = classes and resin.randint(1, y.shape[2], { y.shape[1] }) or resin.randn(unpack(y.shape))
    local function loss_of(fn)
      resin.manual_seed(i)
      local loss, out = fn(x, target)
      return { loss:detach(), out:detach(), resin.get_rng_state() }
    end
    local want, got = loss_of(run), loss_of(run_exact)
    close(want[1], got[1], 0, "loss " .. i)
    close(want[2], got[2], 0, "output " .. i)
    assert.same(want[3], got[3], "random state " .. i)
    if plain ~= eager then want = loss_of(run_plain) end
    got = loss_of(run_all)
    close(want[1], got[1], NEAR_AFTER, "loss with all passes " .. i)
    assert.same(want[3], got[3], "random state with all passes " .. i)
  end
  assert.is_true(run_exact.recorded >= 1 and run_exact.recorded <= 2, "recorded " .. run_exact.recorded)
  state_close(eager.model, exact.model, 0, "")
  state_close(plain.model, all.model, NEAR_AFTER, "all passes: ")

  -- Evaluation again, with the parameters as they are now: what the prologue keeps must have followed them.
  for _, t in ipairs { eager, exact, all, plain } do t.model:eval() end
  resin.manual_seed(number)
  local x = input()
  close(forward(eager, x), (resin.no_grad(fast_exact, x)), 0, "forward after training")
  close(forward(plain, x), (resin.no_grad(fast_all, x)), NEAR_AFTER, "forward with all passes after training")
end

-- Gradients of a deep network of ReLU jump where rounding turns the sign of one activation, and batch norm over few numbers magnifies
-- what came before, so that eager itself is far from the exact ones. The program with all passes must not be much farther: for one of
-- some seeds, since about every third has a jump in one of the two that the other has not, and a wrong gradient shows with each.
-- The model must draw no random numbers.
local SEEDS = 8

local function deep_errors(make, input, number)
  resin.manual_seed(number)
  local eager = make()
  resin.manual_seed(number)
  local exact, x = make(), input()
  resin.manual_seed(number)
  local all = make()
  local wide = eager:clone():to("f64")
  local target = resin.randint(1, 3, { x.shape[1] })
  local function gradients(m, given, options)
    local function step(a)
      m:zero_grad()
      local loss = F.cross_entropy(m(a), target)
      loss:backward()
      return loss
    end
    if options then step = resin.compile(step, options) end
    local loss
    for _ = 1, m == wide and 1 or 3 do loss = step(given) end       -- running statistics move each time
    local list = { loss:detach():to("f64") }
    for i, p in ipairs(m:parameters()) do list[i + 1] = p.grad:to("f64") end
    return list
  end
  local function distance(a, b)
    local sum, norm = 0, 0
    for i = 1, #b do
      sum = sum + (a[i] - b[i]):square():sum():item()
      norm = norm + b[i]:square():sum():item()
    end
    return math.sqrt(sum / norm)
  end
  local want, truth = gradients(eager, x), gradients(wide, x:to("f64"))
  local same, fast = gradients(exact, x, EXACT), gradients(all, x, {})
  for i = 1, #want do close(want[i], same[i], 0, "gradient " .. i) end
  eager:eval()
  all:eval()
  close(resin.no_grad(eager, x), resin.no_grad(resin.compile(all), x), NEAR, "forward with all passes")
  return distance(want, truth), distance(fast, truth)
end

function compiled.check_deep(make, input, number)
  local told = {}
  for i = 1, SEEDS do
    local eager_error, error_of_all = deep_errors(make, input, number + 1000 * (i - 1))
    if error_of_all <= 4 * eager_error + 2e-3 then return end
    told[i] = ("off by %g, eager by %g"):format(error_of_all, eager_error)
  end
  error("all passes: " .. table.concat(told, "; "))
end

return compiled
