--- resin.residual: residual connections. One mechanism (link.lua, emit.lua, core.lua, infer.lua, combine.lua) with thin fronts;
-- resin.nn shows the modules under its own name.

local Module = require "resin.nn.module"
local infer = require "resin.residual.infer"
local info = require "resin.residual.info"

--- model:build{8, 64}: makes what follows from the shape of the input (projections, gates) in this module and everything below
--- it, so that an optimiser finds it. Any batch size will do. What does not fit is an error.
---@param shape integer[]
---@return resin.nn.Module self
function Module:build(shape)
  infer.module(self, shape)
  return self
end

--- All Records and Applies in a module, however deep: {records = {{name, need_projection, path, readers, shape}, …}, applies =
--- {{operation, record_name, alpha, scale, path, disabled}, …}}. `shape` is known when the shape of the input is given.
---@param shape? (integer|false)[]
---@return {records: table[], applies: table[]}
function Module:get_residual_info(shape) return info.collect(self, shape) end

--- Turns skips off, here and in everything inside: by the name of their Record or of their Apply ("input": all of that name), or one
--- by its path ("layer2.0.add_input"). how: "bypass" (the current value goes on as it is) or "zero" (the recorded value counts as
--- zeros); bypass where the operation allows it, by default.
---@param name string
---@param how? "bypass"|"zero"
---@return resin.nn.Module self
function Module:disable_skip(name, how)
  info.switch(self, name, true, how)
  return self
end

--- Turns skips on again.
---@param name string
---@return resin.nn.Module self
function Module:enable_skip(name)
  info.switch(self, name, false)
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
