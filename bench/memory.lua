-- Resident memory over 10,000 training steps of a small residual network: it must be flat after the first hundred.
-- Prints "step MEGABYTES" lines and "growth KILOBYTES" from step 100 to the last.

local resin = require "resin"
local nn, optim, F = resin.nn, resin.optim, resin.F

local function resident()
  for line in io.lines("/proc/self/status") do
    local kb = line:match("^VmRSS:%s+(%d+)")
    if kb then return tonumber(kb) end
  end
end

resin.manual_seed(1)
local model = nn.ResidualSequential(
  nn.Linear(32, 64), nn.Record { name = "a" }, nn.Linear(64, 64), nn.ReLU(), nn.LayerNorm(64), nn.Dropout(0.1),
  nn.Apply { record_name = "a", operation = "gated" }, nn.Linear(64, 10))
local opt = optim.AdamW(model, { lr = 1e-3 })
local first
for step = 1, 10000 do
  opt:zero_grad()
  local loss = F.cross_entropy(model(resin.randn(16, 32)), resin.randint(1, 10, { 16 }))
  loss:backward()
  opt:step()
  if step == 100 or step % 2000 == 0 then
    local kb = resident()
    first = first or kb
    print(string.format("%d %.1f", step, kb / 1024))
  end
end
print(string.format("growth %d", resident() - first))
