--- Blocks: the list of modules that a block was given. It cannot be changed, because its owner runs a plan made of it.

local check = require "resin.check"
local class = require "resin.nn.class"
local ModuleList = require("resin.nn.sequential").ModuleList

---@class resin.blocks.Blocks: resin.nn.ModuleList
local Blocks = class.define("ModuleList", ModuleList, true)

--- Blocks(list) or Blocks(list, names).
---@param list resin.nn.Module[]
---@param names? table<integer, string>  names of children that are not their positions
function Blocks:init(list, names)
  for i, module in ipairs(list or {}) do ModuleList.insert(self, i, module, names and names[i] or nil) end
  rawset(self, "_sealed", true)
end

function Blocks:insert(position, module, name)
  if rawget(self, "_sealed") then check.fail("%s: the list of a block's layers is fixed; make a new block", self.type) end
  return ModuleList.insert(self, position, module, name)
end

function Blocks:remove() check.fail("%s: the list of a block's layers is fixed; make a new block", self.type) end

--- An nn.ModuleList with the children from `first` to `last`.
---@param first? integer
---@param last? integer
---@return resin.nn.ModuleList
function Blocks:slice(first, last)
  local copy = ModuleList()
  for i = 1, #self do copy:append(self[i], self._names[i] or nil) end
  return copy:slice(first, last)
end

--- A module as it is; a function as an nn.Lambda.
---@param value any
---@param what string
---@return resin.nn.Module
function Blocks.module(value, what)
  if class.is_module(value) then return value end
  if type(value) == "function" then return class.Lambda(value) end
  if type(value) == "table" and rawget(value, "module_class") then
    check.fail("%s must be a module, got the class %s; call it: %s(…)", what, value.type, value.type)
  end
  check.fail("%s must be a module or a function, got %s", what, check.describe(value))
end

return Blocks
