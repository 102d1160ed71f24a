--- What the models' constructors share: reading options, and initial values.

local check = require "resin.check"
local class = require "resin.nn.class"
local args = require "resin.nn.args"
local init = require "resin.nn.initialise"
local joins = require "resin.blocks.joins"

local options = {}

--- Reads a call by a declaration as layers have it (args.lua). Positional, named or mixed.
---@param what string     name of the model, for messages
---@param declared table[]
---@return table values
function options.read(what, declared, ...)
  return args.accept({type = what}, declared, ...)
end

--- A declaration with the options of skips behind it: drop_path, drop_path_mode, layer_scale, scale, alpha
--- (blocks/joins.lua).
---@param declared table[]
---@return table[]
function options.with_joins(declared)
  local list = {}
  for _, entries in ipairs{declared, joins.arguments} do
    for _, entry in ipairs(entries) do list[#list + 1] = entry end
  end
  return list
end

--- The options of the Apply of the k-th of n skips, as a function of k. A number as drop_path is that of the last skip.
---@param o table
---@param what string
---@param n integer
---@return fun(k: integer): table
function options.joins(o, what, n) return joins.read(o, what, n, true) end

--- A list of at least `least` sizes.
---@param value any
---@param what string
---@param least integer
---@return integer[]
function options.sizes(value, what, least)
  if not class.is_plain(value) or #value < least then
    check.fail("%s must be a table of at least %d sizes, got %s", what, least,
      class.is_plain(value) and ("%d"):format(#value) or check.describe(value))
  end
  local list = {}
  for i = 1, #value do list[i] = check.integer(value[i], ("%s[%d]"):format(what, i), 1) end
  return list
end

local KAIMING = {
  fan_out = {mode = "fan_out", nonlinearity = "relu"},
  fan_in = {mode = "fan_in", nonlinearity = "relu"},
}

--- Draws the weights of all convolutions anew as He and others (2015) do, N(0, 2 / fan).
---@param model resin.nn.Module
---@param mode "fan_in"|"fan_out"
---@param zero_bias? boolean  biases become 0
---@return resin.nn.Module model
function options.kaiming(model, mode, zero_bias)
  for _, module in ipairs(model:modules()) do
    if module.type:match("^Conv%dd$") then
      init.kaiming_normal_(module.weight, KAIMING[mode])
      if zero_bias and module.bias then init.zeros_(module.bias) end
    end
  end
  return model
end

return options
