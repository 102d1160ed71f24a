--- Convolutions with what usually follows them: conv1x1, conv3x3, conv_bn, conv_bn_act and their combinations, and Conv2dPad.
-- They are functions that return an nn.Conv2d, or an nn.Sequential of [1] the convolution, [2] the norm, [3] the activation.
-- What is not theirs (stride, padding, bias, …) goes to the convolution: conv3x3_bn_act(3, 64, {padding = 1, act = "SELU"}).

local check = require "resin.check"
local class = require "resin.nn.class"
local args = require "resin.nn.args"
local norm_of = require "resin.nn.norm_of"
local Sequential = require("resin.nn.sequential").Sequential
local ops = require "resin.ops"
local shapes = require "resin.nn.shapes"
local Conv2d = require("resin.nn.conv").Conv2d
local make = require "resin.blocks.make"

-- ---- arguments ------------------------------------------------------------------------------------------------------------

-- Splits a call into positional values, options for the convolution, and options named in `own`.
local function split(what, own, ...)
  local n, given = select("#", ...), {...}
  local named = given[n]
  if not class.is_plain(named) or (n > 1 and named[1] ~= nil) then named = nil end
  local positional, options, mine = {}, {}, {}
  if named then
    for key, value in pairs(named) do
      if type(key) == "number" then
        positional[key] = value
      elseif own[key] then
        mine[key] = value
      else
        options[key] = value
      end
    end
    given[n] = nil
    n = n - 1
    if n == 0 then n = table.maxn(positional) else positional = given end
  else
    positional = given
  end
  if n < 2 then check.fail("%s: in_channels and out_channels are missing: %s(in, out, {…})", what, what) end
  return positional, n, options, mine
end

-- ---- the norm ------------------------------------------------------------------------------------------------------------

-- The norm after a convolution: BatchNorm of its dimensions unless `norm` says otherwise.
local function norm_after(conv, norm, what)
  if class.is_module(norm) then return norm end
  local channels = rawget(conv, "out_channels")
  local rank = conv.type:match("(%d)d$")
  if not channels or (norm == nil and not rank) then
    check.fail("%s: %s is no convolution with out_channels; give the norm as a module", what, conv.type)
  end
  if norm == nil then
    local name = "BatchNorm" .. rank .. "d"
    norm = make.layers()[name]
    if not norm then check.fail("%s: there is no nn.%s; give a norm", what, name) end
  end
  return make.module(norm_of(make.constructor(norm, what .. ": norm"), channels), what .. ": norm")
end

-- ---- blocks ---------------------------------------------------------------------------------------------------------------

local OWN = {[""] = {conv = true}, bn = {conv = true, norm = true}, bn_act = {conv = true, norm = true, act = true}}

-- A function that makes the block. kernel: its fixed size or nil; parts: "", "bn" or "bn_act".
local function define(name, kernel, parts)
  return function(...)
    local positional, n, options, own = split(name, OWN[parts], ...)
    if kernel then
      if options.kernel_size ~= nil or n > 2 then
        check.fail("%s: kernel_size is %d; only in_channels and out_channels go by position: %s(in, out, {stride = 2})", name, kernel,
          name)
      end
      options.kernel_size = kernel
    end
    positional[n + 1] = options
    local class_of = own.conv == nil and Conv2d or make.constructor(own.conv, name .. ": conv")
    local layer = make.module(class_of(unpack(positional, 1, n + 1)), name .. ": conv")
    if parts == "" then return layer end
    local norm = norm_after(layer, own.norm, name)
    if parts == "bn" then return Sequential(layer, norm) end
    return Sequential(layer, norm, make.activation(own.act == nil and "ReLU" or own.act, name .. ": act"))
  end
end

local conv = {}

