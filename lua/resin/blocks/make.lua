--- Layers that a user names in one of several ways: a module, a class, a function that makes a module, or a name.

local check = require "resin.check"
local class = require "resin.nn.class"

local make = {}

--- All layers by name. They load late, because resin.nn is large.
function make.layers() return require "resin.nn" end

--- A constructor: a class, or a function that makes a module.
---@param given any
---@param what string
function make.constructor(given, what)
  if type(given) == "function" or (type(given) == "table" and rawget(given, "module_class")) then return given end
  check.fail("%s must be a layer's class or a function that makes a layer, got %s", what, check.describe(given))
end

--- The module that a constructor made.
---@param value any
---@param what string
---@param hint? string
---@return resin.nn.Module
function make.module(value, what, hint)
  if not class.is_module(value) then check.fail("%s must make a module, got %s%s", what, check.describe(value), hint or "") end
  return value
end

--- An activation given by name, as class or function that makes one, or as the module itself.
---@param act any
---@param what string
---@return resin.nn.Module
function make.activation(act, what)
  if class.is_module(act) then return act end
  if type(act) == "string" then
    local nn, wanted = make.layers(), act:lower():gsub("_", "")
    for name, value in pairs(nn) do
      if name:lower() == wanted and type(value) == "table" and rawget(value, "module_class") then return value() end
    end
    check.fail('%s: there is no activation "%s"; give a name such as "ReLU", "GELU" or "SELU", a class, or a module', what, act)
  end
  return make.module(make.constructor(act, what)(), what, "; a function is called without arguments to make one (nn.Lambda(fn) "
    .. "makes a layer of fn)")
end

return make
