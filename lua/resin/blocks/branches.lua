--- InputForward and Cat: the same input through several blocks, and their results as one.

local check = require "resin.check"
local class = require "resin.nn.class"
local Module = require "resin.nn.module"
local ops = require "resin.ops"
local scope = require "resin.scope"
local shapes = require "resin.nn.shapes"
local Tensor = require "resin.tensor"
local Blocks = require "resin.blocks.list"
local fit = require "resin.residual.fit"

local function fold(op)
  return function(list)
    local y = list[1]
    for i = 2, #list do y = op(y, list[i]) end
    return y
  end
end

local AGGREGATES = {
  add = fold(ops.add), mul = fold(ops.mul), max = fold(ops.maximum), min = fold(ops.minimum),
  mean = function(list) return ops.mul(fold(ops.add)(list), 1 / #list) end,
  cat = function(list, dim) return ops.cat(list, dim) end,
  stack = function(list, dim) return ops.stack(list, dim) end,
}
local NAMES = {"add", "cat", "max", "mean", "min", "mul", "stack"}

--- aggr_func({block1(x), block2(x), …}).
---   InputForward({conv3, conv5}, function(list) return list[1] * list[2] end)
---   InputForward({conv3, conv5}, "cat", {dim = 2})
--- aggr_func is a function of the list of results, or add, cat, max, mean, min, mul, stack; dim (1) is for cat and stack.
---@class resin.blocks.InputForward: resin.nn.Module
local InputForward = class.define("InputForward", Module, true)

local function accept(self, blocks, aggr_func, options)
  if class.is_module(blocks) and blocks.type ~= "ModuleList" or type(blocks) == "function" then blocks = {blocks} end
  if type(blocks) ~= "table" or #blocks == 0 then
    check.fail("%s: blocks must be a list of modules, got %s", self.type, class.is_plain(blocks) and "an empty list"
      or check.describe(blocks))
  end
  local list = {}
  for i = 1, #blocks do list[i] = Blocks.module(blocks[i], ("%s: block %d"):format(self.type, i)) end
  options = check.options(options, {"dim"}, self.type)
  if type(aggr_func) ~= "function" then
    if aggr_func == nil then check.fail("%s: aggr_func is missing: a function of the list of results, or %s", self.type,
      table.concat(NAMES, ", ")) end
    check.enum(aggr_func, self.type .. ": aggr_func", NAMES)
  end
  rawset(self, "aggr_func", aggr_func)
  rawset(self, "dim", options.dim == nil and 1 or check.integer(options.dim, self.type .. ": dim", -8, 8))
  if self.dim == 0 then check.fail("%s: dim 0: dimensions count from 1 (-1 is the last)", self.type) end
  self.blocks = Blocks(list)
end

function InputForward:init(blocks, aggr_func, options) accept(self, blocks, aggr_func, options) end

local function check_shapes(self, results, aggregate)
  local shape = results[1].shape
  for i = 2, #results do
    local joint = fit.broadcast(shape, results[i].shape)
    if not joint then
      check.fail('%s: block %d (%s) gives %s, which does not fit %s of the blocks before it; "%s" needs equal shapes', self.type, i,
        self.blocks[i].type, check.shape_text(results[i]), shapes.text(shape), aggregate)
    end
    shape = joint
  end
end

local function run(self, x)
  local results, blocks = {}, self.blocks
  for i = 1, #blocks do
    local mark = check.push(self.type, i, blocks[i].type)
    local y = Module.run(blocks[i], x)
    if not Tensor.is(y) then check.fail("%s: block %d returned %s; it must return a tensor", self.type, i, check.describe(y)) end
    check.pop(mark)
    results[i] = y
  end
  local aggregate = self.aggr_func
  if type(aggregate) == "function" then
    local y = scope.call(aggregate, results)
    if not Tensor.is(y) then check.fail("%s: aggr_func returned %s; it must return a tensor", self.type, check.describe(y)) end
    return y
  end
  if aggregate ~= "cat" and aggregate ~= "stack" then check_shapes(self, results, aggregate) end
  return AGGREGATES[aggregate](results, self.dim)
end

function InputForward:forward(x) return scope.run(run, self, x) end

function InputForward:output_shape(shape)
  local kind = self.aggr_func
  if type(kind) == "function" then Module.output_shape(self, shape) end
  local out
  for i, block in ipairs(self.blocks) do
    local mark = check.push(self.type, i, block.type)
    local y = block:output_shape(shape)
    check.pop(mark)
    if not out then
      out = shapes.copy(y)
    elseif kind == "cat" then
      local at = self.dim < 0 and #out + 1 + self.dim or self.dim
      out[at] = out[at] and y[at] and out[at] + y[at]
    end
  end
  if kind == "stack" then
    table.insert(out, self.dim < 0 and #out + 2 + self.dim or self.dim, #self.blocks)
  end
  return out
end

--- For drawings: the blocks as {name, module} pairs, and how their results are joined.
---@return table[]
---@return string
function InputForward:branches()
  local list = {}
  for i, block in ipairs(self.blocks) do list[i] = {i, block} end
  return list, type(self.aggr_func) == "string" and self.aggr_func or "function"
end

function InputForward:label()
  local kind = self.aggr_func
  if type(kind) == "function" then return self.type .. "(function)" end
  if kind == "cat" or kind == "stack" then return ("%s(%q, {dim = %d})"):format(self.type, kind, self.dim) end
  return ("%s(%q)"):format(self.type, kind)
end

--- cat({block1(x), block2(x), …}, dim): Cat{a, b}, Cat({a, b}, {dim = 2}) or Cat{a, b, dim = 2}. dim is 1 unless given.
---@class resin.blocks.Cat: resin.blocks.InputForward
local Cat = class.define("Cat", InputForward, true)

function Cat:init(blocks, options)
  if class.is_plain(blocks) then
    local list, named = {}, nil
    for key, value in pairs(blocks) do
      if type(key) == "number" then
        list[key] = value
      else
        named = named or {}
        named[key] = value
      end
    end
    if named and options then check.fail("%s: options are given twice", self.type) end
    blocks, options = list, options or named
  end
  accept(self, blocks, "cat", options)
end

function Cat:label() return ("%s{dim = %d}"):format(self.type, self.dim) end

return {InputForward = InputForward, Cat = Cat}
