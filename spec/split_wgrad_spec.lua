-- Gradients of convolution weights by split products, and of bf16 by the same tiles, beside the plain sums: bands and edges of every
-- kind, how exact they are, and numbers out of their range.

local resin = require "resin"
local ops = require "resin.ops"
local images = require "spec.support.images"
local samples = require "spec.support.samples"

local last_kernel, exactly, on_threads = images.last_kernel, images.exactly, images.on_threads

local function block(x) return images.block(x, 16) end
local function last(x)                -- NHWC, bf16
  return ops.image_block(x, {channels = x.shape[2], from = 1, block = x.shape[2], dtype = "bf16"})
end

-- n, c, h, w, o, kh, kw, stride, padding, dilation
local cases = {
  {32, 64, 4, 4, 64, 3, 3, 1, 1, 1},       -- a member is an image
  {63, 72, 9, 12, 136, 3, 3, 2, 1, 1},     -- one image fewer than two groups; blocks that are not full
  {4, 64, 32, 30, 128, 2, 2, 2, 0, 1},     -- bands
  {1, 64, 58, 56, 64, 3, 3, 2, 1, 1},      -- bands of one image, the last ones shorter
  {7, 64, 17, 19, 48, 5, 3, 1, 2, 1},
  {32, 512, 14, 14, 544, 1, 1, 1, 0, 1},   -- more blocks than a task has; pixels as one row
  {32, 320, 15, 15, 256, 1, 3, 2, 1, 1},   -- rows that no tap sees
  {16, 112, 13, 16, 96, 3, 3, 1, 0, 2},
  {31, 64, 12, 15, 128, 3, 3, 3, 1, 2},
  {32, 96, 12, 12, 128, 3, 3, 2, 2, 2},    -- only every other pixel is seen
  {64, 64, 2, 3, 64, 3, 3, 1, 1, 1},       -- taps that see next to nothing
  {16, 64, 4, 4, 160, 5, 5, 1, 2, 1},
  {32, 64, 24, 24, 64, 3, 3, 2, 1, 1},     -- several tasks along the rows
}

local function operands(case)
  local n, c, h, w, o, kh, kw, stride, padding, dilation = unpack(case)
  local oh = math.floor((h + 2 * padding - dilation * (kh - 1) - 1) / stride) + 1
  local ow = math.floor((w + 2 * padding - dilation * (kw - 1) - 1) / stride) + 1
  resin.manual_seed(n + c + h)
  local plain = {stride = stride, padding = padding, dilation = dilation, weight_size = {o, c, kh, kw}}
  local blocks = {stride = stride, padding = padding, dilation = dilation, weight_size = {o, c, kh, kw}, channels = c, block_in = 16,
    block_out = 16}
  return resin.randn(n, c, h, w), resin.randn(n, o, oh, ow), plain, blocks
end

local function errors(y, want)
  local d = y:double() - want
  return d:abs():max():item() / want:abs():max():item(), math.sqrt((d * d):mean():item() / (want * want):mean():item())
end

local function splits()
  local x, g, _, options = operands(cases[1])
  ops.conv2d_block_weight(block(x), block(g), options)
  return last_kernel() == "split"
end

-- Infinities and NaN in the same places, the other numbers close, as parts of the largest finite one.
local function same_oddities(want, got, tolerance, value)
  local a, b = want:flatten():totable(), got:flatten():totable()
  local largest = 0
  for i = 1, #a do if math.abs(a[i]) < math.huge then largest = math.max(largest, math.abs(a[i])) end end
  for i = 1, #a do
    local same = a[i] == b[i] or (a[i] ~= a[i] and b[i] ~= b[i]) or math.abs(a[i] - b[i]) <= tolerance * largest
    if not same then error(("%g became %g for %g"):format(a[i], b[i], value)) end
  end
end

