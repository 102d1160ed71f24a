-- matmul and linear in bf16, and matmul_acc: sums are f32, threads and instruction sets agree, gradients flow.

local ffi = require "ffi"
local resin = require "resin"
local lib = require "resin.lib"
local ops = require "resin.ops"
local samples = require "spec.support.samples"

local C, ctx = lib.C, lib.ctx

-- {rows, inner, columns}: below, at and above the sides of tiles, panels and runs
local SIZES = { { 1, 1, 1 }, { 3, 5, 7 }, { 16, 32, 32 }, { 17, 33, 31 }, { 40, 64, 96 }, { 5, 600, 40 },
  { 300, 70, 33 }, { 270, 1100, 65 }, { 64, 0, 8 }, { 0, 4, 4 }, { 4, 4, 0 } }

local function rounded(...) return resin.randn { ... }:to("bf16") end

local function agree(a, b, tolerance, what)
  assert.same(a.shape, b.shape)
  local d = samples.difference(a, b)
  assert.is_true(d <= tolerance, string.format("%s differs by %g", what, d))
end

local function each_isa(fn)
  for _, isa in ipairs { "baseline", "avx2", "avx512" } do
    if C.rs_set_isa(ctx, isa) == 0 then fn(isa) end
  end
  C.rs_set_isa(ctx, "best")
end

-- The same matrix, stored by columns.
local function by_columns(t) return t:transpose(1, 2):contiguous():transpose(1, 2) end
describe("bf16 products", function()
  setup(function() resin.manual_seed(5) end)
  teardown(function()
    C.rs_set_isa(ctx, "best")
    resin.set_num_threads(1)
  end)

  it("are those of f32, rounded at the end if at all, however the operands lie", function()
    for _, size in ipairs(SIZES) do
      local m, k, n = size[1], size[2], size[3]
      local a, b = rounded(m, k), rounded(k, n)
      local expected = a:to("f32"):matmul(b:to("f32"))
      each_isa(function(isa)
        for form = 1, 4 do
          local x = form % 2 == 0 and by_columns(a) or a
          local y = form > 2 and by_columns(b) or b
          local where = table.concat(size, "x") .. " form " .. form .. " " .. isa
          local wide, narrow = ops.matmul(x, y, "f32"), ops.matmul(x, y)
          assert.equal("f32", wide.dtype)
          assert.equal("bf16", narrow.dtype)
          agree(expected, wide, 2e-6 * math.max(1, math.sqrt(k)), where)
          agree(expected, narrow, 1 / 256, where .. " bf16")
        end
      end)
    end
  end)

  it("of batches and vectors agree too", function()
    local shapes_of = { { { 3, 20, 40 }, { 3, 40, 33 } }, { { 2, 3, 4, 36 }, { 36, 5 } }, { { 40 }, { 40, 6 } }, { { 6, 40 }, { 40 } } }
    for _, shapes in ipairs(shapes_of) do
      local a, b = rounded(unpack(shapes[1])), rounded(unpack(shapes[2]))
      each_isa(function(isa) agree(a:to("f32"):matmul(b:to("f32")), ops.matmul(a, b, "f32"), 1e-5, isa) end)
    end
  end)

  it("give linear with its bias", function()
    for _, size in ipairs(SIZES) do
      local x, w, bias = rounded(size[1], size[2]), rounded(size[3], size[2]), rounded(size[3])
      local expected = ops.linear(x:to("f32"), w:to("f32"), bias:to("f32"))
      each_isa(function(isa) agree(expected, ops.linear(x, w, bias), 1 / 256, table.concat(size, "x") .. " " .. isa) end)
    end
  end)

  it("have the gradients of f32", function()
    local x, w, bias = rounded(40, 70), rounded(50, 70), rounded(50)
    local g = rounded(40, 50)
    local function gradients(dtype)
      local leaves = {}
      for i, t in ipairs { x, w, bias } do leaves[i] = t:to(dtype):clone():requires_grad_(true) end
      local loss = (ops.linear(leaves[1], leaves[2], leaves[3]) * g:to(dtype)):sum()
      return resin.grad(loss, leaves)
    end
    local expected, got = gradients("f32"), gradients("bf16")
    for i = 1, 3 do
      assert.equal("bf16", got[i].dtype)
      agree(expected[i], got[i], 1 / 100, "gradient " .. i)
    end
  end)

  it("with mixed inputs are computed in f32", function()
    local x, w = rounded(5, 7), resin.randn { 3, 7 }
    local y = ops.linear(x, w)
    assert.equal("bf16", y.dtype)
    agree(ops.linear(x:to("f32"), w), y, 1 / 256, "mixed")
  end)

  it("have the same bits with 1, 2 and 3 threads", function()
    local a, b = rounded(700, 300), rounded(300, 500)
    local expected = samples.read(ops.matmul(a, b, "f32"))
    for threads = 2, 3 do
      resin.set_num_threads(threads)
      local got, n = samples.read(ops.matmul(a, b, "f32"))
      for i = 0, n - 1 do assert(got[i] == expected[i]) end
    end
    resin.set_num_threads(1)
  end)

  it("refuse another dtype of the result", function()
    local ok, message = pcall(ops.matmul, resin.randn { 2, 2 }, resin.randn { 2, 2 }, "bf16")
    assert.is_false(ok)
    assert.is_truthy(tostring(message):match("the result of f32 inputs cannot be bf16"), tostring(message))
  end)
end)

describe("matmul_acc", function()
  local function add(a, b, c)
    local out, handles = ffi.new("rs_tensor *[1]"), ffi.new("rs_tensor *[3]", a.h, b.h, c.h)
    local status = C.rs_call(ctx, C.RS_OP_matmul_acc, handles, 3, nil, out)
    return status == 0, status ~= 0 and ffi.string(C.rs_last_error()) or nil
  end

  it("adds a product to what is there", function()
    for _, size in ipairs(SIZES) do
      for _, dtype in ipairs { "f32", "f64", "bf16" } do
        local a, b = rounded(size[1], size[2]):to(dtype), rounded(size[2], size[3]):to(dtype)
        local into = dtype == "bf16" and "f32" or dtype
        local c = resin.randn { size[1], size[3] }:to(into)
        local expected = c + a:to(into):matmul(b:to(into))
        each_isa(function(isa)
          local copy = c:clone()
          assert(add(by_columns(a), b, copy))
          agree(expected, copy, 2e-6 * math.max(1, math.sqrt(size[2])), table.concat(size, "x") .. " " .. dtype .. " " .. isa)
        end)
      end
    end
  end)

  it("says what does not fit, and that the target must not be read", function()
    local a = resin.randn { 4, 4 }
    local ok, message = add(a, a, resin.randn { 4, 5 })
    assert.is_false(ok)
    assert.is_truthy(message:match("cannot be added to"), message)
    ok, message = add(a, a, a)
    assert.is_false(ok)
    assert.is_truthy(message:match("must not share memory"), message)
    ok, message = add(a, a, resin.randn { 4, 4 }:transpose(1, 2))
    assert.is_false(ok)
    assert.is_truthy(message:match("must be contiguous"), message)
    ok, message = add(a, a, resin.zeros({ 4, 4 }, { dtype = "f64" }))
    assert.is_false(ok)
    assert.is_truthy(message:match("a product of f32 cannot be added to f64"), message)
  end)
end)
