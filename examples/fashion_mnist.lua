-- Trains a residual convolutional network on Fashion-MNIST and saves it, or loads it and predicts.
--
--   resin examples/fashion_mnist.lua [--epochs 3] [--limit N] [--seed 1] [--threads 2] [--out FILE]
--   resin examples/fashion_mnist.lua --predict FILE
--
-- The last line of a training is "test accuracy: 0.dddd". The same seed gives the same digits.

local resin = require "resin"
local nn, optim, data, F = resin.nn, resin.optim, resin.data, resin.F

local options = { epochs = 3, limit = nil, seed = 1, threads = 2, out = "fashion_mnist.safetensors", predict = nil }

local function usage(message)
  io.stderr:write("fashion_mnist: ", message, "\n",
    "usage: fashion_mnist.lua [--epochs N] [--limit N] [--seed N] [--threads N] [--out FILE] | --predict FILE\n")
  os.exit(2)
end

do
  local text = { out = true, predict = true }
  local known = { epochs = true, limit = true, seed = true, threads = true, out = true, predict = true }
  local i = 1
  while arg[i] do
    local name = arg[i]:match("^%-%-(%w+)$")
    if not name or not known[name] then usage("unknown argument " .. arg[i]) end
    local value = arg[i + 1]
    if not value then usage(arg[i] .. " needs a value") end
    if not text[name] then
      value = tonumber(value)
      if not value or value % 1 ~= 0 or value < (name == "seed" and 0 or 1) then usage(arg[i] .. " needs a whole number") end
    end
    options[name] = value
    i = i + 2
  end
end

-- Three stages; each skip is a Record and an Apply. Where a stage halves the image and doubles the channels, the recorded value
-- is projected by a strided 1x1 convolution that the container makes.
local function build_model()
  local function conv(i, o, stride) return nn.Conv2d(i, o, 3, { stride = stride, padding = 1, bias = false }) end
  local layers = { conv(1, 16, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2) }
  local function block(name, i, o, stride)
    for _, layer in ipairs {
      nn.Record { name = name, need_projection = i ~= o },
      conv(i, o, stride), nn.BatchNorm2d(o), nn.ReLU(),
      conv(o, o, 1), nn.BatchNorm2d(o),
      nn.Apply { record_name = name },
      nn.ReLU(),
    } do layers[#layers + 1] = layer end
  end
  block("stage1", 16, 16, 1)
  block("stage2", 16, 32, 2)
  block("stage3", 32, 64, 2)
  for _, layer in ipairs { nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10) } do layers[#layers + 1] = layer end
  return nn.ResidualSequential(unpack(layers)):build { 1, 1, 28, 28 }
end

-- u8 [B, 28, 28] -> f32 [B, 1, 28, 28], near zero mean and unit variance.
local function prepare(images, labels)
  return images:to("f32"):unsqueeze(2):sub(72.9):div(90.0), labels
end

local function accuracy(model, set)
  model:eval()
  local right, total = 0, 0
  resin.no_grad(function()
    for _, x, y in data.DataLoader(data.TensorDataset(set.images, set.labels), { batch_size = 500, transform = prepare }):iter() do
      right = right + model(x):argmax(2):eq(y):sum():item()
      total = total + y:numel()
    end
  end)
  model:train()
  return right / total
end

local function progress(epoch, step, steps, loss, images, seconds)
  local width = 24
  local done = math.floor(step / steps * width)
  io.write(string.format("\repoch %d/%d [%s%s] %3d%%  loss %.4f  %5.0f images/s ", epoch, options.epochs, ("="):rep(done),
    (" "):rep(width - done), math.floor(100 * step / steps), loss, images / seconds))
  io.flush()
end

local function clock() return resin.time() end

local function train()
  resin.manual_seed(options.seed)
  resin.set_num_threads(options.threads)
  local set = data.fashion_mnist { limit = options.limit }
  local model = build_model()
  print(string.format("%d training images, %d parameters, %d threads", set.train.images:size(1), model:num_parameters(),
    options.threads))
  local loader = data.DataLoader(data.TensorDataset(set.train.images, set.train.labels),
    { batch_size = 64, shuffle = true, seed = options.seed, drop_last = options.limit == nil, transform = prepare })
  local opt = optim.SGD(model, { lr = 0.05, momentum = 0.9, nesterov = true, weight_decay = 5e-4 })
  local steps, taken = loader:size(), 0
  local total = steps * options.epochs
  local start = clock()
  for epoch = 1, options.epochs do
    local began, images, shown, running = clock(), 0, 0, nil
    for step, x, y in loader:iter() do
      -- One cycle: up over the first fifth, then down to almost nothing.
      local at = taken / total
      opt.lr = 0.1 * (at < 0.2 and 0.1 + 0.9 * at / 0.2 or math.max(1 - (at - 0.2) / 0.8, 0.002))
      opt:zero_grad()
      local loss = F.cross_entropy(model(x), y, { label_smoothing = 0.05 })
      loss:backward()
      opt:step()
      taken, images = taken + 1, images + x:size(1)
      local now = clock()
      if now - shown > 0.2 or step == steps then
        local value = loss:item()
        running = running and 0.9 * running + 0.1 * value or value
        progress(epoch, step, steps, running, images, now - began)
        shown = now
      end
    end
    print(string.format(" %.1f s", clock() - began))
  end
  print(string.format("trained in %.1f s", clock() - start))
  resin.save(options.out, model:state_dict())
  print("saved " .. options.out)
  print(string.format("test accuracy: %.4f", accuracy(model, set.test)))
end

local function predict()
  local set = data.fashion_mnist { limit = 1, test_limit = 8 }
  local model = build_model()
  model:load_state_dict(resin.load(options.predict))
  model:eval()
  local images = prepare(set.test.images)
  local probability = resin.no_grad(model, images):softmax(2)
  local best, class = probability:max(2)
  for i = 1, images:size(1) do
    local guess, truth = class[i]:item(), set.test.labels[i]:item()
    print(string.format("image %d: %-11s %5.1f %%   (it is: %s)", i, set.classes[guess], 100 * best[i]:item(), set.classes[truth]))
  end
end

if options.predict then predict() else train() end
