-- Programs that write in place, and views of views: random ones and those that once went wrong, beside the same run eagerly.

local resin = require "resin"
local samples = require "spec.support.samples"
local nn = resin.nn

local EXACT = { precision = "f32" }

local function same(a, b, tolerance, what)
  assert.same(a.shape, b.shape)
  local d, most = samples.difference(a, b), a:numel() > 0 and a:abs():amax():item() or 0
  if d ~= d or d > tolerance * math.max(1, most) then error(("%s differs by %g"):format(what or "result", d), 2) end
end

-- A function that gives numbers from 1 to n.
local function randoms(state)
  return function(n)
    state = (state * 16807) % 2147483647
    return state % n + 1
  end
end

-- ---- random programs over a few matrices ------------------------------------------------------------------------------------

-- Each takes a pool of matrices, one of them, another one of its shape or nil, and a number; what it returns joins the pool.
local moves = {
  function(_, a) return a:t() end,
  function(_, a, _, r) if a.shape[1] > 1 then return a:narrow(1, 1 + r % 2, a.shape[1] - 1) end end,
  function(_, a, _, r) if a.shape[2] > 1 then return a:narrow(2, 1 + r % 2, a.shape[2] - 1) end end,
  function(_, a) if a:is_contiguous() then return a:view(a.shape[2], a.shape[1]) end end,
  function(_, a) return a:reshape(a.shape[2], a.shape[1]) end,
  function(_, a) a:add_(0.5) end,
  function(_, a) a:mul_(0.75) end,
  function(_, a, b) if b and b ~= a then a:add_(b) end end,
  function(_, a, b) if b and b ~= a then a:copy_(b) end end,
  function(_, a, _, r) a:narrow(2, 1, 1):fill_(r % 7) end,
  function(_, a, b) if b then return a + b end end,
  function(_, a, b) if b then return a * b end end,
  function(_, a) return a:tanh() end,
  function(_, a) return a - a:mean(2, true) end,
  function(_, a) return a:clone() end,
  function(_, a) return resin.cat({ a, a * 2 }, 1):narrow(1, a.shape[1], a.shape[1]) end,
}

