--- resin.data: reading data sets and going through them in batches.

local dataset = require "resin.data.dataset"
local idx = require "resin.data.idx"
local loader = require "resin.data.loader"

return {
  TensorDataset = dataset.TensorDataset,
  DataLoader = loader.DataLoader,
  idx = idx.read,
  fashion_mnist = idx.fashion_mnist,
}
