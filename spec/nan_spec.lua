-- A NaN stays one: through every convolution with its activation, on each instruction set, in linear maps, activations and maxima; so
-- that a loss tells that something is wrong, in programs as eagerly. At the gradients' gates it counts as an input that is not passed.

local ffi = require "ffi"
local resin = require "resin"
local lib = require "resin.lib"
local ops = require "resin.ops"
local images = require "spec.support.images"
local samples = require "spec.support.samples"

local C, ctx = lib.C, lib.ctx
local nn, F, optim = resin.nn, resin.F, resin.optim
local wave, block, plain, with = images.wave, images.block, images.plain, images.with
local NAN = 0 / 0
local LANES, with_isa = images.LANES, images.with_isa

local function without_onednn(f)
  assert.equal(0, C.rs_set_backends(ctx, "blas"))
  local ok, message = pcall(f)
  C.rs_set_backends(ctx, "all")
  if not ok then error(message, 0) end
end

local function is_nan(v) return v ~= v end

-- ---- convolutions of block images -----------------------------------------------------------------------------------------

-- n, c, h, w, o, k, stride, padding, groups; blocks of x and y where they are not those of the instruction set (0: all channels)
local cases = {
  { 1, 32, 64, 64, 32, 3, 1, 1, 1 }, { 2, 16, 18, 17, 24, 3, 1, 1, 1 }, { 2, 20, 28, 28, 20, 1, 1, 0, 1 },
  { 1, 3, 56, 56, 32, 3, 2, 1, 1, 1 }, { 1, 3, 8, 8, 16, 3, 1, 1, 1, 1 }, { 1, 20, 14, 15, 20, 3, 1, 1, 20 },
  { 2, 64, 28, 28, 64, 3, 2, 1, 1 }, { 3, 40, 17, 15, 40, 3, 1, 1, 2, 8, 8 }, { 1, 24, 8, 8, 24, 3, 1, 1, 1 },
  { 2, 64, 28, 28, 10, 1, 1, 0, 1, nil, 1 }, { 1, 64, 30, 30, 128, 3, 1, 1, 1, 0, 0 }, { 3, 64, 9, 9, 200, 3, 2, 1, 1, 0, 0 },
  { 1, 256, 8, 8, 320, 3, 2, 1, 1 }, { 1, 64, 14, 14, 64, 3, 2, 1, 4, 0, 0 },
}

local function text(case) return table.concat({ case[1], case[2], case[3], case[4], case[5], case[6], case[7], case[9] }, "x") end

-- Channel 2 has a NaN as its bias, filter 4 is one, and so is the last number of the residual.
local function check_conv(case, dtype, act, residual, packed)
  local n, c, h, w, o, k, stride, padding, groups = unpack(case, 1, 9)
  local lanes = dtype == "bf16" and 0 or LANES[ffi.string(C.rs_get_isa(ctx))]
  local block_in, block_out = case[10] or lanes, case[11] or lanes
  if dtype == "bf16" or block_in == 0 then block_in = c end
  if dtype == "bf16" or block_out == 0 then block_out = o end
  local options = { stride = stride, padding = padding, groups = groups, channels = c, block_in = block_in, block_out = block_out,
    dtype = dtype, act = act }
  local x, weight, bias = block(wave({ n, c, h, w }, 1), block_in, dtype), wave({ o, c / groups, k, k }, 2), wave({ o }, 3)
  bias:narrow(1, 2, 1):fill_(NAN)
  weight:narrow(1, 4, 1):fill_(NAN)
  local oh, ow = math.floor((h + 2 * padding - k) / stride) + 1, math.floor((w + 2 * padding - k) / stride) + 1
  local more
  if residual then
    more = wave({ n, o, oh, ow }, 4)
    more:select(1, n):select(1, o):select(1, oh):narrow(1, ow, 1):fill_(NAN)
    more = block(more, block_out, dtype)
  end
  local filters = weight
  if packed then filters = ops.conv2d_pack(weight, with(options, { input_size = { n, c, h, w }, input_dtype = dtype })) end
  local y = plain(ops.conv2d_block(x, filters, bias, more, with(options, { weight_size = weight.shape })), o)
  local kernel, values, total = images.last_kernel(), samples.read(y)
  local most = act == "relu6" and 6 or math.huge
  for i = 0, total - 1 do
    local channel = math.floor(i / (oh * ow)) % o + 1
    local wanted = channel == 2 or channel == 4 or (residual and i == total - 1)
    local v = values[i]
    if is_nan(v) ~= (wanted or false) or v < 0 or v > most then
      error(("%s, %s, %s%s%s: element %d of channel %d is %g (%s)"):format(text(case), dtype, act, residual and ", residual" or "",
        packed and ", packed" or "", i, channel, v, kernel), 0)
    end
  end
