-- A first network: two spirals, told apart by a small classifier.
--   build/resin examples/quickstart.lua

local resin = require "resin"
local nn, optim, data = resin.nn, resin.optim, resin.data

resin.manual_seed(1)

-- Points on two spirals; class labels count from 1.
local points, labels = {}, {}
for class = 1, 2 do
  for i = 1, 200 do
    local radius, angle = i / 200, i / 200 * 8 + class * math.pi
    points[#points + 1] = {radius * math.cos(angle), radius * math.sin(angle)}
    labels[#labels + 1] = class
  end
end
local x, y = resin.tensor(points), resin.tensor(labels, {dtype = "i64"})

local model = nn.Sequential(
  nn.Linear(2, 64), nn.ReLU(),
  nn.Linear(64, 64), nn.ReLU(),
  nn.Linear(64, 2))
print(model)

local loader = data.DataLoader(data.TensorDataset(x, y), {batch_size = 50, shuffle = true, seed = 1})
local criterion = nn.CrossEntropyLoss()
local optimizer = optim.Adam(model, {lr = 0.01})

for epoch = 1, 60 do
  local total = 0
  for _, bx, by in loader:iter() do
    optimizer:zero_grad()
    local loss = criterion(model(bx), by)
    loss:backward()
    optimizer:step()
    total = total + loss:item()
  end
  if epoch % 20 == 0 then print(("epoch %d: loss %.4f"):format(epoch, total / loader:size())) end
end

-- Save the weights, load them into a fresh model of the same description, predict.
local path = os.tmpname()
resin.save(path, model:state_dict())
local copy = model:clone()
copy:load_state_dict(resin.load(path))
os.remove(path)

local right = resin.no_grad(function()
  return copy:eval()(x):argmax(2):eq(y):to("f32"):mean():item()
end)
print(("accuracy: %.3f"):format(right))
