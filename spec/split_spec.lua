-- Convolutions by split products (kernels/split_conv.h): no worse than f32 sums beside f64; infinities and NaN as the plain op gives
-- them; padding, steps, odd sizes. Without the tiles of AMX the same calls are computed by others, and the same holds.

local resin = require "resin"
local ops = require "resin.ops"
local images = require "spec.support.images"
local samples = require "spec.support.samples"

local highest, plain, with = images.portable, images.plain, images.with
local function block(x) return images.block(x, 16) end

-- Everything that a case needs; y is the shape of the result.
local function make(case, draw)
  local n, c, h, w, o, k, stride, padding = unpack(case)
  local oh, ow = math.floor((h + 2 * padding - k) / stride) + 1, math.floor((w + 2 * padding - k) / stride) + 1
  return {
    x = draw(n, c, h, w), w = draw(o, c, k, k), g = draw(n, o, oh, ow), c = c, o = o, oh = oh, ow = ow,
    opts = {stride = stride, padding = padding, channels = c, block_in = 16, block_out = 16},
    size = {n, c, h, w},
  }
end

local function forward(m, more)
  local opts = with(m.opts, more or {})
  return plain(ops.conv2d_block(block(m.x), m.w, m.bias, m.residual and block(m.residual), opts), m.o)
end

local function packed(m, more)
  local opts = with(m.opts, more or {})
  local pack = ops.conv2d_pack(m.w, with(opts, {input_size = m.size}))
  return plain(ops.conv2d_block(block(m.x), pack, m.bias, m.residual and block(m.residual), with(opts, {weight_size = m.w.shape})), m.o)
end

-- Is there no kernel of our own for it on this machine?
local function by_onednn(m)
  ops.conv2d_block(block(m.x), m.w, nil, nil, with(m.opts, {weight_size = m.w.shape}))
  return images.last_kernel() == "onednn"
end

local function data(m) return plain(ops.conv2d_block_data(block(m.g), m.w, nil, with(m.opts, {input_size = m.size})), m.c) end

-- n, c, h, w, o, k, stride, padding
local cases = {
  {2, 256, 14, 14, 64, 1, 1, 0}, {1, 64, 29, 31, 128, 3, 2, 1}, {16, 512, 4, 4, 64, 3, 1, 1}, {2, 128, 33, 32, 96, 2, 2, 0},
  {17, 96, 6, 5, 128, 3, 2, 1}, {1, 216, 30, 30, 136, 1, 1, 0}, {4, 512, 7, 7, 512, 3, 1, 1},
}

-- How an image is cut: a slice of channels at a time, all of it at once and split beside products, a few rows or several images in a task;
-- more taps than a chain has runs, blocks of the result without a second, a last tile with one pixel.
local cuts = {
  {1, 1056, 9, 9, 272, 1, 1, 0}, {1, 200, 23, 21, 176, 1, 1, 0}, {2, 96, 40, 41, 48, 3, 2, 1}, {5, 160, 13, 11, 144, 2, 1, 0},
  {2, 64, 33, 31, 80, 7, 2, 3}, {3, 1024, 14, 14, 80, 1, 2, 0}, {18, 288, 5, 4, 112, 3, 2, 1}, {1, 512, 7, 7, 528, 3, 1, 1},
}

local function normal(...) return resin.randn({...}) end
local function uniform(...) return resin.rand({...}) end
local function scaled(...) return resin.randn({...}) * (resin.randn({...}) * 4):exp() end

-- Errors are seen beside the sum of the products' sizes.
local function root(t) return math.sqrt((t * t):mean():item()) end

local function name_of(case) return table.concat(case, " ") end

-- Equal where finite, to rounding; infinities and NaN in the same places.
local function same(got, want)
  local a, b = got:reshape({-1}):totable(), want:reshape({-1}):totable()
  local most = 0
  for i = 1, #b do
    if b[i] == b[i] and math.abs(b[i]) < math.huge then most = math.max(most, math.abs(b[i])) end
  end
  for i = 1, #b do
    local x, y = a[i], b[i]
    if y ~= y then assert.is_true(x ~= x, string.format("%d: %g, not NaN", i, x))
    elseif math.abs(y) == math.huge then assert.equal(y, x)
    elseif x ~= x or math.abs(x - y) > 1e-5 * most then error(string.format("%d: %g, not %g", i, x, y)) end
  end
