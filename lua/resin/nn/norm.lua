--- Normalisation: BatchNorm1d, BatchNorm2d, BatchNorm3d, LayerNorm.

local check = require "resin.check"
local class = require "resin.nn.class"
local args = require "resin.nn.args"
local init = require "resin.nn.initialise"
local create = require "resin.create"
local Module = require "resin.nn.module"
local ops = require "resin.ops"
local scope = require "resin.scope"
local shapes = require "resin.nn.shapes"

-- ---- batch norm -----------------------------------------------------------------------------------------------------------

local BATCH_ARGUMENTS = {
  {"num_features", "integer", min = 1},
  {"eps", "number", min = 0, default = 1e-5},
  {"momentum", "number_or_false", min = 0, max = 1, default = 0.1},
  {"affine", "boolean", default = true},
  {"track_running_stats", "boolean", default = true},
  {"dtype", "dtype", default = "f32", hidden = true},
}

local function init_batch(self, ...)
  local o = args.accept(self, BATCH_ARGUMENTS, ...)
  local size = {o.num_features}
  self:register_parameter("weight", o.affine and init.constant_parameter(size, o.dtype, 1) or nil)
  self:register_parameter("bias", o.affine and init.constant_parameter(size, o.dtype, 0) or nil)
  if o.track_running_stats then
    self:register_buffer("running_mean", init.constant_buffer(size, o.dtype, 0))
    self:register_buffer("running_var", init.constant_buffer(size, o.dtype, 1))
    self:register_buffer("num_batches_tracked", scope.promote(create.zeros({}, {dtype = "i64"})))
  end
end

-- Training: the batch's statistics, which also move the running ones. Evaluation: the running ones, if there are any.
local function forward_batch(self, x)
  local tracked = self.track_running_stats
  local training = self.training or not tracked
  local momentum = self.momentum
  if tracked and self.training then
    ops.add_(self.num_batches_tracked, 1)
    if not momentum then momentum = 1 / self.num_batches_tracked:item() end   -- a plain average of all batches
  end
  return ops.batch_norm(x, self.weight, self.bias, self.running_mean, self.running_var, training, momentum or 0, self.eps)
end

local function batch_shape(self, shape, min, max)
  shapes.check(shape, self.type, min, max)
  if shape[2] and shape[2] ~= self.num_features then
    check.fail("%s: input %s has %d channels, expected %d", self.type, shapes.text(shape), shape[2], self.num_features)
  end
  return shapes.copy(shape)
end

--- Sets the running statistics back to mean 0 and variance 1.
local function reset_running_stats(self)
  if not self.track_running_stats then return self end
  init.zeros_(self.running_mean)
  init.ones_(self.running_var)
  self.num_batches_tracked:zero_()
  return self
end

--- Normalises each channel over the batch: [N, C] or [N, C, L].
--- nn.BatchNorm1d(num_features, {eps = 1e-5, momentum = 0.1, affine = true, track_running_stats = true, dtype}).
--- momentum = false takes the plain average of all batches.
---@class resin.nn.BatchNorm1d: resin.nn.Module
local BatchNorm1d = class.define("BatchNorm1d", Module, true)

BatchNorm1d.layout = "channels_first"
BatchNorm1d.arguments = BATCH_ARGUMENTS
BatchNorm1d.init = init_batch
BatchNorm1d.reset_running_stats = reset_running_stats

function BatchNorm1d:forward(x)
  local n = x.ndim
  if n ~= 2 and n ~= 3 then
    check.fail("%s: input must be [N, C] or [N, C, L], got %s", self.type, check.shape_text(x))
  end
  return forward_batch(self, x)
end

function BatchNorm1d:output_shape(shape) return batch_shape(self, shape, 2, 3) end

-- BatchNorm of images with `rank` dimensions; `axes` are their names.
local function define_batch(name, rank, axes)
  local cls = class.define(name, Module, true)
  cls.layout = "channels_first"
  cls.arguments = BATCH_ARGUMENTS
  cls.init = init_batch
  cls.reset_running_stats = reset_running_stats

  function cls:forward(x)
    if x.ndim ~= rank + 2 then check.fail("%s: input must be [N, C, %s], got %s", self.type, axes, check.shape_text(x)) end
    return forward_batch(self, x)
  end

  function cls:output_shape(shape) return batch_shape(self, shape, rank + 2, rank + 2) end

  return cls
end

--- Normalises each channel over the batch and the image: [N, C, H, W]. Options as for BatchNorm1d.
---@class resin.nn.BatchNorm2d: resin.nn.Module
local BatchNorm2d = define_batch("BatchNorm2d", 2, "H, W")

--- The same over [N, C, D, H, W].
---@class resin.nn.BatchNorm3d: resin.nn.Module
local BatchNorm3d = define_batch("BatchNorm3d", 3, "D, H, W")

-- ---- layer norm -----------------------------------------------------------------------------------------------------------

--- Normalises over the last dimensions, whose sizes are `normalized_shape`.
--- nn.LayerNorm(normalized_shape, {eps = 1e-5, elementwise_affine = true, bias = true, dtype}).
---@class resin.nn.LayerNorm: resin.nn.Module
local LayerNorm = class.define("LayerNorm", Module, true)

LayerNorm.layout = "features_last"
LayerNorm.arguments = {
  {"normalized_shape", "shape", min = 1, rest = true},
  {"eps", "number", min = 0, default = 1e-5},
  {"elementwise_affine", "boolean", default = true},
  {"bias", "boolean", default = true, hidden = true},
  {"dtype", "dtype", default = "f32", hidden = true},
}

function LayerNorm:init(...)
  local o = args.accept(self, LayerNorm.arguments, ...)
  local size, affine = o.normalized_shape, o.elementwise_affine
  self.op_shape = #size == 1 and size[1] or size     -- a number is read faster than a list
  self:register_parameter("weight", affine and init.constant_parameter(size, o.dtype, 1) or nil)
  self:register_parameter("bias", affine and o.bias and init.constant_parameter(size, o.dtype, 0) or nil)
end

function LayerNorm:forward(x)
  return ops.layer_norm(x, self.weight, self.bias, self.op_shape, self.eps)
end

function LayerNorm:output_shape(shape)
  local sizes = self.normalized_shape
  shapes.check(shape, self.type, #sizes)
  for i = 1, #sizes do
    local given = shape[#shape - #sizes + i]
    if given and given ~= sizes[i] then
      check.fail("%s: the last dimensions of input %s must be %s", self.type, shapes.text(shape), shapes.text(sizes))
    end
  end
  return shapes.copy(shape)
end

return {BatchNorm1d = BatchNorm1d, BatchNorm2d = BatchNorm2d, BatchNorm3d = BatchNorm3d, LayerNorm = LayerNorm}
