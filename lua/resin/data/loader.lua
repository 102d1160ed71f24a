--- DataLoader: goes through a dataset in batches.
--   local loader = data.DataLoader(set, {batch_size = 128, shuffle = true, seed = 1})
--   for epoch = 1, 5 do
--     for i, x, y in loader:iter() do … end      -- i = 1, 2, … loader:size()
--   end
-- Each call of iter begins an epoch and draws its order. With a seed the order depends on the seed and the number of the epoch
-- only; without one it comes from the generator that resin.manual_seed starts.

local lib = require "resin.lib"
local check = require "resin.check"
local create = require "resin.create"
local dataset = require "resin.data.dataset"
local ops = require "resin.ops"
local scope = require "resin.scope"

local ffi, C, ctx = lib.ffi, lib.C, lib.ctx

---@class resin.data.DataLoader
---@field dataset table
---@field batch_size integer
---@field epoch integer  epochs begun so far; set it to continue a training
local DataLoader = {}
DataLoader.__index = DataLoader

local OPTIONS = {"batch_size", "shuffle", "seed", "drop_last", "transform"}

--- data.DataLoader(dataset, {batch_size = 1, shuffle = false, seed = nil, drop_last = false, transform = nil}).
--- transform(x, y, …) gets each batch and returns what the loop receives.
---@param set table
---@param options? {batch_size?: integer, shuffle?: boolean, seed?: integer, drop_last?: boolean, transform?: function}
---@return resin.data.DataLoader
local function new(set, options)
  dataset.check(set, "DataLoader")
  local o = check.options(options, OPTIONS, "DataLoader")
  local self = {
    dataset = set,
    batch_size = o.batch_size == nil and 1 or check.integer(o.batch_size, "DataLoader: batch_size", 1),
    shuffle = o.shuffle ~= nil and check.boolean(o.shuffle, "DataLoader: shuffle"),
    drop_last = o.drop_last ~= nil and check.boolean(o.drop_last, "DataLoader: drop_last"),
    seed = o.seed ~= nil and check.integer(o.seed, "DataLoader: seed", 0, 2 ^ 53 - 1) or nil,
    transform = o.transform ~= nil and check.func(o.transform, "DataLoader: transform") or nil,
    epoch = 0,
  }
  return setmetatable(self, DataLoader)
end

--- Number of batches in an epoch.
---@return integer
function DataLoader:size()
  local n = self.dataset:size()
  if self.drop_last then return math.floor(n / self.batch_size) end
  return math.ceil(n / self.batch_size)
end

local saved_state = ffi.new("double[4]")
local EPOCH_STEP = 2654435761   -- keeps the seeds of neighbouring epochs apart

-- The order of an epoch: positions from 1, i64.
local function permutation(self, n)
  if not self.seed then return create.randperm(n) end
  C.rs_get_rng_state(ctx, saved_state)
  C.rs_seed(ctx, (self.seed + self.epoch * EPOCH_STEP) % 2 ^ 53)
  local order = create.randperm(n)
  C.rs_set_rng_state(ctx, saved_state)
  return order
end

local function deliver(self, i, ...)
  if self.transform then return i, self.transform(...) end
  return i, ...
end

-- One batch; `state` is {loader, order or false, samples, batches}.
local function step(state, i)
  i = i + 1
  if i > state.batches then return nil end
  local self = state.loader
  local first = (i - 1) * self.batch_size + 1
  local last = math.min(first + self.batch_size - 1, state.samples)
  if not state.order and self.dataset.range then return deliver(self, i, self.dataset:range(first, last)) end
  local index = state.order and ops.narrow(state.order, 1, first, last - first + 1)
    or create.arange(first, last, 1, {dtype = "i64"})
  return deliver(self, i, dataset.batch(self.dataset, index))
end

--- Begins an epoch: for i, x, y in loader:iter() do … end
function DataLoader:iter()
  self.epoch = self.epoch + 1
  local n = self.dataset:size()
  local order = self.shuffle and scope.promote(permutation(self, n))
  return step, {loader = self, order = order, samples = n, batches = self:size()}, 0
end

-- A loop that is given the loader itself has no place for its order: two such loops at a time would disturb each other.
function DataLoader.__call()
  check.fail("DataLoader: write for i, x, y in loader:iter() do … end")
end

function DataLoader:__tostring()
  local n, batches = self.dataset:size(), self:size()
  return ("DataLoader(%d sample%s in %d batch%s of %d%s%s%s)"):format(n, n == 1 and "" or "s", batches, batches == 1 and "" or "es",
    self.batch_size, self.shuffle and ", shuffled" or "", self.seed and (", seed %.0f"):format(self.seed) or "",
    self.drop_last and ", last one dropped when short" or "")
end

return {DataLoader = new}
