-- Why deep networks need skips, and why skips need a scale. Run it with: build/resin examples/doctor.lua [picture.svg]

local resin = require "resin"
local nn, doctor = resin.nn, resin.doctor

resin.manual_seed(1)

-- The guide's network: Linear and GELU layers of shrinking size; the other one adds the input of each layer to its output, through
-- a projection where the sizes differ.
local sizes = {128, 64, 32, 16, 8, 1}
local plain, residual = nn.Sequential(), nn.ResidualSequential()
for i = 1, #sizes - 1 do
  plain:append(nn.Sequential(nn.Linear(sizes[i], sizes[i + 1]), nn.GELU()))
  residual:append(nn.Residual({nn.Linear(sizes[i], sizes[i + 1]), nn.GELU()}, {need_projection = true}))
end

local x = resin.randn(10, 128)
print("Without skips")
doctor.print_gradients(plain, x)
print("\nWith skips")
doctor.print_gradients(residual, x)

-- The same side by side, and as bars.
local function stack(depth, apply)
  local model = nn.ResidualSequential()
  for _ = 1, depth do
    if apply then model:append(nn.Record()) end
    model:append(nn.Linear(32, 32)):append(nn.GELU())
    if apply then model:append(apply()) end
  end
  return model
end

local probe = resin.randn(16, 32)
local comparison = doctor.compare(stack(8), stack(8, nn.Apply), {x = probe})
print("\n" .. tostring(comparison) .. "\n")
print(comparison:bars{width = 30})
if arg and arg[1] then comparison:plot(arg[1], {title = "Norm of the gradient, 8 layers without and with skips"}) end

-- A hundred layers: skips alone explode, a scaled branch does not.
print("\n100 layers")
for _, case in ipairs{
  {"no skips", nil},
  {"skips", nn.Apply},
  {"skips, branch scaled by 0.1", function() return nn.Apply{scale = 0.1} end},
  {"ReZero", function() return nn.Apply{scale = nn.Parameter(resin.zeros(1))} end},
} do
  local report = doctor.examine(stack(100, case[2]), probe)
  print(("  %-28s %-10s first to last gradient %.2e"):format(case[1], report.verdict, report.depth_ratio))
end

-- A report knows the residual paths too: what skip and branch contribute, and the gradients into both.
print()
print(doctor.examine(stack(3, function() return nn.Apply{scale = 0.1} end), probe))
