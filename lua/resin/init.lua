-- resin: neural networks for Lua. This table is the whole public interface; no globals are written.
-- resin.nn, resin.optim, resin.data and others load when they are first used.

local lib = require "resin.lib"
local check = require "resin.check"
local scope = require "resin.scope"
local Tensor = require "resin.tensor"
local create = require "resin.create"
local grad = require "resin.grad"
local serialize = require "resin.serialize"
local ffi, C, ctx = lib.ffi, lib.C, lib.ctx

local resin = {
  _VERSION = ffi.string(C.rs_version()),
  F = require "resin.functional",
  Tensor = Tensor,
  newaxis = Tensor.newaxis,
  is_tensor = Tensor.is,

  scope = scope.user,
  keep = scope.promote,

  no_grad = grad.no_grad,
  enable_grad = grad.enable_grad,
  is_grad_enabled = grad.is_grad_enabled,
  set_grad_enabled = grad.set_grad_enabled,
  grad = grad.grad,

  save = serialize.save,
  load = serialize.load,
}

for name, fn in pairs(create) do
  if name ~= "values_of" then resin[name] = fn end
end
for _, name in ipairs { "cat", "stack", "where", "matmul" } do resin[name] = resin.F[name] end

---Keeps a tensor that was made inside a scope.
---@param t resin.Tensor
---@return resin.Tensor t
function resin.keep(t) return scope.promote(check.tensor(t, "keep: argument 1")) end

---Where warnings go: a function of the text (one line, with the user's place in front), false for nowhere, nil for stderr (the
---default). Returns what it was before. Each warning comes once for each place; this starts the count anew.
resin.set_warnings = check.set_warnings

-- What these set belongs to no program: it would be done once, while the function is recorded.
local function outside_recordings(what)
  if C.rs_is_tracing(ctx) ~= 0 then
    check.fail("%s: not while a program is recorded: it would not be done again when the program runs; call it outside", what)
  end
end

-- ---- random numbers ------------------------------------------------------------------------------------------------------

---Starts the random numbers anew: the same seed gives the same numbers.
---@param seed integer
function resin.manual_seed(seed)
  outside_recordings("manual_seed")
  C.rs_seed(ctx, check.integer(seed, "manual_seed: seed", 0, 2 ^ 53))
end

---@return number[] four numbers for set_rng_state
function resin.get_rng_state()
  local state = ffi.new("double[4]")
  C.rs_get_rng_state(ctx, state)
  return { state[0], state[1], state[2], state[3] }
end

---@param state number[] from get_rng_state
function resin.set_rng_state(state)
  outside_recordings("set_rng_state")
  check.table(state, "set_rng_state: state")
  local c = ffi.new("double[4]")
  for i = 1, 4 do c[i - 1] = check.number(state[i], "set_rng_state: state[" .. i .. "]") end
  C.rs_set_rng_state(ctx, c)
end

-- ---- the machine ---------------------------------------------------------------------------------------------------------

---Threads that an op may use, the caller's included.
---@param n integer
function resin.set_num_threads(n)
  outside_recordings("set_num_threads")
  check.status(C.rs_set_num_threads(ctx, check.integer(n, "set_num_threads: n", 1, 1024)))
end

---@return integer
function resin.get_num_threads() return C.rs_get_num_threads(ctx) end

---Chooses the instruction set: "baseline", "avx2", "avx512" or "best".
---@param name string
function resin.set_isa(name)
  outside_recordings("set_isa")
  check.status(C.rs_set_isa(ctx, check.string(name, "set_isa: name")))
end

---@return string
function resin.get_isa() return ffi.string(C.rs_get_isa(ctx)) end

---Allows the backends "all", "portable", or a list as in "blas,onednn".
---@param names string
function resin.set_backends(names)
  outside_recordings("set_backends")
  check.status(C.rs_set_backends(ctx, check.string(names, "set_backends: names")))
end

---"default", or "highest": each product of two numbers is one f32 operation. That means convolutions without Winograd's form, whose
---error is a few times larger, no f32 products on bf16 tiles, whose error is no larger, and no programs in bf16. Compiled functions
---record again.
---@param name string
function resin.set_precision(name)
  outside_recordings("set_precision")
  check.status(C.rs_set_precision(ctx, check.string(name, "set_precision: name")))
  local structure = require("resin.nn.class").structure
  structure.version = structure.version + 1
end

---@return string
function resin.get_precision() return ffi.string(C.rs_get_precision(ctx)) end

---The most bytes that tensors may hold; 0 for no limit. Past it an op fails.
---@param bytes number
function resin.set_budget(bytes) C.rs_set_budget(ctx, check.number(bytes, "set_budget: bytes", 0)) end

---Bytes held now, the most that were held, and bytes kept for reuse.
---@return {live: number, peak: number, cached: number, budget: number, blocks: number}
function resin.memory()
  local s = lib.stats
  return { live = s.live_bytes, peak = s.peak_bytes, cached = s.cached_bytes, budget = s.budget_bytes, blocks = s.live_blocks }
end

---Starts the count of peak memory anew.
function resin.reset_peak() C.rs_reset_peak(ctx) end

---Collects tensors that are no longer used and gives memory back to the system.
function resin.trim()
  scope.collect()
  C.rs_trim(ctx)
end

---Seconds of a clock that never goes back: for measuring how long something takes.
---@return number
function resin.time() return C.rs_time() end

---Version, compiler, backends, instruction set and the library's path as text.
function resin.build_info()
  return ("resin %s, %s, using %s, %d thread%s, %s"):format(resin._VERSION, (ffi.string(C.rs_build_info()):gsub("^resin ", "")),
    resin.get_isa(), resin.get_num_threads(), resin.get_num_threads() == 1 and "" or "s", lib.path)
end

-- ---- parts that load when used ---------------------------------------------------------------------------------------------

local parts = {
  nn = "resin.nn", optim = "resin.optim", data = "resin.data", doctor = "resin.doctor",
  blocks = "resin.blocks", models = "resin.models", compile = "resin.compile", profile = "resin.profile",
}

return setmetatable(resin, {
  __index = function(self, name)
    local part = parts[name]
    if not part then return nil end
    local loaded = require(part)
    rawset(self, name, loaded)
    return loaded
  end,
})
