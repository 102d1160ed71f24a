--- state_dict and load_state_dict.
-- A state is a table {name = tensor} whose metatable remembers the order: pairs(sd) sees names and tensors only, and
-- `for name, tensor in sd() do` goes in the model's order. A tensor registered at two places is listed under both names, as in
-- PyTorch. Loading checks every name and shape before it writes anything, so a state that does not fit changes nothing.

local check = require "resin.check"
local grad = require "resin.grad"
local Tensor = require "resin.tensor"

local state = {}

local function ordered(self)
  local names = getmetatable(self).names
  local i = 0
  return function()
    i = i + 1
    local name = names[i]
    if name then return name, self[name] end
  end
end

local function add(entries, name, tensor, owner)
  entries[#entries + 1] = {name = name, tensor = tensor, owner = owner}
end

local function gather(module, prefix, entries)
  for _, field in ipairs(module._parameters) do
    local tensor = rawget(module, field)
    if tensor ~= nil then add(entries, prefix .. field, tensor, module) end
  end
  local transient = rawget(module, "_transient")
  for _, field in ipairs(module._buffers) do
    local tensor = rawget(module, field)
    if tensor ~= nil and not (transient and transient[field]) then add(entries, prefix .. field, tensor, module) end
  end
  local names, modules = module:child_list()
  for i = 1, #modules do gather(modules[i], prefix .. names[i] .. ".", entries) end
  return entries
end

--- A new, empty state that remembers the order in which names are put into it with state.put.
---@return table
function state.new()
  return setmetatable({}, {names = {}, __call = ordered})
end

---@param self table  made by state.new
---@param name string
---@param tensor resin.Tensor
function state.put(self, name, tensor)
  local names = getmetatable(self).names
  if self[name] == nil then names[#names + 1] = name end
  rawset(self, name, tensor)
end

---@param self resin.nn.Module
---@return table<string, resin.Tensor>
function state.collect(self)
  local out = state.new()
  for _, entry in ipairs(gather(self, "", {})) do state.put(out, entry.name, entry.tensor) end
  return out
end

-- Lets a module make what is missing (projections of a lazily built container) from the names and shapes in a state.
local function prepare(module, values, prefix)
  if module.before_load then module:before_load(values, prefix) end
  local names, modules = module:child_list()
  for i = 1, #modules do prepare(modules[i], values, prefix .. names[i] .. ".") end
end

local function same_shape(a, b)
  local x, y = a.shape, b.shape
  if #x ~= #y then return false end
  for i = 1, #x do
    if x[i] ~= y[i] then return false end
  end
  return true
end

local function copy_all(entries, values)
  for _, entry in ipairs(entries) do
    local value = values[entry.name]
    if value ~= nil and value ~= entry.tensor then entry.tensor:copy_(value) end
  end
end

local function quoted(list)
  for i = 1, #list do list[i] = '"' .. list[i] .. '"' end
  return table.concat(list, ", ")
end

--- Copies values into the module's parameters and buffers.
---@param self resin.nn.Module
---@param values table<string, resin.Tensor>  for example from resin.load
---@param options? {strict: boolean}  strict = false: missing and unexpected names are allowed
---@return {missing: string[], unexpected: string[]}
function state.load(self, values, options)
  local what = self.type .. ": load_state_dict"
  if type(values) ~= "table" or Tensor.is(values) then
    check.fail("%s: the state must be a table {name = tensor}, got %s", what, check.describe(values))
  end
  local strict = check.options(options, {"strict"}, what).strict
  if strict == nil then strict = true end
  check.boolean(strict, what .. ": strict")

  prepare(self, values, "")
  local entries = gather(self, "", {})
  local known, missing, unexpected, problems = {}, {}, {}, {}
  for _, entry in ipairs(entries) do
    local name = entry.name
    known[name] = true
    local value = values[name]
    if value == nil then
      missing[#missing + 1] = name
    elseif not Tensor.is(value) then
      problems[#problems + 1] = ('"%s" must be a tensor, got %s'):format(name, check.describe(value))
    elseif not same_shape(value, entry.tensor) then
      problems[#problems + 1] = ('"%s" is %s in the state but %s in the model'):format(name, check.shape_text(value),
        check.shape_text(entry.tensor))
    end
  end
  for name in pairs(values) do
    if not known[name] then unexpected[#unexpected + 1] = tostring(name) end
  end
  table.sort(unexpected)

  local lines = {}
  if strict and #missing > 0 then lines[#lines + 1] = "missing: " .. quoted({unpack(missing)}) end
  if strict and #unexpected > 0 then lines[#lines + 1] = "unexpected: " .. quoted({unpack(unexpected)}) end
  for _, problem in ipairs(problems) do lines[#lines + 1] = problem end
  if #lines > 0 then
    check.fail("%s", what .. ": the state does not fit the model:\n  " .. table.concat(lines, "\n  "))
  end
  grad.no_grad(copy_all, entries, values)
  return {missing = missing, unexpected = unexpected}
end

return state