local function random_program(seed)
  local random = randoms(seed * 7919 + 17)
  local steps = {}
  for i = 1, random(14) + 4 do steps[i] = { moves[random(#moves)], random(1000), random(1000), random(1000) } end
  local results = random(3)
  return function(x, y)
    local pool = { x * 2, x, y }
    for _, s in ipairs(steps) do
      -- mostly what was made last, so that chains grow
      local a = pool[#pool - s[2] % math.min(#pool, 4)]
      local b
      for _, other in ipairs(pool) do
        if other.shape[1] == a.shape[1] and other.shape[2] == a.shape[2] and (not b or s[3] % 2 == 0) then b = other end
      end
      pool[#pool + 1] = s[1](pool, a, b, s[4])
    end
    local out = {}
    for i = 1, results do out[i] = pool[#pool - i + 1] end
    return unpack(out)
  end
end

-- ---- random networks on images ----------------------------------------------------------------------------------------------

local function random_net(seed)
  local random = randoms(seed * 104729 + 5)
  local modules, steps, channels = {}, {}, { 16 }
  local function add(c, step)
    steps[#steps + 1] = step
    channels[#channels + 1] = c
  end
  for _ = 1, random(6) + 3 do
    local at = #channels - (random(math.min(#channels, 3)) - 1)
    local c, kind = channels[at], random(9)
    if kind <= 3 then
      local to = ({ 16, 32, 48 })[random(3)]
      modules[#modules + 1] = nn.Conv2d(c, to, ({ 1, 3 })[random(2)], { padding = "same" })
      local conv = modules[#modules]
      add(to, function(pool) return conv(pool[at]) end)
    elseif kind == 4 then
      modules[#modules + 1] = nn.BatchNorm2d(c)
      local norm = modules[#modules]
      add(c, function(pool) return norm(pool[at]) end)
    elseif kind == 5 then
      local half = c / 2
      add(half, function(pool) return pool[at]:narrow(2, half + 1, half) end)
      channels[#channels] = half
    elseif kind == 6 and c % 4 == 0 then
      add(c, function(pool)
        local n, _, h, w = unpack(pool[at].shape)
        return pool[at]:reshape(n, 4, c / 4, h, w):transpose(2, 3):reshape(n, c, h, w)
      end)
    elseif kind == 7 then
      add(c, function(pool) return pool[at]:relu() end)
    elseif kind == 8 then
      local other
      for i = 1, #channels do if i ~= at and channels[i] == c then other = i end end
      if other then add(c, function(pool) return pool[at] + pool[other] end) end
    else
      local how = random(3)
      if at > 1 then
        steps[#steps + 1] = function(pool)
          if how == 1 then pool[at]:mul_(1.5) elseif how == 2 then pool[at]:add_(0.25) else pool[at]:clamp_(-0.5, 0.75) end
        end
      end
    end
  end
  return nn.ModuleList(modules), function(x)
    local pool = { x }
    for _, step in ipairs(steps) do pool[#pool + 1] = step(pool) end
    return pool[#pool], pool[math.max(1, #pool - 1)] * 1
  end
end

describe("compiled programs that write in place", function()
  before_each(function() resin.manual_seed(3) end)

  it("give what eager gives: 1500 random programs", function()
    resin.no_grad(function()
      for seed = 1, 1500 do
        local f = random_program(seed)
        local fast = resin.compile(f, EXACT)
        for _ = 1, 2 do
          local x, y = resin.randn(4, 6), resin.randn(6, 4)
          local x2, y2 = x:clone(), y:clone()
          local wanted, got = { f(x, y) }, { fast(x2, y2) }
          wanted[#wanted + 1], wanted[#wanted + 2], got[#got + 1], got[#got + 2] = x, y, x2, y2
          for i = 1, #wanted do same(wanted[i], got[i], 1e-5, ("program %d: result %d"):format(seed, i)) end
        end
        fast:reset()
      end
    end)
  end)

  it("give what eager gives: 120 random networks on images", function()
    resin.no_grad(function()
      for seed = 1, 120 do
        local modules, f = random_net(seed)
        modules:eval()
        local fast = resin.compile(f, EXACT)
        for _ = 1, 2 do
          local x = resin.randn(2, 16, 6, 7)
          local wanted, got = { f(x:clone()) }, { fast(x:clone()) }
          for i = 1, #wanted do same(wanted[i], got[i], 1e-4, ("network %d: result %d"):format(seed, i)) end
        end
        fast:reset()
      end
    end)
  end)

  it("take views again of what was written since", function()
    local f = function(x)
      local y = x * 2
      y:add_(1)
      local v, w = y:narrow(1, 1, 2), y:narrow(1, 1, 3):narrow(1, 2, 2)
      y:mul_(10)
      y:add_(3)
      return v, w + 1
    end
    local v, w = resin.compile(f, EXACT)(resin.ones(4))
    same(resin.tensor { 33, 33 }, v, 0)
    same(resin.tensor { 34, 34 }, w, 0)
  end)

  it("cut channels of a convolution's result more than once", function()
    local conv, other = nn.Conv2d(16, 48, 1), nn.Conv2d(16, 16, 3, { padding = 1 })
    local function f(x)
      local y = conv(x)
      local q, k, v = y:narrow(2, 1, 16), y:narrow(2, 17, 16), y:narrow(2, 33, 16)
      return (q:reshape(x.shape[1], 16, -1):transpose(2, 3):matmul(k:reshape(x.shape[1], 16, -1)) * 0.1):sum(), other(v:narrow(2, 1, 16)),
        v:narrow(2, 3, 8):narrow(3, 2, 3)
    end
    local x = resin.randn(3, 16, 5, 6)
    resin.no_grad(function()
      local wanted, got = { f(x) }, { resin.compile(f, EXACT)(x) }
      for i = 1, 3 do same(wanted[i], got[i], 1e-4, i) end
    end)
    local function step()
      conv:zero_grad()
      local a, b, c = f(x)
      local loss = a + b:square():mean() + c:sum()
      loss:backward()
      return loss
    end
    local wanted = step():item()
    local gradient = conv.weight.grad:clone()
    assert.near(wanted, resin.compile(step, EXACT)():item(), 1e-4 * math.abs(wanted))
    same(gradient, conv.weight.grad, 1e-4, "gradient")
  end)

  it("do not move a convolution past a write to what it reads", function()
    local first, second, norm = nn.Conv2d(16, 16, 3, { padding = 1 }), nn.Conv2d(16, 16, 3, { padding = 1 }), nn.BatchNorm2d(16):eval()
    local state, kept = resin.randn(1, 16, 6, 6), nil
    local writes = {
      state = function(x) state:copy_(x) end,
      weight = function() first.weight:mul_(0.5) end,
      mean = function() norm.running_mean:add_(1) end,
      ["norm's weight"] = function() norm.weight:mul_(2) end,
    }
    for name, write in pairs(writes) do
      local function f(x)
        local a = norm(first(state))
        write(x)
        return (a + second(state)):relu()
      end
      resin.no_grad(function()
        local things = { state, first.weight, norm.running_mean, norm.weight }
        kept = {}
        for i, t in ipairs(things) do kept[i] = t:clone() end
        local x = resin.randn(1, 16, 6, 6)
        local wanted = f(x)
        local fast = resin.compile(f, EXACT)
        for _ = 1, 2 do                   -- as it is recorded, and as it runs
          for i, t in ipairs(things) do t:copy_(kept[i]) end
          same(wanted, fast(x), 1e-4, name)
        end
        for i, t in ipairs(things) do t:copy_(kept[i]) end
        fast:reset()
      end)
    end
  end)
end)
