--- What every optimiser has: parameter groups, adoption of late parameters, and a state that can be saved.
-- An optimiser built on a module asks it for its parameters again whenever any module has registered something since the last
-- look (class.structure.version), so parameters that a forward creates are trained from the next step on.

local lib = require "resin.lib"
local check = require "resin.check"
local class = require "resin.nn.class"
local create = require "resin.create"
local grad = require "resin.grad"
local scope = require "resin.scope"
local state = require "resin.nn.state"
local Group = require "resin.optim.group"
local Tensor = require "resin.tensor"

local ffi = lib.ffi
local structure = class.structure

---@class resin.optim.Optimizer
---@field type string
---@field param_groups resin.optim.Group[]
---@field lr number  of the first group; writing it sets all groups
local Optimizer = {}

-- ---- options --------------------------------------------------------------------------------------------------------------

-- A value for each option of the optimiser: as given, else from `defaults`, else the option's own default.
local function read_options(cls, given, what, defaults)
  local names, options = {}, {}
  for i, rule in ipairs(cls.options) do names[i] = rule.name end
  check.options(given, names, what)
  for _, rule in ipairs(cls.options) do
    local value = given and given[rule.name]
    if value ~= nil then
      value = rule.check(value, what .. ": " .. rule.name, rule.min, rule.max)
    elseif defaults then
      value = defaults[rule.name]
    else
      value = rule.default
    end
    options[rule.name] = value
  end
  cls.check_options(options, what)
  return options
end

-- ---- parameters -----------------------------------------------------------------------------------------------------------

-- Refuses a parameter of `group` that is in the group `owner` too.
local function refuse_second(self, group, name, tensor, owner)
  local groups, there, here, known = self.param_groups, 0, #self.param_groups + 1, name
  for g = 1, #groups do
    if groups[g] == owner then there = g end
    if groups[g] == group then here = g end
  end
  for i, other in ipairs(owner.params) do
    if other == tensor then known = owner.names[i] end
  end
  check.fail("%s: parameter %s of group %d is also in group %d%s", self.type, name, here, there,
    known ~= name and (" (as %s)"):format(known) or "")
end

