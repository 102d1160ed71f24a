-- Convolutions of block images: what oneDNN computes in every form beside the portable kernels, with packed weights, in bf16, and on
-- any number of threads. The op table's own checks are in ops_spec.

local ffi = require "ffi"
local lib = require "resin.lib"
local ops = require "resin.ops"
local images = require "spec.support.images"
local samples = require "spec.support.samples"

local C, ctx = lib.C, lib.ctx
local copy, wave, block, plain, close, last_kernel = images.with, images.wave, images.block, images.plain, images.close, images.last_kernel
local has_onednn = ffi.string(C.rs_build_info()):match("onednn") ~= nil

-- Our own forms go before oneDNN (winograd_spec, split_spec, depthwise_spec).
local function is_fast(kernel) assert.is_true(kernel ~= "plain", kernel) end

-- n, c, h, w, o, k, stride, padding, groups; block_in, block_out; act, residual
local cases = {
  {2, 32, 12, 10, 48, 3, 1, 1, 1, 16, 16, "relu", true},
  {1, 64, 28, 28, 64, 3, 1, 1, 1, 16, 16, "relu", true},       -- one image, Winograd, cut along the filters
  {4, 64, 32, 32, 64, 3, 1, 1, 1, 16, 16, "none", false},      -- Winograd, cut along the batch
  {1, 32, 40, 40, 32, 3, 1, 1, 1, 16, 16, "relu6", true},
  {1, 3, 33, 35, 32, 3, 2, 1, 1, 1, 16, "relu", false},        -- a first layer
  {1, 24, 56, 56, 144, 1, 1, 0, 1, 16, 16, "relu6", false},    -- channels that do not fill a block
  {1, 144, 28, 28, 144, 3, 2, 1, 144, 16, 16, "relu6", false}, -- depthwise
  {2, 96, 14, 14, 96, 3, 1, 1, 96, 16, 16, "none", false},
  {3, 40, 17, 15, 40, 3, 1, 1, 2, 8, 8, "none", false},
  {1, 64, 30, 30, 128, 3, 1, 1, 1, 64, 128, "relu", true},     -- NHWC, cut along the rows
  {1, 64, 31, 30, 64, 3, 2, 1, 1, 64, 64, "none", false},
  {2, 64, 28, 28, 10, 1, 1, 0, 1, 16, 1, "none", false},       -- to plain
  {32, 256, 8, 8, 128, 3, 2, 1, 1, 16, 16, "none", false},
  {1, 32, 66, 64, 48, 3, 1, 1, 1, 16, 16, "relu", true},       -- Winograd, cut along the rows, which are copied
  {8, 512, 4, 4, 512, 3, 1, 1, 1, 16, 16, "relu", true},       -- many filters: parts of each image's result
  {4, 320, 12, 12, 320, 3, 1, 1, 1, 16, 16, "none", true},     -- too many for our own Winograd form
}

local function options_of(case)
  return {stride = case[7], padding = case[8], groups = case[9], channels = case[2], block_in = case[10], block_out = case[11]}
end

local function text(case) return table.concat({case[1], case[2], case[3], case[4], case[5]}, "x") end

-- The block that a dtype likes: bf16 is convolved in NHWC.
local function in_dtype(case, dtype)
  local c = {unpack(case, 1, 13)}
  if dtype == "bf16" then c[10], c[11] = c[2], c[5] end
  return c
end

