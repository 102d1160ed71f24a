-- Our own convolutions with one filter for each channel beside the plain op, at every edge of an image; what is done at the end; and
-- in programs the 1x1 convolution before them that becomes one instruction with them.

local ffi = require "ffi"
local resin = require "resin"
local lib = require "resin.lib"
local ops = require "resin.ops"
local images = require "spec.support.images"

local C, ctx = lib.C, lib.ctx
local block, plain, last_kernel, on_threads = images.block, images.plain, images.last_kernel, images.on_threads
local nn = resin.nn
local LANES, ACTS, with_isa = images.LANES, images.ACTS, images.with_isa

local function wave(shape, turn) return images.wave(shape, turn, 4) end
local function close(a, b, what) images.close(a, b, 2e-6, what) end

-- n, c, h, w, size, stride, padding; act, residual
local cases = {
  { 1, 16, 7, 7, 3, 1, { 1, 1 }, "relu6", false },
  { 2, 32, 14, 13, 3, 1, { 1, 1 }, "relu", true },
  { 1, 20, 15, 29, 3, 1, { 0, 0 }, "none", false },          -- channels that do not fill a block
  { 1, 16, 1, 1, 3, 1, { 1, 1 }, "none", false },
  { 1, 16, 2, 9, 3, 1, { 2, 0 }, "none", true },
  { 3, 16, 3, 3, 3, 1, { 0, 0 }, "relu", false },
  { 1, 32, 56, 56, 3, 2, { 1, 1 }, "relu6", false },
  { 1, 16, 15, 16, 3, 2, { 0, 1 }, "none", true },
  { 2, 16, 5, 31, 3, 2, { 2, 2 }, "relu", false },
  { 1, 16, 28, 28, 5, 1, { 2, 2 }, "relu6", true },
  { 1, 24, 6, 5, 5, 1, { 4, 0 }, "none", false },
  { 1, 16, 27, 14, 5, 2, { 2, 2 }, "relu", false },
  { 1, 16, 8, 40, 5, 2, { 1, 3 }, "none", true },
}

local function text(c)
  return ("%dx%dx%dx%d, %dx%d, stride %d, padding %d, %d"):format(c[1], c[2], c[3], c[4], c[5], c[5], c[6], c[7][1], c[7][2])
end

describe("convolutions with one filter for each channel", function()
  for _, case in ipairs(cases) do
    local n, c, h, w, size, stride, padding, act, residual = unpack(case, 1, 9)
    local attrs = { stride = stride, padding = padding, groups = c }

    for _, isa in ipairs { "baseline", "avx2", "avx512" } do
      it("are the same as plain: " .. text(case) .. ", " .. isa, function()
        with_isa(isa, function()
          local b = LANES[isa]
          local x, weight, bias = wave({ n, c, h, w }, 1), wave({ c, 1, size, size }, 2), wave({ c }, 3)
          local y = ops.conv2d(x, weight, bias, attrs)
          local more = residual and wave(y.shape, 4)
          local expected = ACTS[act](more and y + more or y)
          local options = { stride = stride, padding = padding, groups = c, channels = c, block_in = b, block_out = b, act = act,
            weight_size = weight.shape }
          local function run(filters) return ops.conv2d_block(block(x, b), filters, bias, more and block(more, b) or nil, options) end
          local got = run(weight)
          assert.equal("depthwise", last_kernel())
          close(expected, plain(got, c), "y")
          local pack = ops.conv2d_pack(weight, { stride = stride, padding = padding, groups = c, channels = c, block_in = b,
            block_out = b, act = act, input_size = { n, c, h, w } })
          assert.equal("depthwise", last_kernel())
          close(got, on_threads(2, function() return run(pack) end), "y of packed weights")
          assert.equal("depthwise", last_kernel())

          local back = { stride = stride, padding = padding, groups = c, channels = c, block_in = b, block_out = b,
            input_size = { n, c, h, w } }
          local g = wave(y.shape, 5)
          local gx = ops.conv2d_block_data(block(g, b), weight, nil, back)
          if stride == 1 then assert.equal("depthwise", last_kernel()) end
          close(ops.conv2d_backward_data(g, weight, { stride = stride, padding = padding, groups = c, input_size = { n, c, h, w } }),
            plain(gx, c), "gradient of x")
        end)
      end)
    end
  end

  it("leave dilation and other sizes to others", function()
    with_isa("best", function()
      local b = LANES[ffi.string(C.rs_get_isa(ctx))]
      for _, o in ipairs { { 3, 2 }, { 7, 1 }, { 1, 1 } } do
        local x, weight = wave({ 1, 16, 9, 9 }, 1), wave({ 16, 1, o[1], o[1] }, 2)
        local y = ops.conv2d_block(block(x, b), weight, nil, nil, { dilation = o[2], padding = 3, groups = 16, channels = 16, block_in = b,
          block_out = b })
        assert.not_equal("depthwise", last_kernel())
        close(ops.conv2d(x, weight, nil, { dilation = o[2], padding = 3, groups = 16 }), plain(y, 16), "y")
      end
    end)
  end)

  it("keep NaN and infinity where they are", function()
    local b = LANES[ffi.string(C.rs_get_isa(ctx))]
    local x = wave({ 1, 16, 9, 9 }, 1)
    x[{ 1, 3, 5, 5 }], x[{ 1, 4, 1, 1 }] = 0 / 0, 1 / 0
    local weight = wave({ 16, 1, 3, 3 }, 2):abs() + 1
    local y = plain(ops.conv2d_block(block(x, b), weight, nil, nil, { padding = 1, groups = 16, channels = 16, block_in = b, block_out = b,
      act = "relu6" }), 16)
    local nans = y:isnan():float()
    assert.equal(9, nans:sum():item())
    assert.equal(1, nans[{ 1, 3, 4, 4 }]:item())
    assert.equal(6, y[{ 1, 4, 2, 2 }]:item())
  end)
end)

