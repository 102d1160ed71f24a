--- Convolutions: Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d.

local lib = require "resin.lib"
local check = require "resin.check"
local class = require "resin.nn.class"
local args = require "resin.nn.args"
local init = require "resin.nn.initialise"
local Module = require "resin.nn.module"
local ops = require "resin.ops"
local shapes = require "resin.nn.shapes"
local spatial = require "resin.spatial"
local Tensor = require "resin.tensor"

local C = lib.C
local KINDS = {"single", "pair", "triple"}
local MODES = {"zeros", "reflect", "replicate", "circular"}

local function check_groups(self, o)
  for _, name in ipairs{"in_channels", "out_channels"} do
    if o[name] % o.groups ~= 0 then
      check.fail("%s: %s (%d) must be divisible by groups (%d)", self.type, name, o[name], o.groups)
    end
  end
end

-- Weight and bias from U(-1/√fan_in, 1/√fan_in), where fan_in is what PyTorch takes: the weight's second size times the kernel.
local function make_parameters(self, o, rank, first, second)
  local shape, fan = {first, second}, second
  for i, k in ipairs(shapes.list(o.kernel_size, rank)) do shape[i + 2], fan = k, fan * k end
  local bound = 1 / math.sqrt(fan)
  self:register_parameter("weight", init.uniform_parameter(shape, o.dtype, bound))
  self:register_parameter("bias", o.bias and init.uniform_parameter({o.out_channels}, o.dtype, bound) or nil)
end

