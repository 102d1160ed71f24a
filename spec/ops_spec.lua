-- Every op of the table on every one of its samples: the checks that need to know nothing about an op.

local ffi = require "ffi"
local lib = require "resin.lib"
local grad = require "resin.grad"
local create = require "resin.create"
local Tensor = require "resin.tensor"
local samples = require "spec.support.samples"

local C, ctx = lib.C, lib.ctx
local has, traits = samples.has, samples.traits
local F32, F64 = 0, 1

-- Inputs that are read but have no gradient by definition: running statistics, class weights, the overwritten target.
local NO_GRADIENT = { batch_norm = { [4] = true, [5] = true }, cross_entropy = { [3] = true }, assign = { [1] = true } }
-- Ops whose gradient is an op without a rule: there is no second derivative, and the error says so.
local ONCE = { batch_norm = true, layer_norm = true, cross_entropy = true, max_pool2d = true,
  rnn = true, gru = true, lstm = true, scaled_dot_product_attention = true }
-- Ops whose bytes each maker lays out in its own way; what is made of them is compared instead (conv_block_spec).
local OPAQUE = { conv2d_pack = true }

local kernels_run = {}

local rng = ffi.new("double[4]")
local function rewind() C.rs_set_rng_state(ctx, rng) end

local function run(op, inputs, attrs)
  rewind()
  local out, message = samples.call(op, inputs, attrs)
  if not out then error(op.name .. ": " .. message, 2) end
  kernels_run[op.name .. "/" .. ffi.string(C.rs_last_kernel(ctx))] = true
  return out
end

-- A fixed linear function of all float outputs; weights depend on the position only.
local function weights_of(t, turn)
  local n = t:numel()
  local values = {}
  for i = 1, n do values[i] = math.sin(i * 1.7 + turn) + 0.3 end
  local w = create.empty(t.shape, { dtype = "f64" })
  if n > 0 then w:copy_from(values) end
  return w
end

local function is_float(t) return t.dtype == "f64" or t.dtype == "f32" end

local function loss_of(outputs)
  local total
  for j = 1, #outputs do
    local y = outputs[j]
    if is_float(y) and y.requires_grad then
      local term = (y * weights_of(y, j)):sum()
      total = total and total + term or term
    end
  end
  return total
end

local function loss_value(op, inputs, attrs, which)
  return grad.no_grad(function()
    local outputs, total = run(op, inputs, attrs), 0
    for j = 1, #outputs do
      if which[j] then total = total + (outputs[j] * weights_of(outputs[j], j)):sum():item() end
    end
    return total
  end)
end

local function fresh(inputs)
  local copy = { n = inputs.n }
  for i = 1, inputs.n do copy[i] = inputs[i] and inputs[i]:clone() end
  return copy
end

local function differentiable(op, specs, i)
  local spec = specs[i]
  return spec and (spec.kind == "f" or spec.kind == "d") and not (NO_GRADIENT[op.name] and NO_GRADIENT[op.name][i])
end

local function direction(t, turn)
  local n, values = t:numel(), {}
  for i = 1, n do values[i] = math.cos(i * 2.3 + turn * 0.7) end
  local v = create.empty(t.shape, { dtype = "f64" })
  if n > 0 then v:copy_from(values) end
  return v
end

local function perturbed(inputs, i, v, step)
  local copy = fresh(inputs)
  copy[i] = grad.no_grad(function() return inputs[i] + v * step end)
  return copy
end

local function close(a, b) return math.abs(a - b) <= 1e-5 + 1e-4 * math.max(math.abs(a), math.abs(b)) end

