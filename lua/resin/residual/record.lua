--- Record: marks the value that a later Apply takes up.
-- It holds nothing: the value lives in the table of one call of the container (core.lua). Alone it is an identity.

local check = require "resin.check"
local class = require "resin.nn.class"
local Module = require "resin.nn.module"
local arguments = require "resin.residual.arguments"
local shapes = require "resin.nn.shapes"

local NAMES = {"need_projection", "name", "export", "transform"}

-- What plans are made of. `aside`: an unnamed Apply does not see it, and it does not count among unnamed Records (residualize).
local FIXED = {"name", "export", "transform", "aside"}

--- Record(need_projection = false, name = nil), Record("name") or Record{name = …, need_projection = …, export = …}.
--- need_projection: where the shapes differ, the Apply projects the recorded value. export: enclosing containers may read
--- it by name too. transform: a module or a function; its result is recorded, and the value itself goes on. Without a name it is
--- called "record_<k>", the k-th Record of its container.
---@class resin.nn.Record: resin.nn.Module
---@field need_projection boolean
---@field name string?
---@field export boolean
local Record = class.define("Record", Module, true)

arguments.fix(Record, FIXED)
Record.option_names = NAMES

--- A module as it is, a function as a Lambda.
---@param value any
---@param what string  for the message
---@return resin.nn.Module
function Record.as_module(value, what)
  if class.is_module(value) then return value end
  if type(value) == "function" then return class.Lambda(value) end
  check.fail("%s must be a module or a function, got %s", what, check.describe(value))
end

--- Takes over the options of `o`, a table by name. For the constructors.
---@param o table
function Record:configure(o)
  local what = self.type
  self.need_projection = o.need_projection ~= nil and check.boolean(o.need_projection, what .. ": need_projection")
  local fixed = {export = o.export ~= nil and check.boolean(o.export, what .. ": export"), transform = false, aside = false}
  rawset(self, "_fixed", fixed)
  if o.name ~= nil then
    fixed.name = check.string(o.name, what .. ": name")
    if o.name == "" then check.fail("%s: name must not be empty", what) end
  end
  if fixed.export and not fixed.name then
    check.fail("%s: export = true needs a name, by which other containers can read it", what)
  end
  if o.transform ~= nil then self:add_module("transform", Record.as_module(o.transform, what .. ": transform")) end
end

-- Record{"a", need_projection = true}: a lone string in front is the name here too.
local function named(given)
  if given.name ~= nil then check.fail("Record: name is given twice, by position and by name") end
  local o = {name = given[1]}
  for key, value in pairs(given) do
    if key ~= 1 then o[key] = value end
  end
  return o
end

function Record:init(...)
  local first, second = ...
  local o
  if type(first) == "table" and second == nil and type(first[1]) == "string" and first[2] == nil then
    return self:configure(check.options(named(first), NAMES, "Record"))
  end
  if type(first) == "string" and type(second) ~= "string" then
    if second ~= nil and not class.is_plain(second) then
      check.fail("Record: behind the name comes a table of options, got %s: Record{%q, need_projection = true} or Record(true, %q)",
        check.describe(second), first, first)
    end
    o = arguments.read("Record", NAMES, 2, nil, first, select(2, ...))
  else
    o = arguments.read("Record", NAMES, 2, ...)
  end
  self:configure(o)
end

function Record:forward(x) return x end -- luacheck: no self

function Record:output_shape(shape) return shapes.copy(shapes.check(shape, self.type)) end

--- Its line in a printed tree.
---@param name? string  what it is called in its container, when it has no name of its own
---@return string
function Record:label(name)
  return arguments.label("Record", {{"name", self.name or name}, {"need_projection", self.need_projection}, {"export", self.export}}, 3)
end

return Record
