-- The tensor class: fields, methods, operators. Every op of the table becomes a method; what is written here by hand is what
-- an op cannot be: access to fields and values, in-place filling, shorthands. scope.lua says who frees a tensor.

local lib = require "resin.lib"
local check = require "resin.check"
local scope = require "resin.scope"
local dtype = require "resin.dtype"
local ops = require "resin.ops"
local B = require "resin.binding"
local ffi, C, ctx = lib.ffi, lib.C, lib.ctx

local Tensor, wrap = scope.Tensor, scope.wrap
local type, getmetatable, setmetatable, tonumber = type, getmetatable, setmetatable, tonumber
local fail, status = check.fail, check.status

---@class resin.Tensor
---@field shape integer[] sizes, a new table each time
---@field ndim integer
---@field dtype string "f32", …
---@field requires_grad boolean
---@field is_leaf boolean
---@field grad resin.Tensor|nil
---@operator add(resin.Tensor|number): resin.Tensor
---@operator sub(resin.Tensor|number): resin.Tensor
---@operator mul(resin.Tensor|number): resin.Tensor
---@operator div(resin.Tensor|number): resin.Tensor
---@operator pow(resin.Tensor|number): resin.Tensor
---@operator unm: resin.Tensor

local methods = {}
Tensor.__name = "resin.Tensor"
Tensor.methods = methods
Tensor.wrap = wrap

local info = ffi.new("rs_info")
local out = ffi.new("rs_tensor *[1]")
local item = ffi.new("double[1]")

local function handle(t, what) return t.h or check.freed(what) end

---@return boolean
function Tensor.is(value) return type(value) == "table" and getmetatable(value) == Tensor end
local is = Tensor.is

---A tensor of a handle that somebody else owns too.
function Tensor.borrow(h) return wrap(C.rs_tensor_retain(h)) end

for _, name in ipairs(B.methods) do methods[name] = ops[name] end

-- ---- fields --------------------------------------------------------------------------------------------------------------

local getters = {}

function getters.shape(t)
  C.rs_tensor_info(handle(t, "shape"), info)
  local shape = {}
  for i = 1, info.ndim do shape[i] = tonumber(info.shape[i - 1]) end
  return shape
end

function getters.ndim(t) return C.rs_tensor_ndim(handle(t, "ndim")) end
function getters.dtype(t) return dtype.names[C.rs_tensor_dtype(handle(t, "dtype"))] end
function getters.requires_grad(t) return C.rs_tensor_requires_grad(handle(t, "requires_grad")) ~= 0 end

function getters.is_leaf(t)
  C.rs_tensor_info(handle(t, "is_leaf"), info)
  return info.is_leaf ~= 0
end

function getters.grad(t)
  status(C.rs_tensor_grad(ctx, handle(t, "grad"), out))
  if out[0] == nil then return nil end
  return wrap(out[0])
end

local index_with

function Tensor.__index(t, key)
  local method = methods[key]
  if method ~= nil then return method end
  local get = getters[key]
  if get then return get(t) end
  if type(key) == "number" then return ops.select(t, 1, key) end
  if type(key) == "table" then return index_with(t, key) end
  return nil
end

-- An index tensor gives a copy, so a value written there would be lost.
local function refuse_index_tensor(key)
  local place = is(key) and key or nil
  for i = 1, place and 0 or #key do
    if is(key[i]) then place = key[i] end
  end
  if not place then return end
  if place.dtype == "bool" then
    fail("index: cannot assign through a mask; use t:copy_(resin.where(mask, value, t))")
  end
  fail("index: cannot assign through an index tensor, got %s; assign one entry at a time, for example "
    .. "for i = 1, index:numel() do t[index[i]:item()] = value end", check.describe(place))
end

local setters = {}

function setters.grad(t, value)
  if value ~= nil then check.tensor(value, "grad") end
  status(C.rs_tensor_set_grad(ctx, handle(t, "grad"), value and value.h or nil))
end

function setters.requires_grad(t, value)
  check.boolean(value, "requires_grad")
  status(C.rs_tensor_set_requires_grad(ctx, handle(t, "requires_grad"), value and 1 or 0))
end

function Tensor.__newindex(t, key, value)
  local set = setters[key]
  if set then return set(t, value) end
  if type(key) == "number" or type(key) == "table" then
    local view
    if type(key) == "number" then
      view = ops.select(t, 1, key)
    else
      refuse_index_tensor(key)
      view = index_with(t, key)
    end
    methods.copy_(view, value)
    return
  end
  fail("a tensor has no field %s that can be set", type(key) == "string" and ("%q"):format(key) or tostring(key))
