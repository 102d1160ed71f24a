-- Convolutions of bf16 images by the tiles (kernels/split_conv.h with one part): what the portable kernels give, to the last rounding;
-- odd sizes, padding, steps, channels that fill no tile, residuals; packed weights and others. Without the tiles of AMX the same calls
-- are computed by others, and the same holds.

local resin = require "resin"
local lib = require "resin.lib"
local ops = require "resin.ops"
local images = require "spec.support.images"
local samples = require "spec.support.samples"

local C, ctx = lib.C, lib.ctx
local portable, with = images.portable, images.with

-- Numbers that are exact in bf16, as an image [n, 1, h, w, channels] in bf16 or a weight in f32.
local function image(n, c, h, w) return resin.randn({n, 1, h, w, c}):to "bf16" end
local function weight(...) return (resin.randn({...})):to("bf16"):to "f32" end

-- n, c, h, w, o, k, stride, padding
local cases = {
  {1, 64, 29, 31, 128, 3, 1, 1}, {2, 24, 17, 15, 40, 3, 1, 1}, {3, 216, 9, 11, 136, 1, 1, 0}, {1, 64, 5, 7, 512, 1, 1, 0},
  {2, 128, 13, 9, 64, 1, 2, 0}, {2, 48, 33, 30, 96, 3, 2, 1}, {1, 16, 64, 63, 16, 5, 1, 2}, {2, 32, 16, 18, 80, 2, 2, 0},
  {17, 96, 6, 5, 128, 3, 2, 1}, {35, 256, 4, 4, 320, 3, 1, 1}, {4, 512, 8, 8, 256, 3, 1, 1}, {1, 512, 3, 3, 136, 1, 1, 0},
  {1, 40, 40, 70, 24, 3, 1, 0}, {32, 64, 1, 1, 512, 3, 1, 1}, {1, 160, 20, 20, 512, 3, 1, 1}, {2, 33, 15, 15, 31, 3, 2, 1},
}

local function make(case)
  local n, c, h, w, o, k, stride, padding = unpack(case)
  local oh, ow = math.floor((h + 2 * padding - k) / stride) + 1, math.floor((w + 2 * padding - k) / stride) + 1
  return {
    x = image(n, c, h, w), w = weight(o, c, k, k), g = image(n, o, oh, ow), bias = resin.randn {o}, channel = resin.randn {c},
    opts = {stride = stride, padding = padding, channels = c, block_in = c, block_out = o, dtype = "bf16"}, size = {n, c, h, w},
  }
end

local function forward(m, w, act, bias, residual)
  return ops.conv2d_block(m.x, w, bias, residual, with(m.opts, {act = act, weight_size = m.w.shape}))
end

local function pack(m, act) return ops.conv2d_pack(m.w, with(m.opts, {act = act, input_size = m.size, input_dtype = "bf16"})) end
local function data(m, bias) return ops.conv2d_block_data(m.g, m.w, bias, with(m.opts, {input_size = m.size})) end

-- Beside the largest; one rounding to bf16 is half of 1/128 of a number.
local function agree(got, want)
  local d = samples.difference(want, got)
  assert.is_true(d <= 1 / 128, d)
end

local function places_of_nan(t)
  local list = {}
  for i, v in ipairs(t:to("f32"):reshape({-1}):totable()) do
    if v ~= v then list[#list + 1] = i end
  end
  return list
end

describe("convolutions of bf16 images", function()
  for _, case in ipairs(cases) do
    local name = table.concat(case, " ")

    it("are those of the portable kernels: " .. name, function()
      resin.manual_seed(7)
      local m = make(case)
      agree(forward(m, m.w), portable(function() return forward(m, m.w) end))
      agree(forward(m, pack(m)), portable(function() return forward(m, m.w) end))
      for _, act in ipairs {"relu", "relu6"} do
        local want = portable(function() return forward(m, m.w, act, m.bias, m.g) end)
        agree(forward(m, m.w, act, m.bias, m.g), want)
        agree(forward(m, pack(m, act), act, m.bias, m.g), want)
      end
    end)

    it("have the gradients of the portable kernels: " .. name, function()
      resin.manual_seed(8)
      local m = make(case)
      agree(data(m), portable(function() return data(m) end))
      agree(data(m, m.channel), portable(function() return data(m, m.channel) end))
    end)

    it("give the same bits on any number of threads: " .. name, function()
      resin.manual_seed(9)
      local m = make(case)
      local threads, first = C.rs_get_num_threads(ctx), nil
      for _, count in ipairs {1, 2, 3} do
        C.rs_set_num_threads(ctx, count)
        local y, d = forward(m, m.w, "relu", m.bias, m.g), data(m)
        first = first or {y, d}
        assert.equal(0, samples.difference(first[1], y))
        assert.equal(0, samples.difference(first[2], d))
      end
      C.rs_set_num_threads(ctx, threads)
    end)
  end

  it("give NaN where a number that is none takes part, and nowhere else", function()
    for _, case in ipairs {{1, 64, 29, 31, 64, 3, 1, 1}, {2, 64, 15, 13, 48, 1, 1, 0}, {16, 128, 4, 4, 128, 3, 1, 1}} do
      local m = make(case)
      local values = m.x:to("f32"):reshape({-1}):totable()
      values[#values - 3 * case[2]] = 0 / 0
      m.x = resin.tensor(values):reshape(m.x.shape):to "bf16"
      local want = places_of_nan(portable(function() return forward(m, m.w) end))
      assert.is_true(#want > 0)
      assert.same(want, places_of_nan(forward(m, m.w)))
    end
  end)

  it("write infinity for what no bf16 holds", function()
    local m = make {1, 64, 16, 16, 64, 1, 1, 0}
    m.x, m.w = resin.ones({1, 1, 16, 16, 64}):to("bf16") * 1e38, resin.ones {64, 64, 1, 1}
    local y = forward(m, m.w):to "f32"
    assert.equal(math.huge, y:amin():item())
  end)
end)
