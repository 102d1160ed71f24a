--- nn.residual: numbers that go with residual connections.

local check = require "resin.check"
local class = require "resin.nn.class"
local create = require "resin.create"
local scope = require "resin.scope"

local helpers = {}

--- Probabilities for Apply's drop_path, one per block, from 0 at the first to `last` at the last block (stochastic depth, Huang et
--- al. 2016).
---@param depth integer
---@param last number
---@return number[]
function helpers.drop_path_rates(depth, last)
  check.integer(depth, "drop_path_rates: depth", 1)
  check.number(last, "drop_path_rates: last", 0, 1)
  local rates = {}
  for i = 1, depth do rates[i] = depth == 1 and last or last * (i - 1) / (depth - 1) end
  return rates
end

--- The constants of DeepNorm (Wang et al. 2022): blocks are norm(alpha·x + fn(x)), and the weights of the feed-forward layers and of
--- the values and outputs of the attention start `beta` times as large (Xavier with gain beta).
--- deepnorm(n) for n layers of an encoder, or of a decoder alone; deepnorm(n, m) for an encoder of n with a decoder of m:
--- {encoder = {alpha, beta}, decoder = {alpha, beta}}.
---@param encoder integer
---@param decoder? integer
---@return table
function helpers.deepnorm(encoder, decoder)
  check.integer(encoder, "deepnorm: number of layers", 1)
  if decoder == nil then return {alpha = (2 * encoder) ^ 0.25, beta = (8 * encoder) ^ -0.25} end
  check.integer(decoder, "deepnorm: layers of the decoder", 1)
  local base = encoder ^ 4 * decoder
  return {
    encoder = {alpha = 0.81 * base ^ (1 / 16), beta = 0.87 * base ^ (-1 / 16)},
    decoder = {alpha = (3 * decoder) ^ 0.25, beta = (12 * decoder) ^ -0.25},
  }
end

--- A trained factor for Apply's scale (or alpha) that starts at 0 (ReZero), or at `value` (SkipInit).
---@param value? number
---@return resin.Tensor
function helpers.rezero(value)
  if value == nil then value = 0 else check.number(value, "rezero: value") end
  return class.Parameter(scope.promote(create.full({1}, value)))
end

return {residual = helpers}
