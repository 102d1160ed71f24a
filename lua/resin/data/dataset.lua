--- Datasets: things with a size that give the samples at some positions.
-- A dataset is any table with size() and either batch(index) (index: an i64 tensor of positions from 1; returns tensors) or
-- get(i) (returns the tensors of sample i, which the loader stacks). A dataset may also offer range(first, last) for
-- neighbouring samples, which needs no copy.

local check = require "resin.check"
local ops = require "resin.ops"
local create = require "resin.create"
local Tensor = require "resin.tensor"

local dataset = {}

---@class resin.data.TensorDataset
---@field tensors resin.Tensor[]
local TensorDataset = {}
TensorDataset.__index = TensorDataset

--- Tensors whose first dimension counts the samples: data.TensorDataset(x, y, …).
---@return resin.data.TensorDataset
function dataset.TensorDataset(...)
  local tensors = {...}
  local count = select("#", ...)
  if count == 0 then check.fail("TensorDataset: give at least one tensor") end
  local n
  for i = 1, count do
    local t = check.tensor(tensors[i], "TensorDataset: tensor " .. i)
    if t.ndim == 0 then check.fail("TensorDataset: tensor %d has no dimension to count samples by", i) end
    n = n or t:size(1)
    if t:size(1) ~= n then
      check.fail("TensorDataset: tensor 1 has %d samples but tensor %d, %s, has %d", n, i, check.describe(t), t:size(1))
    end
  end
  return setmetatable({tensors = tensors, count = n}, TensorDataset)
end

--- Number of samples.
---@return integer
function TensorDataset:size() return self.count end

local function collect(tensors, i, fn, a, b)
  local t = tensors[i]
  if t == nil then return end
  return fn(t, a, b), collect(tensors, i + 1, fn, a, b)
end

local function select_row(t, i) return ops.select(t, 1, i) end
local function select_rows(t, index) return ops.index_select(t, index, 1) end
local function rows(t, first, count) return ops.narrow(t, 1, first, count) end

--- Sample i of every tensor, without its first dimension.
---@param i integer
function TensorDataset:get(i)
  check.integer(i, "TensorDataset: get: position", 1, self.count)
  return collect(self.tensors, 1, select_row, i)
end

--- The samples at the positions in an i64 tensor, one op per tensor.
---@param index resin.Tensor
function TensorDataset:batch(index)
  return collect(self.tensors, 1, select_rows, index)
end

--- The samples from first to last, inclusive, as views.
---@param first integer
---@param last integer
function TensorDataset:range(first, last)
  return collect(self.tensors, 1, rows, first, last - first + 1)
end

function TensorDataset:__tostring()
  local parts = {}
  for i, t in ipairs(self.tensors) do parts[i] = check.describe(t) end
  return ("TensorDataset(%d sample%s: %s)"):format(self.count, self.count == 1 and "" or "s", table.concat(parts, ", "))
end

-- ---- any dataset -----------------------------------------------------------------------------------------------------------

--- Checks that `value` is a dataset.
---@param value any
---@param what string
function dataset.check(value, what)
  if type(value) ~= "table" or Tensor.is(value) or type(value.size) ~= "function"
    or not (type(value.batch) == "function" or type(value.get) == "function") then
    check.fail("%s: dataset must be a table with size() and batch(index) or get(i), such as data.TensorDataset, got %s", what,
      check.describe(value))
  end
  return value
end

local function stack(samples, count)
  local out = {}
  for k = 1, count do
    local column = {}
    for i = 1, #samples do
      local value = samples[i][k]
      column[i] = Tensor.is(value) and value or create.tensor(value)
    end
    out[k] = ops.stack(column, 1)
  end
  return unpack(out, 1, count)
end

--- A batch of any dataset: by batch(index), or sample by sample.
---@param set table
---@param index resin.Tensor
function dataset.batch(set, index)
  if set.batch then return set:batch(index) end
  local samples, count = {}, 0
  local positions = index:totable()
  for i = 1, #positions do
    samples[i] = {set:get(positions[i])}
    count = math.max(count, #samples[i])
  end
  return stack(samples, count)
end

return dataset
