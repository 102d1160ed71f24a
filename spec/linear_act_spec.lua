-- linear_act and linear_pack: a packed weight gives what the plain one gives, which is what separate ops give; threads change nothing.

local resin = require "resin"
local lib = require "resin.lib"
local ops = require "resin.ops"
local samples = require "spec.support.samples"

local C, ctx = lib.C, lib.ctx

local ACTS = {
  none = function(y) return y end,
  relu = function(y) return y:relu() end,
  gelu = function(y) return y:gelu() end,
  gelu_tanh = function(y) return y:gelu { approximate = "tanh" } end,
  tanh = function(y) return y:tanh() end,
  sigmoid = function(y) return y:sigmoid() end,
  silu = function(y) return y:silu() end,
}
-- rows, in, out: tails of panels, of runs of k, of tiles; one row and few rows; sizes that are cut among threads
local SIZES = { { 1, 8, 32 }, { 1, 32, 4 }, { 1, 256, 18 }, { 1, 33, 65 }, { 1, 1, 1 }, { 1, 700, 900 }, { 2, 7, 5 }, { 3, 64, 64 },
  { 4, 40, 33 }, { 7, 300, 17 }, { 8, 64, 64 }, { 13, 5, 100 }, { 33, 513, 48 }, { 250, 70, 90 }, { 300, 300, 200 },
  { 5, 0, 3 }, { 0, 4, 3 } }

local function make(m, k, n)
  resin.manual_seed(m * 1000 + k * 10 + n)
  return resin.randn { m, k }, resin.randn { n, k } * (1 / math.sqrt(math.max(k, 1))), resin.randn { n }, resin.randn { m, n }
end

local function rounded(t) return t:to("bf16"):to("f32") end

local function agree(a, b, tolerance, what)
  assert.same(a.shape, b.shape)
  local d = samples.difference(a, b)
  assert.is_true(d <= tolerance, string.format("%s differs by %g", what, d))
end

local function packed(x, w, bias, residual, act, weight_dtype, dtype)
  local p = ops.linear_pack(w, weight_dtype)
  return ops.linear_act(x, p, bias, residual,
    { act = act, out_features = w.shape[1], in_features = w.shape[2], weight_dtype = weight_dtype, dtype = dtype })
end

local function each_isa(fn)
  for _, isa in ipairs { "baseline", "avx2", "avx512" } do
    if C.rs_set_isa(ctx, isa) == 0 then fn(isa) end
  end
  C.rs_set_isa(ctx, "best")
end

