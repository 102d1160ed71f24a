-- f32 products by split tiles (src/kernels/split_tiles.h): as exact as a loop of FMA, and right for every number that f32 has.
-- Where the machine has no such tiles both sides are the same loops, and the specs hold all the more.

local resin = require "resin"

-- Each has its reason: odd sizes, more than one chunk of k, more strips than stay, transposes, few rows.
local shapes = {
  { 64, 512, 96 }, { 129, 517, 65 }, { 300, 1100, 700 }, { 33, 2050, 40 }, { 96, 96, 1300 }, { 1100, 300, 70 }, { 256, 256, 256 },
}

-- The largest error, relative to the sum of the products' magnitudes, which is what rounding is bounded by.
local function error_of(c, a, b)
  local wide_a, wide_b = a:to "f64", b:to "f64"
  return ((c:to "f64" - wide_a:matmul(wide_b)):abs() / (wide_a:abs():matmul(wide_b:abs()) + 1e-300)):amax():item()
end

local function both(fn)
  resin.set_precision "highest"
  local plain = fn()
  resin.set_precision "default"
  return plain, fn()
end

local function same_everywhere(a, b, what)
  local x, y = a:flatten():totable(), b:flatten():totable()
  for i = 1, #x do
    if not (x[i] == y[i] or (x[i] ~= x[i] and y[i] ~= y[i])) then error(("%s: element %d is %g and %g"):format(what, i, x[i], y[i])) end
  end
end

describe("split products", function()
  before_each(function()
    resin.manual_seed(11)
    resin.set_grad_enabled(false)
  end)
  after_each(function()
    resin.set_precision "default"
    resin.set_grad_enabled(true)
  end)

  it("are as exact as a plain loop", function()
    local kinds = {
      normal = resin.randn, uniform = resin.rand,
      scaled = function(size) return resin.randn(size) * (resin.randn(size) * 8):exp() end,      -- some magnitudes of e^±24
    }
    for name, make in pairs(kinds) do
      for _, s in ipairs(shapes) do
        local a, b = make { s[1], s[2] }, make { s[2], s[3] }
        local plain, split = both(function() return error_of(a:matmul(b), a, b) end)
        -- one rounding of f32 is 6e-8; a loop over k has k of them, most of which cancel
        assert.is_true(split <= math.max(1.5 * plain, 1.2e-7), ("%s %dx%dx%d: %g, plain %g"):format(name, s[1], s[2], s[3], split, plain))
      end
    end
  end)

  it("take operands as they lie", function()
    for _, s in ipairs(shapes) do
      local a, b = resin.randn { s[1], s[2] }, resin.randn { s[2], s[3] }
      local at, bt = a:t():contiguous():t(), b:t():contiguous():t()
      local spread = resin.stack({ a, -a }, 3):select(3, 1)        -- every second element
      for _, x in ipairs { a, at, spread } do
        for _, y in ipairs { b, bt } do
          local e = error_of(x:matmul(y), a, b)
          assert.is_true(e < 1e-6, e)
        end
      end
    end
  end)

  it("do batches, shared and each on its own", function()
    for _, s in ipairs { { 3, 96, 96, 128 }, { 9, 48, 300, 64 }, { 2, 640, 300, 520 } } do
      local a, b, shared = resin.randn { s[1], s[2], s[3] }, resin.randn { s[1], s[3], s[4] }, resin.randn { s[3], s[4] }
      local y, z = a:matmul(b), a:matmul(shared)
      for i = 1, s[1] do
        assert.is_true(error_of(y[i], a[i], b[i]) < 1e-6)
        assert.is_true(error_of(z[i], a[i], shared) < 1e-6)
      end
    end
  end)

  it("keep a shared operand packed between the products of a batch", function()
    -- m, k, n: it stays or passes by, in one chunk of k or more, whole or in parts
    for _, s in ipairs { { 96, 300, 400 }, { 400, 300, 96 }, { 64, 1100, 96 }, { 1200, 500, 1300 }, { 1200, 380, 1250 } } do
      local a, b = resin.randn { 2, 1, s[1], s[2] }, resin.randn { 2, 5, s[2], s[3] }
      local y, z, one = a:matmul(b), b:transpose(3, 4):matmul(a:transpose(3, 4)), a[1][1]:matmul(b[1])
      for i = 1, 2 do
        for j = 1, 5 do
          local alone, what = a[i][1]:matmul(b[i][j]), ("%dx%dx%d, product %d %d"):format(s[1], s[2], s[3], i, j)
          same_everywhere(alone, y[i][j], what)
          if i == 1 then same_everywhere(alone, one[j], what .. ", one operand for all") end
          assert.is_true(error_of(z[i][j], b[i][j]:t(), a[i][1]:t()) < 1e-6)
        end
      end
    end
  end)

  it("give infinities and NaN where a plain loop does", function()
    local huge = math.huge
    for _, odd in ipairs { huge, -huge, 0 / 0, 3.4e38 } do
      local a, b = resin.randn { 96, 600 }, resin.randn { 600, 96 }
      a[{ 17, 530 }] = odd
      b[{ 3, 70 }] = odd
      local plain, split = both(function() return a:matmul(b) end)
      local kind = function(t) return t:isfinite():to "f32" + t:isnan():to "f32" * 2 end
      same_everywhere(kind(plain), kind(split), tostring(odd))
      local away = plain:isfinite():logical_not()
      plain, split = plain:masked_fill(away, 0), split:masked_fill(away, 0)
      assert.is_true((plain - split):abs():amax():item() <= 1e-6 * plain:abs():amax():item())
    end
  end)

  it("keep the precision of tiny numbers", function()
    for _, scale in ipairs { 1e-30, 1e-36, 1e-38 } do
      local a, b = resin.randn { 64, 320 } * scale, resin.randn { 320, 64 }
      local plain, split = both(function() return error_of(a:matmul(b), a, b) end)
      assert.is_true(split <= 1.5 * plain + 1.2e-7, ("%g: %g, plain %g"):format(scale, split, plain))
    end
  end)

  it("give the same bits on any number of threads", function()
    local before = resin.get_num_threads()
    local a, b = resin.randn { 700, 900 }, resin.randn { 900, 500 }
    local c, d = resin.randn { 8, 96, 96 }, resin.randn { 8, 96, 128 }
    resin.set_num_threads(1)
    local x, y = a:matmul(b), c:matmul(d)
    for _, threads in ipairs { 2, 3, 4 } do
      resin.set_num_threads(threads)
      same_everywhere(x, a:matmul(b), threads)
      same_everywhere(y, c:matmul(d), threads)
    end
    resin.set_num_threads(before)
  end)

  it("end in bias, activation and sum", function()
    local nn = resin.nn
    local layer = nn.Linear(300, 200):eval()
    local model = nn.Sequential(layer, nn.ReLU())
    local x, more = resin.randn { 150, 300 }, resin.randn { 150, 200 }
    local fast = resin.compile(function(a, b) return model(a) + b end)
    local expected = (x:to "f64"):matmul(layer.weight:to("f64"):t()) + layer.bias:to "f64"
    expected = expected:relu() + more:to "f64"
    local e = (fast(x, more):to "f64" - expected):abs():amax():item()
    assert.is_true(e < 1e-5, e)
  end)
end)
