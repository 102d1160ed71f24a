--- Normalisation within a sample: GroupNorm, InstanceNorm1d, InstanceNorm2d, InstanceNorm3d, RMSNorm.

local check = require "resin.check"
local class = require "resin.nn.class"
local args = require "resin.nn.args"
local init = require "resin.nn.initialise"
local create = require "resin.create"
local grad = require "resin.grad"
local Module = require "resin.nn.module"
local ops = require "resin.ops"
local scope = require "resin.scope"
local shapes = require "resin.nn.shapes"

local function check_channels(self, shape, channels)
  if shape[2] and shape[2] ~= channels then
    check.fail("%s: input %s has %d channels, expected %d", self.type, shapes.text(shape), shape[2], channels)
  end
  return shapes.copy(shape)
end

-- ---- group norm -----------------------------------------------------------------------------------------------------------

--- Normalises groups of channels of each sample: [N, C] or [N, C, ...].
--- nn.GroupNorm(num_groups, num_channels, {eps = 1e-5, affine = true, dtype}).
---@class resin.nn.GroupNorm: resin.nn.Module
local GroupNorm = class.define("GroupNorm", Module, true)

GroupNorm.layout = "channels_first"
GroupNorm.arguments = {
  {"num_groups", "integer", min = 1},
  {"num_channels", "integer", min = 1},
  {"eps", "number", min = 0, default = 1e-5},
  {"affine", "boolean", default = true},
  {"dtype", "dtype", default = "f32", hidden = true},
}

function GroupNorm:init(...)
  local o = args.accept(self, GroupNorm.arguments, ...)
  if o.num_channels % o.num_groups ~= 0 then
    check.fail("%s: num_channels (%d) must be divisible by num_groups (%d)", self.type, o.num_channels, o.num_groups)
  end
  self:register_parameter("weight", o.affine and init.constant_parameter({o.num_channels}, o.dtype, 1) or nil)
  self:register_parameter("bias", o.affine and init.constant_parameter({o.num_channels}, o.dtype, 0) or nil)
end

function GroupNorm:forward(x)
  return ops.group_norm(x, self.weight, self.bias, self.num_groups, self.eps)
end

function GroupNorm:output_shape(shape)
  return check_channels(self, shapes.check(shape, self.type, 2), self.num_channels)
end

-- ---- instance norm --------------------------------------------------------------------------------------------------------

-- The running statistics move towards the mean over the batch of the samples' own.
local function update(self, x, dims)
  local momentum = self.momentum
  ops.add_(self.num_batches_tracked, 1)
  if not momentum then momentum = 1 / self.num_batches_tracked:item() end
  local mean = ops.mean(ops.mean(x, dims), 1)
  local var = ops.mean(ops.var(x, dims, false, 1), 1)
  for name, value in pairs{running_mean = mean, running_var = var} do
    local running = self[name]
    running:copy_(ops.add(ops.mul(running, 1 - momentum), ops.mul(ops.cast(value, running.dtype), momentum)))
  end
end

