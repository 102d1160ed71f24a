--- The options that blocks and models hand to the Applys of their skips: drop_path, drop_path_mode, layer_scale, scale and alpha.
-- Each skip has an Apply of its own. A number holds for all of them; what is trained must be made for each, by function(k, n), where k
-- counts the skips from 1 to n.

local check = require "resin.check"
local class = require "resin.nn.class"
local Tensor = require "resin.tensor"
local rates = require("resin.residual.helpers").residual.drop_path_rates

local joins = {}

--- Names of the options.
joins.names = {"drop_path", "drop_path_mode", "layer_scale", "scale", "alpha"}

--- The same, declared for the models' constructors (nn/args.lua).
joins.arguments = {
  {"drop_path", "any", optional = true}, {"drop_path_mode", "any", optional = true}, {"layer_scale", "number", optional = true},
  {"scale", "any", optional = true}, {"alpha", "any", optional = true},
}

-- Is it one thing that several skips cannot share?
local function is_own(value)
  return class.is_module(value) or (Tensor.is(value) and value.requires_grad)
end

local function factor(o, name, what, n)
  local value = o[name]
  if type(value) == "function" then return value end
  if n > 1 and is_own(value) then
    check.fail("%s: %s would be one parameter for all %d skips; give a function(k, n) that makes one for each", what, name, n)
  end
  return function() return value end
end

local function probabilities(given, what, n, schedule)
  if given == nil then return {} end
  if class.is_plain(given) then
    if #given ~= n then check.fail("%s: drop_path must be a number or a table of %d, one for each skip, got %d", what, n, #given) end
    return given
  end
  check.number(given, what .. ": drop_path", 0, 1)
  if schedule then return rates(math.max(n, 1), given) end
  local list = {}
  for k = 1, n do list[k] = given end
  return list
end

--- Reads the options for n skips. Gives a function of k: a table of options for the Apply of the k-th skip.
--- drop_path is a table of n probabilities, or a number: for each skip, or with `schedule` for the last one, rising evenly from 0 at the
--- first (stochastic depth).
---@param o table
---@param what string   for messages
---@param n integer
---@param schedule? boolean
---@return fun(k: integer): table
function joins.read(o, what, n, schedule)
  local drop_path = probabilities(o.drop_path, what, n, schedule)
  local scale, alpha = factor(o, "scale", what, n), factor(o, "alpha", what, n)
  return function(k)
    return {drop_path = drop_path[k], drop_path_mode = o.drop_path_mode, layer_scale = o.layer_scale, scale = scale(k, n),
            alpha = alpha(k, n)}
  end
end

return joins