describe("gradients of weights by split products", function()
  local able = splits()

  for _, case in ipairs(cases) do
    it("are at least as exact as plain sums: " .. table.concat(case, ","), function()
      local x, g, plain, options = operands(case)
      local want = exactly(function() return ops.conv2d_backward_weight(x:double(), g:double(), plain) end)
      local direct = exactly(function() return ops.conv2d_block_weight(block(x), block(g), options) end)
      local most, mean = errors(direct, want)
      local got = ops.conv2d_block_weight(block(x), block(g), options)
      local most_split, mean_split = errors(got, want)
      if last_kernel() == "split" then
        assert.is_true(mean_split <= math.max(mean, 3e-7) and most_split <= math.max(1.5 * most, 6e-7),
          ("%g and %g, plain sums %g and %g"):format(most_split, mean_split, most, mean))
      end
    end)

    it("are the same bits on any number of threads: " .. table.concat(case, ","), function()
      local x, g, _, options = operands(case)
      local function run() return ops.conv2d_block_weight(block(x), block(g), options) end
      local first = on_threads(1, run)
      for _, count in ipairs {2, 3} do assert.equal(0, samples.difference(first, on_threads(count, run))) end
    end)
  end

  it("pass on what is not finite, and numbers out of their range", function()
    for _, case in ipairs {cases[1], cases[3], cases[13]} do
      for _, value in ipairs {math.huge, -math.huge, 0 / 0, 3e38, 1e-38} do
        local x, g, _, options = operands(case)
        x, g = block(x), block(g)
        if value == 1e-38 then x = x * value else x:select(1, 2):select(1, 1):select(1, 2):select(1, 2):select(1, 3):fill_(value) end
        local want = exactly(function() return ops.conv2d_block_weight(x, g, options) end)
        local got = ops.conv2d_block_weight(x, g, options)
        same_oddities(want, got, 1e-4, value)
      end
    end
  end)

  it("are what runs on this machine", function()
    if not able then pending("no tiles here") return end
    for i, case in ipairs(cases) do
      local x, g, _, options = operands(case)
      ops.conv2d_block_weight(block(x), block(g), options)
      assert.equal("split " .. i, last_kernel() .. " " .. i)
    end
  end)
end)

-- As above; channels that fill no block, taps in groups of every size, odd numbers of blocks.
local half_cases = {
  {32, 64, 4, 4, 64, 3, 3, 1, 1, 1},
  {63, 72, 9, 12, 136, 3, 3, 2, 1, 1},
  {7, 64, 17, 19, 48, 5, 3, 1, 2, 1},
  {32, 320, 15, 15, 256, 1, 3, 2, 1, 1},
  {16, 112, 13, 16, 96, 3, 3, 1, 0, 2},
  {16, 64, 4, 4, 160, 5, 5, 1, 2, 1},
  {32, 64, 24, 24, 64, 3, 3, 2, 1, 1},
  {2, 75, 30, 31, 53, 3, 3, 1, 1, 1},      -- bands of two images
  {16, 96, 20, 20, 125, 2, 2, 1, 1, 1},
  {4, 64, 21, 20, 77, 4, 4, 1, 2, 1},
  {5, 48, 25, 18, 64, 7, 7, 1, 3, 1},
  {16, 200, 14, 13, 180, 3, 1, 1, 1, 1},
  {16, 256, 14, 14, 256, 3, 3, 1, 1, 1},   -- more blocks than a task has
  {8, 64, 56, 56, 128, 1, 1, 2, 0, 1},
}

local function half_operands(case)
  local x, g, plain, options = operands(case)
  options.block_in, options.block_out = case[2], case[5]
  return last(x), last(g), plain, options
end

describe("gradients of weights of bf16 images by tiles", function()
  local function sums(case)
    local x, g, _, options = half_operands(case)
    return ops.conv2d_block_weight(x, g, options)
  end
  sums(half_cases[1])
  local able = last_kernel() == "split"

  for _, case in ipairs(half_cases) do
    it("are the sums of f32: " .. table.concat(case, ","), function()
      local x, g, plain, options = half_operands(case)
      local function image(y, channels) return ops.image_block(y, {channels = channels, from = channels, block = 1, dtype = "f32"}) end
      local a, b = image(x, case[2]), image(g, case[5])
      a, b = a:reshape(a.shape[1], a.shape[2], a.shape[3], a.shape[4]), b:reshape(b.shape[1], b.shape[2], b.shape[3], b.shape[4])
      local want = exactly(function() return ops.conv2d_backward_weight(a:double(), b:double(), plain) end)
      local got = ops.conv2d_block_weight(x, g, options)
      local most, mean = errors(got, want)
      assert.is_true(mean <= 2e-6 and most <= 4e-6, ("%g and %g by %s"):format(most, mean, last_kernel()))
      for _, count in ipairs {1, 2, 3} do assert.equal(0, samples.difference(got, on_threads(count, function() return sums(case) end))) end
    end)
  end

  it("pass on what is not finite", function()
    for _, case in ipairs {half_cases[2], half_cases[7], half_cases[8]} do
      for _, value in ipairs {math.huge, -math.huge, 0 / 0} do
        for which = 1, 2 do
          for _, at in ipairs {1, 4} do
            local x, g, _, options = half_operands(case)
            local image = which == 1 and x or g
            image:select(1, 1):select(1, 1):select(1, at):select(1, at):select(1, 3):fill_(value)
            local want = exactly(function() return ops.conv2d_block_weight(x, g, options) end)
            local got = ops.conv2d_block_weight(x, g, options)
            same_oddities(want, got, 1e-4, value)
          end
        end
      end
    end
  end)

  it("are what runs on this machine", function()
    if not able then pending("no tiles here") return end
    for i, case in ipairs(half_cases) do
      sums(case)
      assert.equal("split " .. i, last_kernel() .. " " .. i)
    end
  end)
end)
