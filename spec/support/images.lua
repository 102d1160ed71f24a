-- What the specs of convolutions on block images share: images, calls on the direct portable kernels, comparing.

local assert = require "luassert"
local ffi = require "ffi"
local resin = require "resin"
local lib = require "resin.lib"
local ops = require "resin.ops"
local samples = require "spec.support.samples"

local C, ctx = lib.C, lib.ctx
local images = {}

-- The block that f32 images have with an instruction set, and what a convolution may end in.
images.LANES = { avx512 = 16, avx2 = 8, baseline = 4 }
images.ACTS = {
  none = function(x) return x end, relu = function(x) return x:relu() end, relu6 = function(x) return resin.F.hardtanh(x, 0, 6) end,
}

-- Numbers that repeat nowhere and need no random state.
function images.wave(shape, turn, scale)
  local n = 1
  for i = 1, #shape do n = n * shape[i] end
  local values = {}
  for i = 1, n do values[i] = math.sin(i * i * 0.37 + turn) * (scale or 0.5) end
  return resin.tensor(values):reshape(shape)
end

-- A plain image in block form, and a block image [n, c, h, w] in f32.
function images.block(x, block, dtype)
  return ops.image_block(x, { channels = x.shape[2], from = 1, block = block, dtype = dtype or "f32" })
end

function images.plain(x, channels)
  local y = ops.image_block(x, { channels = channels, from = x.shape[5], block = 1, dtype = "f32" })
  return y:reshape { y.shape[1], channels, y.shape[3], y.shape[4] }
end

function images.last_kernel() return ffi.string(C.rs_last_kernel(ctx)) end

function images.close(a, b, tolerance, what)
  assert.same(a.shape, b.shape)
  local d = samples.difference(a, b)
  if d > tolerance then error(("%s differs by %g"):format(what, d), 2) end
end

-- t with more fields.
function images.with(t, more)
  local r = {}
  for k, v in pairs(t) do r[k] = v end
  for k, v in pairs(more) do r[k] = v end
  return r
end

-- f() with an instruction set; nothing where the processor lacks it.
function images.with_isa(isa, f)
  if C.rs_set_isa(ctx, isa) ~= 0 then return end
  local ok, message = pcall(f)
  C.rs_set_isa(ctx, "best")
  if not ok then error(isa .. ": " .. tostring(message), 0) end
end

-- f() under precision "highest"; the kernel that ran last.
function images.exactly(f)
  assert.equal(0, C.rs_set_precision(ctx, "highest"))
  local ok, y = pcall(f)
  local kernel = images.last_kernel()
  C.rs_set_precision(ctx, "default")
  if not ok then error(y, 0) end
  return y, kernel
end

-- The same by the portable kernels, of which only the direct ones are left then.
function images.portable(f)
  assert.equal(0, C.rs_set_backends(ctx, "portable"))
  local ok, y, kernel = pcall(images.exactly, f)
  C.rs_set_backends(ctx, "all")
  if not ok then error(y, 0) end
  return y, kernel
end

function images.on_threads(count, f)
  local threads = C.rs_get_num_threads(ctx)
  C.rs_set_num_threads(ctx, count)
  local ok, y = pcall(f)
  C.rs_set_num_threads(ctx, threads)
  if not ok then error(y, 0) end
  return y
end

return images
