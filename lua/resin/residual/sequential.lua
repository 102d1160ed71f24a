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
local Record = require "resin.residual.record"

local Numbered = parts.Numbered

--- ResidualSequential(a, b, …) or with names ResidualSequential{{"conv", a}, {"skip", b}, …}, as nn.Sequential takes them.
--- block(x) gives the result; block(x, {attn = {…}}) passes options to children by name or position. When a layer returns more
--- than its result, the second result of the block lists it, in order and by name.
---@class resin.nn.ResidualSequential: resin.nn.Sequential
local ResidualSequential = class.define("ResidualSequential", parts.Sequential, true)

ResidualSequential.forward = core.forward
link.forward = core.forward

-- keep_records is not kept under its own name, so that each assignment is seen.
function ResidualSequential.lookup(self, key)
  if key == "keep_records" then return rawget(self, "_keep_records") or false end
  return Numbered.lookup(self, key)
end

function ResidualSequential.__index(self, key)
  local value = ResidualSequential[key]
  if value ~= nil then return value end
  return ResidualSequential.lookup(self, key)
end

function ResidualSequential.__newindex(self, key, value)
  if key ~= "keep_records" then return Numbered.__newindex(self, key, value) end
  core.keep_records(self, value ~= nil and check.boolean(value, self.type .. ": keep_records"))
end

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
  position = Numbered.position_from(self, position, "remove")
  local name = (rawget(self, "_names") or {})[position] or nil
  local removed = Numbered.remove(self, position)
  changed(self, put_back, position, removed, name)
  return removed
end

function ResidualSequential:replace(position, module)
  local former = Numbered.replace(self, position, module)
  changed(self, Numbered.replace, position, former)
  return former
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

--- Child i's line in the printed tree: an unnamed Record shows the name that it has here.
---@param i integer
---@return string?
function ResidualSequential:child_label(i)
  local child = self[i]
  if not child:is(Record) or child.name then return nil end
  local ok, plan = pcall(core.plan, self)       -- children may have been put in that cannot be
  local entry = ok and plan.children[i] and plan.children[i].record
  return entry and child:label(entry.name) or nil
end

-- ---- looking inside -------------------------------------------------------------------------------------------------------

--- A forward that keeps what it records until the next such call; get_recorded_tensor shows it. With `keep_records = true`
--- on the container every forward does so, also one of a container around it. By default nothing is kept.
---@param x resin.Tensor
---@param options? table
---@return resin.Tensor
---@return table? extras
function ResidualSequential:record(x, options) return core.record(self, x, options) end

--- What was recorded under a name in the last such call, and its Record: model:get_recorded_tensor("input"). Names of inner
--- containers have their path in front: "2.record_1". Without a name: what was recorded last. An unknown name is an error.
---@param name? string
---@return resin.Tensor?
---@return resin.nn.Record?
function ResidualSequential:get_recorded_tensor(name) return core.recorded(self, name) end

--- Forgets what a call kept.
---@return resin.nn.Module self
function ResidualSequential:forget_records()
  core.forget(self)
  return self
end

return ResidualSequential
