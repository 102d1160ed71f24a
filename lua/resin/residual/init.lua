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

return {
  ResidualSequential = require "resin.residual.sequential",
  Record = require "resin.residual.record",
  Apply = require "resin.residual.apply",
  LearnableAlpha = require "resin.residual.alpha",
  register = require("resin.residual.combine").register,
}