-- Analytic gradients of loss(inputs) for the inputs in `list`.
local function analytic(op, inputs, attrs, list, options)
  local copies, leaves = fresh(inputs), {}
  for _, i in ipairs(list) do
    copies[i]:requires_grad_(true)
    leaves[#leaves + 1] = copies[i]
  end
  local outputs = run(op, copies, attrs)
  local which, any = {}, false
  for j = 1, #outputs do
    which[j] = is_float(outputs[j]) and outputs[j].requires_grad
    any = any or which[j]
  end
  if not any then return nil end
  return grad.grad(loss_of(outputs), leaves, options), which, leaves
end

local function each_sample(op, fn)
  for number, sample in ipairs(op.samples) do
    samples.seed(number * 7919 + op.id)
    local ok, message = pcall(fn, sample)
    if not ok then error(string.format("%s, sample %d \"%s\": %s", op.name, number, sample.inputs, tostring(message)), 0) end
  end
end

-- The dtype that a sample's float inputs (or results) can have, or nil.
local function dtype_for(op, sample, wanted)
  local specs = samples.parse(sample.inputs)
  for i = 1, specs.n do
    if specs[i] then
      local float = specs[i].kind == "f" or specs[i].kind == "d"
      if not float then return samples.names[wanted] end
      return samples.accepts(op, wanted) and samples.names[wanted] or nil
    end
  end
  return samples.names[wanted]
end

local function same_bits(a, b)
  assert.equal(a.dtype, b.dtype)
  assert.same(a.shape, b.shape)
  local x, n = samples.read(a)
  local y = samples.read(b)
  for i = 0, n - 1 do
    if x[i] ~= y[i] and (x[i] == x[i] or y[i] == y[i]) then
      error(string.format("element %d is %.17g, but was %.17g", i + 1, y[i], x[i]), 2)
    end
  end
end

local function agree(expected, got, tolerance, where, j)
  local d = samples.difference(expected, got)
  if d > tolerance then error(string.format("%s: output %d differs by %g", where, j, d), 2) end
end

local function defined(t) return t and t.h end

-- ---- recorded beside eager -----------------------------------------------------------------------------------------------

-- Results of the op for `given`, and the gradients of the sum of their squares.
local function compute(op, sample, specs, given)
  local list, leaves = {}, {}
  for i = 1, given.n do
    if op.has_grad and not sample.no_grad and differentiable(op, specs, i) then
      given[i]:requires_grad_(true)
      leaves[#leaves + 1] = given[i]
    end
  end
  local outputs = run(op, given, sample.attrs)
  for j = 1, #outputs do list[#list + 1] = outputs[j]:detach() end
  if #leaves == 0 then return list end
  local total
  for j = 1, #outputs do
    if is_float(outputs[j]) and outputs[j].requires_grad then
      local term = (outputs[j] * outputs[j]):sum()
      total = total and total + term or term
    end
  end
  local g = total and grad.grad(total, leaves, { allow_unused = true }) or {}
  for k = 1, #leaves do
    if defined(g[k]) then list[#list + 1] = g[k] end
  end
  return list
end

local function check_status(status) assert(status == 0, ffi.string(C.rs_last_error())) end

-- The handles of the inputs that are there, and how many.
local function handles_of(given)
  local handle, n = ffi.new("rs_tensor *[16]"), 0
  for i = 1, given.n do
    if given[i] then
      handle[n] = given[i].h
      n = n + 1
    end
  end
  return handle, n
end

-- A program of compute, and the number of its results.
local function record(op, sample, specs, inputs)
  local given = fresh(inputs)
  local handle, n = handles_of(given)
  check_status(C.rs_trace_begin(ctx, handle, n))
  local ok, recorded = pcall(compute, op, sample, specs, given)
  if not ok then
    C.rs_trace_abort(ctx)
    error(recorded, 0)
  end
  local outs, program = ffi.new("rs_tensor *[16]"), ffi.new("rs_program *[1]")
  for j = 1, #recorded do outs[j - 1] = recorded[j].h end
  check_status(C.rs_trace_end(ctx, outs, #recorded, program))
  return program[0], #recorded
end

-- Runs the recording, rewritten by `passes`, on other inputs: bit for bit what eager gives, or within `tolerance`.
local function check_recorded(op, sample, passes, tolerance)
  local dtype = dtype_for(op, sample, F32) or dtype_for(op, sample, F64)
  if not dtype then return end
  local inputs, specs = samples.make(op, sample, dtype)
  local program, n = record(op, sample, specs, inputs)
  check_status(C.rs_program_optimize(program, passes, F32))
  local workspace = ffi.new("rs_workspace *[1]")
  check_status(C.rs_workspace_create(ctx, program, workspace))
  for round = 1, 2 do
    samples.seed(op.id * 31 + round)
    local again = samples.make(op, sample, dtype)
    local arguments = fresh(again)
    local handle, count = handles_of(arguments)
    local results = ffi.new("rs_tensor *[16]")
    rewind()
    check_status(C.rs_program_run(program, workspace[0], handle, count, results, n))
    local expected = compute(op, sample, specs, fresh(again))
    for j = 1, n do
      local result = Tensor.wrap(results[j - 1])
      if tolerance then
        assert.equal(expected[j].dtype, result.dtype)
        assert.same(expected[j].shape, result.shape)
        agree(expected[j], result, tolerance, "all passes", j)
      else
        same_bits(expected[j], result)
      end
    end
  end
  C.rs_workspace_release(workspace[0])
  C.rs_program_release(program)
end

describe("op table", function()
  local ops = samples.ops()

  setup(function() C.rs_get_rng_state(ctx, rng) end)
  teardown(function()
    C.rs_set_backends(ctx, "all")
    C.rs_set_isa(ctx, "best")
  end)

  it("has samples and kernels for every op", function()
    for _, op in ipairs(ops) do
      if op.nout > 0 then assert.is_true(#op.samples > 0, op.name .. " has no samples") end
      if not has(op.traits, traits.view) then assert.is_true(#op.kernels > 0, op.name .. " has no kernel") end
    end
  end)

  for _, op in ipairs(ops) do
    if op.nout > 0 then
      describe(op.name, function()
        it("gives in f32 what it gives in f64", function()
          each_sample(op, function(sample)
            local d32, d64 = dtype_for(op, sample, F32), dtype_for(op, sample, F64)
            if not d32 or not d64 or (op.nin_max == 0) or has(op.traits, traits.random) then return end
            local seed = op.id + 17
            samples.seed(seed)
            local a = run(op, (samples.make(op, sample, d32)), sample.attrs)
            samples.seed(seed)
            local b = run(op, (samples.make(op, sample, d64)), sample.attrs)
            for j = 1, #a do
              local tolerance = sample.tolerance > 0 and sample.tolerance or 1e-5
              local d = samples.difference(a[j], b[j])
              assert.is_true(d <= tolerance, string.format("output %d differs by %g", j, d))
            end
          end)
        end)

        if op.has_grad then
          it("has the gradient that finite differences give", function()
            each_sample(op, function(sample)
              local dtype = dtype_for(op, sample, F64)
              if sample.no_grad or not dtype then return end
              local inputs, specs = samples.make(op, sample, dtype)
              for i = 1, inputs.n do
                if differentiable(op, specs, i) then
                  local got, which = analytic(op, inputs, sample.attrs, { i }, { allow_unused = true })
                  if got then
                    for turn = 1, 2 do
                      local v, eps = direction(inputs[i], turn), 1e-6
                      local up = loss_value(op, perturbed(inputs, i, v, eps), sample.attrs, which)
                      local down = loss_value(op, perturbed(inputs, i, v, -eps), sample.attrs, which)
                      local numeric = (up - down) / (2 * eps)
                      local value = defined(got[1]) and (got[1] * v):sum():item() or 0
                      assert.is_true(close(numeric, value), string.format("input %d: numeric %g, rule %g", i, numeric, value))
                    end
                  end
                end
              end
            end)
          end)

          it("gives inputs that were computed together what it gives each alone", function()
            each_sample(op, function(sample)
              local dtype = dtype_for(op, sample, F64)
              if sample.no_grad or not dtype then return end
              local inputs, specs = samples.make(op, sample, dtype)
              local list = {}
              for i = 1, inputs.n do
                if differentiable(op, specs, i) then list[#list + 1] = i end
              end
              if #list < 2 then return end
              local copies, leaves = fresh(inputs), {}
              for k, i in ipairs(list) do
                leaves[k] = copies[i]:requires_grad_(true)
                copies[i] = leaves[k] * 1          -- the rule gives to nodes, not to leaves
              end
              local total = loss_of(run(op, copies, sample.attrs))
              if not total then return end
              local together = grad.grad(total, leaves, { allow_unused = true })
              for k, i in ipairs(list) do
                local alone = analytic(op, inputs, sample.attrs, { i }, { allow_unused = true })
                assert.equal(defined(alone[1]) ~= nil, defined(together[k]) ~= nil)
                if defined(alone[1]) then agree(alone[1], together[k], 1e-12, "gradient", i) end
              end
            end)
          end)

          it("has second derivatives, or says that it has none", function()
            each_sample(op, function(sample)
              local dtype = dtype_for(op, sample, F64)
              if sample.no_grad or not dtype then return end
              local inputs, specs = samples.make(op, sample, dtype)
              for i = 1, inputs.n do
                if differentiable(op, specs, i) and inputs[i]:numel() > 0 then
                  local function inner(x)
                    local copies = fresh(inputs)
                    copies[i] = x
                    x:requires_grad_(true)
                    local outputs = run(op, copies, sample.attrs)
                    local total = loss_of(outputs)
                    if not total then return nil end
                    -- squared, so that linear ops have something to differentiate twice
                    local g = grad.grad(total * total * 0.5, { x }, { create_graph = true, allow_unused = true })
                    if not defined(g[1]) or not g[1].requires_grad then return nil end
                    return (g[1] * direction(x, 5)):sum()
                  end
                  local x = inputs[i]:clone()
                  local first = inner(x)
                  if first then
                    local ok, second = pcall(grad.grad, first, { x }, { allow_unused = true })
                    if not ok then
                      assert.is_truthy(ONCE[op.name] or op.name:match("_backward$"), tostring(second))
                      assert.is_truthy(tostring(second):match("derivative of [%w_]+ is not defined"), tostring(second))
                    else
                      local v, eps = direction(x, 2), 1e-5
                      local up = inner(grad.no_grad(function() return inputs[i] + v * eps end))
                      local down = inner(grad.no_grad(function() return inputs[i] - v * eps end))
                      local numeric = (up:item() - down:item()) / (2 * eps)
                      local value = defined(second[1]) and (second[1] * v):sum():item() or 0
                      assert.is_true(math.abs(numeric - value) <= 1e-4 + 1e-3 * math.max(math.abs(numeric), math.abs(value)),
                        string.format("input %d: numeric %g, rule %g", i, numeric, value))
                    end
                  end
                end
              end
            end)
          end)
        end

        it("takes strided inputs", function()
          each_sample(op, function(sample)
            local dtype = dtype_for(op, sample, F32) or dtype_for(op, sample, F64)
            if not dtype or op.nin_max == 0 then return end
            local inputs = samples.make(op, sample, dtype)
            local strided = { n = inputs.n }
            for i = 1, inputs.n do strided[i] = inputs[i] and samples.strided(inputs[i]) end
            rewind()
            local b, message, status = samples.call(op, strided, sample.attrs)
            if not b then
              assert.is_truthy(message:match("must be contiguous"), message)      -- written in place: refused, never lost
              assert.equal(tonumber(C.RS_ERR_STATE), status)
              return
            end
            local a = run(op, fresh(inputs), sample.attrs)
            for j = 1, #a do
              local d = samples.difference(a[j], b[j])
              assert.is_true(d <= 1e-6, string.format("output %d differs by %g", j, d))
            end
          end)
        end)

        it("gives the same on every instruction set and backend", function()
          each_sample(op, function(sample)
            for _, wanted in ipairs { F32, F64 } do
              local dtype = dtype_for(op, sample, wanted)
              if dtype then
                local inputs = samples.make(op, sample, dtype)
                C.rs_set_backends(ctx, "portable")
                assert(C.rs_set_isa(ctx, "baseline") == 0)
                local oracle = run(op, fresh(inputs), sample.attrs)
                for _, isa in ipairs { "avx2", "avx512" } do
                  if C.rs_set_isa(ctx, isa) == 0 then
                    local other = run(op, fresh(inputs), sample.attrs)
                    for j = 1, OPAQUE[op.name] and 0 or #oracle do
                      agree(oracle[j], other[j], wanted == F64 and oracle[j].dtype == "f64" and 1e-12 or 1e-5, isa, j)
                    end
                  end
                end
                for _, isa in ipairs { "baseline", "best" } do
                  C.rs_set_isa(ctx, isa)
                  for _, backend in ipairs { "blas", "onednn", "all" } do
                    assert(C.rs_set_backends(ctx, backend) == 0)
                    local other = run(op, fresh(inputs), sample.attrs)
                    for j = 1, OPAQUE[op.name] and 0 or #oracle do
                      agree(oracle[j], other[j], wanted == F64 and oracle[j].dtype == "f64" and 1e-12 or 2e-5,
                        backend .. " " .. ffi.string(C.rs_last_kernel(ctx)), j)
                    end
                  end
                end
                C.rs_set_backends(ctx, "all")
              end
            end
          end)
        end)

        it("gives in bf16 and f16 nearly what it gives in f32", function()
          each_sample(op, function(sample)
            local dtype = dtype_for(op, sample, F32)
            if not dtype or op.nin_max == 0 or has(op.traits, traits.random) then return end
            for _, half in ipairs { "bf16", "f16" } do
              local inputs, specs = samples.make(op, sample, "f32")
              local narrow = fresh(inputs)
              local any = false
              for i = 1, inputs.n do
                if specs[i] and (specs[i].kind == "f" or specs[i].kind == "d") then
                  inputs[i] = inputs[i]:to(half):to("f32")
                  narrow[i] = inputs[i]:to(half)
                  any = true
                end
              end
              if any then
                local b, message = samples.call(op, narrow, sample.attrs)
                if not b then
                  assert.is_truthy(message:match("keep it in f32"), message)      -- running statistics stay f32
                else
                  local a = run(op, inputs, sample.attrs)
                  for j = 1, OPAQUE[op.name] and 0 or #a do
                    agree(a[j], b[j], half == "bf16" and 1.0 / 128 or 1.0 / 1024, half, j)
                  end
                end
              end
            end
          end)
        end)

        it("replays a recording of itself and its gradient with the same bits", function()
          each_sample(op, function(sample) check_recorded(op, sample, 0) end)
        end)

        it("gives in a program with all passes what it gives without", function()
          each_sample(op, function(sample)
            check_recorded(op, sample, 2 ^ 32 - 1, math.max(sample.tolerance > 0 and sample.tolerance or 1e-5, 2e-5))
          end)
        end)

        if has(op.traits, traits.elementwise) then
          it("gives the same in place", function()
            each_sample(op, function(sample)
              local dtype = dtype_for(op, sample, F32) or dtype_for(op, sample, F64)
              local inputs = dtype and samples.make(op, sample, dtype)
              if not inputs or not inputs[1] then return end
              local expected = run(op, fresh(inputs), sample.attrs)[1]
              local target = fresh(inputs)
              rewind()
              local status = C.rs_call_inplace(ctx, op.id, samples.handles(target), target.n, sample.attrs)
              if status == 0 then
                same_bits(expected, target[1])
                local info = ffi.new("rs_info")
                C.rs_tensor_info(target[1].h, info)
                assert.is_true(info.version > 0)
              else
                local fits = expected.dtype == inputs[1].dtype and #expected.shape == #inputs[1].shape and
                  expected:numel() == inputs[1]:numel()
                assert.is_false(fits, ffi.string(C.rs_last_error()))
              end
            end)
          end)
        end

        it("survives each of its allocations failing", function()
          each_sample(op, function(sample)
            local dtype = dtype_for(op, sample, F64) or dtype_for(op, sample, F32)
            if not dtype then return end
            local inputs, specs = samples.make(op, sample, dtype)
            local any = false
            for i = 1, inputs.n do
              if op.has_grad and not sample.no_grad and differentiable(op, specs, i) then
                inputs[i]:requires_grad_(true)
                any = true
              end
            end
            local stats = C.rs_ctx_stats(ctx)
            local array, out = samples.handles(inputs), ffi.new("rs_tensor *[8]")
            local g = ffi.new("rs_tensor *[8]")
            collectgarbage()
            collectgarbage()
            local before, fails = stats.live_blocks, 0
            for k = 1, 400 do
              rewind()
              C.rs_fail_allocation(ctx, k, 0)
              local status = C.rs_call(ctx, op.id, array, inputs.n, sample.attrs, out)
              if status == 0 and any and out[0] ~= nil and C.rs_tensor_requires_grad(out[0]) ~= 0 then
                local leaves, n = ffi.new("rs_tensor *[8]"), 0
                for i = 1, inputs.n do
                  if inputs[i] and inputs[i].requires_grad then
                    leaves[n] = inputs[i].h
                    n = n + 1
                  end
                end
                for i = 0, 7 do g[i] = nil end
                status = C.rs_grad(ctx, out[0], out[0], leaves, n, C.RS_ALLOW_UNUSED, g)
                for i = 0, n - 1 do
                  if status == 0 then C.rs_tensor_release(g[i]) end
                end
                for j = 0, op.nout - 1 do C.rs_tensor_release(out[j]) end
              elseif status == 0 then
                for j = 0, op.nout - 1 do C.rs_tensor_release(out[j]) end
              end
              C.rs_fail_allocation(ctx, 0, 0)
              assert.equal(before, stats.live_blocks, "blocks leaked after failure " .. k)
              if status == 0 then break end
              if tonumber(status) ~= tonumber(C.RS_ERR_NOMEM) then
                error("allocation " .. k .. " failed with: " .. ffi.string(C.rs_last_error()))
              end
              fails = fails + 1
            end
            assert.is_true(fails < 399)
          end)
        end)
      end)
    end
  end

  it("ran every kernel of every op at least once", function()
    local missing = {}
    local built = ffi.string(C.rs_build_info())
    local has_tiles = false      -- split products need AMX: where one ran, all must
    for name in pairs(kernels_run) do has_tiles = has_tiles or name:match "split$" ~= nil end
    for _, op in ipairs(ops) do
      for _, kernel in ipairs(op.kernels) do
        local library = kernel.backend == 1 and "blas" or "onednn"
        local present = kernel.backend == 0 or built:find(library, 1, true)
        if kernel.name:match "split$" and not has_tiles then present = false end
        if op.nout > 0 and present and not kernels_run[op.name .. "/" .. kernel.name] then
          missing[#missing + 1] = op.name .. "/" .. kernel.name
        end
      end
    end
    assert.same({}, missing)
  end)
end)
