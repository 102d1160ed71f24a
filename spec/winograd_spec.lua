-- Our own Winograd convolutions beside the direct ones: every edge of an image, channels that do not fill a block, and what is done
-- at the end; and how exact they are.

local ffi = require "ffi"
local resin = require "resin"
local lib = require "resin.lib"
local ops = require "resin.ops"
local images = require "spec.support.images"

local C, ctx = lib.C, lib.ctx
local copy, wave, block, plain, close = images.with, images.wave, images.block, images.plain, images.close
local last_kernel, on_threads = images.last_kernel, images.on_threads
local best = ffi.string(C.rs_get_isa(ctx))

-- By FMA, or by split products where AMX is there and the shape is worth it.
local function is_winograd() return last_kernel():match "^winograd" ~= nil end

-- The same by the portable direct kernels.
local function direct(f)
  local y, kernel = images.portable(f)
  assert.equal("plain", kernel)
  return y
end

-- n, c, h, w, o, padding; act, bias, residual
local cases = {
  {1, 32, 64, 64, 32, 1, "relu", true, true},
  {2, 16, 33, 31, 16, 1, "none", true, false},
  {5, 24, 21, 30, 40, 0, "relu6", true, true},
  {1, 64, 37, 50, 20, {0, 1}, "none", false, true},
  {3, 48, 18, 61, 17, {1, 0}, "relu", false, false},
  {40, 16, 9, 10, 33, 1, "none", true, false},
  {1, 9, 70, 66, 8, 2, "none", true, true},
  {64, 32, 4, 4, 32, 1, "relu", true, true},
  {130, 16, 3, 3, 16, 0, "none", true, false},          -- one output
  {2, 64, 5, 200, 64, 1, "none", true, false},
  {1, 64, 16, 15, 128, 1, "relu", true, true},          -- few tiles, then many, and weights that do not stay in the cache
  {1, 224, 30, 29, 160, 1, "none", true, true},
  {3, 130, 33, 34, 72, 1, "relu6", false, true},
}

-- Block and instruction set that belong together.
local sets = {{isa = "avx512", block = 16}, {isa = "avx2", block = 8}}

for _, set in ipairs(sets) do
  describe("Winograd on " .. set.isa, function()
    local b = set.block
    local here = set.isa == best or best == "avx512"
    local function each(f)
      if not here then return end
      assert.equal(0, C.rs_set_isa(ctx, set.isa))
      local ok, message = pcall(f)
      C.rs_set_isa(ctx, best)
      if not ok then error(message, 0) end
    end

    for _, case in ipairs(cases) do
      local n, c, h, w, o, padding, act, with_bias, with_residual = unpack(case, 1, 9)
      local ph, pw = type(padding) == "table" and padding[1] or padding, type(padding) == "table" and padding[2] or padding
      local oh, ow = h + 2 * ph - 2, w + 2 * pw - 2
      local name = table.concat({n, c, h, w, o, ph, pw}, "x")
      local opts = {padding = padding, channels = c, block_in = b, block_out = b}
      local forward = copy(opts, {act = act, weight_size = {o, c, 3, 3}})
      local function make()
        local x = block(wave({n, c, h, w}, 1), b)
        local weight = wave({o, c, 3, 3}, 2) * (1 / math.sqrt(c * 9))
        return x, weight, with_bias and wave({o}, 3) or nil, with_residual and block(wave({n, o, oh, ow}, 4), b) or nil
      end

      it("computes what the direct form does: " .. name, function()
        each(function()
          local x, weight, bias, residual = make()
          local expected = direct(function() return ops.conv2d_block(x, weight, bias, residual, forward) end)
          local y = ops.conv2d_block(x, weight, bias, residual, forward)
          assert.is_true(is_winograd())
          close(expected, y, 1e-5, "y")
          close(y, block(plain(y, o), b), 0, "y without what fills its blocks")
          local pack = ops.conv2d_pack(weight, copy(opts, {act = act, input_size = {n, c, h, w}}))
          assert.is_true(is_winograd())
          close(y, ops.conv2d_block(x, pack, bias, residual, forward), 0, "y of packed weights")
          assert.is_true(is_winograd())
        end)
      end)

      it("computes the gradient for x: " .. name, function()
        each(function()
          local _, weight = make()
          local g, bias = block(wave({n, o, oh, ow}, 5), b), with_bias and wave({c}, 6) or nil
          local function run() return ops.conv2d_block_data(g, weight, bias, copy(opts, {input_size = {n, c, h, w}})) end
          local expected = direct(run)
          local y = run()
          assert.is_true(is_winograd())
          close(expected, y, 1e-5, "gradient")
          close(y, block(plain(y, c), b), 0, "gradient without what fills its blocks")
        end)
      end)

      it("gives the same bits on any number of threads: " .. name, function()
        each(function()
          local x, weight, bias, residual = make()
          local g = block(wave({n, o, oh, ow}, 5), b)
          local function run() return ops.conv2d_block(x, weight, bias, residual, forward) end
          local function data() return ops.conv2d_block_data(g, weight, nil, copy(opts, {input_size = {n, c, h, w}})) end
          local y, gx = on_threads(1, run), on_threads(1, data)
          for _, count in ipairs {2, 3} do
            close(y, on_threads(count, run), 0, "y")
            close(gx, on_threads(count, data), 0, "gradient")
          end
        end)
      end)
    end

    it("lets a NaN spread no further than the tiles that see it", function()
      each(function()
        local x, weight = wave({1, 16, 64, 64}, 1), wave({16, 16, 3, 3}, 2)
        x[1][3][2][2] = 0 / 0
        local opts = {padding = 1, channels = 16, block_in = b, block_out = b, act = "relu"}
        local blocks = ops.conv2d_block(block(x, b), weight, opts)
        assert.is_true(is_winograd())
        local y = plain(blocks, 16)
        assert.is_true(y[1][1][1][1]:item() ~= y[1][1][1][1]:item())
        assert.is_true(y[1][1][9][9]:item() == y[1][1][9][9]:item())
      end)
    end)
  end)
