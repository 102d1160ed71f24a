-- Tensors as text. The values stand in braces as a Lua table would; past LIMIT elements only the edges of each dimension are
-- shown. All numbers of a tensor share one format. A last line says what it is, with its range over every element, and
-- warns of NaN and Inf. Reading goes in pieces, so printing a large tensor needs little memory.

local lib = require "resin.lib"
local check = require "resin.check"
local ffi, C, ctx = lib.ffi, lib.C, lib.ctx

local format = {}

local LIMIT = 1000           -- elements that are printed in full
local PIECE = 2 ^ 18         -- elements read at a time
local WIDTH = 100            -- columns of a line

local huge = math.huge
local concat, rep = table.concat, string.rep

-- ---- reading -------------------------------------------------------------------------------------------------------------

local out = ffi.new("rs_tensor *[1]")
local one = ffi.new("rs_tensor *[1]")
local narrow = ffi.new("rs_narrow_attrs")

-- Entries first .. first + length - 1 (from 0) of dimension `dim` (from 0) of a handle, as a handle to release.
local function piece(h, dim, first, length)
  narrow.dim, narrow.start, narrow.length = dim, first, length
  one[0] = h
  check.status(C.rs_call(ctx, C.RS_OP_narrow, one, 1, narrow, out))
  return out[0]
end

-- Calls visit(values, n) for every element of h, in pieces.
local function each(h, numel, visit)
  if numel <= PIECE then
    local values = ffi.new("double[?]", numel > 0 and numel or 1)
    check.status(C.rs_tensor_read(ctx, h, values))
    visit(values, numel)
    return
  end
  local dim = 0
  while C.rs_tensor_size(h, dim) == 1 do dim = dim + 1 end
  local size = C.rs_tensor_size(h, dim)
  local step = math.max(1, math.floor(PIECE / (numel / size)))
  for first = 0, size - 1, step do
    local length = math.min(step, size - first)
    local part = piece(h, dim, first, length)
    each(part, numel / size * length, visit)
    C.rs_tensor_release(part)
  end
end

local function statistics(h, numel)
  local s = { min = huge, max = -huge, sum = 0, n = 0, nan = 0, inf = 0, nonzero = 0 }
  each(h, numel, function(values, n)
    for i = 0, n - 1 do
      local v = values[i]
      if v ~= v then
        s.nan = s.nan + 1
      elseif v == huge or v == -huge then
        s.inf = s.inf + 1
      else
        if v < s.min then s.min = v end
        if v > s.max then s.max = v end
        if v ~= 0 then s.nonzero = s.nonzero + 1 end
        s.sum = s.sum + v
        s.n = s.n + 1
      end
    end
  end)
  return s
end

-- ---- values --------------------------------------------------------------------------------------------------------------

local GAP = {}      -- stands for what is left out

