--- resin.residual: residual connections. One mechanism (link.lua, emit.lua, core.lua, infer.lua, combine.lua) with thin fronts;
-- resin.nn shows the modules under its own name.

local Module = require "resin.nn.module"
local infer = require "resin.residual.infer"

--- model:build{8, 64}: makes what follows from the shape of the input (projections, gates) in this module and everything below
--- it, so that an optimiser finds it. Any batch size will do. What does not fit is an error.
---@param shape integer[]
---@return resin.nn.Module self
function Module:build(shape)
  infer.module(self, shape)
  return self
end

local public = {
  ResidualSequential = require "resin.residual.sequential",
  Record = require "resin.residual.record",
  Apply = require "resin.residual.apply",
  LearnableAlpha = require "resin.residual.alpha",
  RecurrentWrapper = require("resin.residual.recurrent").RecurrentWrapper,
  register = require("resin.residual.combine").register,
}

for _, part in ipairs{
  "resin.residual.circuit",       -- Circuit, SaveInput, GetInput, StartBlock, EndBlock, LambdaLayer
  "resin.residual.wrap",          -- Residual, residualize
  "resin.residual.branches",      -- Parallel, Dense
  "resin.residual.hyper",         -- HyperConnections
  "resin.residual.checkpoint",    -- Checkpoint, Reversible
  "resin.residual.helpers",       -- residual
} do
  for name, value in pairs(require(part)) do public[name] = value end
end

return public