end

describe("a NaN in a convolution with its activation", function()
  local function all(dtype)
    for _, case in ipairs(cases) do
      for _, act in ipairs { "relu", "relu6" } do
        for _, residual in ipairs { false, true } do
          for _, packed in ipairs { false, true } do check_conv(case, dtype, act, residual, packed) end
        end
      end
    end
  end
  for _, dtype in ipairs { "f32", "bf16" } do
    for isa in pairs(LANES) do
      it("stays one: " .. dtype .. " on " .. isa, function()
        with_isa(isa, function() all(dtype) end)
      end)
    end
    it("stays one without oneDNN: " .. dtype, function()
      without_onednn(function() all(dtype) end)
    end)
  end

  it("stays one on several threads", function()
    images.on_threads(3, function() all "f32" end)
  end)

  it("stays one between a 1x1 and a depthwise convolution", function()
    for isa, lanes in pairs(LANES) do
      with_isa(isa, function()
        for _, act in ipairs { "relu", "relu6" } do
          local x, w1, w2 = block(wave({ 1, lanes, 15, 14 }, 1), lanes), wave({ 2, lanes, lanes }, 2), wave({ 2, 9, lanes }, 3)
          local b1, b2 = wave({ 2 * lanes }, 4), wave({ 2 * lanes }, 5)
          b1:narrow(1, 2, 1):fill_(NAN)
          b2:narrow(1, lanes + 1, 1):fill_(NAN)
          local y = plain(ops.conv2d_expand_block(x, w1, w2, b1, b2, { channels = lanes, padding = 1, inner = act, act = act }), 2 * lanes)
          local values, n = samples.read(y)
          for i = 0, n - 1 do
            local channel = math.floor(i / (15 * 14)) + 1
            assert.equal(channel == 2 or channel == lanes + 1, is_nan(values[i]), isa)
          end
        end
      end)
    end
  end)
end)

-- ---- the rest of the ops ----------------------------------------------------------------------------------------------------

local ACTS = { "relu", "gelu", "silu", "elu", "leaky_relu", "hardtanh", "softplus", "hardsigmoid", "hardswish", "mish", "tanh", "sigmoid",
  "exp", "clamp", "square", "abs", "sqrt", "log" }

-- NaN at many places of a vector.
local function dotted(shape)
  local x = wave(shape, 1)
  local flat = x:reshape(-1)
  for i = 1, flat.shape[1], 7 do flat:narrow(1, i, 1):fill_(NAN) end
  return x
end

local function same_nans(wanted, got, what)
  local a, n = samples.read(wanted)
  local b, m = samples.read(got)
  assert.equal(n, m, what)
  for i = 0, n - 1 do
    if is_nan(a[i]) ~= is_nan(b[i]) then error(("%s: element %d is %g, wanted %g"):format(what, i, b[i], a[i]), 0) end
  end
end

describe("a NaN", function()
  for _, name in ipairs(ACTS) do
    it("stays one in " .. name, function()
      for isa in pairs(LANES) do
        with_isa(isa, function()
          for _, dtype in ipairs { "f32", "f64", "bf16" } do
            local x = dotted({ 83 }):to(dtype)
            local y = name == "clamp" and x:clamp(-0.2, 0.3) or (F[name] or x[name])(x)
            same_nans(name == "sqrt" and (x * 1):sqrt() or name == "log" and x:log() or x, y, name .. " in " .. dtype .. " on " .. isa)
          end
        end)
      end
    end)
  end

  it("is passed by no gate of a gradient", function()
    for _, f in ipairs { function(x) return x:relu() end, function(x) return F.relu6(x) end, function(x) return x:clamp(0, 1) end } do
      local x = resin.tensor { NAN, 0.5 }:requires_grad_(true)
      f(x):sum():backward()
      assert.same({ 0, 1 }, x.grad:totable())
      local z = resin.tensor { NAN, 0.5 }:requires_grad_(true)
      resin.compile(function(t) local l = f(t):sum() l:backward() return l end)(z)
      assert.same({ 0, 1 }, z.grad:totable())
    end
  end)

  it("is the largest of a window", function()
    for isa, lanes in pairs(LANES) do
      with_isa(isa, function()
        for _, size in ipairs { { 2, 2, 0 }, { 3, 2, 1 }, { 3, 1, 1 } } do
          local options = { kernel_size = size[1], stride = size[2], padding = size[3] }
          local x = wave({ 2, 20, 9, 9 }, 1)
          x:narrow(3, 4, 1):narrow(4, 5, 1):fill_(NAN)
          local y = ops.max_pool2d(x, options)
          assert.is_true(is_nan(y:sum():item()))
          for _, dtype in ipairs { "f32", "bf16" } do
            for _, b in ipairs { lanes, 20, 1 } do
              same_nans(y, plain((ops.max_pool2d_block(block(x, b, dtype), options)), 20), isa .. " in blocks of " .. b)
            end
          end
        end
        assert.is_true(is_nan(F.adaptive_max_pool2d(wave({ 1, 1, 4, 4 }, 1):fill_(NAN), 2):sum():item()))
      end)
    end
  end)

  it("stays one in a linear map with its activation", function()
    for isa in pairs(LANES) do
      with_isa(isa, function()
        for _, size in ipairs { { 1, 20, 33 }, { 40, 64, 48 }, { 256, 256, 272 }, { 64, 1024, 1000 } } do
          local m, k, n = size[1], size[2], size[3]
          for _, act in ipairs { "relu", "gelu", "gelu_tanh", "tanh", "sigmoid", "silu" } do
            for _, dtype in ipairs { "f32", "bf16" } do
              local x, weight, bias, more = wave({ m, k }, 1), wave({ n, k }, 2), wave({ n }, 3), wave({ m, n }, 4)
              bias:narrow(1, n, 1):fill_(NAN)
              weight:narrow(1, 3, 1):fill_(NAN)
              more:narrow(1, m, 1):narrow(2, 1, 1):fill_(NAN)
              local wanted = F.linear(x, weight, bias) + more
              x, weight = x:to(dtype), weight:to(dtype)
              local y = ops.linear_act(x, weight, bias, more, { act = act, dtype = "f32" })
              same_nans(wanted, y, ("%s %dx%dx%d %s on %s"):format(act, m, k, n, dtype, isa))
            end
          end
        end
      end)
    end
  end)
end)

