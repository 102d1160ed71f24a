-- Gradient mode and gradients as results. The mode belongs to the context; no_grad and enable_grad put the former one back
-- however their function ends.

local lib = require "resin.lib"
local check = require "resin.check"
local scope = require "resin.scope"
local ffi, C, ctx = lib.ffi, lib.C, lib.ctx

local grad = {}

local function restore(former, ok, ...)
  C.rs_set_grad_enabled(ctx, former)
  if not ok then error((...), 0) end
  return ...
end

-- No call stands before a use of `...`: this LuaJIT's compiler may read it wrongly after one.
local function protected(mode, what, fn, ...)
  if type(fn) ~= "function" and type(fn) ~= "table" then check.func(fn, what .. ": argument 1") end
  return restore(C.rs_set_grad_enabled(ctx, mode), xpcall(fn, check.handler, ...))
end

---Runs fn(...) without recording gradients and returns its results.
---@param fn function|table a function or a callable table
function grad.no_grad(fn, ...) return protected(0, "no_grad", fn, ...) end

---Runs fn(...) with gradients recorded, also inside no_grad.
---@param fn function|table
function grad.enable_grad(fn, ...) return protected(1, "enable_grad", fn, ...) end

---@return boolean
function grad.is_grad_enabled() return C.rs_get_grad_enabled(ctx) ~= 0 end

---@param on boolean
---@return boolean former
function grad.set_grad_enabled(on)
  check.boolean(on, "set_grad_enabled: argument 1")
  return C.rs_set_grad_enabled(ctx, on and 1 or 0) ~= 0
end

local OPTIONS = { "grad", "retain_graph", "create_graph", "allow_unused" }

---Gradients of y with respect to tensors, as a list in their order.
---@param y resin.Tensor
---@param inputs resin.Tensor[]
---@param options? table grad (needed unless y has one element), retain_graph, create_graph, allow_unused (an input that y
---does not depend on gets nil)
---@return (resin.Tensor|nil)[]
function grad.grad(y, inputs, options)
  check.tensor(y, "grad: y")
  if getmetatable(inputs) == scope.Tensor then inputs = { inputs } end
  check.table(inputs, "grad: inputs")
  options = check.options(options, OPTIONS, "grad")
  local n = #inputs
  local handles, out = ffi.new("rs_tensor *[?]", n + 1), ffi.new("rs_tensor *[?]", n + 1)
  for i = 1, n do handles[i - 1] = check.tensor(inputs[i], "grad: inputs[" .. i .. "]").h end
  local seed = options.grad and check.tensor(options.grad, "grad: grad").h or nil
  local flags = 0
  if options.retain_graph then flags = flags + C.RS_RETAIN_GRAPH end
  if options.create_graph then flags = flags + C.RS_CREATE_GRAPH end
  if options.allow_unused then flags = flags + C.RS_ALLOW_UNUSED end
  check.status(C.rs_grad(ctx, y.h, seed, handles, n, flags, out))
  local result = {}
  for i = 1, n do
    if out[i - 1] ~= nil then result[i] = scope.wrap(out[i - 1]) end
  end
  return result
end

return grad