end

describe("Winograd", function()
  local b = best == "avx512" and 16 or 8
  local x, weight = nil, nil
  local opts = {padding = 1, channels = 64, block_in = b, block_out = b}
  before_each(function()
    resin.manual_seed(1)
    x, weight = resin.randn({2, 64, 64, 64}), resin.randn({64, 64, 3, 3})
  end)

  it("has an error near that of the direct form", function()
    if best == "baseline" then return end
    local exact = x:to("f64"):conv2d(weight:to("f64"), {padding = 1})
    local function err(y)
      local d = plain(y, 64):reshape({2, 64, 64, 64}):to("f64") - exact
      return math.sqrt((d * d):mean():item() / (exact * exact):mean():item())
    end
    local xb = block(x, b)
    local yb = ops.conv2d_block(xb, weight, opts)
    assert.is_true(is_winograd())
    local winograd = err(yb)
    local plainly = err(direct(function() return ops.conv2d_block(xb, weight, opts) end))
    assert.is_true(winograd < 1.5e-6, winograd)
    assert.is_true(plainly < winograd, plainly)
  end)

  it("is not used where the highest precision is asked for", function()
    C.rs_set_precision(ctx, "highest")
    ops.conv2d_block(block(x, b), weight, opts)
    local kernel = last_kernel()
    C.rs_set_precision(ctx, "default")
    assert.not_equal("winograd", kernel)
  end)

  it("refuses weights that were packed for another block or by another kernel", function()
    if best == "baseline" then return end
    local to_pack = copy(opts, {input_size = {2, 64, 64, 64}})
    local pack = ops.conv2d_pack(weight, to_pack)
    assert.is_true(is_winograd())
    local small = block(resin.randn({2, 48, 64, 64}), b)
    assert.has_error(function() ops.conv2d_block(small, pack, copy(opts, {channels = 48, weight_size = {64, 48, 3, 3}})) end)
    local portable = direct(function() return ops.conv2d_pack(weight, to_pack) end)
    local y = ops.conv2d_block(block(x, b), weight, opts)
    local same = ops.conv2d_block(block(x, b), portable, copy(opts, {weight_size = {64, 64, 3, 3}}))
    assert.equal("plain", last_kernel())
    close(y, same, 1e-4, "y")
  end)
end)