end

-- ---- indexing ------------------------------------------------------------------------------------------------------------

---Stands in an index for a new dimension of size 1.
Tensor.newaxis = setmetatable({}, { __name = "resin.newaxis", __tostring = function() return "resin.newaxis" end })
local newaxis = Tensor.newaxis

-- Entries r[1]..r[2] of a dimension; it is dimension `given` of the tensor that the user indexes.
local function range(t, dim, r, given, whole)
  if #r == 0 and next(r) == nil then return t end
  if #r ~= 2 then
    fail("index: a range is {first, last} or {} for all, got %d values for dimension %d", #r, given)
  end
  local size = C.rs_tensor_size(t.h, dim - 1)
  local first = check.integer(r[1], "index: first of a range")
  local last = check.integer(r[2], "index: last of a range")
  if first == 0 or last == 0 and first ~= 1 then fail("index: index 0: elements count from 1 (-1 is the last)") end
  if first < 0 then first = first + size + 1 end
  if last < 0 then last = last + size + 1 end
  if first < 1 or last > size or last < first - 1 then
    fail("index: range {%d, %d} is outside 1..%d of dimension %d of %s", r[1], r[2], size, given, check.shape_text(whole))
  end
  return ops.narrow(t, dim, first, last - first + 1)
end

-- t[{i, {a, b}, {}, newaxis}]: one entry per dimension; what is left out stays whole.
index_with = function(t, list)
  handle(t, "index")
  if is(list) then
    local kind = list.dtype
    if kind == "i64" or kind == "i32" then return ops.index_select(t, list, 1) end
    fail("index: a tensor index must be i64 or i32, got %s", check.describe(list))
  end
  local given, ndim = #list, t.ndim
  local used = 0
  for i = 1, given do
    if list[i] ~= newaxis then used = used + 1 end
  end
  if used > ndim then fail("index: %d indices for a tensor of %d dimensions %s", used, ndim, check.shape_text(t)) end
  local whole, dim, at = t, 1, 0
  for i = 1, given do
    local entry = list[i]
    if entry ~= newaxis then at = at + 1 end
    if entry == newaxis then
      t = ops.unsqueeze(t, dim)
      dim = dim + 1
    elseif type(entry) == "number" then
      t = ops.select(t, dim, entry)
    elseif is(entry) then
      t = ops.index_select(t, entry, dim)
      dim = dim + 1
    elseif type(entry) == "table" then
      t = range(t, dim, entry, at, whole)
      dim = dim + 1
    else
      fail("index: entry %d must be a number, a range {first, last}, {} or resin.newaxis, got %s", i, check.describe(entry))
    end
  end
  return t
end

-- ---- shape and values ----------------------------------------------------------------------------------------------------

---The size of a dimension, or all sizes.
---@param dim? integer from 1, or from the end when negative
function methods.size(t, dim)
  if dim == nil then return getters.shape(t) end
  local h = handle(t, "size")
  local at = B.to_dim(dim, "size: dim")
  if at < 0 then at = at + C.rs_tensor_ndim(h) end
  local size = C.rs_tensor_size(h, at)
  if size < 0 then fail("size: dimension %d does not exist: the tensor has %d", dim, C.rs_tensor_ndim(h)) end
  return size
end

---@return integer
function methods.dim(t) return C.rs_tensor_ndim(handle(t, "dim")) end

---@return integer
function methods.numel(t) return C.rs_tensor_numel(handle(t, "numel")) end

---@return boolean
function methods.is_contiguous(t)
  C.rs_tensor_info(handle(t, "is_contiguous"), info)
  return info.is_contiguous ~= 0
end

---Steps between elements, in elements, one per dimension.
function methods.stride(t)
  C.rs_tensor_info(handle(t, "stride"), info)
  local strides = {}
  for i = 1, info.ndim do strides[i] = tonumber(info.strides[i - 1]) end
  return strides
end

local BOOL = dtype.codes.bool

---The value of a tensor with one element.
---@return number|boolean
function methods.item(t)
  local h = handle(t, "item")
  local rc = C.rs_tensor_item(ctx, h, item)
  if rc ~= 0 then status(rc) end
  if C.rs_tensor_dtype(h) == BOOL then return item[0] ~= 0 end
  return item[0]
end

---All values as nested tables; a number for a 0-d tensor.
function methods.totable(t)
  local h = handle(t, "totable")
  C.rs_tensor_info(h, info)
  local ndim, numel, boolean = info.ndim, tonumber(info.numel), info.dtype == BOOL
  if ndim == 0 then return methods.item(t) end
  local shape = {}
  for i = 1, ndim do shape[i] = tonumber(info.shape[i - 1]) end
  local values = ffi.new("double[?]", numel > 0 and numel or 1)
  status(C.rs_tensor_read(ctx, h, values))
  local at = 0
  local function build(d)
    local row = {}
    for i = 1, shape[d] do
      if d < ndim then
        row[i] = build(d + 1)
      else
        local v = values[at]
        if boolean then row[i] = v ~= 0 else row[i] = v end
        at = at + 1
      end
    end
    return row
  end
  return build(1)
end

---A pointer to the first element, of the tensor's element type; it counts from 0. Keep the tensor while it is used.
function methods.data(t)
  local h = handle(t, "data")
  if C.rs_is_tracing(ctx) ~= 0 then
    fail("data: a value cannot be read or written from outside while a program is recorded: it would be frozen into it")
  end
  local pointer = C.rs_tensor_data(h)
  if pointer == nil and C.rs_tensor_numel(h) > 0 then
    fail("data: this tensor was made while a program was recorded, so it has a shape but no values; only what the recorded function "
      .. "returns has values")
  end
  return ffi.cast(dtype.pointer[C.rs_tensor_dtype(h)], pointer)
end

---Steps through the entries of the first dimension: for i, row in t:iter() do … end
function methods.iter(t)
  local n = methods.size(t, 1)
  return function(self, i)
    i = i + 1
    if i <= n then return i, ops.select(self, 1, i) end
  end, t, 0
end

-- ---- writing -------------------------------------------------------------------------------------------------------------

-- An uninitialised tensor as `info` says.
local function temporary()
  local rc = C.rs_tensor_empty(ctx, info.dtype, info.ndim, info.shape, out)
  if rc ~= 0 then status(rc) end
  return wrap(out[0])
end

---Copies values from a tensor (broadcast, cast when needed) or fills with a number.
---@param source resin.Tensor|number|boolean|table
---@return resin.Tensor self
function methods.copy_(t, source)
  handle(t, "copy_")
  if type(source) == "number" then return methods.fill_(t, source) end
  if type(source) == "boolean" then return methods.fill_(t, source and 1 or 0) end
  if type(source) == "table" and not is(source) then
    local made = require("resin.create").tensor(source, { dtype = t.dtype })
    ops.assign_(t, made)
    scope.free(made)
    return t
  end
  check.tensor(source, "copy_: source")
  local code = C.rs_tensor_dtype(t.h)
  if C.rs_tensor_dtype(source.h) ~= code then source = ops.cast(source, dtype.names[code]) end
  return ops.assign_(t, source)
end

---Fills with a number.
---@return resin.Tensor self
function methods.fill_(t, value)
  handle(t, "fill_")
  if type(value) == "boolean" then value = value and 1 or 0 end
  if is(value) then return methods.copy_(t, value) end
  if type(value) ~= "number" then fail("fill_: value must be a number, got %s", check.describe(value)) end
  local number = B.scalar(value, t)
  ops.assign_(t, number)
  scope.free(number)
  return t
end

---@return resin.Tensor self
function methods.zero_(t) return methods.fill_(t, 0) end

-- Fills t with a tensor made for it, which is freed.
local function fill_with(t, made)
  ops.assign_(t, made)
  scope.free(made)
  return t
end

---Fills with random numbers between two limits.
---@return resin.Tensor self
function methods.uniform_(t, low, high)
  return fill_with(t, ops.uniform(getters.shape(t), low or 0, high or 1, getters.dtype(t)))
end

---Fills with normally distributed random numbers.
---@return resin.Tensor self
function methods.normal_(t, mean, std)
  return fill_with(t, ops.normal(getters.shape(t), mean or 0, std or 1, getters.dtype(t)))
end

---Fills with ones where a coin with probability p falls, else zeros.
---@return resin.Tensor self
function methods.bernoulli_(t, p)
  return fill_with(t, ops.bernoulli(getters.shape(t), p or 0.5, getters.dtype(t)))
end

---Copies values from a nested table, the bytes of a string, or a pointer to as many elements.
---@return resin.Tensor self
function methods.copy_from(t, source)
  C.rs_tensor_info(handle(t, "copy_from"), info)
  if type(source) == "table" and not is(source) then
    local values, n = require("resin.create").values_of(source, "copy_from", info.dtype)
    if n ~= info.numel then
      fail("copy_from: %d values for a tensor of %d elements %s", n, info.numel, check.shape_text(t))
    end
    local made = temporary()
    status(C.rs_tensor_write(ctx, made.h, values))
    return fill_with(t, made)
  end
  local bytes = info.numel * C.rs_dtype_size(info.dtype)
  if type(source) == "string" then
    if #source ~= bytes then
      fail("copy_from: a string of %d bytes for a tensor of %d bytes (%s)", #source, bytes, check.describe(t))
    end
  elseif type(source) ~= "cdata" then
    if is(source) then return methods.copy_(t, source) end
    fail("copy_from: source must be a table, a string or a pointer, got %s", check.describe(source))
  end
  local made = temporary()
  ffi.copy(C.rs_tensor_data(made.h), source, bytes)
  return fill_with(t, made)
end

---Makes this tensor another view of source's storage.
---@return resin.Tensor self
function methods.set_data(t, source)
  check.tensor(source, "set_data: source")
  status(C.rs_tensor_set_data(ctx, handle(t, "set_data"), source.h))
  return t
end

---Frees the memory now; using the tensor later is an error.
function methods.free(t) scope.free(t) end

-- ---- gradients -----------------------------------------------------------------------------------------------------------

---The same values, cut off from what made them.
function methods.detach(t)
  status(C.rs_tensor_detach(ctx, handle(t, "detach"), out))
  return wrap(out[0])
end

---@param on? boolean true when left out
---@return resin.Tensor self
function methods.requires_grad_(t, on)
  setters.requires_grad(t, on == nil or on)
  return t
end

---Keeps the gradient of an intermediate result at the next backward.
---@return resin.Tensor self
function methods.retain_grad(t)
  status(C.rs_tensor_retain_grad(ctx, handle(t, "retain_grad")))
  return t
end

local BACKWARD = { "retain_graph", "create_graph" }

---Adds the gradient of this tensor to the `grad` of every leaf that it was made from.
---@param grad? resin.Tensor needed unless the tensor has one element
---@param options? table retain_graph, create_graph
function methods.backward(t, grad, options)
  if type(grad) == "table" and not is(grad) and options == nil then grad, options = nil, grad end
  if grad ~= nil then check.tensor(grad, "backward: grad") end
  local flags = 0
  if options ~= nil then
    check.options(options, BACKWARD, "backward")
    if options.retain_graph then flags = flags + C.RS_RETAIN_GRAPH end
    if options.create_graph then flags = flags + C.RS_CREATE_GRAPH end
  end
  local h = handle(t, "backward")
  local rc = C.rs_backward(ctx, h, grad and grad.h or nil, flags)
  if rc == C.RS_HOST then return require("resin.host").continue() end
  if rc ~= 0 then status(rc) end
end

-- ---- other forms ---------------------------------------------------------------------------------------------------------

---The tensor with another element type; itself when it has that type.
---@param name string "f32", "float64", …
function methods.to(t, name)
  if is(name) then name = name.dtype end
  local code = dtype.code(name, "to: dtype")
  if C.rs_tensor_dtype(handle(t, "to")) == code then return t end
  return ops.cast(t, dtype.names[code])
end

for method, name in pairs { float = "f32", double = "f64", half = "f16", bfloat16 = "bf16", long = "i64", int = "i32",
                            byte = "u8", bool = "bool" } do
  methods[method] = function(t) return methods.to(t, name) end
end

---A copy with a storage of its own; gradients flow through it.
function methods.clone(t) return ops.copy(t) end

---Itself when its elements lie in order, else a copy in which they do.
function methods.contiguous(t)
  C.rs_tensor_info(handle(t, "contiguous"), info)
  if info.is_contiguous ~= 0 then return t end
  return ops.copy(t)
end

-- ---- operators -----------------------------------------------------------------------------------------------------------

Tensor.__add, Tensor.__sub, Tensor.__mul, Tensor.__div = ops.add, ops.sub, ops.mul, ops.div
Tensor.__pow, Tensor.__unm = ops.pow, ops.neg

-- Lua turns what a comparison gives into one boolean, and asks no metamethod when the other side is a number.
function Tensor.__lt() fail("< and > cannot compare tensors element by element: use a:lt(b) or a:gt(b)") end
function Tensor.__le() fail("<= and >= cannot compare tensors element by element: use a:le(b) or a:ge(b)") end
function Tensor.__mod() fail("%: resin has no remainder of tensors; a - (a / b):floor() * b is it") end

function Tensor.__tostring(t) return require("resin.format").tensor(t) end

function Tensor.__concat(a, b)
  return (is(a) and tostring(a) or a) .. (is(b) and tostring(b) or b)
end

require("resin.functional").extend(Tensor)

return Tensor