for _, dtype in ipairs {"f32", "bf16"} do
  local tolerance = dtype == "f32" and 1e-4 or 1.5e-2
  local wide = dtype == "f32" and 1e-4 or 1e-3

  describe("block convolutions in " .. dtype, function()
    for _, given in ipairs(cases) do
      local case = in_dtype(given, dtype)
      local n, c, h, w, o, k = unpack(case, 1, 6)
      local opts = copy(options_of(case), {dtype = dtype})
      local function make()
        local x = block(wave({n, c, h, w}, 1), case[10], dtype)
        local weight = wave({o, c / case[9], k, k}, 2) * (1 / math.sqrt(c / case[9] * k * k))
        local oh, ow = math.floor((h + 2 * case[8] - k) / case[7]) + 1, math.floor((w + 2 * case[8] - k) / case[7]) + 1
        local y = block(wave({n, o, oh, ow}, 3), case[11], dtype)
        return x, weight, wave({o}, 4), y
      end

      it("are the same by oneDNN, packed or not: " .. text(case), function()
        if not has_onednn then return end
        local function check()
          local x, weight, bias, y = make()
          local residual = case[13] and y or nil
          local forward = copy(opts, {act = case[12], weight_size = weight.shape})
          local function run(wt) return ops.conv2d_block(x, wt, bias, residual, forward) end
          local expected = images.portable(function() return run(weight) end)
          local got = run(weight)
          is_fast(last_kernel())
          close(expected, got, tolerance, "y")
          local pack_options = copy(opts, {act = case[12], input_size = {n, c, h, w}, input_dtype = dtype})
          local pack = ops.conv2d_pack(weight, pack_options)
          local packer = last_kernel()
          is_fast(packer)
          close(expected, run(pack), tolerance, "y of packed weights")
          assert.equal(packer, last_kernel())
          local portable = images.portable(function() return ops.conv2d_pack(weight, pack_options) end)
          local maker = last_kernel()
          close(expected, run(portable), tolerance, "y of weights packed by the portable kernel")
          assert.equal(maker, last_kernel())
        end
        check()
        images.with_isa("avx2", check)       -- more of them are oneDNN's then, cut in other ways
      end)

      it("have the same gradients by oneDNN: " .. text(case), function()
        if not has_onednn then return end
        local x, weight, _, g = make()
        local bias = wave({c}, 5)
        local function data() return ops.conv2d_block_data(g, weight, bias, copy(opts, {input_size = {n, c, h, w}})) end
        local function filters() return ops.conv2d_block_weight(x, g, copy(opts, {dtype = "f32", weight_size = weight.shape})) end
        close(images.portable(data), data(), tolerance, "gradient of x")
        close(images.portable(filters), filters(), wide, "gradient of weight")
      end)

      it("give the same bits on any number of threads: " .. text(case), function()
        local x, weight, bias, y = make()
        local threads = C.rs_get_num_threads(ctx)
        local first
        for _, count in ipairs {1, 2, 3} do
          C.rs_set_num_threads(ctx, count)
          local a = ops.conv2d_block(x, weight, bias, nil, copy(opts, {act = case[12]}))
          local b = ops.conv2d_block_data(y, weight, nil, copy(opts, {input_size = {n, c, h, w}}))
          local d = ops.conv2d_block_weight(x, y, copy(opts, {dtype = "f32", weight_size = weight.shape}))
          first = first or {a, b, d}
          for i, t in ipairs {a, b, d} do assert.equal(0, samples.difference(first[i], t)) end
        end
        C.rs_set_num_threads(ctx, threads)
      end)

      it("keep zeros in channels that fill up a block: " .. text(case), function()
        local x, weight, bias = make()
        local y = ops.conv2d_block(x, weight, bias, nil, copy(opts, {act = case[12]}))
        close(y, block(plain(y, o), case[11], dtype), 0, "y")
      end)
    end
  end)
end

describe("a packed weight", function()
  it("is refused by another convolution", function()
    if not has_onednn then return end
    local x = block(wave({1, 64, 28, 28}, 1), 16, "f32")
    local opts = {padding = 1, channels = 64, block_in = 16, block_out = 16}
    local pack = ops.conv2d_pack(wave({64, 32, 3, 3}, 2), copy(opts, {channels = 32, input_size = {1, 32, 28, 28}}))
    assert.has_error(function() ops.conv2d_block(x, pack, copy(opts, {weight_size = {64, 64, 3, 3}})) end)
    local ok, message = pcall(ops.conv2d_block, x, pack, nil, nil, copy(opts, {weight_size = {64, 64, 3, 3}}))
    assert.is_false(ok)
    assert.is_truthy(tostring(message):match("packed for another convolution"), message)
  end)

  it("needs its shape", function()
    local x, pack = block(wave({1, 16, 8, 8}, 1), 16, "f32"), ops.conv2d_pack(wave({16, 16, 3, 3}, 2), {channels = 16, block_in = 16,
      block_out = 16, input_size = {1, 16, 8, 8}})
    assert.has_error(function() ops.conv2d_block(x, pack, {channels = 16, block_in = 16, block_out = 16}) end)
  end)
end)