-- Nested tables of values with GAP where entries are left out. `edge`: entries kept at each end, or nil for all.
local function pick(h, dim, ndim, edge)
  if dim == ndim then
    local value = ffi.new("double[1]")
    check.status(C.rs_tensor_item(ctx, h, value))
    return value[0]
  end
  local size = C.rs_tensor_size(h, dim)
  local row = {}
  if not edge or size <= 2 * edge then edge = size end
  local function take(first, length)
    if dim == ndim - 1 then
      if length == 0 then return end
      local part, values = piece(h, dim, first, length), ffi.new("double[?]", length)
      local rc = C.rs_tensor_read(ctx, part, values)
      C.rs_tensor_release(part)
      check.status(rc)
      for i = 0, length - 1 do row[#row + 1] = values[i] end
      return
    end
    for i = first, first + length - 1 do
      local part = piece(h, dim, i, 1)
      row[#row + 1] = pick(part, dim + 1, ndim, edge ~= size and edge or nil)
      C.rs_tensor_release(part)
    end
  end
  if edge == size then
    take(0, size)
  else
    take(0, edge)
    row[#row + 1] = GAP
    take(size - edge, edge)
  end
  return row
end

-- The whole tensor from one read.
local function nest(values, shape, d, at)
  if d > #shape then return values[at], at + 1 end
  local row = {}
  for i = 1, shape[d] do row[i], at = nest(values, shape, d + 1, at) end
  return row, at
end

-- A function from a value to its text: one format for all that is shown.
local function formatter(kind, values)
  if kind == "bool" then return function(v) return v ~= 0 and "true" or "false" end end
  local largest, whole = 0, true
  local function scan(v)
    if v == GAP then return end
    if type(v) == "table" then
      for i = 1, #v do scan(v[i]) end
    elseif v == v and v ~= huge and v ~= -huge then
      if math.abs(v) > largest then largest = math.abs(v) end
      if v % 1 ~= 0 then whole = false end
    end
  end
  scan(values)
  local pattern = "%.4f"
  if whole and (largest < 1e7 or kind:sub(1, 1) ~= "f" and kind ~= "bf16") then
    pattern = "%.0f"
  elseif largest >= 1e5 or largest < 1e-2 then
    pattern = "%.4e"
  end
  return function(v)
    if v ~= v then return "nan" elseif v == huge then return "inf" elseif v == -huge then return "-inf" end
    return pattern:format(v)
  end
end

local function widest(v, text)
  if v == GAP then return 0 end
  if type(v) ~= "table" then return #text(v) end
  local width = 0
  for i = 1, #v do width = math.max(width, widest(v[i], text)) end
  return width
end

-- The lines of a nested table, indented by its depth.
local function render(v, text, width, depth, levels)
  if type(v) ~= "table" then
    local s = text(v)
    return rep(" ", width - #s) .. s
  end
  local parts = {}
  for i = 1, #v do parts[i] = v[i] == GAP and "..." or render(v[i], text, width, depth + 1, levels) end
  if levels - depth > 1 then
    return "{" .. concat(parts, "," .. rep("\n", math.min(levels - depth - 1, 2)) .. rep(" ", depth + 1)) .. "}"
  end
  local per_line = math.max(1, math.floor((WIDTH - depth - 2) / (width + 2)))
  if #parts <= per_line then return "{" .. concat(parts, ", ") .. "}" end
  local lines = {}
  for first = 1, #parts, per_line do
    lines[#lines + 1] = concat(parts, ", ", first, math.min(first + per_line - 1, #parts))
  end
  return "{" .. concat(lines, ",\n" .. rep(" ", depth + 1)) .. "}"
end

-- ---- the last line ---------------------------------------------------------------------------------------------------------

local function short(v) return ("%.4g"):format(v) end

local function summary(t, shape, kind, numel, stats)
  local parts = { "tensor " .. (#shape == 0 and "0-d" or concat(shape, "x")) .. " " .. kind }
  if C.rs_tensor_requires_grad(t.h) ~= 0 then parts[1] = parts[1] .. " grad" end
  if kind == "bool" then
    if numel > 1 then parts[#parts + 1] = ("%d of %d true"):format(stats.nonzero, numel) end
  elseif numel > 1 and stats.n > 0 then
    local integer = kind:sub(1, 1) == "i" or kind == "u8"
    local show = integer and function(v) return ("%.0f"):format(v) end or short
    parts[#parts + 1] = ("min %s max %s mean %s"):format(show(stats.min), show(stats.max), short(stats.sum / stats.n))
  end
  if stats.nan + stats.inf > 0 then
    local bad = {}
    if stats.nan > 0 then bad[#bad + 1] = stats.nan .. " NaN" end
    if stats.inf > 0 then bad[#bad + 1] = stats.inf .. " Inf" end
    parts[#parts + 1] = "WARNING: " .. concat(bad, ", ")
  end
  return concat(parts, "  ")
end

---A tensor as text.
---@param t resin.Tensor
---@return string
function format.tensor(t)
  if not t.h then return "tensor (freed)" end
  local shape, kind, numel = t.shape, t.dtype, t:numel()
  local former = C.rs_set_grad_enabled(ctx, 0)
  local ok, text = pcall(function()
    local stats = statistics(t.h, numel)
    local values
    if numel <= LIMIT then
      local buffer = ffi.new("double[?]", numel > 0 and numel or 1)
      check.status(C.rs_tensor_read(ctx, t.h, buffer))
      values = nest(buffer, shape, 1, 0)
    else
      values = pick(t.h, 0, #shape, #shape <= 3 and 3 or #shape == 4 and 2 or 1)
    end
    local line = summary(t, shape, kind, numel, stats)
    if numel == 0 then return "{}\n" .. line end
    local to_text = formatter(kind, values)
    return render(values, to_text, widest(values, to_text), 0, #shape) .. "\n" .. line
  end)
  C.rs_set_grad_enabled(ctx, former)
  if not ok then error(text, 0) end
  return text
end

---The last line alone: shape, dtype, range.
function format.summary(t)
  check.tensor(t, "summary")
  local numel = t:numel()
  return summary(t, t.shape, t.dtype, numel, statistics(t.h, numel))
end

return format
