-- A U-Net learns to mark discs in noisy images, of a size that no pooling divides. Run it with: build/resin examples/unet.lua [steps]

local resin = require "resin"
local nn, optim = resin.nn, resin.optim

local HEIGHT, WIDTH, BATCH = 33, 41, 8

-- Noise with one to three discs, and for each pixel its class: 1 outside, 2 inside.
local function draw(n)
  local images, classes = resin.randn(n, 1, HEIGHT, WIDTH), resin.ones({n, HEIGHT, WIDTH}, {dtype = "i64"})
  local pixels, marks = images:data(), classes:data()
  for i = 0, n - 1 do
    for _ = 1, math.random(3) do
      local cy, cx, radius = math.random(HEIGHT), math.random(WIDTH), math.random(4, 8)
      for row = 0, HEIGHT - 1 do
        for column = 0, WIDTH - 1 do
          if (row - cy) ^ 2 + (column - cx) ^ 2 <= radius ^ 2 then
            local p = (i * HEIGHT + row) * WIDTH + column
            if marks[p] == 1 then pixels[p] = pixels[p] + 1.5 end
            marks[p] = 2
          end
        end
      end
    end
  end
  return images, classes
end

-- Pixels of class 2 in both, divided by those in either.
local function overlap(scores, classes)
  local found, wanted = scores:argmax(2):eq(2), classes:eq(2)
  local both = resin.F.logical_and(found, wanted):to("f32"):sum():item()
  return both / resin.F.logical_or(found, wanted):to("f32"):sum():item()
end

resin.manual_seed(1)
math.randomseed(1)
local steps = tonumber((arg or {})[1]) or 60
local model = resin.models.unet{in_channels = 1, num_classes = 2, base = 8, depth = 3}
print(("U-Net with %d parameters; images of %d x %d"):format(model:num_parameters(), HEIGHT, WIDTH))

local optimiser = optim.Adam(model:parameters(), {lr = 3e-3})
local loss_fn = nn.CrossEntropyLoss()
for step = 1, steps do
  local images, classes = draw(BATCH)
  optimiser:zero_grad()
  local loss = loss_fn(model(images), classes)
  loss:backward()
  optimiser:step()
  if step % 20 == 0 then print(("step %3d  loss %.4f"):format(step, loss:item())) end
end

model:eval()
local images, classes = draw(16)
print(("overlap with the discs of new images: %.1f %%"):format(100 * resin.no_grad(function() return overlap(model(images), classes) end)))