-- ---- programs -----------------------------------------------------------------------------------------------------------------

local function conv(c, o, k, options) return nn.Conv2d(c, o, k, options) end
local PAD = { padding = 1 }
local nets = {
  plain = function(act) return nn.Sequential(conv(3, 16, 3, PAD), act(), conv(16, 64, 3, PAD), act(), conv(64, 64, 3, PAD), act()) end,
  norms = function(act)
    return nn.Sequential(conv(3, 16, 3, PAD), nn.BatchNorm2d(16), act(), conv(16, 16, 1), nn.BatchNorm2d(16), act())
  end,
  pools = function(act) return nn.Sequential(conv(3, 16, 3, PAD), nn.MaxPool2d(2), nn.BatchNorm2d(16), act(), conv(16, 16, 1), act()) end,
  sums = function(act)
    return nn.ResidualSequential(conv(3, 16, 3, PAD), nn.Record "a", conv(16, 16, 3, PAD), nn.BatchNorm2d(16),
      nn.Apply { record_name = "a" }, act(), conv(16, 16, 3, { padding = 1, groups = 16 }), act())
  end,
  lines = function(act) return nn.Sequential(nn.Flatten(), nn.Linear(3 * 256, 64), act(), nn.Linear(64, 64), nn.LayerNorm(64), act()) end,
}

describe("a NaN in a program", function()
  for name, make in pairs(nets) do
    for _, act in ipairs { "ReLU", "ReLU6" } do
      for _, precision in ipairs { "f32", "bf16" } do
        it(("stays one: %s, %s, %s"):format(name, act, precision), function()
          resin.manual_seed(3)
          local m = make(nn[act]):eval()
          local x = wave({ 2, 3, 16, 16 }, 1)
          x:narrow(1, 2, 1):narrow(2, 1, 1):narrow(3, 5, 1):narrow(4, 7, 1):fill_(NAN)
          local eager, got = resin.no_grad(m, x), resin.no_grad(resin.compile(m, { precision = precision }), x)
          local a, n = samples.read(eager)
          local b = samples.read(got)
          local count = 0
          for i = 0, n - 1 do            -- other forms of a convolution may have more of them in that image
            if is_nan(a[i]) then count = count + 1 assert.is_true(is_nan(b[i]))
            elseif i < n / 2 then assert.is_false(is_nan(b[i])) end
          end
          assert.is_true(count > 0)
        end)

        it(("shows in the loss of a training step: %s, %s, %s"):format(name, act, precision), function()
          resin.manual_seed(3)
          local m = make(nn[act])
          local opt = optim.SGD(m, { lr = 0.01 })
          local step = resin.compile(function(x)
            opt:zero_grad()
            local loss = m(x):square():mean()
            loss:backward()
            opt:step()
            return loss
          end, { precision = precision })
          assert.is_true(is_nan(step(wave({ 2, 3, 16, 16 }, 1):fill_(NAN)):item()))
        end)
      end
    end
  end
end)
