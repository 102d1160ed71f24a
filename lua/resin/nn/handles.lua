--- Arrays of tensor handles for calls that take many tensors at once.

local lib = require "resin.lib"

local ffi, C, ctx = lib.ffi, lib.C, lib.ctx
local array_type = ffi.typeof("rs_tensor *[?]")

local handles = {}

--- The handles of a list of tensors. The list must stay alive as long as the array is used.
---@param tensors resin.Tensor[]
---@return ffi.cdata* array
---@return integer n
function handles.array(tensors)
  local n = #tensors
  local array = array_type(n)
  for i = 1, n do array[i - 1] = tensors[i].h end
  return array, n
end

--- Drops the gradients of a list of tensors, in one call.
---@param tensors resin.Tensor[]
---@return integer dropped  how many there were
function handles.zero_grads(tensors)
  local array, n = handles.array(tensors)
  return tonumber(C.rs_zero_grads(ctx, array, n)) --[[@as integer]]
end

return handles
