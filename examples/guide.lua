-- The guide to residual connections: the same deep network without and with them. Run it with: build/resin examples/guide.lua

local resin = require "resin"
local nn = resin.nn
local Improved = resin.models.ImprovedResidualNetwork

-- One forward and backward; then the mean of |gradient| of every weight. %.3e shows how small the vanishing ones are.
local function print_gradients(model, x)
  model:zero_grad()
  local y = model(x)
  nn.MSELoss()(y, resin.zeros_like(y)):backward()
  print("Gradient analysis:")
  print(("-"):rep(50))
  for name, p in model:named_parameters() do
    if name:find("weight") and p.grad then print(("%-22s gradient mean = %.3e"):format(name, p.grad:abs():mean():item())) end
  end
end

resin.manual_seed(1)
local sizes = {128, 64, 32, 16, 8, 1}
local plain = Improved(sizes, {use_shortcut = false})
local residual = Improved(sizes, {use_shortcut = true})
local x = resin.randn(10, 128)

print("Without residual connections:")
print_gradients(plain, x)
print("\nWith residual connections:")
print_gradients(residual, x)

-- The doctor knows more about the same two models.
print("\n" .. tostring(resin.doctor.compare(plain, residual, {x = x})))