-- What the op pads itself stays in op_padding; anything else is padded before, by op_pads: pairs, the last dimension's first.
local function place_padding(self, o, rank)
  local before, after = {}, {}
  local kernel, dilation = shapes.list(o.kernel_size, rank), shapes.list(o.dilation, rank)
  local even = o.padding_mode == "zeros"
  if o.padding == "same" then
    for _, step in ipairs(shapes.list(o.stride, rank)) do
      if step ~= 1 then check.fail('%s: padding = "same" needs stride 1, got stride %s', self.type, args.text(o.stride)) end
    end
  end
  local given = shapes.list(o.padding == "valid" and 0 or o.padding, rank)
  for i = 1, rank do
    if o.padding == "same" then
      local total = dilation[i] * (kernel[i] - 1)
      before[i] = math.floor(total / 2)
      after[i] = total - before[i]
    else
      before[i], after[i] = given[i], given[i]
    end
    even = even and before[i] == after[i]
  end
  if even then
    self.op_padding = rank == 1 and before[1] or before
    return
  end
  self.op_padding = 0
  self.op_pads = {}
  for i = rank, 1, -1 do
    self.op_pads[#self.op_pads + 1] = before[i]
    self.op_pads[#self.op_pads + 1] = after[i]
  end
end

local function padded(self, x)
  local pads = self.op_pads
  if not pads then return x end
  local mode = self.padding_mode
  if mode == "circular" then return spatial.pad_circular(x, pads) end
  return ops.pad(x, pads, mode == "zeros" and "constant" or mode)
end

local function check_channels(self, shape, rank)
  shapes.check(shape, self.type, rank + 1, rank + 2)
  local channels = shape[#shape - rank]
  if channels and channels ~= self.in_channels then
    check.fail("%s: input %s has %d channels, expected %d", self.type, shapes.text(shape), channels, self.in_channels)
  end
end

local function define(name, rank)
  local cls = class.define(name, Module, true)
  cls.layout = "channels_first"
  cls.arguments = {
    {"in_channels", "integer", min = 1},
    {"out_channels", "integer", min = 1},
    {"kernel_size", KINDS[rank], min = 1},
    {"stride", KINDS[rank], min = 1, default = 1},
    {"padding", KINDS[rank], min = 0, default = 0, words = {"same", "valid"}},
    {"dilation", KINDS[rank], min = 1, default = 1},
    {"groups", "integer", min = 1, default = 1},
    {"bias", "boolean", default = true, hidden = true},
    {"padding_mode", "enum", choices = MODES, default = "zeros"},
    {"dtype", "dtype", default = "f32", hidden = true},
  }

  function cls:init(...)
    local o = args.accept(self, cls.arguments, ...)
    check_groups(self, o)
    place_padding(self, o, rank)
    make_parameters(self, o, rank, o.out_channels, o.in_channels / o.groups)
  end

  function cls:output_shape(shape)
    check_channels(self, shape, rank)
    if self.padding == "same" then
      local out = shapes.copy(shape)
      out[#out - rank] = self.out_channels
      return out
    end
    if self.padding ~= "valid" then return shapes.slide(self, shape, self.out_channels, rank) end
    local bare = {type = self.type, kernel_size = self.kernel_size, stride = self.stride, padding = 0, dilation = self.dilation}
    return shapes.slide(bare, shape, self.out_channels, rank)
  end

  return cls
end

--- 1-D convolution over [N, C, L] (or [C, L]). Arguments as for Conv2d.
---@class resin.nn.Conv1d: resin.nn.Module
---@field weight resin.Tensor  [out_channels, in_channels / groups, k]
---@field bias resin.Tensor?   [out_channels]
local Conv1d = define("Conv1d", 1)

function Conv1d:forward(x)
  return spatial.conv1d(padded(self, x), self.weight, self.bias, self.stride, self.op_padding, self.dilation, self.groups)
end

--- 2-D convolution over [N, C, H, W] (or [C, H, W]).
--- nn.Conv2d(in_channels, out_channels, kernel_size, {stride = 1, padding = 0, dilation = 1, groups = 1, bias = true,
--- padding_mode = "zeros", dtype}). Sizes are an integer or {height, width}; padding may be "same" or "valid"; padding_mode
--- "zeros", "reflect", "replicate" or "circular". Initial values U(-1/√fan_in, 1/√fan_in).
---@class resin.nn.Conv2d: resin.nn.Module
---@field weight resin.Tensor  [out_channels, in_channels / groups, kh, kw]
---@field bias resin.Tensor?   [out_channels]
local Conv2d = define("Conv2d", 2)

function Conv2d:forward(x)
  if self.op_pads then x = padded(self, x) end
  if Tensor.is(x) and x.h and C.rs_tensor_ndim(x.h) == 3 then
    return ops.squeeze(ops.conv2d(ops.unsqueeze(x, 1), self.weight, self.bias, self.stride, self.op_padding, self.dilation,
      self.groups), 1)
  end
  return ops.conv2d(x, self.weight, self.bias, self.stride, self.op_padding, self.dilation, self.groups)
end

--- 3-D convolution over [N, C, D, H, W] (or [C, D, H, W]). Arguments as for Conv2d; sizes are an integer or {depth, height, width}.
---@class resin.nn.Conv3d: resin.nn.Module
---@field weight resin.Tensor  [out_channels, in_channels / groups, kd, kh, kw]
---@field bias resin.Tensor?   [out_channels]
local Conv3d = define("Conv3d", 3)

function Conv3d:forward(x)
  return spatial.conv3d(padded(self, x), self.weight, self.bias, self.stride, self.op_padding, self.dilation, self.groups)
end

-- ---- transposed -----------------------------------------------------------------------------------------------------------

local function define_transposed(name, rank, run)
  local cls = class.define(name, Module, true)
  cls.layout = "channels_first"
  cls.arguments = {
    {"in_channels", "integer", min = 1},
    {"out_channels", "integer", min = 1},
    {"kernel_size", KINDS[rank], min = 1},
    {"stride", KINDS[rank], min = 1, default = 1},
    {"padding", KINDS[rank], min = 0, default = 0},
    {"output_padding", KINDS[rank], min = 0, default = 0},
    {"groups", "integer", min = 1, default = 1},
    {"bias", "boolean", default = true, hidden = true},
    {"dilation", KINDS[rank], min = 1, default = 1},
    {"dtype", "dtype", default = "f32", hidden = true},
  }

  function cls:init(...)
    local o = args.accept(self, cls.arguments, ...)
    check_groups(self, o)
    local stride = shapes.list(o.stride, rank)
    for i, more in ipairs(shapes.list(o.output_padding, rank)) do
      if more > 0 and more >= stride[i] then
        check.fail("%s: output_padding %s must be smaller than stride %s", self.type, args.text(o.output_padding), args.text(o.stride))
      end
    end
    make_parameters(self, o, rank, o.in_channels, o.out_channels / o.groups)
  end

  -- The output_padding with which the result has the spatial size `output_size`.
  local function padding_for(self, x, output_size)
    local shape = x.shape
    local stride, padding = shapes.list(self.stride, rank), shapes.list(self.padding, rank)
    local kernel, dilation = shapes.list(self.kernel_size, rank), shapes.list(self.dilation, rank)
    local out = {}
    for i = 1, rank do
      local wanted = check.integer(output_size[#output_size - rank + i], self.type .. ": output_size", 1)
      local least = spatial.transposed_size(shape[#shape - rank + i], kernel[i], stride[i], padding[i], dilation[i], 0)
      out[i] = wanted - least
      if out[i] < 0 or out[i] >= stride[i] then
        check.fail("%s: output_size %d is not possible: input %s gives %d to %d", self.type, wanted, check.shape_text(x), least,
          least + stride[i] - 1)
      end
    end
    return out
  end

  function cls:forward(x, output_size)
    return run(x, self.weight, self.bias, self.stride, self.padding, output_size and padding_for(self, x, output_size)
      or self.output_padding, self.groups, self.dilation)
  end

  function cls:output_shape(shape)
    check_channels(self, shape, rank)
    local out, n = shapes.copy(shape), #shape
    local stride, padding = shapes.list(self.stride, rank), shapes.list(self.padding, rank)
    local kernel, dilation = shapes.list(self.kernel_size, rank), shapes.list(self.dilation, rank)
    local more = shapes.list(self.output_padding, rank)
    out[n - rank] = self.out_channels
    for i = 1, rank do
      local size = shape[n - rank + i]
      out[n - rank + i] = size and spatial.transposed_size(size, kernel[i], stride[i], padding[i], dilation[i], more[i])
    end
    return out
  end

  return cls
end

--- Transposed 1-D convolution over [N, C, L] (or [C, L]). Arguments as for ConvTranspose2d.
---@class resin.nn.ConvTranspose1d: resin.nn.Module
local ConvTranspose1d = define_transposed("ConvTranspose1d", 1, spatial.conv_transpose1d)

--- Transposed 2-D convolution over [N, C, H, W] (or [C, H, W]): the gradient of Conv2d with respect to its input.
--- nn.ConvTranspose2d(in_channels, out_channels, kernel_size, {stride = 1, padding = 0, output_padding = 0, groups = 1,
--- bias = true, dilation = 1, dtype}). m(x, {height, width}) chooses output_padding so that the result has this size.
---@class resin.nn.ConvTranspose2d: resin.nn.Module
---@field weight resin.Tensor  [in_channels, out_channels / groups, kh, kw]
---@field bias resin.Tensor?   [out_channels]
local ConvTranspose2d = define_transposed("ConvTranspose2d", 2, spatial.conv_transpose2d)

return {
  Conv1d = Conv1d, Conv2d = Conv2d, Conv3d = Conv3d, ConvTranspose1d = ConvTranspose1d, ConvTranspose2d = ConvTranspose2d,
}
