-- Making tensors: from Lua values, bytes and pointers, filled, and random.
-- A shape is given as numbers or as one table; options come last, in a table of names. Without a dtype a tensor is f32,
-- or bool when it is made of booleans (arange and the random integers are i64). Ranges are inclusive, as in Lua's `for`.

local lib = require "resin.lib"
local check = require "resin.check"
local scope = require "resin.scope"
local dtype = require "resin.dtype"
local ops = require "resin.ops"
require "resin.tensor"
local ffi, C, ctx = lib.ffi, lib.C, lib.ctx

local type, getmetatable = type, getmetatable
local wrap, Tensor = scope.wrap, scope.Tensor
local fail, status = check.fail, check.status

local create = {}

local out = ffi.new("rs_tensor *[1]")
local dims = ffi.new("int64_t[8]")
local OPTIONS = { "dtype", "requires_grad" }

local function is_options(v) return type(v) == "table" and v[1] == nil and next(v) ~= nil and getmetatable(v) ~= Tensor end

-- The arguments of a creating function, as a shape and options: (2, 3, {dtype = …}) or ({2, 3}, {dtype = …}). Nine fixed
-- parameters and no `...`: this LuaJIT's compiler may read `...` wrongly after a call.
local function shape_and_options(what, a, b, c, d, e, f, g, h, i)
  if type(a) == "table" and not is_options(a) then
    if c ~= nil or b ~= nil and type(b) ~= "table" then
      fail("%s: give a shape and options, got %s after the shape", what, check.describe(b))
    end
    local options = check.options(b, OPTIONS, what)
    for k = 1, #a do check.integer(a[k], what .. ": size of dimension " .. k, 0) end
    return a, options
  end
  if a == nil then fail("%s: give a shape, for example %s(2, 3)", what, what) end
  local shape = { a, b, c, d, e, f, g, h, i }
  local n = #shape
  local options = {}
  if type(shape[n]) == "table" then
    options = check.options(shape[n], OPTIONS, what)
    shape[n] = nil
  end
  for k = 1, #shape do check.integer(shape[k], what .. ": size of dimension " .. k, 0) end
  return shape, options
end

local function new(shape, code, what)
  local n = #shape
  if n > 8 then fail("%s: %d dimensions, at most 8 are possible", what, n) end
  for i = 1, n do dims[i - 1] = shape[i] end
  local rc = C.rs_tensor_empty(ctx, code, n, dims, out)
  if rc == C.RS_ERR_NOMEM then
    scope.collect()
    rc = C.rs_tensor_empty(ctx, code, n, dims, out)
  end
  status(rc)
  return wrap(out[0])
end

local function finish(t, options)
  if options.requires_grad then t.requires_grad = true end
  return t
end

local function code_of(options, what, default)
  return options.dtype == nil and dtype.codes[default or "f32"] or dtype.code(options.dtype, what .. ": dtype")
end

-- ---- from values ---------------------------------------------------------------------------------------------------------

