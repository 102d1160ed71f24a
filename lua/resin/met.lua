--- What a recording met of modules and optimisers, and whether it is still so.
-- While a function is recorded, `structure.met` gathers the modules that are called or walked through and the optimisers that are used.
-- To them come the modules whose tensors the program binds, what lies below each module that was called, and the modules that hold
-- one of all these (their methods and fields may lead to it).
-- A field that exists may be assigned without a metamethod, so each call looks at the fields and modes themselves. What is new makes
-- structure.version grow; only then are the other lists compared.

local lib = require "resin.lib"
local class = require "resin.nn.class"
local Tensor = require "resin.tensor"

local ffi, C = lib.ffi, lib.C
local rawget, getmetatable, type = rawget, getmetatable, type
local is_module, structure = class.is_module, class.structure

local met = {}

local BOUND = 1
local MANY = 120      -- more fields are compared by a loop
local value_info, program_info = ffi.new("rs_value_info"), ffi.new("rs_program_info")

--- Fields of tables and what they held: keys[i] of list[2 i - 1] held list[2 i].
---@class resin.Fields
---@field keys table
---@field list table

---@class resin.Met
---@field parts resin.Fields  parameters, buffers, children, and other tensors that the program binds
---@field modes resin.Fields  `training`
---@field same fun(then_: resin.Met): boolean  both are as they were
---@field objects table  for `same`
---@field sizes table    {module, number of its parameters, buffers and children, …}
---@field constants table  {module, text, …}: of modules with a method recorded_constants
---@field changes table  {optimiser or group, its `changes`, …}

--- Begins to gather, with the modules that the function has as upvalues.
---@param fn function
function met.begin(fn)
  local noted = {}
  for i = 1, type(fn) == "function" and debug.getinfo(fn, "u").nups or 0 do
    local _, value = debug.getupvalue(fn, i)
    if is_module(value) then noted[value] = true end
  end
  structure.met = noted
end

--- Ends it.
---@return table noted  modules and optimisers, as keys
function met.finish()
  local noted = structure.met
  structure.met = false
  return noted
end

-- ---- gathering ------------------------------------------------------------------------------------------------------------

local function key_of(h) return tonumber(ffi.cast("uintptr_t", h)) end

-- The tensors that a program binds.
local function bindings(program)
  local bound = {}
  C.rs_program_describe(program, program_info)
  for id = 0, program_info.values - 1 do
    if C.rs_program_value(program, id, value_info) == 0 and value_info.kind == BOUND and value_info.bound ~= nil then
      bound[key_of(value_info.bound)] = true
    end
  end
  return bound
end

local function below(module, all)
  if all[module] then return end
  all[module] = true
  for _, value in next, module do
    if is_module(value) then below(value, all) end
  end
end

