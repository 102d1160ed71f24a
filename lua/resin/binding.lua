-- What the generated functions of ops.lua are made of: reading arguments, failing, retrying.
-- Everything here is called on each op, so it makes no closures and no strings unless it fails. IN and OUT are shared by all
-- ops: a function fills them only after every argument is read, because reading may itself run an op.

local lib = require "resin.lib"
local check = require "resin.check"
local scope = require "resin.scope"
local dtype = require "resin.dtype"
local ffi, C, ctx = lib.ffi, lib.C, lib.ctx
local Tensor, wrap, collect = scope.Tensor, scope.wrap, scope.collect

local type, getmetatable, next, pairs = type, getmetatable, next, pairs
local fail, describe = check.fail, check.describe

local MAX = 9007199254740992       -- 2^53: beyond it a Lua number does not hold every integer
local NOMEM = 1                    -- RS_ERR_NOMEM

local B = {
  ffi = ffi, C = C, ctx = ctx, Tensor = Tensor, wrap = wrap, freed = check.freed,
  IN = ffi.new("rs_tensor *[?]", 16),
  OUT = ffi.new("rs_tensor *[4]"),
  NONE = -9223372036854775808,     -- INT64_MIN: an attribute that was not given
  to_dtype = dtype.code,
}

-- ---- tensors -------------------------------------------------------------------------------------------------------------

---Refuses a value that is not a tensor.
function B.want(value, what) fail("%s must be a tensor, got %s", what, describe(value)) end
local want = B.want

local fill_shape = ffi.new("int64_t[1]")
local one_value = ffi.new("double[1]")
local made = ffi.new("rs_tensor *[1]")

---A 0-d tensor that holds a number, with the dtype of `like`.
function B.scalar(number, like)
  local code = C.rs_tensor_dtype(like.h)
  local rc = C.rs_tensor_empty(ctx, code, 0, fill_shape, made)
  if rc ~= 0 then check.status(rc) end
  one_value[0] = number
  C.rs_tensor_write(ctx, made[0], one_value)
  return wrap(made[0])
end
local scalar = B.scalar

---A tensor as it is; a number as a 0-d tensor like `other`.
function B.want_or_number(value, other, what)
  if type(value) ~= "number" then return want(value, what) end
  if getmetatable(other) ~= Tensor then return want(other, (what:gsub(": .*$", ": one operand"))) end
  if not other.h then return check.freed(what) end
  return scalar(value, other)
end

---Refuses an operand that is neither a tensor nor a number.
function B.not_operand(value, what) fail("%s must be a tensor or a number, got %s", what, describe(value)) end

local capacity = 64
local many = ffi.new("rs_tensor *[?]", capacity)

---An array of tensors as C wants it. The array is shared; it is valid until the next call.
---@return integer count
---@return ffi.cdata* array
function B.array_of(list, what)
  if type(list) ~= "table" or getmetatable(list) == Tensor then
    fail("%s must be an array of tensors, got %s", what, describe(list))
  end
  local n = #list
  if n > capacity then
    capacity = n * 2
    many = ffi.new("rs_tensor *[?]", capacity)
  end
  for i = 1, n do
    local t = list[i]
    if getmetatable(t) ~= Tensor then fail("%s[%d] must be a tensor, got %s", what, i, describe(t)) end
    many[i - 1] = t.h or check.freed(what)
  end
  return n, many
end

-- ---- failing and retrying ------------------------------------------------------------------------------------------------

---After a failed call: garbage may hold the memory that was missing, so that is collected and the call made once more.
function B.again(rc, op, inputs, n, attrs)
  if rc == NOMEM then
    collect()
    rc = C.rs_call(ctx, op, inputs, n, attrs, B.OUT)
  end
  if rc ~= 0 then check.status(rc) end
end

function B.again_inplace(rc, op, inputs, n, attrs)
  if rc == NOMEM then
    collect()
    rc = C.rs_call_inplace(ctx, op, inputs, n, attrs)
  end
  if rc ~= 0 then check.status(rc) end
end

-- ---- options -------------------------------------------------------------------------------------------------------------

---Is a table one of named attributes (and not a list)?
function B.is_options(t) return type(t) == "table" and t[1] == nil and next(t) ~= nil and getmetatable(t) ~= Tensor end

---For attributes that are no lists: any table but a tensor is one of named attributes.
function B.not_list(t) return getmetatable(t) ~= Tensor end

