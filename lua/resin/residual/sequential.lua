--- ResidualSequential: an nn.Sequential in which Records and Applies stand between the layers.
-- Its plan (link.lua) is made at construction and after every change of its children, by which errors in names and in declared
-- sizes come at the line that made them. Containers inside it belong to its plan.

local check = require "resin.check"
local class = require "resin.nn.class"
local parts = require "resin.nn.sequential"
local shapes = require "resin.nn.shapes"
local core = require "resin.residual.core"
local infer = require "resin.residual.infer"
local link = require "resin.residual.link"

local Numbered = parts.Numbered

--- ResidualSequential(a, b, …) or with names ResidualSequential{{"conv", a}, {"skip", b}, …}, as nn.Sequential takes them.
--- block(x) gives the result; block(x, {attn = {…}}) passes options to children by name or position. When a layer returns more
--- than its result, the second result of the block lists it, in order and by name.
---@class resin.nn.ResidualSequential: resin.nn.Sequential
local ResidualSequential = class.define("ResidualSequential", parts.Sequential, true)

ResidualSequential.forward = core.forward
link.forward = core.forward

-- Undoes a change that cannot be: the container stays as it was.
local function changed(self, undo, ...)
  local ok, err = pcall(core.renew, self)
  if ok then return end
  undo(self, ...)
  rawset(self, "_plan", nil)
  error(err, 0)
end

function ResidualSequential:init(...)
  rawset(self, "_filling", true)
  Numbered.init(self, ...)
  rawset(self, "_filling", nil)
  core.renew(self)
end

local function take_out(self, position) Numbered.remove(self, position) end

local function put_back(self, position, module, name) Numbered.insert(self, position, module, name) end

function ResidualSequential:insert(position, module, name)
  Numbered.insert(self, position, module, name)
  if not rawget(self, "_filling") then changed(self, take_out, position) end
  return self
end

function ResidualSequential:remove(position)
  if position == nil then position = #self end
  local name = (rawget(self, "_names") or {})[position] or nil
  local removed = Numbered.remove(self, position)
  changed(self, put_back, position, removed, name)
  return removed
end

--- The shape of the result for an input of `shape`; makes the projections and gates that are still missing. What does not fit
--- is an error.
---@param shape (integer|false)[]
---@return (integer|false)[]
function ResidualSequential:output_shape(shape)
  shapes.check(shape, self.type)
  local plan = core.plan(self)
  local out = infer.build(plan, shape)
  if not out then
    check.fail("%s: the shape of its result is not known, because an operation is a function; register it with a shape", self.type)
  end
  return out
end

return ResidualSequential
