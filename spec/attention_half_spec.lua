-- Attention in bf16 programs: by AMX where that is there, with the error that docs/programs.md states; else, and with a mask or
-- dropout, in f32. And the pass that makes in bf16 what is read in bf16.

local ffi = require "ffi"
local resin = require "resin"
local lib = require "resin.lib"
local nn, F, optim = resin.nn, resin.F, resin.optim
local C, ctx = lib.C, lib.ctx

local NO_NARROW = {
  passes = { "ssa", "clean", "half", "tidy", "casts", "join", "remat", "linear", "norm", "chains", "hoist" }, precision = "bf16",
}

-- {leading, tq, tk, d, dv, causal, scale}: sides of tiles and blocks and what lies beside them
local CASES = {
  { { 8, 6 }, 256, 256, 64, 64, true }, { { 2, 3 }, 100, 300, 40, 24, false }, { { 5 }, 77, 77, 33, 65, true, 0.2 },
  { { 4 }, 300, 900, 16, 48, true }, { { 4 }, 900, 300, 16, 48, true }, { { 4 }, 64, 33, 96, 32, false },
  { { 2, 2 }, 65, 257, 32, 1, false },
}

local function rounded(...) return resin.randn(...):to("bf16"):to("f32") end

local function with(list, ...)
  local out = {}
  for i, n in ipairs(list) do out[i] = n end
  for _, n in ipairs { ... } do out[#out + 1] = n end
  return out
end

local function largest(t) return t:abs():amax():item() end

-- The dtypes of the first input of each instruction of an op.
local function inputs_of(compiled, op)
  local program, info, value, out = compiled.entries[1].program, ffi.new "rs_instruction_info", ffi.new "rs_value_info", {}
  for i = 0, C.rs_program_length(program) - 1 do
    assert(C.rs_program_instruction(program, i, info) == 0)
    if info.kernel ~= nil and ffi.string(info.op) == op then
      assert(C.rs_program_value(program, info.ids[0], value) == 0)
      out[#out + 1] = ffi.string(C.rs_dtype_name(value.dtype))
    end
  end
  return out
end

local function has_amx()
  local linear = resin.compile(function(x) return F.scaled_dot_product_attention(x, x, x) end, { precision = "bf16" })
  resin.no_grad(function() linear(rounded { 8, 64, 64 }) end)
  return inputs_of(linear, "scaled_dot_product_attention")[1] == "bf16"
end

-- The result and the gradients of a function of q, k, v and g.
local function gradients(fn, q, k, v, g)
  local leaves = {}
  for i, t in ipairs { q, k, v } do leaves[i] = t:detach():requires_grad_(true) end
  local o = fn(leaves[1], leaves[2], leaves[3], g)
  return { o:detach(), leaves[1].grad, leaves[2].grad, leaves[3].grad }
end

local function step_of(options)
  return function(q, k, v, g)
    q.grad, k.grad, v.grad = nil, nil, nil
    local o = F.scaled_dot_product_attention(q, k, v, options)
    o:backward(g)
    return o
  end
end

local function operands(case)
  local lead, tq, tk, d, dv = case[1], case[2], case[3], case[4], case[5]
  return rounded(with(lead, tq, d)), rounded(with(lead, tk, d)), rounded(with(lead, tk, dv)), rounded(with(lead, tq, dv))
end

describe("attention in bf16 programs", function()
  setup(function() resin.manual_seed(7) end)
  teardown(function()
    C.rs_set_isa(ctx, "best")
    resin.set_num_threads(1)
  end)

  it("errs by no more than what is documented", function()
    for _, case in ipairs(CASES) do
      local q, k, v, g = operands(case)
      local step = step_of { is_causal = case[6], scale = case[7] }
      local fast = resin.compile(step, { precision = "bf16" })
      local got, want = gradients(fast, q, k, v, g), gradients(step, q:double(), k:double(), v:double(), g:double())
      local where = table.concat(with(case[1], case[2], case[3], case[4], case[5]), "x")
      assert.is_true(largest(got[1]:double() - want[1]) <= 1.02 / 256 * largest(v), where)
      for i = 2, 4 do
        local e = largest(got[i]:double() - want[i]) / largest(want[i])
        assert.is_true(e < 1 / 64, ("%s, gradient %d: %g"):format(where, i - 1, e))
      end
    end
  end)

  it("does not depend on the number of threads", function()
    local q, k, v, g = operands(CASES[1])
    local results = {}
    for threads = 1, 3 do
      resin.set_num_threads(threads)
      results[threads] = gradients(resin.compile(step_of { is_causal = true }, { precision = "bf16" }), q, k, v, g)
    end
    resin.set_num_threads(1)
    for threads = 2, 3 do
      for i = 1, 4 do assert.is_true(results[1][i]:eq(results[threads][i]):all():item()) end
    end
  end)

  it("gives zeros to rows that see nothing and keeps what is not finite", function()
    local q, k, v, g = operands { { 4 }, 64, 32, 32, 32 }
    resin.no_grad(function() v:select(1, 2):select(1, 3):fill_(math.huge) end)
    local function causal(a, b, c) return (F.scaled_dot_product_attention(a, b, c, { is_causal = true })) end
    local fast = resin.compile(causal, { precision = "bf16" })
    local o = resin.no_grad(function() return fast(q, k, v) end)
    assert.is_true(o:select(1, 1):isfinite():all():item())
    assert.is_false(o:select(1, 2):isfinite():all():item())
    assert.is_not_nil(g)
  end)

  it("takes nothing at all: no batch, no heads, no queries, no keys, no features", function()
    for _, shape in ipairs { { 0, 2, 8, 16 }, { 4, 0, 64, 16 }, { 4, 2, 0, 16 }, { 0, 64, 64 }, { 2, 0, 0, 0 }, { 8, 64, 0 } } do
      local n = #shape
      local keys = { unpack(shape) }
      keys[n - 1] = 64
      for _, size in ipairs { shape, keys } do
        local q, kv = resin.zeros(shape), resin.zeros(size)
        local function attend(a, b) return F.scaled_dot_product_attention(a, b, b) end
        local y = resin.compile(attend, { precision = "bf16" })(q, kv)
        assert.same(shape, y.shape)
        local leaf = q:detach():requires_grad_(true)
        resin.compile(function(a, b)
          local loss = attend(a, b):sum()
          loss:backward()
          return loss
        end, { precision = "bf16" })(leaf, kv)
        assert.same(shape, leaf.grad.shape)
      end
    end
  end)

  it("reads operands as they lie", function()
    local x = rounded { 4, 100, 3, 2, 32 }
    local function split(t) return t:select(3, 1):transpose(2, 3), t:select(3, 2):transpose(2, 3), t:select(3, 3):transpose(2, 3) end
    local fast = resin.compile(function(t) return F.scaled_dot_product_attention(split(t)) end, { precision = "bf16" })
    resin.no_grad(function()
      local want = F.scaled_dot_product_attention(split(x:double()))
      assert.is_true(largest(fast(x):double() - want) <= 1.02 / 256 * largest(x))
    end)
  end)

  it("is in f32 with a mask, with dropout, where it is small and where there is no AMX", function()
    local amx = has_amx()
    local function kind(shape, fn)
      local x = rounded(shape)
      local fast = resin.compile(fn, { precision = "bf16" })
      resin.no_grad(function() fast(x) end)
      return inputs_of(fast, "scaled_dot_product_attention")[1]
    end
    local mask = resin.ones { 64, 64 }:gt(0)
    local function plain(x) return (F.scaled_dot_product_attention(x, x, x)) end
    assert.equal(amx and "bf16" or "f32", kind({ 8, 64, 64 }, plain))
    assert.equal("f32", kind({ 2, 8, 8 }, plain))
    assert.equal("f32", kind({ 8, 64, 64 }, function(x) return (F.scaled_dot_product_attention(x, x, x, mask)) end))
    assert.equal("f32", kind({ 8, 64, 64 }, function(x) return (F.scaled_dot_product_attention(x, x, x, { dropout_p = 0.5 })) end))
    assert.equal("f32", kind({ 8, 64, 64 }, function(x) return (F.scaled_dot_product_attention(x, x, x, { scale = -1 })) end))
    if C.rs_set_isa(ctx, "avx2") == 0 then assert.equal("f32", kind({ 8, 64, 64 }, plain)) end
    C.rs_set_isa(ctx, "best")
    local x, fast = rounded { 8, 64, 64 }, resin.compile(plain, { precision = "bf16" })
    resin.no_grad(function() fast(x) end)
    C.rs_set_isa(ctx, "avx2")
    local ok, message = pcall(resin.no_grad, function() return fast(x) end)
    C.rs_set_isa(ctx, "best")
    assert.is_true(ok or message:find("record it again", 1, true) ~= nil, message)
  end)
end)

describe("what is read in bf16", function()
  local function train(options)
    resin.manual_seed(3)
    local model = nn.TransformerEncoderLayer(64, 4, { dim_feedforward = 256, dropout = 0, activation = "gelu" })
    local opt = optim.Adam(model, { lr = 1e-3 })
    local x, y = resin.randn { 8, 64, 64 }, resin.randn { 8, 64, 64 }
    local step = resin.compile(function(a, b)
      opt:zero_grad()
      local loss = F.mse_loss((model(a)), b)
      loss:backward()
      opt:step()
      return loss
    end, options)
    local losses = {}
    for i = 1, 5 do losses[i] = step(x, y):item() end
    return losses, model, step
  end

  it("is made in bf16, and training goes the same way", function()
    local exact = train {}
    for _, options in ipairs { { precision = "bf16" }, NO_NARROW } do
      local losses = train(options)
      for i = 1, 5 do assert.is_true(math.abs(losses[i] - exact[i]) <= 2e-3 * exact[1], losses[i] .. " " .. exact[i]) end
    end
    local _, _, step = train { precision = "bf16" }
    assert.is_true(#inputs_of(step, "sum") > 0)
    local found = false
    for _, dtype in ipairs(inputs_of(step, "sum")) do found = found or dtype == "bf16" end
    assert.is_true(found)
  end)

  it("is summed in f32", function()
    local x, w = rounded { 300, 200 }, rounded { 200, 250 }
    local fast = resin.compile(function(a, b)
      local y = a:matmul(b)
      return y:sum(1), y:sum(2), y:sum(), y:matmul(b:t())
    end, { precision = "bf16" })
    resin.no_grad(function()
      local rows, columns, all = fast(x, w)
      local y = x:double():matmul(w:double())
      for _, pair in ipairs { { rows, y:sum(1) }, { columns, y:sum(2) }, { all, y:sum() } } do
        assert.equal("f32", pair[1].dtype)
        assert.is_true(largest(pair[1]:double() - pair[2]) <= 300 * 2 ^ -9 * largest(y))
      end
    end)
  end)
end)