describe("a 1x1 convolution before one filter for each channel", function()
  local function net(channels, wide, size, stride, act)
    local after = act == "relu" and nn.ReLU or nn.ReLU6
    return nn.Sequential(nn.Conv2d(8, channels, 1), nn.Conv2d(channels, wide, 1), nn.BatchNorm2d(wide), after(),
      nn.Conv2d(wide, wide, size, { padding = (size - 1) / 2, stride = stride, groups = wide, bias = false }), nn.BatchNorm2d(wide),
      after(), nn.Conv2d(wide, 16, 1))
  end

  local function ops_of(program)
    local info, found = ffi.new "rs_instruction_info", {}
    for i = 0, C.rs_program_length(program) - 1 do
      C.rs_program_instruction(program, i, info)
      if info.kernel ~= nil then
        local name = ffi.string(info.op)
        found[name] = (found[name] or 0) + 1
      end
    end
    return found
  end

  local function compiled(model, x)
    return resin.no_grad(function()
      local fast = resin.compile(model)
      local y = fast(x)
      return y, ops_of(fast.entries[1].program), fast
    end)
  end

  local function expands() return ffi.string(C.rs_get_isa(ctx)) == "avx512" or ffi.string(C.rs_get_isa(ctx)) == "avx2" end

  for _, case in ipairs { { 16, 96, 3, 2, "relu6", 90, 77 }, { 24, 144, 3, 1, "relu6", 57, 60 }, { 40, 64, 5, 1, "relu", 80, 81 },
    { 20, 80, 5, 2, "relu6", 71, 79 } } do
    it(("is one instruction with it: %d to %d channels, %dx%d, stride %d"):format(case[1], case[2], case[3], case[3], case[4]), function()
      local model = net(unpack(case, 1, 5)):eval()
      local x = wave({ 1, 8, case[6], case[7] }, 1)
      local expected = resin.no_grad(function() return model(x) end)
      local y, found, fast = compiled(model, x)
      if expands() and found.conv2d_block then assert.equal(1, found.conv2d_expand_block) end     -- there is block form: oneDNN is built in
      close(expected, y, "y")
      close(y, on_threads(2, function() return (resin.no_grad(function() return resin.compile(model)(x) end)) end), "y on two threads")
      resin.no_grad(function() model[2].weight:mul_(0.5) end)      -- rearranged again
      close(resin.no_grad(function() return model(x) end), resin.no_grad(function() return fast(x) end), "y with another weight")
    end)
  end

  it("stays apart when the image between them is small or seen by others", function()
    local model = net(16, 96, 3, 1, "relu6"):eval()
    local _, found = compiled(model, wave({ 1, 8, 20, 20 }, 1))
    assert.is_nil(found.conv2d_expand_block)
    local first, second = nn.Conv2d(16, 96, 1), nn.Conv2d(96, 96, 3, { padding = 1, groups = 96 })
    local x = wave({ 1, 16, 80, 80 }, 1)
    local function both(t)
      local wide = first(t):relu()
      return second(wide):relu() + wide
    end
    local y, others = compiled(both, x)
    assert.is_nil(others.conv2d_expand_block)
    close(resin.no_grad(function() return both(x) end), y, "y")
  end)

  it("stays apart in training", function()
    local model = net(16, 96, 3, 1, "relu6")
    local x = wave({ 1, 8, 80, 80 }, 1)
    local step = resin.compile(function(t)
      model:zero_grad()
      local loss = model(t):square():mean()
      loss:backward()
      return loss
    end)
    step(x)
    assert.is_nil(ops_of(step.entries[1].program).conv2d_expand_block)
  end)
end)
