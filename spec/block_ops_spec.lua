-- Batch norm, pooling and channel sums of images in block form give what the plain ops give: for several blocks, in f32 and bf16,
-- with the same bits on any number of threads; channels that only fill a block stay zeros.

local resin = require "resin"
local grad = require "resin.grad"
local ops = require "resin.ops"
local samples = require "spec.support.samples"

-- N, C, H, W: odd planes, many small planes, one plane of several pieces, blocks that are wider than a task's columns
local SIZES = { { 3, 20, 7, 9 }, { 9, 33, 4, 4 }, { 2, 16, 80, 70 }, { 2, 600, 3, 5 }, { 5, 3, 12, 6 }, { 2, 64, 1, 1 } }

local function blocks_of(channels)
  local list, seen = {}, {}
  for _, b in ipairs { 1, 8, 16, channels } do
    if not seen[b] then list[#list + 1] = b end
    seen[b] = true
  end
  return list
end

local function groups(channels, b) return math.ceil(channels / b) end

-- [N, C, H, W] -> [N, G, H, W, b]
local function to_block(x, b)
  local s = x.shape
  local g = groups(s[2], b)
  local fill = g * b - s[2]
  if fill > 0 then x = ops.cat({ x, resin.zeros({ s[1], fill, s[3], s[4] }, { dtype = x.dtype }) }, 2) end
  return x:reshape { s[1], g, b, s[3], s[4] }:permute { 1, 2, 4, 5, 3 }:clone()
end

-- The channels of the image, and those that only fill it.
local function from_block(t, channels)
  local s = t.shape
  local x = t:permute { 1, 2, 5, 3, 4 }:clone():reshape { s[1], s[2] * s[5], s[3], s[4] }
  local fill = s[2] * s[5] - channels
  return x:narrow(2, 1, channels):clone(), fill > 0 and x:narrow(2, channels + 1, fill):clone() or nil
end

local function largest(t) return t:numel() == 0 and 0 or t:to("f32"):abs():amax():item() end

local function agree(expected, got, tolerance, what)
  assert.same(expected.shape, got.shape)
  local d = samples.difference(expected, got)
  if d ~= d or d > tolerance then error(string.format("%s differs by %g", what, d), 2) end
end

local function agree_image(expected, got, tolerance, what)
  local image, fill = from_block(got, expected.shape[2])
  agree(expected, image, tolerance, what)
  if fill then assert.equal(0, largest(fill), what .. ": channels beyond the last") end
end

local function same_bits(a, b, what)
  local x, n = samples.read(a)
  local y = samples.read(b)
  for i = 0, n - 1 do
    if x[i] ~= y[i] then error(what .. ": other bits", 2) end
  end
end

-- What fn returns, a list; and the same bits for any number of threads.
local function on_threads(fn)
  local first
  for _, threads in ipairs { 1, 2, 3 } do
    resin.set_num_threads(threads)
    local got = { fn() }
    first = first or got
    for i = 1, #got do same_bits(first[i], got[i], "result " .. i .. " on " .. threads .. " threads") end
  end
  return unpack(first)
end

local function random(shape, seed, dtype)
  resin.manual_seed(seed)
  return resin.randn(shape):to(dtype or "f32")
end

-- body(x, b, dtype, size, tolerance): x is a random image with values that dtype holds, as f32.
local function each(body)
  for k, size in ipairs(SIZES) do
    for _, dtype in ipairs { "f32", "bf16" } do
      for _, b in ipairs(blocks_of(size[2])) do
        local x = random(size, k * 10, dtype):to("f32")
        local ok, message = pcall(body, x, b, dtype, size, dtype == "f32" and 2e-6 or 1 / 200)
        if not ok then error(string.format("%s in blocks of %d, %s: %s", table.concat(size, "x"), b, dtype, tostring(message)), 0) end
      end
    end
  end
end

local ACTS = {
  none = { function(y) return y end, function(g) return g end },
  relu = { function(y) return y:relu() end, function(g, y) return g * (y:gt(0)):to("f32") end },
  relu6 = { function(y) return y:clamp(0, 6) end, function(g, y) return g * (y:gt(0)):to("f32") * (y:lt(6)):to("f32") end },
}

local function parameters(channels)
  return random({ channels }, 1) * 0.2 + 1, random({ channels }, 2), random({ channels }, 3), random({ channels }, 4):abs() + 0.5
end

describe("ops on block images", function()
  local threads
  setup(function() threads = resin.get_num_threads() end)
  teardown(function() resin.set_num_threads(threads) end)

  for act, plain in pairs(ACTS) do
    it("normalise a batch, act " .. act, function()
      each(function(x, b, dtype, size, tolerance)
        local channels = size[2]
        local weight, bias, mean, var = parameters(channels)
        local residual = random(size, 5, dtype):to("f32")
        for _, training in ipairs { true, false } do
          for _, add in ipairs { false, true } do
            local rm, rv = mean:clone(), var:clone()
            local y = ops.batch_norm(x, weight, bias, rm, rv, training, 0.3, 1e-3)
            y = plain[1](add and y + residual or y)
            local moved_mean, moved_var
            local got, m, r = on_threads(function()
              moved_mean, moved_var = mean:clone(), var:clone()
              local out, a, c = ops.batch_norm_block(to_block(x, b):to(dtype), weight, bias, moved_mean, moved_var,
                add and to_block(residual, b):to(dtype) or nil,
                { channels = channels, training = training, momentum = 0.3, eps = 1e-3, act = act })
              return out, a, c
            end)
            assert.equal(dtype, got.dtype)
            agree_image(y, got:to("f32"), tolerance, "y")
            agree(rm, moved_mean, 1e-6, "running mean")
            agree(rv, moved_var, 1e-6, "running variance")
            assert.same({ channels }, m.shape)
            assert.same({ channels }, r.shape)
          end
        end
      end)
    end)

    it("take the gradient of a batch norm, act " .. act, function()
      each(function(x, b, dtype, size, tolerance)
        local channels = size[2]
        local weight, bias, mean, var = parameters(channels)
        local g = random(size, 6, dtype):to("f32")
        local residual = random(size, 5, dtype):to("f32")
        local blocked = { x = to_block(x, b):to(dtype), g = to_block(g, b):to(dtype), residual = to_block(residual, b):to(dtype) }
        for _, training in ipairs { true, false } do
          for _, way in ipairs { "y", "x", "residual", "more" } do
            local add = way == "residual" or way == "more"
            local y, m, r = ops.batch_norm_block(blocked.x, weight, bias, mean:clone(), var:clone(), add and blocked.residual or nil,
              { channels = channels, training = training, eps = 1e-3, act = act })
            local seen = from_block(y:to("f32"), channels)
            local more = way == "more" and random(size, 11, dtype):to("f32") or nil
            local masked = plain[2](more and (g + more):to(dtype):to("f32") or g, seen)
            local gx, gw, gb = ops.batch_norm_backward(masked, x, m, r, weight, training, 1e-3)
            local got, gotw, gotb, gotm = on_threads(function()
              return ops.batch_norm_block_backward(blocked.g, blocked.x, way ~= "x" and y or nil, m, r, weight, bias,
                more and to_block(more, b):to(dtype) or nil, { channels = channels, training = training, act = act, residual = add })
            end)
            agree_image(gx, got:to("f32"), tolerance, "gx, mask by " .. way)
            agree(gw, gotw, 1e-5, "gweight, mask by " .. way)
            agree(gb, gotb, 1e-5, "gbias, mask by " .. way)
            if add then agree_image(masked, gotm:to("f32"), 0, "masked g") else assert.equal(0, gotm:numel()) end
          end
        end
      end)
    end)
  end

  it("keep the statistics of data far from zero", function()
    for _, b in ipairs { 1, 16, 20 } do
      local x = random({ 8, 20, 16, 16 }, 7) * 0.01 + 1000
      x:select(2, 3):fill_(12345.678)
      local exact = x:to("f64"):permute { 2, 1, 3, 4 }:reshape { 20, -1 }
      local want = 1 / (exact:var(2, { correction = 0 }) + 1e-5):sqrt()
      local _, m, r = ops.batch_norm_block(to_block(x, b), nil, nil, nil, nil, nil, { channels = 20 })
      agree(exact:mean(2), m:to("f64"), 1e-7, "mean")
      for c = 1, 20 do
        local error_of = math.abs(r:select(1, c):item() / want:select(1, c):item() - 1)
        assert.is_true(error_of < 1e-6, string.format("block %d: rstd of channel %d is %g off", b, c, error_of))
      end
      -- a corner of another size must not spoil the rest
      x:select(2, 1):select(2, 1):fill_(0)
      exact = x:to("f64"):permute { 2, 1, 3, 4 }:reshape { 20, -1 }
      want = 1 / (exact:var(2, { correction = 0 }) + 1e-5):sqrt()
      _, m, r = ops.batch_norm_block(to_block(x, b), nil, nil, nil, nil, nil, { channels = 20 })
      agree(exact:mean(2), m:to("f64"), 1e-7, "mean")
      assert.is_true(math.abs(r:select(1, 1):item() / want:select(1, 1):item() - 1) < 1e-6)
    end
  end)

  local WINDOWS = {
    { kernel_size = 2 }, { kernel_size = 3, stride = 2, padding = 1 }, { kernel_size = { 2, 3 }, stride = { 3, 1 }, padding = { 1, 0 } },
    { kernel_size = 3, stride = 2, ceil_mode = true }, { kernel_size = 2, stride = 3, ceil_mode = true, padding = 1 },
    { kernel_size = 1, stride = 2 }, { kernel_size = { 2, 2 }, stride = 1 },
  }
  local function windows(size, body, more)
    local list = {}
    for _, w in ipairs(WINDOWS) do list[#list + 1] = w end
    for _, w in ipairs(more) do list[#list + 1] = w end
    for k, w in ipairs(list) do
      local fits = size[3] >= 4 and size[4] >= 4 and (k < 3 or size[3] * size[4] < 1000)     -- large planes: the usual windows
      local copy = {}
      for key, value in pairs(w) do copy[key] = value end
      if fits then
        local ok, message = pcall(body, copy)
        if not ok then error("window " .. k .. ": " .. tostring(message), 0) end
      end
    end
  end

  it("find maxima and give their gradients", function()
    each(function(x, b, dtype, size)
      windows(size, function(w)
        -- values with many ties: the first of equal ones is chosen
        local ties = (x * 2):round()
        for _, image in ipairs { x, ties } do
          local y = ops.max_pool2d(image, w)
          local got, taps = on_threads(function() return ops.max_pool2d_block(to_block(image, b):to(dtype), w) end)
          assert.equal("u8", taps.dtype)
          agree_image(y, got:to("f32"), 0, "y")
          local g = random(y.shape, 8, dtype):to("f32")
          local leaf = image:clone():requires_grad_(true)
          local gx = grad.grad(ops.max_pool2d(leaf, w), { leaf }, { grad = g })[1]
          w.input_size = size
          local back = on_threads(function() return ops.max_pool2d_block_backward(to_block(g, b):to(dtype), taps, w) end)
          w.input_size = nil
          agree_image(gx, back:to("f32"), dtype == "f32" and 1e-6 or 1 / 200, "gx")
        end
      end, { { kernel_size = 2, dilation = 2, stride = 1, padding = 1 }, { kernel_size = { 3, 2 }, dilation = { 1, 3 }, stride = 2 } })
    end)
  end)

  it("average windows and give their gradients", function()
    each(function(x, b, dtype, size, tolerance)
      windows(size, function(w)
        local y = ops.avg_pool2d(x, w)
        local got = on_threads(function() return ops.avg_pool2d_block(to_block(x, b):to(dtype), w) end)
        agree_image(y, got:to("f32"), tolerance, "y")
        local g = random(y.shape, 8, dtype):to("f32")
        w.input_size = size
        local gx = ops.avg_pool2d_backward(g, w)
        local back = on_threads(function() return ops.avg_pool2d_block_backward(to_block(g, b):to(dtype), w) end)
        agree_image(gx, back:to("f32"), tolerance, "gx")
      end, { { kernel_size = 3, stride = 2, padding = 1, count_include_pad = false, ceil_mode = true } })
    end)
  end)

  it("treat NaN and infinities as the plain maximum does", function()
    local x = random({ 1, 16, 6, 6 }, 9)
    local at = x:select(1, 1):select(1, 2)
    at:fill_(-math.huge)
    x:select(1, 1):select(1, 3):select(1, 2):fill_(0 / 0)
    x:select(1, 1):select(1, 4):fill_(math.huge)
    for _, b in ipairs { 1, 8, 16 } do
      local y, taps = ops.max_pool2d_block(to_block(x, b), 2)
      agree_image(ops.max_pool2d(x, 2), y, 0, "y")
      local leaf = x:clone():requires_grad_(true)
      local g = random(from_block(y, 16).shape, 10)
      local want = grad.grad(ops.max_pool2d(leaf, 2), { leaf }, { grad = g })[1]
      agree_image(want, ops.max_pool2d_block_backward(to_block(g, b), taps, 2, { input_size = x.shape }), 0, "gx")
    end
  end)

  it("average whole images and give their gradient", function()
    each(function(x, b, dtype, size, tolerance)
      local y = ops.adaptive_avg_pool2d(x, 1)
      local got = on_threads(function() return ops.global_avg_pool_block(to_block(x, b):to(dtype), size[2]) end)
      assert.equal("f32", got.dtype)
      agree(y, got, 1e-6, "y")
      local g = random(y.shape, 8)
      local gx = ops.adaptive_avg_pool2d_backward(g, size)
      local back = on_threads(function() return ops.global_avg_pool_block_backward(g, { input_size = size, block = b, dtype = dtype }) end)
      assert.equal(dtype, back.dtype)
      agree_image(gx, back:to("f32"), tolerance, "gx")
    end)
  end)

  it("add up channels", function()
    each(function(x, b, dtype, size)
      local want = x:to("f64"):sum { 1, 3, 4 }
      local got = on_threads(function() return ops.channel_sum_block(to_block(x, b):to(dtype), size[2]) end)
      agree(want, got:to("f64"), 1e-6, "sum")
    end)
  end)

  it("refuse what does not fit", function()
    local x = resin.zeros { 2, 2, 4, 4, 16 }
    assert.has_error(function() ops.channel_sum_block(x, 40) end)
    assert.has_error(function() ops.global_avg_pool_block(x:to("f16"), 20) end)
    assert.has_error(function() ops.max_pool2d_block(resin.zeros { 1, 1, 40, 40, 16 }, 17) end)
    assert.has_error(function() ops.batch_norm_block(x, resin.zeros { 32 }, { channels = 20 }) end)
    assert.has_error(function() ops.batch_norm_block(x, resin.zeros { 20 }:to("bf16"), { channels = 20 }) end)
    local m = resin.zeros { 20 }
    assert.has_error(function() ops.batch_norm_block_backward(x, x, nil, m, m, { channels = 20, act = "relu", residual = true }) end)
    assert.has_error(function() ops.batch_norm_block_backward(x, x, nil, nil, nil, { channels = 20 }) end)
  end)
end)
