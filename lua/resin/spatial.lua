-- Functions over lines, images and volumes that are made of ops for images: a line is an image of height 1, a volume becomes a
-- stack of images. They stand in resin.F, and the layers of resin.nn call them.
--
-- Every function takes its tensors first, then its numbers by position or as one table of names. Lists of sizes go from the
-- outer dimension to the inner one; paddings of `pad` go in pairs (before, after) from the last dimension outwards.

local check = require "resin.check"
local ops = require "resin.ops"
local lib = require "resin.lib"
local scope = require "resin.scope"

local C = lib.C
local floor, max, min = math.floor, math.max, math.min
local Tensor = scope.Tensor

local spatial = {}

-- ---- arguments ------------------------------------------------------------------------------------------------------------

local function ndim_of(t, what)
  check.tensor(t, what)
  return C.rs_tensor_ndim(t.h)
end

local function size(t, dim) return tonumber(C.rs_tensor_size(t.h, dim - 1)) end

-- One number for all, or one for each of n.
local function sizes(value, n, default, what, least)
  if value == nil then value = default end
  local list = {}
  for i = 1, n do
    list[i] = check.integer(type(value) == "table" and (#value == 1 and value[1] or value[i]) or value, what, least)
  end
  if type(value) == "table" and #value ~= 1 and #value ~= n then
    check.fail("%s must have %d values, got %d", what, n, #value)
  end
  return list
end
spatial.sizes = sizes

local function named(value, known, what)
  return type(value) == "table" and value[1] == nil and getmetatable(value) ~= Tensor and check.options(value, known, what)
end

-- Runs a function of batches on `x`, which may lack the batch: rank is that of a batch.
local function with_batch(x, rank, what, wanted, fn, a, b, c, d, e, f)
  local n = ndim_of(x, what .. ": input")
  if n == rank then return fn(x, a, b, c, d, e, f) end
  if n == rank - 1 then return ops.squeeze(fn(ops.unsqueeze(x, 1), a, b, c, d, e, f), 1) end
  check.fail("%s: input must be %s, or that without the batch, got %s", what, wanted, check.shape_text(x))
end

-- ---- convolution ----------------------------------------------------------------------------------------------------------

local CONV = {"stride", "padding", "dilation", "groups"}

local function conv1d(x, weight, bias, stride, padding, dilation, groups)
  local y = ops.conv2d(ops.unsqueeze(x, 3), ops.unsqueeze(weight, 3), bias, {1, stride[1]}, {0, padding[1]}, {1, dilation[1]},
    groups)
  return ops.squeeze(y, 3)
end

local function check_weight(weight, rank, what)
  if ndim_of(weight, what .. ": weight") ~= rank then
    check.fail("%s: weight must have %d dimensions, got %s", what, rank, check.shape_text(weight))
  end
end

---Convolution of lines x [N, C, L] (or [C, L]) with weight [O, C / groups, k].
function spatial.conv1d(x, weight, bias, stride, padding, dilation, groups)
  local o = named(stride, CONV, "conv1d")
  if o then stride, padding, dilation, groups = o.stride, o.padding, o.dilation, o.groups end
  check_weight(weight, 3, "conv1d")
  return with_batch(x, 3, "conv1d", "[N, C, L]", conv1d, weight, bias, sizes(stride, 1, 1, "conv1d: stride", 1),
    sizes(padding, 1, 0, "conv1d: padding", 0), sizes(dilation, 1, 1, "conv1d: dilation", 1), groups or 1)
end

-- Depth positions that each output reads, one after the other, counted from 1.
local function depth_positions(out, kernel, stride, dilation)
  local list = {}
  for i = 0, out - 1 do
    for k = 0, kernel - 1 do list[#list + 1] = 1 + i * stride + k * dilation end
  end
  return require("resin.create").tensor(list, {dtype = "i64"})
end

-- The taps in depth become channels of images: [N, C, D, H, W] → [N * OD, C * kd, H, W].
local function conv3d(x, weight, bias, stride, padding, dilation, groups)
  local n, c, h, w = size(x, 1), size(x, 2), size(x, 4), size(x, 5)
  local o, kd = size(weight, 1), size(weight, 3)
  if padding[1] > 0 then x = ops.pad(x, {0, 0, 0, 0, padding[1], padding[1]}) end
  local reach = dilation[1] * (kd - 1) + 1
  local od = floor((size(x, 3) - reach) / stride[1]) + 1
  if od < 1 then
    check.fail("conv3d: the kernel of weight %s covers %d planes, more than the %d of the padded input", check.shape_text(weight),
      reach, size(x, 3))
  end
  if kd > 1 or stride[1] > 1 then x = ops.index_select(x, depth_positions(od, kd, stride[1], dilation[1]), 3) end
  x = ops.permute(ops.reshape(x, {n, c, od, kd, h, w}), {1, 3, 2, 4, 5, 6})
  local y = ops.conv2d(ops.reshape(x, {n * od, c * kd, h, w}),
    ops.reshape(weight, {o, size(weight, 2) * kd, size(weight, 4), size(weight, 5)}), bias, {stride[2], stride[3]},
    {padding[2], padding[3]}, {dilation[2], dilation[3]}, groups)
  return ops.copy(ops.permute(ops.reshape(y, {n, od, o, size(y, 3), size(y, 4)}), {1, 3, 2, 4, 5}))
end

---Convolution of volumes x [N, C, D, H, W] (or without N) with weight [O, C / groups, kd, kh, kw].
function spatial.conv3d(x, weight, bias, stride, padding, dilation, groups)
  local o = named(stride, CONV, "conv3d")
  if o then stride, padding, dilation, groups = o.stride, o.padding, o.dilation, o.groups end
  check_weight(weight, 5, "conv3d")
  if ndim_of(x, "conv3d: input") >= 4 then
    local at = ndim_of(x, "conv3d: input") - 3
    local expected = size(weight, 2) * (groups or 1)
    if size(x, at) ~= expected then
      check.fail("conv3d: input %s has %d channels but weight %s expects %d (groups %d)", check.shape_text(x), size(x, at),
        check.shape_text(weight), expected, groups or 1)
    end
  end
  return with_batch(x, 5, "conv3d", "[N, C, D, H, W]", conv3d, weight, bias, sizes(stride, 3, 1, "conv3d: stride", 1),
    sizes(padding, 3, 0, "conv3d: padding", 0), sizes(dilation, 3, 1, "conv3d: dilation", 1), groups or 1)
end

---The size that a transposed convolution gives in one direction.
function spatial.transposed_size(n, kernel, stride, padding, dilation, output_padding)
  return (n - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1
end

-- The gradient of conv2d with respect to its input, whose channels are the outputs here.
local function conv_transpose2d(x, weight, bias, stride, padding, output_padding, dilation, groups)
  local what = "conv_transpose2d"
  local result = {size(x, 1), size(weight, 2) * groups}
  if size(x, 2) ~= size(weight, 1) then
    check.fail("%s: input %s has %d channels but weight %s expects %d", what, check.shape_text(x), size(x, 2),
      check.shape_text(weight), size(weight, 1))
  end
  for i = 1, 2 do
    if output_padding[i] >= stride[i] and output_padding[i] > 0 then
      check.fail("%s: output_padding %d must be smaller than stride %d", what, output_padding[i], stride[i])
    end
    result[i + 2] = spatial.transposed_size(size(x, i + 2), size(weight, i + 2), stride[i], padding[i], dilation[i], output_padding[i])
    if result[i + 2] < 1 then
      check.fail("%s: input %s gives an image without pixels with padding %d", what, check.shape_text(x), padding[i])
    end
  end
  local y = ops.conv2d_backward_data(x, weight, stride, padding, dilation, groups, result)
  return bias and ops.add(y, ops.reshape(bias, {1, result[2], 1, 1})) or y
end

local TRANSPOSE = {"stride", "padding", "output_padding", "groups", "dilation"}

---Transposed convolution of images x [N, C, H, W] (or [C, H, W]) with weight [C, O / groups, kh, kw].
function spatial.conv_transpose2d(x, weight, bias, stride, padding, output_padding, groups, dilation)
  local what = "conv_transpose2d"
  local o = named(stride, TRANSPOSE, what)
  if o then stride, padding, output_padding, groups, dilation = o.stride, o.padding, o.output_padding, o.groups, o.dilation end
  check_weight(weight, 4, what)
  stride, dilation = sizes(stride, 2, 1, what .. ": stride", 1), sizes(dilation, 2, 1, what .. ": dilation", 1)
  padding = sizes(padding, 2, 0, what .. ": padding", 0)
  output_padding, groups = sizes(output_padding, 2, 0, what .. ": output_padding", 0), groups or 1
  local n = ndim_of(x, what .. ": input")
  if n == 4 then return conv_transpose2d(x, weight, bias, stride, padding, output_padding, dilation, groups) end
  if n ~= 3 then check.fail("%s: input must be [N, C, H, W], or that without the batch, got %s", what, check.shape_text(x)) end
  return ops.squeeze(conv_transpose2d(ops.unsqueeze(x, 1), weight, bias, stride, padding, output_padding, dilation, groups), 1)
end

---Transposed convolution of lines x [N, C, L] (or [C, L]) with weight [C, O / groups, k].
function spatial.conv_transpose1d(x, weight, bias, stride, padding, output_padding, groups, dilation)
  local what = "conv_transpose1d"
  local o = named(stride, TRANSPOSE, what)
  if o then stride, padding, output_padding, groups, dilation = o.stride, o.padding, o.output_padding, o.groups, o.dilation end
  check_weight(weight, 3, what)
  stride, dilation = sizes(stride, 1, 1, what .. ": stride", 1), sizes(dilation, 1, 1, what .. ": dilation", 1)
  padding = sizes(padding, 1, 0, what .. ": padding", 0)
  output_padding = sizes(output_padding, 1, 0, what .. ": output_padding", 0)
  local n = ndim_of(x, what .. ": input")
  if n ~= 2 and n ~= 3 then
    check.fail("%s: input must be [N, C, L], or that without the batch, got %s", what, check.shape_text(x))
  end
  local images = ops.unsqueeze(n == 2 and ops.unsqueeze(x, 1) or x, 3)
  local y = conv_transpose2d(images, ops.unsqueeze(weight, 3), bias, {1, stride[1]}, {0, padding[1]}, {0, output_padding[1]},
    {1, dilation[1]}, groups or 1)
  y = ops.squeeze(y, 3)
  return n == 2 and ops.squeeze(y, 1) or y
end

-- ---- pooling --------------------------------------------------------------------------------------------------------------

-- A pooling of images as one of lines: fn gets images of height 1.
local function as_images(x, fn, a, b, c, d, e)
  return ops.squeeze(fn(ops.unsqueeze(x, 3), a, b, c, d, e), 3)
end

local function across(value, other) return value ~= nil and {other, type(value) == "table" and value[1] or value} or nil end

---The largest value of each window of lines x [N, C, L] (or [C, L]).
function spatial.max_pool1d(x, kernel_size, stride, padding, dilation, ceil_mode)
  local o = named(kernel_size, {"kernel_size", "stride", "padding", "dilation", "ceil_mode"}, "max_pool1d")
  if o then kernel_size, stride, padding, dilation, ceil_mode = o.kernel_size, o.stride, o.padding, o.dilation, o.ceil_mode end
  return with_batch(x, 3, "max_pool1d", "[N, C, L]", as_images, ops.max_pool2d, across(kernel_size, 1),
    across(stride or kernel_size, 1), across(padding or 0, 0), across(dilation or 1, 1), ceil_mode or false)
end

---The mean of each window of lines x [N, C, L] (or [C, L]).
function spatial.avg_pool1d(x, kernel_size, stride, padding, ceil_mode, count_include_pad)
  local o = named(kernel_size, {"kernel_size", "stride", "padding", "ceil_mode", "count_include_pad"}, "avg_pool1d")
  if o then
    kernel_size, stride, padding, ceil_mode, count_include_pad = o.kernel_size, o.stride, o.padding, o.ceil_mode, o.count_include_pad
  end
  if count_include_pad == nil then count_include_pad = true end
  return with_batch(x, 3, "avg_pool1d", "[N, C, L]", as_images, ops.avg_pool2d, across(kernel_size, 1),
    across(stride or kernel_size, 1), across(padding or 0, 0), ceil_mode or false, count_include_pad)
end

---Means over output_size bins of lines x [N, C, L] (or [C, L]).
function spatial.adaptive_avg_pool1d(x, output_size)
  return with_batch(x, 3, "adaptive_avg_pool1d", "[N, C, L]", as_images, ops.adaptive_avg_pool2d, across(output_size, 1))
end

---Largest values of output_size bins of lines x [N, C, L] (or [C, L]).
function spatial.adaptive_max_pool1d(x, output_size)
  return with_batch(x, 3, "adaptive_max_pool1d", "[N, C, L]", as_images, ops.adaptive_max_pool2d, across(output_size, 1))
end

---An op over images [N, C, H, W], also for one image [C, H, W].
function spatial.images(x, what, op, a, b, c, d, e)
  return with_batch(x, 4, what, "[N, C, H, W]", op, a, b, c, d, e)
end

-- ---- padding --------------------------------------------------------------------------------------------------------------

---Pads with what stands at the other end: pairs (before, after), the last dimension's first.
function spatial.pad_circular(x, padding)
  local n = ndim_of(x, "pad_circular: input")
  for i = 1, #padding / 2 do
    local dim, before, after = n + 1 - i, padding[2 * i - 1], padding[2 * i]
    if dim < 1 then check.fail("pad_circular: %d pairs for input %s", #padding / 2, check.shape_text(x)) end
    local length = size(x, dim)
    if before > length or after > length then
      check.fail("pad_circular: padding (%d, %d) of dimension %d of input %s must not be larger than its size", before, after, dim,
        check.shape_text(x))
    end
    if before < 0 or after < 0 then
      x = ops.narrow(x, dim, 1 - min(before, 0), length + min(before, 0) + min(after, 0))
    end
    local inner = size(x, dim)
    local parts = {}
    if before > 0 then parts[#parts + 1] = ops.narrow(x, dim, inner - before + 1, before) end
    parts[#parts + 1] = x
    if after > 0 then parts[#parts + 1] = ops.narrow(x, dim, 1, after) end
    if #parts > 1 then x = ops.cat(parts, dim) end
  end
  return x
end

-- ---- another size ---------------------------------------------------------------------------------------------------------

local MODES = {nearest = "nearest", ["nearest-exact"] = "nearest_exact", linear = "bilinear", bilinear = "bilinear"}
local KNOWN = {"size", "scale_factor", "mode", "align_corners"}

---The size of a result: from `size`, or floor(input * scale_factor). `rank` spatial dimensions.
function spatial.resized(shape, rank, out_size, scale_factor, what)
  local out, scales, n = {}, {}, #shape
  if (out_size == nil) == (scale_factor == nil) then check.fail("%s: give one of size and scale_factor", what) end
  if out_size ~= nil then
    return sizes(out_size, rank, nil, what .. ": size", 1), {0, 0}
  end
  for i = 1, rank do
    local s = type(scale_factor) == "table" and (#scale_factor == 1 and scale_factor[1] or scale_factor[i]) or scale_factor
    scales[i] = check.number(s, what .. ": scale_factor", 0)
    local given = shape[n - rank + i]
    out[i] = given and max(floor(given * scales[i]), 0)
    if out[i] == 0 then check.fail("%s: scale_factor %g leaves nothing of size %d", what, scales[i], given) end
  end
  return out, scales
end

---Lines [N, C, L] or images [N, C, H, W] in another size.
---interpolate(x, {size, scale_factor, mode = "nearest", align_corners = false}); modes "nearest", "nearest-exact", "linear" (lines),
---"bilinear" (images). size and scale_factor are a number or a table, one of them is needed.
function spatial.interpolate(x, out_size, scale_factor, mode, align_corners)
  local o = named(out_size, KNOWN, "interpolate")
  if o then out_size, scale_factor, mode, align_corners = o.size, o.scale_factor, o.mode, o.align_corners end
  local what = "interpolate"
  mode = mode or "nearest"
  check.enum(mode, what .. ": mode", {"nearest", "nearest-exact", "linear", "bilinear"})
  if align_corners ~= nil then check.boolean(align_corners, what .. ": align_corners") end
  local n = ndim_of(x, what .. ": input")
  if n ~= 3 and n ~= 4 then
    check.fail("%s: input must be [N, C, L] or [N, C, H, W], got %s", what, check.shape_text(x))
  end
  if (mode == "linear" and n ~= 3) or (mode == "bilinear" and n ~= 4) then
    check.fail('%s: mode "%s" is for %s, got %s', what, mode, mode == "linear" and "[N, C, L]" or "[N, C, H, W]", check.shape_text(x))
  end
  local out, scales = spatial.resized(x.shape, n - 2, out_size, scale_factor, what)
  if n == 4 then return ops.resize2d(x, out, MODES[mode], align_corners or false, scales[1], scales[2]) end
  return ops.squeeze(ops.resize2d(ops.unsqueeze(x, 3), {1, out[1]}, MODES[mode], align_corners or false, 0, scales[1]), 3)
end

-- ---- dropping -------------------------------------------------------------------------------------------------------------

-- A mask of ones divided by what is kept, broadcast over the last dimensions.
local function mask_like(x, shape, p, scale)
  if scale then return ops.dropout(ops.full(shape, 1, x.dtype), p) end
  return ops.bernoulli(shape, 1 - p, x.dtype)
end

---Stochastic depth: sets whole samples (mode "row") or the whole batch (mode "batch") to zero with probability p and divides the
---others by 1 - p unless scale is false. Only while training.
function spatial.drop_path(x, p, mode, training, scale)
  if training == false or p == 0 then return x end
  local shape = x.shape
  for i = 1, #shape do
    if i > 1 or mode == "batch" then shape[i] = 1 end
  end
  return ops.mul(x, mask_like(x, shape, p, scale ~= false))
end

---Sets whole channels of [N, C, ...] (or with `batched` false of [C, ...]) to zero with probability p and divides the others by
---1 - p. Only while training.
function spatial.dropout_channels(x, p, training, batched)
  if training == false or p == 0 then return x end
  local shape = x.shape
  for i = batched == false and 2 or 3, #shape do shape[i] = 1 end
  return ops.mul(x, mask_like(x, shape, p, true))
end

-- ---- for resin.F ----------------------------------------------------------------------------------------------------------

spatial.public = {
  "conv1d", "conv3d", "conv_transpose1d", "conv_transpose2d", "max_pool1d", "avg_pool1d", "adaptive_avg_pool1d",
  "adaptive_max_pool1d", "pad_circular", "interpolate", "drop_path",
}

return spatial