describe("linear_act", function()
  teardown(function()
    C.rs_set_isa(ctx, "best")
    resin.set_num_threads(1)
  end)

  it("is linear, the activation and the sum", function()
    local x, w, bias, residual = make(13, 40, 50)
    for act, fn in pairs(ACTS) do
      local expected = fn(ops.linear(x, w, bias)) + residual
      agree(expected, ops.linear_act(x, w, bias, residual, act), 1e-6, act)
      agree(fn(ops.linear(x, w)), ops.linear_act(x, w, nil, nil, act), 1e-6, act)
    end
  end)

  it("gives with a packed weight what it gives with the plain one, on every instruction set", function()
    for _, size in ipairs(SIZES) do
      local x, w, bias, residual = make(size[1], size[2], size[3])
      for act in pairs(ACTS) do
        C.rs_set_isa(ctx, "best")
        local expected = ops.linear_act(x, w, bias, residual, act)
        each_isa(function(isa)
          agree(expected, packed(x, w, bias, residual, act, "f32"), 2e-6, table.concat(size, "x") .. " " .. act .. " " .. isa)
        end)
      end
    end
  end)

  it("reads a packed weight on another instruction set than the one that packed it", function()
    local x, w, bias = make(9, 70, 45)
    local p = {}
    each_isa(function(isa) p[isa] = ops.linear_pack(w) end)
    local expected = ops.linear_act(x, w, bias)
    for isa, panels in pairs(p) do
      each_isa(function(other)
        agree(expected, ops.linear_act(x, panels, bias, nil, { out_features = 45, in_features = 70 }), 2e-6, isa .. " to " .. other)
      end)
    end
  end)

  it("takes weights rounded to bf16 and keeps x as it is", function()
    for _, size in ipairs(SIZES) do
      local x, w, bias, residual = make(size[1], size[2], size[3])
      local expected = ops.linear_act(x, rounded(w), bias, residual, "gelu")
      each_isa(function(isa)
        agree(expected, packed(x, w, bias, residual, "gelu", "bf16"), 2e-6, table.concat(size, "x") .. " " .. isa)
      end)
    end
  end)

  it("computes in bf16 within its rounding, with any dtype of the result", function()
    for _, size in ipairs(SIZES) do
      local x, w, bias, residual = make(size[1], size[2], size[3])
      local expected = ops.linear_act(rounded(x), rounded(w), rounded(bias), rounded(residual), "silu")
      local h, b, r = x:to("bf16"), bias:to("bf16"), residual:to("bf16")
      each_isa(function(isa)
        local where = table.concat(size, "x") .. " " .. isa
        for _, weight in ipairs { "bf16", "f32" } do
          agree(expected, packed(h, rounded(w), b, r, "silu", weight, "f32"), 2e-6, where .. " f32")
          local narrow = packed(h, rounded(w), b, r, "silu", weight)
          assert.equal("bf16", narrow.dtype)
          agree(expected, narrow, 1 / 256, where .. " bf16")
        end
        agree(expected, ops.linear_act(h, w:to("bf16"), b, r, "silu", "f32"), 2e-6, where .. " plain, f32")
        agree(expected, ops.linear_act(h, w:to("bf16"), b, r, "silu"), 1 / 256, where .. " plain, bf16")
        agree(expected, ops.linear_act(h, w:to("bf16"), rounded(bias), rounded(residual), "silu", "f32"), 2e-6, where .. " f32 bias")
      end)
    end
  end)

  it("gives the same bits with 1, 2 and 3 threads", function()
    for _, size in ipairs { { 1, 700, 900 }, { 1, 2000, 1000 }, { 8, 600, 800 }, { 300, 300, 200 }, { 700, 200, 300 } } do
      local x, w, bias, residual = make(size[1], size[2], size[3])
      local h, b, r = x:to("bf16"), bias:to("bf16"), residual:to("bf16")
      local forms = {
        function() return packed(x, w, bias, residual, "gelu", "f32") end,
        function() return packed(x, w, bias, residual, "gelu", "bf16") end,
        function() return packed(h, w, b, r, "gelu", "bf16") end,
        function() return ops.linear_act(x, w, bias, residual, "gelu") end,
        function() return ops.linear_act(h, w:to("bf16"), b, r, "gelu") end,
      }
      for number, form in ipairs(forms) do
        resin.set_num_threads(1)
        local expected = samples.read(form())
        for threads = 2, 3 do
          resin.set_num_threads(threads)
          local got, n = samples.read(form())
          for i = 0, n - 1 do
            if got[i] ~= expected[i] then error(string.format("form %d, %d threads: element %d", number, threads, i + 1)) end
          end
        end
        resin.set_num_threads(1)
      end
    end
  end)

  it("says what does not fit", function()
    local x, w, bias = make(3, 8, 5)
    local p = ops.linear_pack(w)
    local function fails(pattern, ...)
      local ok, message = pcall(ops.linear_act, ...)
      assert.is_false(ok)
      assert.is_truthy(tostring(message):match(pattern), tostring(message))
    end
    fails("is not what linear_pack makes", x, p)
    fails("is not what linear_pack makes", x, p, { out_features = 5, in_features = 8, weight_dtype = "bf16" })
    fails("has 8 features but the weight", x, ops.linear_pack(resin.randn { 5, 7 }), { out_features = 5, in_features = 7 })
    fails("bias %[4%] must have shape %[5%]", x, w, resin.randn { 4 })
    fails("residual %[3, 4%] must have the shape", x, w, bias, resin.randn { 3, 4 })
    fails("weight is f32 but the input is f64", x:to("f64"), w)
    fails("packed weight holds", x:to("f64"), p, { out_features = 5, in_features = 8 })
  end)
end)