-- What tiles cannot compute is computed by direct sums: where the direct form has an infinity or NaN, and nowhere else, there is one.
describe("Winograd by split products", function()
  if best ~= "avx512" then return end
  local x0, form = block(wave({1, 64, 16, 16}, 1), 16), {padding = 1, channels = 64, block_in = 16, block_out = 16}
  ops.conv2d_block(x0, wave({64, 64, 3, 3}, 2), nil, nil, form)
  if last_kernel() ~= "winograd_split" then return end

  -- n, c, h, w, o
  local shapes = {{1, 64, 37, 30, 64}, {2, 40, 18, 21, 24}, {1, 64, 16, 15, 128}}

  -- Equal where finite, to rounding; infinities and NaN in the same places.
  local function same(got, want)
    local a, b, most = got:reshape({-1}):totable(), want:reshape({-1}):totable(), 0
    for i = 1, #b do
      if math.abs(b[i]) < math.huge then most = math.max(most, math.abs(b[i])) end
    end
    for i = 1, #b do
      local x, y = a[i], b[i]
      if y ~= y then assert.is_true(x ~= x, ("%d: %g, not NaN"):format(i, x))
      elseif math.abs(y) == math.huge then assert.equal(y, x)
      elseif x ~= x or math.abs(x - y) > 2e-5 * most then error(("%d: %g, not %g"):format(i, x, y)) end
    end
  end

  for _, shape in ipairs(shapes) do
    local n, c, h, w, o = unpack(shape)
    local opts = {padding = 1, channels = c, block_in = 16, block_out = 16, act = "relu"}
    local x, weight, bias, residual, g
    local function forward() return plain(ops.conv2d_block(block(x, 16), weight, bias, block(residual, 16), opts), o) end
    local function packed()
      local pack = ops.conv2d_pack(weight, copy(opts, {input_size = {n, c, h, w}}))
      return plain(ops.conv2d_block(block(x, 16), pack, bias, block(residual, 16), copy(opts, {weight_size = {o, c, 3, 3}})), o)
    end
    local function data()
      return plain(ops.conv2d_block_data(block(g, 16), weight, nil, {padding = 1, channels = c, block_in = 16, block_out = 16,
                                                                     input_size = {n, c, h, w}}), c)
    end
    local function check()
      for name, f in pairs {forward = forward, packed = packed, data = data} do
        local ok, message = pcall(same, f(), (images.portable(f)))
        if not ok then error(name .. ": " .. tostring(message), 0) end
        local one, two = on_threads(1, f):reshape({-1}):totable(), on_threads(2, f):reshape({-1}):totable()
        for i = 1, #one do
          if one[i] ~= two[i] and one[i] == one[i] then error(("%s: %d differs on two threads"):format(name, i), 0) end
        end
      end
    end
    before_each(function()
      resin.manual_seed(5)
      x, weight, bias = resin.randn({n, c, h, w}), resin.randn({o, c, 3, 3}) * 0.1, resin.randn({o})
      residual, g = resin.randn({n, o, h, w}), resin.randn({n, o, h, w})
    end)

    local title = table.concat(shape, "x")
    it("has infinities and NaN where the direct form has them: " .. title, function()
      check()
      for _, v in ipairs {math.huge, -math.huge, 0 / 0, 3.4e38} do
        for _, at in ipairs {{1, 1}, {6, 8}, {h, w}} do
          local i, j = at[1], at[2]
          x:narrow(2, 3, 1):narrow(3, i, 1):narrow(4, j, 1):fill_(v)
          g:narrow(2, 5, 1):narrow(3, i, 1):narrow(4, j, 1):fill_(v)
          check()
          x:narrow(2, 3, 1):narrow(3, i, 1):narrow(4, j, 1):fill_(1)
          g:narrow(2, 5, 1):narrow(3, i, 1):narrow(4, j, 1):fill_(1)
        end
      end
    end)

    it("has them where a weight has them: " .. title, function()
      weight:narrow(1, 3, 1):narrow(2, 2, 1):narrow(3, 2, 1):narrow(4, 2, 1):fill_(math.huge)
      check()
    end)

    it("computes what is too small to split: " .. title, function()
      x, g, weight = x * 1e-28, g * 1e-28, weight * 1e-4
      bias, residual = bias * 0, residual * 0
      check()
    end)
  end
end)
