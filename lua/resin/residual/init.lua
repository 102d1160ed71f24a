--- resin.residual: residual connections. One mechanism (link.lua, core.lua, infer.lua, combine.lua) with thin fronts;
-- resin.nn shows the modules under its own name.

return {
  ResidualSequential = require "resin.residual.sequential",
  Record = require "resin.residual.record",
  Apply = require "resin.residual.apply",
  LearnableAlpha = require "resin.residual.alpha",
  register = require("resin.residual.combine").register,
}