end

describe("convolutions by split products", function()
  resin.manual_seed(7)
  for name, draw in pairs {normal = normal, uniform = uniform, scaled = scaled} do
    for _, case in ipairs(cases) do
      it("are as exact as sums in f32: " .. name .. " " .. name_of(case), function()
        local m = make(case, draw)
        local o = {stride = case[7], padding = case[8]}
        local x, w, g = m.x:double(), m.w:double(), m.g:double()
        local exact, size = ops.conv2d(x, w, nil, o), ops.conv2d(x:abs(), w:abs(), nil, o)
        local loop = highest(function() return ops.conv2d(m.x, m.w, nil, o) end)
        local mine, theirs = root((forward(m):double() - exact) / size), root((loop:double() - exact) / size)
        assert.is_true(by_onednn(m) or mine <= theirs * 1.2, string.format("result: %g > %g", mine, theirs))
        o.input_size = m.size
        exact, size = ops.conv2d_backward_data(g, w, o), ops.conv2d_backward_data(g:abs(), w:abs(), o) + 1e-300
        loop = highest(function() return ops.conv2d_backward_data(m.g, m.w, o) end)
        mine, theirs = root((data(m):double() - exact) / size), root((loop:double() - exact) / size)
        if by_onednn(m) then return end       -- no tiles here: its Winograd has a bound of its own
        assert.is_true(mine <= theirs * 1.2, string.format("gradient: %g > %g", mine, theirs))
      end)
    end
  end

  for _, case in ipairs(cases) do
    it("keep infinities, NaN and what is too small to split: " .. name_of(case), function()
      local m = make(case, normal)
      m.w, m.bias, m.residual = m.w * 0.1, normal(m.o), normal(case[1], m.o, m.oh, m.ow)
      if by_onednn(m) then return end         -- no tiles here: its Winograd may pass a NaN on to neighbours
      local function both()
        local want = highest(function() return forward(m, {act = "relu"}) end)
        same(forward(m, {act = "relu"}), want)
        same(packed(m, {act = "relu"}), want)
        same(data(m), highest(function() return data(m) end))
      end
      both()
      for _, v in ipairs {math.huge, 0 / 0, 3.4e38} do
        m = make(case, normal)
        m.x:narrow(2, 3, 1):narrow(3, 1, 1):narrow(4, 2, 1):fill_(v)
        m.g:narrow(2, 5, 1):narrow(3, 1, 1):narrow(4, 1, 1):fill_(v)
        both()
      end
      m = make(case, normal)
      m.w:narrow(1, 3, 1):narrow(2, 2, 1):narrow(3, 1, 1):narrow(4, 1, 1):fill_(math.huge)
      both()
      m = make(case, normal)
      m.x, m.g = m.x * 1e-28, m.g * 1e-28
      m.w = m.w * 1e-5
      both()
    end)
  end

  for _, case in ipairs(cuts) do
    it("give the same on any number of threads, and what the plain op gives: " .. name_of(case), function()
      local m = make(case, normal)
      m.bias, m.residual = normal(m.o), normal(case[1], m.o, m.oh, m.ow)
      local threads, first = resin.get_num_threads(), nil
      for n = 1, 3 do
        resin.set_num_threads(n)
        local now = {forward(m, {act = "relu"}), packed(m), data(m)}
        first = first or now
        for i, t in ipairs(now) do assert.is_true(samples.difference(first[i], t) == 0, n .. " threads: " .. i) end
      end
      resin.set_num_threads(threads)
      same(first[1], highest(function() return forward(m, {act = "relu"}) end))
      same(first[2], highest(function() return packed(m) end))
      same(first[3], highest(function() return data(m) end))
    end)
  end
end)
