-- The basic residual block of torchresidual's README (width 64, batch 8): the container, and the same ops called by hand.
-- usage: residual.lua container|hand|scope THREADS. Prints "forward US" (no gradient) and "step US" (Adam), medians.
-- One form per process: the traces that LuaJIT compiles for one form would change the time of another.

local resin = require "resin"
local nn, optim, F = resin.nn, resin.optim, resin.F

local form, threads = arg[1] or "container", tonumber(arg[2] or 1)
resin.set_num_threads(threads)
resin.manual_seed(1)

local linear, norm = nn.Linear(64, 64), nn.LayerNorm(64)
local block = nn.ResidualSequential(nn.Record { name = "r" }, linear, nn.ReLU(), norm, nn.Apply { record_name = "r" })
local x, target = resin.randn(8, 64), resin.randn(8, 64)

local function by_hand(v) return F.layer_norm(F.relu(F.linear(v, linear.weight, linear.bias)), norm.weight, norm.bias, 64) + v end
local forms = {
  container = function(v) return block(v) end,
  hand = by_hand,
  scope = function(v) return resin.scope(by_hand, v) end,
}
local forward = assert(forms[form], "unknown form")
local opt = optim.Adam(block, { lr = 1e-3 })

local function step()
  opt:zero_grad()
  F.mse_loss(forward(x), target):backward()
  opt:step()
end

local function median(fn)
  local times = {}
  for round = 1, 401 do
    local begin = resin.time()
    for _ = 1, 50 do fn() end
    times[round] = (resin.time() - begin) / 50 * 1e6
  end
  table.sort(times)
  return times[201]
end

print(string.format("forward %.3f", resin.no_grad(median, function() forward(x) end)))
print(string.format("step %.3f", median(step)))
