--- Deep copies of modules.
-- Parameters and buffers are copied; what is shared inside the module (a tied weight, a layer at two positions) is shared in
-- the copy too. Options, numbers, strings and functions are taken over. A tensor in any other field is copied when it is a leaf
-- and left out when it is an activation: a copy never holds on to a graph.

local check = require "resin.check"
local class = require "resin.nn.class"
local grad = require "resin.grad"
local scope = require "resin.scope"
local Tensor = require "resin.tensor"

local clone = {}

local function copy_tensor(t)
  local copy = scope.promote(t:detach():clone())
  if t.requires_grad then copy:requires_grad_(true) end
  return copy
end

local copy_value

local function copy_table(source, seen)
  local copy = {}
  seen[source] = copy
  for key, value in next, source do rawset(copy, key, copy_value(value, seen)) end
  return copy
end

function copy_value(value, seen)
  if type(value) ~= "table" then return value end
  if seen[value] ~= nil then return seen[value] end
  if Tensor.is(value) then
    if not value.h or not value.is_leaf then return nil end
    local copy = copy_tensor(value)
    seen[value] = copy
    return copy
  end
  if class.is_module(value) then
    local copy = setmetatable(copy_table(value, seen), getmetatable(value))
    class.instances[copy] = true
    return copy
  end
  if class.is_plain(value) then return copy_table(value, seen) end
  return value
end

--- A deep copy of a module.
---@param self resin.nn.Module
---@return resin.nn.Module
function clone.module(self)
  if not class.is_module(self) then check.fail("clone: call it on a module: m:clone()") end
  local copy = grad.no_grad(copy_value, self, {})
  class.structure.version = class.structure.version + 1
  return copy
end

return clone
