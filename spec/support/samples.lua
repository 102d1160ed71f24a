-- The op table seen from the tests: its samples as tensors, and calls by number.
-- A sample's inputs, separated by commas: KIND SHAPE RANGE ("f2x3@0.1:2", "i4@0:9", "b2x3", "f", "f0x3", "-" for left out).
-- Kinds: f floats, d floats all distinct, i i64 (shifted to the caller's base when the op holds indices), j i32, u u8, b bool.

local ffi = require "ffi"
local bit = require "bit"
local lib = require "resin.lib"
local create = require "resin.create"
local Tensor = require "resin.tensor"

local C, ctx = lib.C, lib.ctx
local samples = {}

samples.traits = { elementwise = 1, promote = 2, view = 4, random = 8, nondiff = 16, indexed = 32, internal = 64, half = 128,
  strided = 512 }
samples.names = { [0] = "f32", "f64", "bf16", "f16", "i64", "i32", "u8", "bool" }

function samples.has(set, flag) return bit.band(set, flag) ~= 0 end
function samples.accepts(op, dtype) return bit.band(op.dtypes, bit.lshift(1, dtype)) ~= 0 end

-- Every op: {id, name, nin_max, nout, traits, dtypes, has_grad, samples = {{inputs, attrs, tolerance, no_grad}}, kernels}
function samples.ops()
  local list = {}
  local info, sample, backend = ffi.new("rs_op_info"), ffi.new("rs_sample_info"), ffi.new("int[1]")
  for id = 0, C.rs_op_count() - 1 do
    assert(C.rs_op_describe(id, info) == 0)
    local op = { id = id, name = ffi.string(info.name), nin_min = info.nin_min, nin_max = info.nin_max, nout = info.nout,
      traits = info.traits, dtypes = info.dtypes, has_grad = info.has_grad ~= 0, samples = {}, kernels = {} }
    for i = 0, info.nsamples - 1 do
      assert(C.rs_op_sample(id, i, sample) == 0)
      op.samples[i + 1] = { inputs = ffi.string(sample.inputs), attrs = sample.attrs, tolerance = sample.tolerance,
        no_grad = sample.no_grad ~= 0 }
    end
    for i = 0, info.nkernels - 1 do
      op.kernels[i + 1] = { name = ffi.string(C.rs_op_kernel(id, i, backend)), backend = backend[0] }
    end
    list[#list + 1] = op
  end
  return list
end

-- A small generator of its own, so that values never depend on the engine under test.
local state = 1
local function random()
  state = (state * 16807) % 2147483647
  return state / 2147483647
end
function samples.seed(n) state = n % 2147483646 + 1 end

local function parse(text)
  if text == "-" then return nil end
  local kind, dims, range = text:match("^(%a)([%dx]*)@?(.*)$")
  assert(kind, "sample input not understood: " .. text)
  local shape = {}
  for n in dims:gmatch("%d+") do shape[#shape + 1] = tonumber(n) end
  local low, high = range:match("^(-?[%d.e-]+):(-?[%d.e-]+)$")
  return { kind = kind, shape = shape, low = tonumber(low), high = tonumber(high) }
end

function samples.parse(inputs)
  local list = { n = 0 }
  if inputs == "" then return list end
  for text in (inputs .. ","):gmatch("%s*([^,]*)%s*,") do
    list.n = list.n + 1
    list[list.n] = parse(text:match("^%s*(.-)%s*$"))
  end
  return list
end

local function count(shape)
  local n = 1
  for i = 1, #shape do n = n * shape[i] end
  return n
end

local function to_f32(x) return tonumber(ffi.cast("float", x)) end

-- Values of one input as numbers that f32 holds exactly.
local function values_of(spec, base)
  local n, out = count(spec.shape), {}
  local integer = spec.kind == "i" or spec.kind == "j" or spec.kind == "u"
  local low, high = spec.low or (integer and 0 or -1), spec.high or (integer and 3 or 1)
  for k = 1, n do
    if integer then out[k] = low + math.floor(random() * (high - low + 1) * 0.999999) + (spec.kind == "u" and 0 or base)
    elseif spec.kind == "b" then out[k] = random() < 0.5 and 0 or 1
    elseif spec.kind == "d" then out[k] = k
    else out[k] = to_f32(low + (high - low) * random()) end
  end
  if spec.kind == "d" then          -- distinct and at least a step apart, in random order, none at 0
    for k = n, 2, -1 do
      local j = 1 + math.floor(random() * k * 0.999999)
      out[k], out[j] = out[j], out[k]
    end
    for k = 1, n do out[k] = to_f32(low + (high - low) * (out[k] - 0.37) / n) end
  end
  return out
end

-- The inputs of a sample: tensors (false where left out), and which are floats that can have a gradient.
function samples.make(op, sample, dtype)
  local specs = samples.parse(sample.inputs)
  local base = samples.has(op.traits, samples.traits.indexed) and 1 or 0
  local inputs = { n = specs.n }
  for i = 1, specs.n do
    local spec = specs[i]
    if not spec then
      inputs[i] = false
    else
      local name = spec.kind == "i" and "i64" or spec.kind == "j" and "i32" or spec.kind == "u" and "u8" or
        spec.kind == "b" and "bool" or dtype
      local t = create.empty(spec.shape, { dtype = name })
      local values = values_of(spec, base)
      if #values > 0 then t:copy_from(values) end
      inputs[i] = t
    end
  end
  return inputs, specs
end

local function handles(inputs)
  local array = ffi.new("rs_tensor *[?]", math.max(inputs.n, 1))
  for i = 1, inputs.n do
    if inputs[i] then array[i - 1] = inputs[i].h end
  end
  return array
end
samples.handles = handles

-- Calls the op; returns its outputs, or nil and the message.
function samples.call(op, inputs, attrs)
  local out = ffi.new("rs_tensor *[8]")
  local status = C.rs_call(ctx, op.id, handles(inputs), inputs.n, attrs, out)
  if status ~= 0 then return nil, ffi.string(C.rs_last_error()), tonumber(status) end
  local list = {}
  for j = 1, op.nout do list[j] = Tensor.wrap(out[j - 1]) end
  return list
end

-- All elements of a tensor as a double array.
function samples.read(t)
  local n = t:numel()
  local buffer = ffi.new("double[?]", math.max(n, 1))
  assert(C.rs_tensor_read(ctx, t.h, buffer) == 0, ffi.string(C.rs_last_error()))
  return buffer, n
end

-- The largest difference, relative to the largest magnitude (at least 1). NaN equals NaN, infinities equal themselves.
function samples.difference(a, b)
  local x, n = samples.read(a)
  local y, m = samples.read(b)
  if n ~= m then return math.huge end
  local worst, scale = 0, 1
  for i = 0, n - 1 do
    if x[i] ~= y[i] and not (x[i] ~= x[i] and y[i] ~= y[i]) then
      local d = math.abs(x[i] - y[i])
      if d ~= d then return math.huge end
      worst = math.max(worst, d)
    end
    if x[i] == x[i] and math.abs(x[i]) < math.huge then scale = math.max(scale, math.abs(x[i])) end
  end
  return worst / scale
end

-- The same elements in a tensor that is not contiguous: dimensions reversed in memory, or every second element of a longer one.
function samples.strided(t)
  local shape = t.shape
  if #shape == 0 then return t end
  if #shape == 1 then
    local wide = create.zeros({ shape[1], 2 }, { dtype = t.dtype })
    local view = wide:select(2, 1)
    view:copy_(t)
    return view
  end
  local reversed, order = {}, {}
  for i = 1, #shape do
    reversed[i] = shape[#shape + 1 - i]
    order[i] = #shape + 1 - i
  end
  local view = create.empty(reversed, { dtype = t.dtype }):permute(order)
  if t:numel() > 0 then view:copy_(t) end
  return view
end

return samples
