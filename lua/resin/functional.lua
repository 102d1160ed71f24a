-- resin.F: every public op as a function, and what is composed of several ops. Composites are methods of tensors as well
-- (extend puts them there), so one text serves F.std(x) and x:std().

local check = require "resin.check"
local ops = require "resin.ops"
local B = require "resin.binding"
local lib = require "resin.lib"
local scope = require "resin.scope"
local spatial = require "resin.spatial"
local C = lib.C

local type, getmetatable = type, getmetatable
local Tensor = scope.Tensor

local F = {}
for _, name in ipairs(B.public) do F[name] = ops[name] end

local composites = {}      -- functions that are methods too

local function shape_of(t, what)
  check.tensor(t, what)
  local shape = {}
  for i = 1, C.rs_tensor_ndim(t.h) do shape[i] = C.rs_tensor_size(t.h, i - 1) end
  return shape
end

-- A checked dimension as a number from 1.
local function dimension(t, dim, what)
  check.tensor(t, what)
  local ndim = C.rs_tensor_ndim(t.h)
  local at = B.to_dim(dim, what .. ": dim")
  if at < 0 then at = at + ndim end
  if at < 0 or at >= ndim then check.fail("%s: dimension %d does not exist: the tensor has %d", what, dim, ndim) end
  return at + 1
end

-- ---- shapes --------------------------------------------------------------------------------------------------------------

---The same elements in another shape: x:view(2, -1).
composites.view = ops.reshape

function composites.view_as(t, other) return ops.reshape(t, shape_of(other, "view_as: other")) end
composites.reshape_as = composites.view_as

function composites.expand_as(t, other) return ops.expand(t, shape_of(other, "expand_as: other")) end

---The transpose of a matrix; a vector as it is.
function composites.t(t)
  check.tensor(t, "t: input")
  local ndim = C.rs_tensor_ndim(t.h)
  if ndim > 2 then check.fail("t: input must have at most 2 dimensions, got %s", check.describe(t)) end
  if ndim < 2 then return t end
  return ops.transpose(t, 1, 2)
end