---Checks the names of an options table that stands in the place of attribute number `from`.
function B.options(t, known, from, op)
  for name in pairs(t) do
    local at
    for i = 1, #known do
      if known[i] == name then at = i end
    end
    if not at then check.options(t, known, op) end
    if at < from then fail("%s: %s was given twice, by position and by name", op, name) end
  end
  return t
end

---"erf,tanh" as {erf = 0, tanh = 1, names = "erf, tanh"}
function B.choices(text)
  local out, names = {}, {}
  for name in text:gmatch("[^,]+") do
    out[name] = #names
    names[#names + 1] = name
  end
  return { value = out, names = table.concat(names, ", ") }
end

-- ---- attributes ----------------------------------------------------------------------------------------------------------

local function not_integer(v, what) fail("%s must be an integer, got %s", what, describe(v)) end

local function to_int(v, what)
  if type(v) ~= "number" or v % 1 ~= 0 or v > MAX or v < -MAX then not_integer(v, what) end
  return v
end
B.to_int = to_int

function B.to_number(v, what)
  if type(v) ~= "number" then fail("%s must be a number, got %s", what, describe(v)) end
  return v
end

function B.to_bool(v, what)
  if v == true then return 1 elseif v == false then return 0 end
  fail("%s must be true or false, got %s", what, describe(v))
end

function B.to_choice(v, what, choices)
  local code = choices.value[v]
  if code then return code end
  fail("%s must be one of %s; got %s", what, choices.names, describe(v))
end

local function zero(what, thing, things)
  fail("%s: %s 0: %s count from 1 (-1 is the last)", what:match("^[^:]*"), thing, things)
end

---Dimensions count from 1, or from the end when negative.
local function to_dim(v, what)
  if type(v) ~= "number" or v % 1 ~= 0 or v > MAX or v < -MAX then not_integer(v, what) end
  if v > 0 then return v - 1 end
  if v == 0 then zero(what, "dimension", "dimensions") end
  return v
end
B.to_dim = to_dim

---Elements count from 1, or from the end when negative.
function B.to_index(v, what)
  if type(v) ~= "number" or v % 1 ~= 0 or v > MAX or v < -MAX then not_integer(v, what) end
  if v > 0 then return v - 1 end
  if v == 0 then zero(what, "index", "elements") end
  return v
end

-- ---- list attributes -----------------------------------------------------------------------------------------------------

local function too_long(what, n) fail("%s has %d values, at most 8 are possible", what, n) end

local function set_ints(list, v, what)
  if v == nil then
    list.n = 0
  elseif type(v) == "table" then
    local n = #v
    if n > 8 then too_long(what, n) end
    list.n = n
    for i = 1, n do list.v[i - 1] = to_int(v[i], what) end
  else
    list.n = 1
    list.v[0] = to_int(v, what)
  end
end
B.set_ints = set_ints
B.set_shape = set_ints

function B.set_dims(list, v, what)
  if v == nil then
    list.n = 0
  elseif type(v) == "table" then
    local n = #v
    if n > 8 then too_long(what, n) end
    list.n = n
    for i = 1, n do list.v[i - 1] = to_dim(v[i], what) end
  else
    list.n = 1
    list.v[0] = to_dim(v, what)
  end
end

-- Lists that are spread over the arguments: x:reshape(2, 3).
local function spread(list, convert, what, a, b, c, d, e, f, g, h)
  local v = list.v
  local n = 0
  if a ~= nil then v[0] = convert(a, what); n = 1
    if b ~= nil then v[1] = convert(b, what); n = 2
      if c ~= nil then v[2] = convert(c, what); n = 3
        if d ~= nil then v[3] = convert(d, what); n = 4
          if e ~= nil then v[4] = convert(e, what); n = 5
            if f ~= nil then v[5] = convert(f, what); n = 6
              if g ~= nil then v[6] = convert(g, what); n = 7
                if h ~= nil then v[7] = convert(h, what); n = 8 end
              end
            end
          end
        end
      end
    end
  end
  list.n = n
end

function B.spread_ints(list, what, a, b, c, d, e, f, g, h)
  if type(a) == "table" and b == nil then return set_ints(list, a, what) end
  return spread(list, to_int, what, a, b, c, d, e, f, g, h)
end
B.spread_shape = B.spread_ints

function B.spread_dims(list, what, a, b, c, d, e, f, g, h)
  if type(a) == "table" and b == nil then return B.set_dims(list, a, what) end
  return spread(list, to_dim, what, a, b, c, d, e, f, g, h)
end

return B
