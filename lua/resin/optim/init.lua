--- resin.optim: optimisers.

local adam = require "resin.optim.adam"

return {
  SGD = require "resin.optim.sgd",
  Adam = adam.Adam,
  AdamW = adam.AdamW,
}