local function add_parameter(self, group, name, tensor)
  local owner = self.owner[tensor]
  if owner == group then return end
  if owner then refuse_second(self, group, name, tensor, owner) end
  self.owner[tensor] = group
  self.changes = self.changes + 1
  group.params[#group.params + 1] = tensor
  group.names[#group.names + 1] = name
end

local function add_module(self, group)
  for name, tensor in group.module:named_parameters() do add_parameter(self, group, name, tensor) end
end

local function add_list(self, group, list)
  for i = 1, #list do
    local t = check.tensor(list[i], self.type .. ": parameter " .. i)
    if not t.is_leaf then
      check.fail("%s: parameter %d, %s, is the result of an op; only leaves can be trained", self.type, i, check.describe(t))
    end
    add_parameter(self, group, tostring(i), t)
  end
end

-- Asks the modules of the groups for parameters that appeared since the last look.
local function adopt(self)
  if structure.met then structure.met[self] = true end
  if self.version == structure.version then return end
  self.version = structure.version
  for _, group in ipairs(self.param_groups) do
    if group.module then add_module(self, group) end
  end
end

--- Adds a group {params = a module or a list of tensors, lr = …, …}. Options that are not given are the optimiser's own.
---@param given table
---@return resin.optim.Optimizer self
function Optimizer:add_param_group(given)
  local what = self.type .. ": parameter group " .. (#self.param_groups + 1)
  if not class.is_plain(given) or given.params == nil then
    check.fail("%s must be a table {params = …, lr = …}, got %s", what, check.describe(given))
  end
  local options = {}
  for key, value in pairs(given) do
    if key ~= "params" then options[key] = value end
  end
  local group = Group.new(self.kind, read_options(self.kind, options, what, self.defaults))
  local params = given.params
  if class.is_module(params) then
    group.module = params
    add_module(self, group)
  elseif Tensor.is(params) then
    add_list(self, group, {params})
  elseif class.is_plain(params) and #params > 0 then
    add_list(self, group, params)
  else
    check.fail("%s: params must be a module or a list of tensors, got %s", what,
      class.is_plain(params) and "an empty table" or check.describe(params))
  end
  self.param_groups[#self.param_groups + 1] = group
  structure.version = structure.version + 1
  return self
end

-- ---- stepping -------------------------------------------------------------------------------------------------------------

--- Updates every parameter that has a gradient; one C call per group.
function Optimizer:step()
  adopt(self)
  local groups, update = self.param_groups, self.kind.update
  for i = 1, #groups do
    if #groups[i].params > 0 then update(groups[i]) end
  end
end

--- Drops the gradients of all parameters; one C call per group.
function Optimizer:zero_grad()
  adopt(self)
  local groups = self.param_groups
  for i = 1, #groups do groups[i]:zero_grads() end
end

-- ---- saving ---------------------------------------------------------------------------------------------------------------

--- The state as a table {name = tensor} for resin.save: "group.G.OPTION" for the options of group G, and
--- "state.G.NAME.KEY" for what is kept of a parameter: "step" and, for example, "exp_avg". The tensors are shared.
---@return table<string, resin.Tensor>
function Optimizer:state_dict()
  adopt(self)
  local result = state.new()
  for g, group in ipairs(self.param_groups) do
    for _, rule in ipairs(self.kind.options) do
      local value = group[rule.name]
      if type(value) == "boolean" then value = value and 1 or 0 end
      state.put(result, ("group.%d.%s"):format(g, rule.name), create.tensor(value, {dtype = "f64"}))
    end
    local counts = group.steps and group:counts()
    for i = 1, group.n do
      local count = tonumber(counts[i - 1])
      if count > 0 then
        local prefix = ("state.%d.%s."):format(g, group.names[i])
        state.put(result, prefix .. "step", create.tensor(count, {dtype = "f64"}))
        for _, key in ipairs(self.kind.state_keys) do
          local tensor = group.state[key][i]
          if tensor then state.put(result, prefix .. key, tensor) end
        end
      end
    end
  end
  return result
end

-- What a state means for this optimiser: options and per-parameter values to write, and a list of problems.
local function match(self, values)
  local used, problems = {}, {}
  local options, tensors, counts = {}, {}, {}
  local function take(name)
    local value = values[name]
    if value == nil then return nil end
    used[name] = true
    if Tensor.is(value) then return value end
    problems[#problems + 1] = ('"%s" must be a tensor, got %s'):format(name, check.describe(value))
  end
  for g, group in ipairs(self.param_groups) do
    for _, rule in ipairs(self.kind.options) do
      local name = ("group.%d.%s"):format(g, rule.name)
      local value = take(name)
      if value then
        value = value:totable()
        if rule.slot == nil then value = value ~= 0 end
        options[#options + 1] = {group, rule.name, value}
      elseif values[name] == nil then
        problems[#problems + 1] = ('missing: "%s"'):format(name)
      end
    end
    for i, parameter in ipairs(group.params) do
      local prefix = ("state.%d.%s."):format(g, group.names[i])
      local step = take(prefix .. "step")
      counts[#counts + 1] = {group, i, step and step:item() or 0}
      for _, key in ipairs(self.kind.state_keys) do
        local value = take(prefix .. key)
        if value and check.shape_text(value) ~= check.shape_text(parameter) then
          problems[#problems + 1] = ('"%s%s" is %s but the parameter is %s'):format(prefix, key, check.shape_text(value),
            check.shape_text(parameter))
        end
        tensors[#tensors + 1] = {group, key, i, value or false}
      end
    end
  end
  local unexpected = {}
  for name in pairs(values) do
    if not used[name] then unexpected[#unexpected + 1] = ('unexpected: "%s"'):format(tostring(name)) end
  end
  table.sort(unexpected)
  for _, line in ipairs(unexpected) do problems[#problems + 1] = line end
  return problems, options, tensors, counts
end

local function take_over(self, options, tensors, counts)
  for _, entry in ipairs(options) do entry[1][entry[2]] = entry[3] end
  for _, group in ipairs(self.param_groups) do
    group.array = false
    group.buffered = false
    group.n = 0
    group.steps = false
    for _, key in ipairs(self.kind.state_keys) do group.state[key] = {} end
  end
  for _, entry in ipairs(tensors) do
    local group, key, i, value = entry[1], entry[2], entry[3], entry[4]
    if value then
      group.state[key][i] = scope.promote(value:detach():clone():to(group.params[i].dtype))
      group.buffered = true
    else
      group.state[key][i] = false
    end
  end
  for _, group in ipairs(self.param_groups) do group:prepare(group.buffered) end
  for _, entry in ipairs(counts) do entry[1]:counts()[entry[2] - 1] = ffi.cast("int64_t", entry[3]) end
end

--- Takes over the state of an optimiser of the same kind over the same parameters. It is checked first: one that does not fit
--- changes nothing.
---@param values table<string, resin.Tensor>  from state_dict or resin.load
function Optimizer:load_state_dict(values)
  local what = self.type .. ": load_state_dict"
  if type(values) ~= "table" or Tensor.is(values) then
    check.fail("%s: the state must be a table {name = tensor}, got %s", what, check.describe(values))
  end
  adopt(self)
  local problems, options, tensors, counts = match(self, values)
  if #problems > 0 then
    check.fail("%s", what .. ": the state does not fit this optimiser:\n  " .. table.concat(problems, "\n  "))
  end
  grad.no_grad(take_over, self, options, tensors, counts)
end

-- ---- making one -----------------------------------------------------------------------------------------------------------

local function option_text(value)
  if type(value) == "table" then return "{" .. table.concat(value, ", ") .. "}" end
  return tostring(value)
end

local function text(self)
  local lines = {}
  for g, group in ipairs(self.param_groups) do
    local parts = {}
    for i, rule in ipairs(self.kind.options) do parts[i] = rule.name .. " = " .. option_text(group[rule.name]) end
    lines[g] = ("%d tensor%s; %s"):format(#group.params, #group.params == 1 and "" or "s", table.concat(parts, ", "))
  end
  if #lines == 1 then return ("%s(%s)"):format(self.type, lines[1]) end
  for g = 1, #lines do lines[g] = ("  group %d: %s\n"):format(g, lines[g]) end
  return ("%s(\n%s)"):format(self.type, table.concat(lines))
end

local function get(self, key)
  if key == "lr" then return self.param_groups[1].lr end
  return Optimizer[key]
end

local function set(self, key, value)
  if key == "defaults" then return rawset(self, key, value) end      -- written once, by construct
  if key ~= "lr" then
    if not self.kind.rules[key] then Group.unknown(self.kind, key) end
    check.fail("%s: %s belongs to a group; write optimiser.param_groups[1].%s = value", self.type, key, key)
  end
  for _, group in ipairs(self.param_groups) do group.lr = value end
end

local instance = {__index = get, __newindex = set, __tostring = text}

local function construct(cls, params, options)
  local self = {type = cls.type, kind = cls, param_groups = {}, version = structure.version, changes = 0,
                owner = setmetatable({}, {__mode = "k"})}
  setmetatable(self, instance)
  self.defaults = read_options(cls, options, cls.type)
  if class.is_module(params) or Tensor.is(params) then return self:add_param_group{params = params} end
  if not class.is_plain(params) or #params == 0 then
    check.fail("%s: the first argument must be a module, a list of tensors or a list of groups {params = …}, got %s", cls.type,
      class.is_plain(params) and "an empty table" or check.describe(params))
  end
  if not class.is_plain(params[1]) then return self:add_param_group{params = params} end
  for i = 1, #params do self:add_param_group(params[i]) end
  return self
end

--- Defines a kind of optimiser.
---   options: {name, check, min, max, default, slot (place in hyper; nil for a boolean), count (places, 1)}
---   state_keys: names of the tensors kept per parameter, in the op's order
---   update(group): makes the group's state and runs the op
---   check_options(options, what): refuses combinations
---@param cls table
---@return table
function Optimizer.define(cls)
  cls.rules, cls.numbers = {}, 0
  for _, rule in ipairs(cls.options) do
    cls.rules[rule.name] = rule
    if rule.slot then cls.numbers = cls.numbers + (rule.count or 1) end
  end
  return setmetatable(cls, {__call = construct, __tostring = function(c) return "class optim." .. c.type end})
end

return Optimizer
