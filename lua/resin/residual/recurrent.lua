--- States of recurrent layers in containers: RecurrentWrapper, and how block(x, {hidden = {lstm = state}}) reaches the layers.
-- A recurrent layer returns its output and its state; the container passes the output on and returns the states, by the layers'
-- names, as its second result. What it returned can be passed in again as it is.

local check = require "resin.check"
local class = require "resin.nn.class"
local Module = require "resin.nn.module"
local arguments = require "resin.residual.arguments"
local scope = require "resin.scope"
local Tensor = require "resin.tensor"

local getmetatable, type, rawget, rawset = getmetatable, type, rawget, rawset

local recurrent = {}

-- ---- what layers take ----------------------------------------------------------------------------------------------------

local function has_more(fn, n)
  if type(fn) ~= "function" then return true end       -- a callable table
  local info = debug.getinfo(fn, "u")
  return info.isvararg or info.nparams > n
end

--- Does a layer's forward take more than its input? To others options are an error, not ignored.
---@param m resin.nn.Module
---@return boolean
function recurrent.takes_more(m)
  if m.options_to then return recurrent.takes_more(m[m.options_to]) end       -- they go to a child
  local forward = rawget(m, "forward") or getmetatable(m).forward
  if forward == class.Lambda.forward then return has_more(m.fn, 1) end
  return has_more(forward, 2)
end

-- ---- states by name -------------------------------------------------------------------------------------------------------

-- Is a numbered entry of a returned list there under a name too?
local function named_as_well(states, value)
  for key, other in pairs(states) do
    if type(key) == "string" and rawequal(other, value) then return true end
  end
  return false
end

local function with_state(options, state, what)
  local out = {hidden = state}
  for key, value in pairs(options or {}) do
    if key == "hidden" then check.fail("%s: its state is given twice", what) end
    out[key] = value
  end
  return out
end

--- Puts states {child = state} into the options of the layers: out[i].hidden.
---@param places table      the children of a plan, see link.lua
---@param by_name table
---@param states table      {child = state}, a table again for an inner container
---@param out table         options by step
---@param what string       for messages
function recurrent.spread(places, by_name, states, out, what)
  if not class.is_plain(states) then
    check.fail("%s: hidden must be a table {child = state}, got %s", what, check.describe(states))
  end
  for key, state in pairs(states) do
    local place = by_name[key]
    if type(key) ~= "number" or not named_as_well(states, state) then
      local name = ("%s: hidden: %s"):format(what, type(key) == "string" and ('"%s"'):format(key) or tostring(key))
      if not place then
        local names = {}
        for i = 1, #places do names[i] = tostring(places[i].name) end
        check.fail("%s: there is no such child (children: %s)", name, table.concat(names, ", "))
      elseif place.children then
        recurrent.spread(place.children, place.by_name, state, out, name)
      elseif not place.index then
        check.fail("%s: a Record or Apply has no state", name)
      elseif not recurrent.takes_more(place.module) then
        check.fail("%s: %s has no state", name, place.module.type)
      else
        out[place.index] = with_state(out[place.index], state, name)
      end
    end
  end
end

-- ---- RecurrentWrapper -----------------------------------------------------------------------------------------------------

local NAMES = {"module", "return_hidden", "carry", "detach"}

--- RecurrentWrapper(module, {return_hidden = false, carry = false, detach = true}): runs a module that returns its output and its
--- state, and gives the output, with return_hidden the state too. carry: the state of a call is where the next one starts, unless
--- that is given a state of its own; reset(), here or of a container around, forgets it. detach: gradients do not flow into the
--- call before (truncated backpropagation through time). Apart from the carried state it keeps nothing.
---@class resin.nn.RecurrentWrapper: resin.nn.Module
---@field module resin.nn.Module
---@field return_hidden boolean
---@field carry boolean
---@field detach boolean
local RecurrentWrapper = class.define("RecurrentWrapper", Module, true)

function RecurrentWrapper:init(...)
  local o = arguments.read("RecurrentWrapper", NAMES, 2, ...)
  local module = o.module
  if not class.is_module(module) then
    check.fail("RecurrentWrapper: module must be a recurrent layer, got %s", check.describe(module))
  end
  self:add_module("module", module)
  self.return_hidden = o.return_hidden ~= nil and check.boolean(o.return_hidden, "RecurrentWrapper: return_hidden")
  self.carry = o.carry ~= nil and check.boolean(o.carry, "RecurrentWrapper: carry")
  self.detach = o.detach == nil or check.boolean(o.detach, "RecurrentWrapper: detach")
  if o.detach ~= nil and not self.carry then check.fail("RecurrentWrapper: detach says what is carried; it needs carry = true") end
  self.layout = module.layout
  self.input_size = rawget(module, "input_size")
end

-- The state to carry: detached, or as it is; it outlives the scope of this call.
local function kept(state, detach, depth)
  if getmetatable(state) == Tensor then
    return scope.promote(detach and state:detach() or state)
  elseif class.is_plain(state) and depth < 8 then
    local out = {}
    for key, value in pairs(state) do out[key] = kept(value, detach, depth + 1) end
    return out
  end
  return state
end

RecurrentWrapper.carries_state = true       -- reset() of a container reaches it

-- The size of the batch in an input of one of resin's recurrent layers, and in its state; false without a batch.
local function batch_of_input(module, x)
  local shape = x.shape
  return #shape == 3 and shape[module.batch_first and 1 or 2]
end

local function batch_of_state(state)
  local h = class.is_plain(state) and state[1] or state
  if getmetatable(h) ~= Tensor then return nil end
  local shape = h.shape
  return #shape == 3 and shape[2]
end

-- The state of the call before, for x.
local function carried(self, x)
  local state, module = rawget(self, "_state"), self.module
  if state == nil or type(module.batch_first) ~= "boolean" or getmetatable(x) ~= Tensor then return state end
  local had, has = batch_of_state(state), batch_of_input(module, x)
  if had ~= nil and had ~= has then
    local function text(n) return n and ("a batch of %d"):format(n) or "one sequence without a batch" end
    check.fail("%s: the state that it carries is that of %s, but the input %s is %s; call reset(), here or on the container, before "
      .. "sequences that do not go on", self.type, text(had), check.shape_text(x), text(has))
  end
  return state
end

function RecurrentWrapper:forward(x, state)
  if class.is_plain(state) and state[1] == nil then state = check.options(state, {"hidden"}, self.type).hidden end
  if state == nil and self.carry then state = carried(self, x) end
  local y, after
  if state == nil then
    y, after = Module.run(self.module, x)
  else
    y, after = Module.run(self.module, x, state)
  end
  if after == nil then
    check.fail("%s: %s must return its output and its state, but it returned one value", self.type, self.module.type)
  end
  if self.carry then rawset(self, "_state", kept(after, self.detach, 0)) end
  if self.return_hidden then return y, after end
  return y
end

--- Forgets the carried state: the next call starts from zeros.
---@return resin.nn.RecurrentWrapper self
function RecurrentWrapper:reset()
  rawset(self, "_state", nil)
  return self
end

function RecurrentWrapper:output_shape(shape) return self.module:output_shape(shape) end

function RecurrentWrapper:label()
  local parts = {}
  if self.return_hidden then parts[#parts + 1] = "return_hidden = true" end
  if self.carry then parts[#parts + 1] = "carry = true" end
  if not self.detach then parts[#parts + 1] = "detach = false" end
  if #parts == 0 then return "RecurrentWrapper()" end
  return "RecurrentWrapper{" .. table.concat(parts, ", ") .. "}"
end

recurrent.RecurrentWrapper = RecurrentWrapper

return recurrent
