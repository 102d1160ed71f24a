-- From the start of a process to a first result: mlp-small with weights from a file, one input of ones. usage: start.lua FILE
-- Prints the sum of the result.

local resin = require "resin"
local nn = resin.nn

local state = {}
for name, tensor in pairs(resin.load(arg[1])) do
  local own = name:match "^model%.(.+)"
  if own then state[own] = tensor end
end
local model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 18)):eval()
model:load_state_dict(state)
print(resin.no_grad(model, resin.ones(1, 64)):sum():item())
