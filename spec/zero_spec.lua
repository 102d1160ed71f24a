-- Sizes of 0: every op of the table on its samples with a size set to 0, wherever that occurs, in inputs and in attributes. An op refuses
-- it or gives what its portable kernel gives, eagerly and in programs, forward and backward. (A division by such a size would end the
-- process, and with it this file.)

local ffi = require "ffi"
local lib = require "resin.lib"
local grad = require "resin.grad"
local create = require "resin.create"
local Tensor = require "resin.tensor"
local samples = require "spec.support.samples"

local C, ctx = lib.C, lib.ctx
local has, traits = samples.has, samples.traits
local F32, BF16, ALL_PASSES = 0, 2, 2 ^ 32 - 1
local INT = 0
local LISTS = { [5] = true, [6] = true }      -- shapes, sizes

local rng = ffi.new("double[4]")
local function rewind() C.rs_set_rng_state(ctx, rng) end

-- The attributes of an op as {offset, kind, name}, and the bytes of all.
local function attrs_of(op)
  local list, info, about = {}, ffi.new "rs_attr_info", ffi.new "rs_op_info"
  assert(C.rs_op_describe(op.id, about) == 0)
  for i = 0, about.nattrs - 1 do
    assert(C.rs_op_attr(op.id, i, info) == 0)
    list[#list + 1] = { offset = info.offset, kind = info.kind, name = ffi.string(info.name) }
  end
  return list, about.attrs_size
end

-- A copy of a sample's attributes in which sizes that are `size` are 0. NULL stays: the defaults.
local function attrs_without(op, sample, size)
  if sample.attrs == nil then return nil end
  local list, bytes = attrs_of(op)
  local copy = ffi.new("char[?]", math.max(bytes, 1))
  ffi.copy(copy, sample.attrs, bytes)
  for _, attr in ipairs(list) do
    if LISTS[attr.kind] then
      local sizes = ffi.cast("rs_list *", copy + attr.offset)
      for i = 0, tonumber(sizes.n) - 1 do
        if sizes.v[i] == size then sizes.v[i] = 0 end
      end
    elseif attr.kind == INT and (attr.name:match "channels" or attr.name:match "features" or attr.name == "length") then
      local n = ffi.cast("int64_t *", copy + attr.offset)
      if n[0] == size then n[0] = 0 end
    end
  end
  return copy
end

-- The text of a sample's inputs with the sizes set to 0 that zero(input, dimension, size) names.
local function text_with(sample, zero)
  local out, k = {}, 0
  for input in (sample.inputs .. ","):gmatch "%s*([^,]*)%s*," do
    k = k + 1
    local kind, dims, range = input:match "^(%a)([%dx]*)(.*)$"
    if not kind then out[k] = input
    else
      local sizes, d = {}, 0
      for n in dims:gmatch "%d+" do
        d = d + 1
        sizes[d] = zero(k, d, tonumber(n)) and "0" or n
      end
      out[k] = kind .. table.concat(sizes, "x") .. range
    end
  end
  return table.concat(out, ",")
end

-- Samples made of one: each size alone, and each size wherever it occurs.
local function variants(op, sample)
  local list, seen = {}, { [sample.inputs] = true }
  local function add(text, attrs)
    if seen[text] then return end
    seen[text] = true
    list[#list + 1] = { inputs = text, attrs = attrs, no_grad = sample.no_grad }
  end
  local specs, sizes = samples.parse(sample.inputs), {}
  for i = 1, specs.n do
    for d, size in ipairs(specs[i] and specs[i].shape or {}) do
      sizes[size] = true
      add(text_with(sample, function(k, e) return k == i and d == e end), sample.attrs)
    end
  end
  for size in pairs(sizes) do
    local text = text_with(sample, function(_, _, n) return n == size end)
    seen[text] = nil
    add(text, attrs_without(op, sample, size))
  end
  return list
end

local function is_float(t) return t.dtype == "f32" or t.dtype == "bf16" end

-- Results and gradients of the sum of their squares, or nil and why not.
local function compute(op, sample, given, wants)
  rewind()
  local out, message = samples.call(op, given, sample.attrs)
  if not out then return nil, message end
  local list, total = {}, nil
  for j = 1, #out do
    list[j] = out[j]:detach()
    if is_float(out[j]) and out[j].requires_grad then
      local term = (out[j] * out[j]):sum()
      total = total and total + term or term
    end
  end
  if total and #wants > 0 then
    local ok, g = pcall(grad.grad, total, wants, { allow_unused = true })
    if not ok then return nil, g end
    for k = 1, #wants do
      if g[k] and g[k].h then list[#list + 1] = g[k] end
    end
  end
  return list
end

local function inputs_of(op, sample, dtype)
  samples.seed(op.id + 1)
  local inputs, specs = samples.make(op, sample, dtype)
  local wants = {}
  for i = 1, inputs.n do
    local float = specs[i] and (specs[i].kind == "f" or specs[i].kind == "d")
    if float and op.has_grad and not sample.no_grad and not (op.name == "batch_norm" and i > 3) and not (op.name == "assign" and i == 1) and
      not (op.name == "cross_entropy" and i == 3) then
      inputs[i]:requires_grad_(true)
      wants[#wants + 1] = inputs[i]
    end
  end
  return inputs, wants
end

-- As `compute` by a program of one call, in dtype `precision`.
local function replay(op, sample, dtype, precision)
  local inputs, wants = inputs_of(op, sample, dtype)
  local handle, n = ffi.new "rs_tensor *[16]", 0
  for i = 1, inputs.n do
    if inputs[i] then handle[n], n = inputs[i].h, n + 1 end
  end
  assert(C.rs_trace_begin(ctx, handle, n) == 0)
  local ok, recorded, message = pcall(compute, op, sample, inputs, wants)
  if not ok or not recorded then
    C.rs_trace_abort(ctx)
    return nil, tostring(ok and message or recorded)
  end
  local outs, results = ffi.new "rs_tensor *[16]", ffi.new "rs_tensor *[16]"
  local program, workspace = ffi.new "rs_program *[1]", ffi.new "rs_workspace *[1]"
  for j = 1, #recorded do outs[j - 1] = recorded[j].h end
  assert(C.rs_trace_end(ctx, outs, #recorded, program) == 0)
  assert(C.rs_program_optimize(program[0], ALL_PASSES, precision) == 0)
  assert(C.rs_workspace_create(ctx, program[0], workspace) == 0)
  rewind()
  local list = {}
  if C.rs_program_run(program[0], workspace[0], handle, n, results, #recorded) ~= 0 then list, message = nil, ffi.string(C.rs_last_error())
  else
    for j = 1, #recorded do list[j] = Tensor.wrap(results[j - 1]) end
  end
  C.rs_workspace_release(workspace[0])
  C.rs_program_release(program[0])
  return list, message
end

local function agree(wanted, got, tolerance, what)
  assert.equal(#wanted, #got, what)
  for j = 1, #wanted do
    assert.same(wanted[j].shape, got[j].shape, what)
    assert.equal(wanted[j].dtype, got[j].dtype, what)
    local d = samples.difference(wanted[j], got[j])
    if d > tolerance then error(("%s: result %d differs by %g"):format(what, j, d), 0) end
  end
end

local function portable(f, ...)
  C.rs_set_backends(ctx, "portable")
  C.rs_set_isa(ctx, "baseline")
  local ok, a, b = pcall(f, ...)
  C.rs_set_backends(ctx, "all")
  C.rs_set_isa(ctx, "best")
  if not ok then error(a, 0) end
  return a, b
end

-- Memory that is used again must not look right by chance.
local function dirty()
  for _, n in ipairs { 1, 4, 16, 64, 256, 1024 } do create.full({ n }, 7777) end
end

-- 1 where the op takes the sizes.
local function check(op, sample)
  local took = 0
  for _, dtype in ipairs { "f32", "bf16" } do
    local name = ("%s \"%s\" %s"):format(op.name, sample.inputs, dtype)
    local tolerance = dtype == "bf16" and 2e-2 or 2e-5
    dirty()
    local wanted = portable(function() return compute(op, sample, inputs_of(op, sample, dtype)) end)
    local got = compute(op, sample, inputs_of(op, sample, dtype))
    assert.equal(wanted ~= nil, got ~= nil, name)
    if wanted then
      took = 1
      if op.name ~= "conv2d_pack" and not has(op.traits, traits.random) and not op.name:match "^empty" then
        agree(wanted, got, tolerance, name)
        agree(wanted, assert(replay(op, sample, dtype, F32)), tolerance, name .. " in a program")
        agree(wanted, assert(replay(op, sample, dtype, BF16)), 2e-2, name .. " in a program in bf16")
      end
    end
  end
  return took
end

describe("a size of 0", function()
  local took, made = 0, 0
  setup(function() C.rs_get_rng_state(ctx, rng) end)

  for _, op in ipairs(samples.ops()) do
    if op.nout > 0 and op.nin_max > 0 then
      it("is refused or right in " .. op.name, function()
        for _, sample in ipairs(op.samples) do
          for _, variant in ipairs(variants(op, sample)) do
            took, made = took + check(op, variant), made + 1
          end
        end
      end)
    end
  end

  it("is taken by many ops", function() assert.is_true(took > 300, took .. " of " .. made) end)
end)
