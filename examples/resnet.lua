-- A residual network learns to tell four patterns apart. Run it with: build/resin examples/resnet.lua [steps]

local resin = require "resin"
local nn, optim = resin.nn, resin.optim

local SIZE, BATCH = 16, 32

-- Images of noise with a bright bar: upright, lying, falling or rising. Labels count from 1.
local function draw(n)
  local images, labels = resin.randn(n, 1, SIZE, SIZE), resin.randint(1, 4, {n})
  local data = images:data()
  for i, label in ipairs(labels:totable()) do
    local at = math.random(4, SIZE - 4)
    for k = 0, SIZE - 1 do
      local row, column = k, at
      if label == 2 then row, column = at, k end
      if label == 3 then column = (k + at) % SIZE end
      if label == 4 then column = (at - k) % SIZE end
      local p = ((i - 1) * SIZE + row) * SIZE + column
      data[p] = data[p] + 2
    end
  end
  return images, labels
end

resin.manual_seed(1)
math.randomseed(1)
local steps = tonumber((arg or {})[1]) or 60
local model = resin.models.preact_resnet{depth = 8, num_classes = 4, in_channels = 1}
print(("preact_resnet of depth 8: %d parameters"):format(model:num_parameters()))

local optimiser = optim.SGD(model:parameters(), {lr = 0.05, momentum = 0.9, weight_decay = 5e-4})
local loss_fn = nn.CrossEntropyLoss()
for step = 1, steps do
  local images, labels = draw(BATCH)
  optimiser:zero_grad()
  local loss = loss_fn(model(images), labels)
  loss:backward()
  optimiser:step()
  if step % 20 == 0 then print(("step %3d  loss %.4f"):format(step, loss:item())) end
end

model:eval()
local images, labels = draw(200)
local right = resin.no_grad(function() return resin.F.accuracy(model(images), labels) end)
print(("right on new images: %.1f %%"):format(100 * right))