-- Sizes of a nested table, and whether it holds booleans.
local function measure(value, what)
  local shape = {}
  while type(value) == "table" do
    if getmetatable(value) == Tensor then fail("%s: the table holds tensors; use resin.stack or resin.cat to join tensors", what) end
    if #shape == 8 then fail("%s: the table is nested more than 8 deep", what) end
    shape[#shape + 1] = #value
    value = value[1]
  end
  return shape, type(value) == "boolean"
end

local function place(index, n)
  local parts = {}
  for i = 1, n do parts[i] = tostring(index[i]) end
  return table.concat(parts, ", ")
end

-- What the integer types hold. A Lua number is exact up to 2^53; beyond, every one of i64 may be meant.
local LIMITS = {
  [dtype.codes.i64] = { -2 ^ 63, 2 ^ 63 - 1024 }, [dtype.codes.i32] = { -2 ^ 31, 2 ^ 31 - 1 }, [dtype.codes.u8] = { 0, 255 },
}

local function refuse(value, index, depth, code, what)
  fail("%s: %s must be an integer from %.0f to %.0f for dtype %s, got %s", what,
    depth == 0 and "value" or "element " .. place(index, depth), LIMITS[code][1], LIMITS[code][2], dtype.names[code],
    check.describe(value))
end

---The numbers of a nested table, row by row. They must fit the element type `code`, when it is given.
---@return ffi.cdata* values double[?]
---@return integer count
---@return integer[] shape
---@return boolean booleans
function create.values_of(value, what, code)
  local limits = LIMITS[code]
  local low, high = limits and limits[1], limits and limits[2]
  local shape, booleans = measure(value, what)
  local depth, count = #shape, 1
  for i = 1, depth do count = count * shape[i] end
  local values = ffi.new("double[?]", count > 0 and count or 1)
  local index, at = {}, 0
  local function fill(row, d)
    if d > depth then
      local kind = type(row)
      if kind ~= "boolean" and kind ~= "number" then
        if getmetatable(row) == Tensor then
          fail("%s: element %s is a tensor; use resin.stack or resin.cat to join tensors", what, place(index, depth))
        end
        fail("%s: element %s must be a number, got %s", what, place(index, depth), check.describe(row))
      elseif (kind == "boolean") ~= booleans then
        fail("%s: element %s is %s, but the first is a %s; give numbers or booleans, not both", what, place(index, depth),
          check.describe(row), booleans and "boolean" or "number")
      end
      if booleans then
        row = row and 1 or 0
      elseif limits and not (row % 1 == 0 and row >= low and row <= high) then
        refuse(row, index, depth, code, what)
      end
      values[at] = row
      at = at + 1
      return
    end
    if type(row) ~= "table" then
      fail("%s: element %s must be a table of %d, got %s", what, place(index, d - 1), shape[d], check.describe(row))
    end
    if #row ~= shape[d] then
      fail("%s: the rows differ in length: %s has %d, the first has %d", what,
        d == 1 and "the table" or "row " .. place(index, d - 1), #row, shape[d])
    end
    for i = 1, shape[d] do
      index[d] = i
      fill(row[i], d + 1)
    end
  end
  fill(value, 1)
  return values, count, shape, booleans
end

---A tensor of a number, a boolean, or a nested table of them.
---@param value number|boolean|table
---@param options? table dtype, requires_grad
---@return resin.Tensor
function create.tensor(value, options)
  options = check.options(options, OPTIONS, "tensor")
  if getmetatable(value) == Tensor then
    local t = ops.copy(value:detach())
    if options.dtype then t = t:to(options.dtype) end
    return finish(t, options)
  end
  local kind = type(value)
  if kind ~= "number" and kind ~= "boolean" and kind ~= "table" then
    fail("tensor: value must be a number or a table of numbers, got %s", check.describe(value))
  end
  if kind == "table" then
    for key in pairs(value) do
      if type(key) ~= "number" then fail("tensor: the table has a field %s; values stand at 1, 2, …", check.describe(key)) end
    end
  end
  local given = options.dtype ~= nil and code_of(options, "tensor") or nil
  local values, _, shape, booleans = create.values_of(value, "tensor", given)
  local t = new(shape, given or dtype.codes[booleans and "bool" or "f32"], "tensor")
  status(C.rs_tensor_write(ctx, t.h, values))
  return finish(t, options)
end

---A tensor of raw bytes: a string, or a pointer to enough of them. The bytes are copied.
---@param source string|ffi.cdata*
---@param shape integer[]
---@param options? table dtype, requires_grad
function create.from_data(source, shape, options)
  options = check.options(options, OPTIONS, "from_data")
  check.table(shape, "from_data: shape")
  local t = create.empty(shape, { dtype = options.dtype })
  t:copy_from(source)
  return finish(t, options)
end

-- ---- filled --------------------------------------------------------------------------------------------------------------

---A tensor whose content is undefined.
function create.empty(a, b, c, d, e, f, g, h, i)
  local shape, options = shape_and_options("empty", a, b, c, d, e, f, g, h, i)
  return finish(new(shape, code_of(options, "empty"), "empty"), options)
end

local function filled(what, value, a, b, c, d, e, f, g, h, i)
  local shape, options = shape_and_options(what, a, b, c, d, e, f, g, h, i)
  return finish(ops.full(shape, value, dtype.names[code_of(options, what)]), options)
end

function create.zeros(a, b, c, d, e, f, g, h, i) return filled("zeros", 0, a, b, c, d, e, f, g, h, i) end
function create.ones(a, b, c, d, e, f, g, h, i) return filled("ones", 1, a, b, c, d, e, f, g, h, i) end

---@param shape integer|integer[]
---@param value number
---@param options? table dtype, requires_grad
function create.full(shape, value, options)
  if type(value) == "boolean" then
    options = options or { dtype = "bool" }
    value = value and 1 or 0
  end
  check.number(value == value and value or 0, "full: value")
  if type(shape) == "number" then shape = { shape } end
  check.table(shape, "full: shape")
  check.options(options, OPTIONS, "full")
  options = options or {}
  for i = 1, #shape do check.integer(shape[i], "full: size of dimension " .. i, 0) end
  return finish(ops.full(shape, value, dtype.names[code_of(options, "full")]), options)
end

---The identity matrix, or one of n rows and m columns.
function create.eye(n, m, options)
  if type(m) == "table" then m, options = nil, m end
  check.options(options, OPTIONS, "eye")
  check.integer(n, "eye: rows", 0)
  if m ~= nil then check.integer(m, "eye: columns", 0) end
  options = options or {}
  return finish(ops.eye(n, m or n, dtype.names[code_of(options, "eye")]), options)
end

---first, first + step, … up to and including last, as Lua's `for` counts; arange(n) is 1 … n. Without a dtype it is i64
---when first and step are whole, else f32.
---@param first number
---@param last? number
---@param step? number
---@param options? table dtype, requires_grad
function create.arange(first, last, step, options)
  if type(last) == "table" then last, options = nil, last end
  if type(step) == "table" then step, options = nil, step end
  if last == nil then first, last = 1, first end
  check.number(first, "arange: first")
  check.number(last, "arange: last")
  step = step == nil and 1 or check.number(step, "arange: step")
  options = check.options(options, OPTIONS, "arange")
  return finish(ops.arange(first, last, step, options.dtype), options)
end

---n evenly spaced numbers from first to last, both included.
function create.linspace(first, last, n, options)
  check.number(first, "linspace: first")
  check.number(last, "linspace: last")
  check.integer(n, "linspace: n", 0)
  options = check.options(options, OPTIONS, "linspace")
  local step = n > 1 and (last - first) / (n - 1) or 0
  local t = new({ n }, code_of(options, "linspace"), "linspace")
  local values = ffi.new("double[?]", n > 0 and n or 1)
  for i = 0, n - 1 do values[i] = i == n - 1 and n > 1 and last or first + step * i end
  status(C.rs_tensor_write(ctx, t.h, values))
  return finish(t, options)
end

-- ---- random --------------------------------------------------------------------------------------------------------------

---Uniform random numbers in [0, 1).
function create.rand(a, b, c, d, e, f, g, h, i)
  local shape, options = shape_and_options("rand", a, b, c, d, e, f, g, h, i)
  return finish(ops.uniform(shape, 0, 1, dtype.names[code_of(options, "rand")]), options)
end

---Random numbers of the standard normal distribution.
function create.randn(a, b, c, d, e, f, g, h, i)
  local shape, options = shape_and_options("randn", a, b, c, d, e, f, g, h, i)
  return finish(ops.normal(shape, 0, 1, dtype.names[code_of(options, "randn")]), options)
end

---Random integers from low to high, both included, as math.random gives them. Without a dtype they are i64.
---@param low integer
---@param high integer
---@param shape integer[]
function create.randint(low, high, shape, options)
  check.integer(low, "randint: low")
  check.integer(high, "randint: high")
  if high < low then fail("randint: high %d is below low %d", high, low) end
  if type(shape) == "number" then shape = { shape } end
  check.table(shape, "randint: shape")
  options = check.options(options, OPTIONS, "randint")
  return finish(ops.randint(low, high, shape, dtype.names[code_of(options, "randint", "i64")]), options)
end

---The numbers 1 … n in random order, as i64.
function create.randperm(n, options)
  check.integer(n, "randperm: n", 0)
  options = check.options(options, OPTIONS, "randperm")
  return ops.randperm(n, options.dtype)
end

-- ---- like another --------------------------------------------------------------------------------------------------------

local function like(name, make)
  create[name .. "_like"] = function(t, options)
    check.tensor(t, name .. "_like: input")
    options = check.options(options, OPTIONS, name .. "_like")
    return make(t.shape, { dtype = options.dtype or t.dtype, requires_grad = options.requires_grad })
  end
end

like("empty", create.empty)
like("zeros", create.zeros)
like("ones", create.ones)
like("rand", create.rand)
like("randn", create.randn)

function create.full_like(t, value, options)
  check.tensor(t, "full_like: input")
  options = check.options(options, OPTIONS, "full_like")
  return create.full(t.shape, value, { dtype = options.dtype or t.dtype, requires_grad = options.requires_grad })
end

return create