---Repeats a tensor along each dimension: x:tile(2, 3).
function composites.tile(t, counts, b, c, d, e, f, g, h)
  if type(counts) ~= "table" then counts = { counts, b, c, d, e, f, g, h } end
  local shape = shape_of(t, "tile: input")
  local n = math.max(#counts, #shape)
  local apart, spread, joined = {}, {}, {}
  for i = 1, n do
    local size = shape[i - n + #shape] or 1
    local count = check.integer(counts[i - n + #counts] or 1, "tile: count", 0)
    apart[2 * i - 1], apart[2 * i] = 1, size
    spread[2 * i - 1], spread[2 * i] = count, size
    joined[i] = count * size
  end
  if n <= 4 then return ops.reshape(ops.expand(ops.reshape(t, apart), spread), joined) end
  for i = 1, n do      -- too many dimensions to spread at once
    local count = spread[2 * i - 1]
    if count ~= 1 then
      if i == 1 then t = ops.reshape(t, (function() local s = {} for k = 1, n do s[k] = spread[2 * k] end return s end)()) end
      local copies = {}
      for k = 1, count do copies[k] = t end
      t = ops.cat(copies, i)
    end
  end
  return t
end

---A list of n nearly equal parts along a dimension.
---@return resin.Tensor[]
function composites.chunk(t, n, dim)
  dim = dimension(t, dim or 1, "chunk")
  check.integer(n, "chunk: n", 1)
  local size = C.rs_tensor_size(t.h, dim - 1)
  return composites.split(t, math.max(1, math.ceil(size / n)), dim)
end

---A list of parts of a size (the last may be smaller), or of the sizes in a list.
---@param sizes integer|integer[]
---@return resin.Tensor[]
function composites.split(t, sizes, dim)
  dim = dimension(t, dim or 1, "split")
  local size, parts, at = C.rs_tensor_size(t.h, dim - 1), {}, 1
  if type(sizes) == "number" then
    check.integer(sizes, "split: size", 1)
    while at <= size do
      local length = math.min(sizes, size - at + 1)
      parts[#parts + 1] = ops.narrow(t, dim, at, length)
      at = at + length
    end
    if size == 0 then parts[1] = t end
    return parts
  end
  check.table(sizes, "split: sizes")
  local total = 0
  for i = 1, #sizes do total = total + check.integer(sizes[i], "split: size", 0) end
  if total ~= size then
    check.fail("split: the sizes add up to %d, but dimension %d of %s has %d", total, dim, check.shape_text(t), size)
  end
  for i = 1, #sizes do
    parts[i] = ops.narrow(t, dim, at, sizes[i])
    at = at + sizes[i]
  end
  return parts
end

---A list of the entries along a dimension.
---@return resin.Tensor[]
function composites.unbind(t, dim)
  dim = dimension(t, dim or 1, "unbind")
  local parts = {}
  for i = 1, C.rs_tensor_size(t.h, dim - 1) do parts[i] = ops.select(t, dim, i) end
  return parts
end

-- The dimension may stand before the index, as in x:gather(1, index), or after it.
for _, name in ipairs { "gather", "index_select" } do
  local op = ops[name]
  composites[name] = function(t, a, b)
    if type(a) == "number" then return op(t, b, a) end
    return op(t, a, b)
  end
end

-- ---- numbers -------------------------------------------------------------------------------------------------------------

---Standard deviation, with the arguments of var.
function composites.std(t, dims, keepdim, correction) return ops.sqrt(ops.var(t, dims, keepdim, correction)) end

---Euclidean norm over some dimensions, or all.
function composites.norm(t, dims, keepdim) return ops.sqrt(ops.sum(ops.square(t), dims, keepdim)) end

---Matrix product of two matrices.
function composites.mm(a, b)
  check.tensor(a, "mm: a")
  check.tensor(b, "mm: b")
  if C.rs_tensor_ndim(a.h) ~= 2 or C.rs_tensor_ndim(b.h) ~= 2 then
    check.fail("mm: both operands must be matrices, got %s and %s; matmul takes others", check.describe(a), check.describe(b))
  end
  return ops.matmul(a, b)
end

---Matrix products of two batches of matrices.
function composites.bmm(a, b)
  check.tensor(a, "bmm: a")
  check.tensor(b, "bmm: b")
  if C.rs_tensor_ndim(a.h) ~= 3 or C.rs_tensor_ndim(b.h) ~= 3 then
    check.fail("bmm: both operands must have 3 dimensions, got %s and %s; matmul takes others", check.describe(a), check.describe(b))
  end
  return ops.matmul(a, b)
end

---Sum of the products of two vectors.
function composites.dot(a, b) return ops.sum(ops.mul(a, b)) end

---Value where mask is true, the tensor elsewhere.
function composites.masked_fill(t, mask, value)
  check.tensor(t, "masked_fill: input")
  return ops.where(mask, value, t)
end

-- ---- classes -------------------------------------------------------------------------------------------------------------

---Labels (from 1) as rows of zeros with a one.
---@param labels resin.Tensor i64, i32 or u8
---@param classes integer
---@param options? table dtype
function F.one_hot(labels, classes, options)
  check.tensor(labels, "one_hot: labels")
  check.integer(classes, "one_hot: classes", 1)
  local dtype = check.options(options, { "dtype" }, "one_hot").dtype or "f32"
  local numbers = ops.cast(require("resin.create").arange(1, classes), labels.dtype)
  return ops.cast(ops.eq(ops.unsqueeze(labels, -1), numbers), dtype)
end

---Share of rows whose largest entry stands at the label, as a number.
function F.accuracy(scores, labels)
  return ops.mean(ops.cast(ops.eq(ops.argmax(scores, -1), ops.cast(labels, "i64")), "f32")):item()
end

-- ---- activations that are others with constants ---------------------------------------------------------------------------

local SELU_ALPHA, SELU_SCALE = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946

---Klambauer and others 2017: elu with the constants that keep mean 0 and variance 1.
function F.selu(x) return ops.elu(x, SELU_ALPHA, SELU_SCALE) end

---elu with the slope 1 on both sides of 0 for every alpha.
function F.celu(x, alpha)
  if type(alpha) == "table" then alpha = check.options(alpha, { "alpha" }, "celu").alpha end
  alpha = alpha or 1
  return ops.elu(x, alpha, 1, 1 / alpha)
end

---x held between 0 and 6.
function F.relu6(x) return ops.hardtanh(x, 0, 6) end

for _, name in ipairs(spatial.public) do F[name] = spatial[name] end
for name, fn in pairs(composites) do F[name] = fn end

---Makes the composites methods of tensors.
function F.extend(class)
  for name, fn in pairs(composites) do class.methods[name] = fn end
end

-- max and min of a whole tensor are one value; along a dimension they are values and their places.
for name, reduce in pairs { max = "amax", min = "amin" } do
  local along, all, other = ops[name], ops[reduce], ops[name == "max" and "maximum" or "minimum"]
  composites[name] = function(t, dim, keepdim)
    if dim == nil then
      if getmetatable(t) == Tensor and t.h and C.rs_tensor_numel(t.h) == 0 then
        check.fail("%s: input %s has no elements, so there is no extreme; test numel() first", name, check.shape_text(t))
      end
      return all(t)
    end
    if getmetatable(dim) == Tensor then return other(t, dim) end
    return along(t, dim, keepdim)
  end
  F[name] = composites[name]
end

return F
