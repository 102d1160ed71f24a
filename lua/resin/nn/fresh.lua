--- Initial values once more: for copies of layers that are to have weights of their own.
-- A layer of resin is made anew from its options, and its parameters and buffers get the values of the new one. A class of the user's
-- says itself how it starts: its method reset_parameters(), if there is one, is called; a class that extends a layer of resin starts
-- as that. What nobody knows how to draw (parameters of one's own without that method, factors of an Apply) keeps its values, and so do
-- parameters that are not trained.

local grad = require "resin.grad"

local function find(module, path)
  local at = module
  for name in path:gmatch("[^.]+") do
    if at == nil then return nil end
    at = at[name]
  end
  return at
end

-- The class of resin that a module is, or extends, with the constructor's arguments declared.
local function own_class(module)
  local cls = getmetatable(module)
  while cls and not cls.builtin do cls = rawget(cls, "parent") end
  return cls and cls.arguments and next(module.options) ~= nil and cls or nil
end

local function take(module, entries)
  for name, value in entries do
    local old = find(module, name)
    if old ~= nil and (not value.requires_grad or old.requires_grad) then old:copy_(value:detach()) end
  end
end

local function draw(module)
  if not module.builtin and type(module.reset_parameters) == "function" then
    module:reset_parameters()
    return
  end
  local cls = own_class(module)
  if not cls or #module:parameters() == 0 then return end
  local options = {}
  for name, value in pairs(module.options) do options[name] = value end
  local new = cls(options)
  grad.no_grad(function()
    take(module, new:named_parameters())
    take(module, new:named_buffers())
  end)
end

--- Gives every layer of a module its initial values, the inner ones first.
---@param module resin.nn.Module
---@return resin.nn.Module module
return function(module) return module:apply(draw) end