-- Modules that bind a tensor of the program, and then all that hold a module of `all`.
local function around(all, bound)
  local holders, open = {}, {}
  for module in pairs(class.instances) do
    for _, value in next, module do
      if type(value) == "table" then
        if getmetatable(value) == Tensor then
          if value.h and bound[key_of(value.h)] then all[module] = true end
        elseif is_module(value) then
          holders[value] = holders[value] or {}
          table.insert(holders[value], module)
        end
      end
    end
  end
  for module in pairs(all) do open[#open + 1] = module end
  while #open > 0 do
    for _, holder in ipairs(holders[table.remove(open)] or {}) do
      if not all[holder] then
        all[holder] = true
        open[#open + 1] = holder
      end
    end
  end
end

-- Calls visit(name, tensor) for the parameters and buffers that a module has.
local function each_tensor(module, visit)
  for _, list in ipairs{module._parameters, module._buffers} do
    for _, name in ipairs(list) do
      local tensor = rawget(module, name)
      if tensor ~= nil then visit(name, tensor) end
    end
  end
end

-- How many parameters, buffers and children a module has.
local function size_of(module)
  local n = 0
  each_tensor(module, function() n = n + 1 end)
  for _, value in next, module do
    if is_module(value) then n = n + 1 end
  end
  return n
end

local function append(list, a, b) list[#list + 1], list[#list + 2] = a, b end

local function add_field(fields, holder, key, value)
  fields.keys[#fields.keys + 1] = key
  append(fields.list, holder, value)
end

local function add_module(now, module, bound)
  local registered = {}
  each_tensor(module, function(name, tensor)
    registered[name] = true
    add_field(now.parts, module, name, tensor)
  end)
  for key, value in next, module do
    local is_bound = type(key) == "string" and getmetatable(value) == Tensor and value.h and bound[key_of(value.h)]
    if is_module(value) or is_bound and not registered[key] then add_field(now.parts, module, key, value) end
  end
  local mode = module.training and true or false
  rawset(module, "training", mode)        -- a field of its own, not of its class: then its code need not ask metatables
  add_field(now.modes, module, "training", mode)
  append(now.sizes, module, size_of(module))
  local constants = getmetatable(module).recorded_constants
  if constants then append(now.constants, module, constants(module)) end
end

local function add_optimiser(now, optimiser)
  append(now.changes, optimiser, optimiser.changes)
  for _, group in ipairs(optimiser.param_groups) do append(now.changes, group, group.changes) end
end

-- ---- comparing ------------------------------------------------------------------------------------------------------------

-- Do the fields hold what they held?
local function hold(fields)
  local list, keys = fields.list, fields.keys
  for i = 1, #keys do
    if rawget(list[2 * i - 1], keys[i]) ~= list[2 * i] then return false end
  end
  return true
end

--- Are the modes of the modules as they were?
---@param then_ resin.Met
---@return boolean
function met.same_modes(then_) return hold(then_.modes) end

--- Have the modules the parameters, buffers and children that they had?
---@param then_ resin.Met
---@return boolean
function met.same_parts(then_) return hold(then_.parts) end

local function same_in_loops(then_) return hold(then_.modes) and hold(then_.parts) end

local written = setmetatable({}, {__mode = "v"})

-- The function that compares modes and parts. For few of them it is straight code, which is faster than a loop and compiled into the
-- caller's trace: `return o[1]["training"] == false and o[1]["weight"] == o[2] and …`, with each object once in `objects`. Recordings of
-- fields of the same names share it.
local function comparison(then_)
  if #then_.parts.keys + #then_.modes.keys > MANY then return same_in_loops end
  local objects, places, parts = then_.objects, {}, {"true"}
  local function place(object)
    if type(object) == "boolean" then return tostring(object) end
    if not places[object] then
      objects[#objects + 1] = object
      places[object] = ("o[%d]"):format(#objects)
    end
    return places[object]
  end
  for _, fields in ipairs{then_.modes, then_.parts} do
    for i, key in ipairs(fields.keys) do
      local form = type(key) == "number" and "%s[%d] == %s" or "%s[%q] == %s"
      parts[#parts + 1] = form:format(place(fields.list[2 * i - 1]), key, place(fields.list[2 * i]))
    end
  end
  local text = "return function(then_)\nlocal o = then_.objects\nreturn " .. table.concat(parts, "\nand ") .. "\nend"
  local fn = written[text] or assert(loadstring(text, "=met"))()
  written[text] = fn
  return fn
end

--- Are the parts of the modules, and what else may have changed, as they were? To be asked when structure.version has grown.
---@param then_ resin.Met
---@return boolean
function met.same_structure(then_)
  if not hold(then_.parts) then return false end
  local sizes, constants, changes = then_.sizes, then_.constants, then_.changes
  for i = 1, #sizes, 2 do
    if size_of(sizes[i]) ~= sizes[i + 1] then return false end
  end
  for i = 1, #constants, 2 do
    if constants[i]:recorded_constants() ~= constants[i + 1] then return false end
  end
  for i = 1, #changes, 2 do
    if changes[i].changes ~= changes[i + 1] then return false end
  end
  return true
end

--- What belongs to a recording.
---@param noted table  from met.finish
---@param program ffi.cdata*
---@return resin.Met
function met.of(noted, program)
  local now = {parts = {keys = {}, list = {}}, modes = {keys = {}, list = {}}, objects = {}, sizes = {}, constants = {}, changes = {}}
  local bound, all = bindings(program), {}
  for thing in pairs(noted) do
    if is_module(thing) then
      below(thing, all)
    else
      add_optimiser(now, thing)
      for _, group in ipairs(thing.param_groups) do
        if group.module then below(group.module, all) end
      end
    end
  end
  around(all, bound)
  for module in pairs(all) do add_module(now, module, bound) end
  now.same = comparison(now)
  return now
end

return met
