--- resin.nn: modules, layers, losses.

local class = require "resin.nn.class"
local Module = require "resin.nn.module"

local nn = {
  Module = Module,
  class = function(name, parent)
    if parent == nil then parent = Module end
    return class.user(name, parent)
  end,
  Parameter = class.Parameter,
  is_module = class.is_module,
  init = require "resin.nn.initialise",
  utils = require "resin.nn.clip",
}

for _, part in ipairs{
  "resin.nn.linear", "resin.nn.conv", "resin.nn.norm", "resin.nn.group_norm", "resin.nn.activation", "resin.nn.pooling",
  "resin.nn.resize", "resin.nn.structural",
  "resin.nn.loss", "resin.nn.recurrent", "resin.nn.attention", "resin.nn.sequential",
  "resin.residual",   -- ResidualSequential, Record, Apply, LearnableAlpha
  "resin.report",     -- summary and visualize
} do
  for name, value in pairs(require(part)) do nn[name] = value end
end

nn.Numbered = nil   -- the common base of Sequential and ModuleList is no layer of its own

return nn
