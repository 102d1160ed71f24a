-- The workloads of the benchmark in resin: what bench/peers.py has in PyTorch, with the same names of parameters.
-- Each entry: model(), x() and, for a training step, y(), loss(scores, target) and optimiser(model). Where that is not the whole,
-- run(model, x) gives the function that is timed; it is never compiled. "NAME/VARIANT" is another way to write NAME.

local resin = require "resin"
local nn, optim, models, F = resin.nn, resin.optim, resin.models, resin.F

-- ---- models ---------------------------------------------------------------------------------------------------------------

local function mlp(...)
  local sizes, net = { ... }, nn.Sequential()
  for i = 2, #sizes do
    if i > 2 then net:append(nn.ReLU()) end
    net:append(nn.Linear(sizes[i - 1], sizes[i]))
  end
  return net
end

local function residual_mlp()
  local net = nn.Sequential()
  for _ = 1, 4 do net:append(nn.Residual { nn.Linear(64, 64), nn.ReLU(), nn.LayerNorm(64) }) end
  return net:append(nn.Linear(64, 10))
end

local function gpt() return models.gpt(96, { size = 384, layers = 6, heads = 6, max_length = 256, dropout = 0 }) end

local Decode = nn.Module:extend "Decode"

function Decode:init() self.gpt = gpt() end

-- 64 symbols one after another, each the likeliest after those before it, or those of `ids`. Gives all scores.
function Decode:forward(symbol, ids)
  local cache, scores = self.gpt:new_cache(), {}
  for i = 1, 64 do
    if ids then symbol = ids:narrow(2, i, 1) end
    scores[i] = self.gpt(symbol, { cache = cache })
    symbol = scores[i]:argmax(-1)
  end
  return resin.cat(scores, 2)
end

local MatMul = nn.Module:extend "MatMul"

function MatMul:init() self.weight = nn.Parameter(resin.randn(1024, 1024)) end

function MatMul:forward(x) return x:matmul(self.weight) end

-- 100 products in a row.
local Chain = nn.Module:extend "Chain"

function Chain:init() self.weight = nn.Parameter(resin.ones(16)) end

function Chain:forward(x)
  local weight = self.weight
  for _ = 1, 100 do x = x * weight end
  return x
end

-- The block of torchresidual's README as a container, and the same ops called by hand.
local function block()
  return nn.ResidualSequential { { "skip", nn.Record "r" }, { "linear", nn.Linear(64, 64) }, { "relu", nn.ReLU() },
    { "norm", nn.LayerNorm(64) }, { "join", nn.Apply { record_name = "r" } } }
end

local Hand = nn.Module:extend "Hand"

function Hand:init() self.linear, self.norm = nn.Linear(64, 64), nn.LayerNorm(64) end

function Hand:forward(x)
  local linear, norm = self.linear, self.norm
  return F.layer_norm(F.relu(F.linear(x, linear.weight, linear.bias)), norm.weight, norm.bias, 64) + x
end

-- ---- inputs, losses, optimisers ---------------------------------------------------------------------------------------------

local function random(...)
  local shape = { ... }
  return function() return resin.randn(shape) end
end

local function symbols(...)
  local shape = { ... }
  return function() return resin.randint(1, 96, shape) end
end

local function labels(classes, ...)
  local shape = { ... }
  return function() return resin.randint(1, classes, shape) end
end

local function ones(...)
  local shape = { ... }
  return function() return resin.ones(shape) end
end

-- Of symbols: one class for each place of a sequence.
local function symbol_loss(scores, target)
  return F.cross_entropy(scores:flatten(1, 2), target:flatten())
end

local function sgd(model) return optim.SGD(model, { lr = 1e-3, momentum = 0.9 }) end
local function adam(model) return optim.Adam(model, { lr = 1e-3 }) end
local function adamw(model) return optim.AdamW(model, { lr = 1e-3 }) end

-- ---- what is run without compiling ------------------------------------------------------------------------------------------

local function plain(model, x)
  return function() return model:forward(x) end
end

local function in_scope(model, x)
  return function() return resin.scope(model.forward, model, x) end
end

local function forward_backward(model, x)
  local seed, weight = resin.ones(16), model.weight
  return function()
    model:forward(x):backward(seed)
    return weight.grad
  end
end

-- The mode is set once, as on the peers' side; each row has a process of its own.
local function without_gradient(model, x)
  resin.set_grad_enabled(false)
  return function() return model(x) end
end

local function block_step(model, x, y)
  local opt = adam(model)
  return function()
    opt:zero_grad()
    local loss = F.mse_loss(model(x), y)
    loss:backward()
    opt:step()
    return loss
  end
end

local function block_entry(model, run)
  return { model = model, x = random(8, 64), y = run == block_step and random(8, 64) or nil, run = run }
end

-- ---- workloads --------------------------------------------------------------------------------------------------------------

return {
  ["mlp-tiny"] = { model = function() return mlp(8, 32, 32, 4) end, x = random(1, 8) },
  ["mlp-small"] = { model = function() return mlp(64, 256, 256, 18) end, x = random(1, 64) },
  ["res-mlp-step"] = { model = residual_mlp, x = random(8, 64), y = labels(10, 8), loss = F.cross_entropy, optimiser = adam },
  ["resnet18-step"] = {
    model = models.resnet18_cifar, x = random(32, 3, 32, 32), y = labels(10, 32), loss = F.cross_entropy, optimiser = sgd,
  },
  ["resnet50-b1"] = { model = models.resnet50, x = random(1, 3, 224, 224) },
  ["resnet50-b8"] = { model = models.resnet50, x = random(8, 3, 224, 224) },
  ["lstm-lm-step"] = {
    model = function() return models.lstm_lm(96) end, x = symbols(32, 64), y = symbols(32, 64), loss = symbol_loss, optimiser = sgd,
  },
  ["lstm-1"] = { model = function() return nn.LSTM(64, 128, { batch_first = true }) end, x = random(1, 1, 64) },
  ["gpt-step"] = { model = gpt, x = symbols(8, 256), y = symbols(8, 256), loss = symbol_loss, optimiser = adamw },
  ["gpt-decode64"] = { model = Decode, x = labels(1, 1, 1) },
  ["unet-infer"] = { model = models.unet, x = random(1, 3, 256, 256) },
  ["unet-step"] = {
    model = models.unet, x = random(4, 3, 128, 128), y = labels(2, 4, 128, 128), loss = F.cross_entropy, optimiser = sgd,
  },
  ["mobilenetv2-b1"] = { model = models.mobilenet_v2, x = random(1, 3, 224, 224) },
  ["matmul-1024"] = { model = MatMul, x = random(1024, 1024) },
  ["conv1x1"] = { model = function() return nn.Conv2d(256, 512, 1, { bias = false }) end, x = random(8, 256, 28, 28) },

  ["eager-op/finaliser"] = { model = Chain, x = ones(16), run = plain },
  ["eager-op/scope"] = { model = Chain, x = ones(16), run = in_scope },
  ["eager-op-backward"] = { model = Chain, x = ones(16), run = forward_backward },
  ["residual-block/container"] = block_entry(block, without_gradient),
  ["residual-block/hand"] = block_entry(Hand, without_gradient),
  ["residual-block-step/container"] = block_entry(block, block_step),
  ["residual-block-step/hand"] = block_entry(Hand, block_step),
}
