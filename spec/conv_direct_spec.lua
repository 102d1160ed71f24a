-- Our own 1x1 convolutions and those of plain images with few channels, by FMA, beside the plain op: on every instruction set, one and
-- two threads, packed and not, with what is done at the end.

local resin = require "resin"
local lib = require "resin.lib"
local ops = require "resin.ops"
local images = require "spec.support.images"

local C, ctx = lib.C, lib.ctx
local block, plain, last_kernel, on_threads, with = images.block, images.plain, images.last_kernel, images.on_threads, images.with
local LANES, ACTS, with_isa = images.LANES, images.ACTS, images.with_isa

local function wave(shape, turn) return images.wave(shape, turn, 4) end

-- n, c, h, w, o, kh, kw, stride, padding, dilation; act, residual
local cases = {
  point = {
    { 1, 16, 7, 7, 16, 1, 1, 1, 0, 1, "relu6", false },
    { 2, 24, 13, 5, 40, 1, 1, 1, 0, 1, "relu", true },           -- images of an odd number of tiles, channels that do not fill a block
    { 1, 5, 1, 1, 3, 1, 1, 1, 0, 1, "none", false },
    { 1, 144, 56, 56, 24, 1, 1, 1, 0, 1, "none", true },
    { 3, 33, 4, 3, 100, 1, 1, 1, 0, 1, "relu6", true },
    { 1, 160, 7, 7, 960, 1, 1, 1, 0, 1, "relu6", false },        -- more weights than image
    { 1, 32, 112, 112, 16, 1, 1, 1, 0, 1, "none", false },
    { 5, 64, 14, 15, 72, 1, 1, 1, 0, 1, "relu", false },         -- tasks that begin and end in the middle of images
  },
  first = {
    { 1, 3, 56, 56, 32, 3, 3, 2, 1, 1, "relu6", false },
    { 2, 3, 47, 45, 64, 7, 7, 2, 3, 1, "relu", true },
    { 1, 1, 28, 28, 6, 5, 5, 1, 2, 1, "none", true },
    { 3, 4, 9, 33, 24, 3, 3, 1, 0, 1, "relu", false },
    { 1, 2, 3, 40, 20, 1, 4, 2, 2, 1, "none", true },
    { 1, 3, 30, 16, 48, 3, 3, 1, { 4, 1 }, { 3, 1 }, "relu6", false },
    { 2, 3, 20, 31, 33, 2, 2, { 3, 1 }, 0, 1, "none", false },
  },
}

for kernel, list in pairs(cases) do
  describe("direct convolutions, " .. kernel, function()
    for _, case in ipairs(list) do
      local n, c, h, w, o, kh, kw, stride, padding, dilation, act, residual = unpack(case, 1, 12)
      for _, isa in ipairs { "baseline", "avx2", "avx512" } do
        it(("are the same as plain: %dx%dx%dx%d to %d, %dx%d, %s"):format(n, c, h, w, o, kh, kw, isa), function()
          with_isa(isa, function()
            local b = LANES[isa]
            local from = kernel == "point" and b or 1
            local x, weight, bias = wave({ n, c, h, w }, 1), wave({ o, c, kh, kw }, 2), wave({ o }, 3)
            local attrs = { stride = stride, padding = padding, dilation = dilation }
            local y = ops.conv2d(x, weight, bias, attrs)
            local more = residual and wave(y.shape, 4)
            local expected = ACTS[act](more and y + more or y)
            local options = with(attrs, { channels = c, block_in = from, block_out = b, act = act, weight_size = weight.shape })
            local image, added = block(x, from), more and block(more, b) or nil
            local function run(filters, threads)
              local result = on_threads(threads, function() return ops.conv2d_block(image, filters, bias, added, options) end)
              if filters ~= weight or kernel == "first" or n * h * w >= 1024 then assert.equal(kernel, last_kernel()) end
              images.close(expected, plain(result, o), 1e-5 * (1 + expected:abs():max():item()), "y")
              return result
            end
            local pack = ops.conv2d_pack(weight, with(attrs, { channels = c, block_in = from, block_out = b, act = act,
              input_size = { n, c, h, w } }))
            assert.equal(kernel, last_kernel())
            local mine = run(pack, 1)
            assert.equal(0, (mine - run(pack, 2)):abs():max():item())
            assert.equal(0, (run(weight, 1) - run(weight, 2)):abs():max():item())
          end)
        end)
      end
    end

    it("add to where they write", function()
      local model = kernel == "point" and resin.nn.Conv2d(48, 48, 1) or resin.nn.Conv2d(3, 48, 3, { padding = 1 })
      local before = resin.nn.Conv2d(3, 48, 3, { padding = 1 })
      local last = resin.nn.Conv2d(48, 8, 1)
      local function f(x)
        local a = before(x):relu()
        return last((model(kernel == "point" and a or x) + a):relu())
      end
      local x = wave({ 1, 3, 40, 37 }, 1)
      resin.no_grad(function()
        local expected, got = f(x), resin.compile(f)(x)
        images.close(expected, got, 1e-5 * (1 + expected:abs():max():item()), "y")
      end)
    end)

    it("keep NaN and infinity where they are", function()
      local b = LANES[require "ffi".string(C.rs_get_isa(ctx))]
      local c = kernel == "point" and 16 or 3
      local from = kernel == "point" and b or 1
      local x = wave({ 1, c, 40, 40 }, 1)
      x[{ 1, 3, 5, 5 }], x[{ 1, 2, 9, 1 }] = 0 / 0, 1 / 0
      local weight = wave({ 16, c, 1, 1 }, 2):abs() + 1
      local result = ops.conv2d_block(block(x, from), weight, nil, nil, { channels = c, block_in = from, block_out = b, act = "relu6" })
      assert.equal(kernel, last_kernel())
      local y = plain(result, 16)
      assert.equal(16, y:isnan():float():sum():item())
      assert.equal(6, y[{ 1, 4, 9, 1 }]:item())
      assert.is_true(y[{ 1, 4, 5, 5 }]:item() ~= y[{ 1, 4, 5, 5 }]:item())
    end)
  end)
end