--- nn.Conv2d with a 1×1 kernel: conv1x1(32, 64, {stride = 2}). `conv` names another class.
conv.conv1x1 = define("conv1x1", 1, "")
--- conv1x1 and a batch norm: conv1x1_bn(32, 64). `norm` names another norm: a class, a function of the channels that makes one, or a
--- module. Of the class nn.GroupNorm it has as many groups as divide the channels, 32 at most.
conv.conv1x1_bn = define("conv1x1_bn", 1, "bn")
--- conv1x1, a batch norm and an activation: conv1x1_bn_act(32, 64, {act = nn.SiLU}).
conv.conv1x1_bn_act = define("conv1x1_bn_act", 1, "bn_act")
--- nn.Conv2d with a 3×3 kernel, no padding unless given: conv3x3(32, 64, {padding = 1}).
conv.conv3x3 = define("conv3x3", 3, "")
--- conv3x3 and a batch norm.
conv.conv3x3_bn = define("conv3x3_bn", 3, "bn")
--- conv3x3, a batch norm and an activation.
conv.conv3x3_bn_act = define("conv3x3_bn_act", 3, "bn_act")
--- A convolution and a batch norm: conv_bn(32, 64, 5, {stride = 2}), conv_bn(32, 64, {kernel_size = 5, conv = nn.Conv1d}).
conv.conv_bn = define("conv_bn", nil, "bn")
--- A convolution, a batch norm and an activation. act: a name ("GELU"), a class (nn.GELU), a function that makes a module,
--- or a module; ReLU unless given.
conv.conv_bn_act = define("conv_bn_act", nil, "bn_act")

-- ---- Conv2dPad ------------------------------------------------------------------------------------------------------------

--- A Conv2d whose output is ⌈size / stride⌉ for every size and stride: the padding follows from the input.
---@class resin.blocks.SameConv2d: resin.nn.Conv2d
local SameConv2d = class.define("SameConv2d", Conv2d, true)

-- Padding before and after one dimension.
local function pads(size, kernel, stride, dilation)
  local total = math.max((math.ceil(size / stride) - 1) * stride + dilation * (kernel - 1) + 1 - size, 0)
  local before = math.floor(total / 2)
  return before, total - before
end

function SameConv2d:forward(x)
  check.tensor(x, "SameConv2d: input")
  local shape = x.shape
  if #shape == 3 or #shape == 4 then
    local kernel, stride, dilation = shapes.list(self.kernel_size, 2), shapes.list(self.stride, 2), shapes.list(self.dilation, 2)
    local top, bottom = pads(shape[#shape - 1], kernel[1], stride[1], dilation[1])
    local left, right = pads(shape[#shape], kernel[2], stride[2], dilation[2])
    if top + bottom + left + right > 0 then x = ops.pad(x, {left, right, top, bottom}) end
  end
  return Conv2d.forward(self, x)
end

function SameConv2d:output_shape(shape)
  local out = Conv2d.output_shape({type = self.type, in_channels = self.in_channels, out_channels = self.out_channels, padding = "same"},
    shape)
  local stride = shapes.list(self.stride, 2)
  for i = 1, 2 do
    local at = #out - 2 + i
    out[at] = out[at] and math.ceil(out[at] / stride[i])
  end
  return out
end

--- An nn.Conv2d that computes its padding from the kernel: Conv2dPad(in, out, kernel_size, {mode = "auto", …}).
--- mode "auto": kernel // 2 in each direction (with a dilation d: d (kernel - 1) / 2, rounded up); an odd kernel with stride 1 keeps
--- the size. mode "same": the output is ⌈size / stride⌉ always.
---@return resin.nn.Conv2d
function conv.Conv2dPad(...)
  local positional, n, options, own = split("Conv2dPad", {mode = true}, ...)
  local mode = own.mode == nil and "auto" or check.enum(own.mode, "Conv2dPad: mode", {"auto", "same"})
  if n > 4 or options.padding ~= nil then
    check.fail("Conv2dPad: takes no padding, because it computes it; in_channels, out_channels, kernel_size and stride go by position")
  end
  local names = {}
  for i, entry in ipairs(Conv2d.arguments) do names[i] = entry[1] end
  for i = 3, n do
    if options[names[i]] ~= nil then check.fail("Conv2dPad: %s is given twice, by position and by name", names[i]) end
    options[names[i]] = positional[i]
  end
  if mode == "same" then return SameConv2d(positional[1], positional[2], options) end
  local layer = args.accept({type = "Conv2dPad"}, Conv2d.arguments, positional[1], positional[2], options)
  local padding = {}
  for i = 1, 2 do
    padding[i] = math.floor((shapes.list(layer.dilation, 2)[i] * (shapes.list(layer.kernel_size, 2)[i] - 1) + 1) / 2)
  end
  options.padding = padding
  return Conv2d(positional[1], positional[2], options)
end

return conv