local function define_instance(name, rank, wanted)
  local cls = class.define(name, Module, true)
  cls.layout = "channels_first"
  cls.arguments = {
    {"num_features", "integer", min = 1},
    {"eps", "number", min = 0, default = 1e-5},
    {"momentum", "number_or_false", min = 0, max = 1, default = 0.1},
    {"affine", "boolean", default = false},
    {"track_running_stats", "boolean", default = false},
    {"dtype", "dtype", default = "f32", hidden = true},
  }
  local dims = {}
  for i = 1, rank do dims[i] = i + 2 end

  function cls:init(...)
    local o = args.accept(self, cls.arguments, ...)
    local size = {o.num_features}
    self:register_parameter("weight", o.affine and init.constant_parameter(size, o.dtype, 1) or nil)
    self:register_parameter("bias", o.affine and init.constant_parameter(size, o.dtype, 0) or nil)
    if o.track_running_stats then
      self:register_buffer("running_mean", init.constant_buffer(size, o.dtype, 0))
      self:register_buffer("running_var", init.constant_buffer(size, o.dtype, 1))
      self:register_buffer("num_batches_tracked", scope.promote(create.zeros({}, {dtype = "i64"})))
    end
  end

  function cls:forward(x)
    check.tensor(x, self.type .. ": input")
    local shape = x.shape
    if #shape == rank + 1 then return ops.squeeze(self:forward(ops.unsqueeze(x, 1)), 1) end
    if #shape ~= rank + 2 then
      check.fail("%s: input must be %s, or that without the batch, got %s", self.type, wanted, check.shape_text(x))
    end
    check_channels(self, shape, self.num_features)
    local tracked = self.track_running_stats
    if tracked and not self.training then
      return ops.batch_norm(x, self.weight, self.bias, self.running_mean, self.running_var, false, 0, self.eps)
    end
    local count = 1
    for i = 3, #shape do count = count * shape[i] end
    if count == 1 then
      check.fail("%s: input %s has one value per channel of a sample, whose variance is unknown", self.type, check.shape_text(x))
    end
    if tracked then grad.no_grad(scope.run, update, self, x, dims) end
    return ops.group_norm(x, self.weight, self.bias, self.num_features, self.eps)
  end

  --- Sets the running statistics back to mean 0 and variance 1.
  function cls:reset_running_stats()
    if not self.track_running_stats then return self end
    init.zeros_(self.running_mean)
    init.ones_(self.running_var)
    self.num_batches_tracked:zero_()
    return self
  end

  function cls:output_shape(shape)
    shapes.check(shape, self.type, rank + 1, rank + 2)
    if #shape == rank + 2 then return check_channels(self, shape, self.num_features) end
    return shapes.copy(shape)
  end

  return cls
end

--- Normalises each channel of each sample: [N, C, L] (or [C, L]).
--- nn.InstanceNorm1d(num_features, {eps = 1e-5, momentum = 0.1, affine = false, track_running_stats = false, dtype}).
---@class resin.nn.InstanceNorm1d: resin.nn.Module
local InstanceNorm1d = define_instance("InstanceNorm1d", 1, "[N, C, L]")

--- The same over [N, C, H, W] (or [C, H, W]).
---@class resin.nn.InstanceNorm2d: resin.nn.Module
local InstanceNorm2d = define_instance("InstanceNorm2d", 2, "[N, C, H, W]")

--- The same over [N, C, D, H, W] (or [C, D, H, W]).
---@class resin.nn.InstanceNorm3d: resin.nn.Module
local InstanceNorm3d = define_instance("InstanceNorm3d", 3, "[N, C, D, H, W]")

-- ---- rms norm -------------------------------------------------------------------------------------------------------------

--- Divides by the root of the mean square over the last dimensions, whose sizes are `normalized_shape`.
--- nn.RMSNorm(normalized_shape, {eps, elementwise_affine = true, dtype}); eps is the dtype's epsilon unless given.
---@class resin.nn.RMSNorm: resin.nn.Module
local RMSNorm = class.define("RMSNorm", Module, true)

RMSNorm.layout = "features_last"
RMSNorm.arguments = {
  {"normalized_shape", "shape", min = 1, rest = true},
  {"eps", "number", min = 0, optional = true},
  {"elementwise_affine", "boolean", default = true},
  {"dtype", "dtype", default = "f32", hidden = true},
}

function RMSNorm:init(...)
  local o = args.accept(self, RMSNorm.arguments, ...)
  local size = o.normalized_shape
  self.op_shape = #size == 1 and size[1] or size
  self:register_parameter("weight", o.elementwise_affine and init.constant_parameter(size, o.dtype, 1) or nil)
end

function RMSNorm:forward(x)
  return ops.rms_norm(x, self.weight, self.op_shape, self.eps or -1)
end

function RMSNorm:output_shape(shape)
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

return {
  GroupNorm = GroupNorm, InstanceNorm1d = InstanceNorm1d, InstanceNorm2d = InstanceNorm2d, InstanceNorm3d = InstanceNorm3d,
  RMSNorm = RMSNorm,
}
