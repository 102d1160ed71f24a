--- Front: a residual container that is described in other words.
-- A front says in its constructor which layers, Records and Applies run (`steps`), and under which names its layers are seen
-- (`shown`): in state_dict, in the printed tree, for optimisers. So a block of torchvision keeps its names, conv1, bn1, downsample,
-- although it runs as the same plan as every ResidualSequential, also as a part of an enclosing one. Its steps are fixed.

local check = require "resin.check"
local class = require "resin.nn.class"
local Module = require "resin.nn.module"
local Apply = require "resin.residual.apply"
local Record = require "resin.residual.record"
local ResidualSequential = require "resin.residual.sequential"

---@class resin.blocks.Front: resin.nn.ResidualSequential
local Front = class.define("Front", ResidualSequential, true)

-- The children of an Apply in a front: not the modules that the front shows under names of its own (an operation, a shortcut).
local function own_children(apply)
  local names, modules = Module.child_list(apply)
  local own_names, own = {}, {}
  for i, name in ipairs(names) do
    if name ~= "op" and name ~= "transform" and not (name == "projection_layer" and apply.own_projection) then
      own_names[#own_names + 1], own[#own + 1] = name, modules[i]
    end
  end
  return own_names, own
end

--- For constructors: takes over what runs and what is seen.
---@param steps table[]  {name, module} pairs
---@param shown table[]  {name, module} pairs; modules that run inside others (a shortcut) or lists of modules
function Front:fill(steps, shown)
  local own = {}
  for i = 1, #steps do own[steps[i][1]] = true end
  for _, entry in ipairs(shown) do
    if not own[entry[1]] then rawset(self, entry[1], entry[2]) end     -- the others are found by name among the steps
  end
  rawset(self, "_shown", shown)
  ResidualSequential.init(self, steps)
  for i = 1, #self do
    if self[i]:is(Apply) then rawset(self[i], "child_list", own_children) end
  end
end

-- Is an Apply to be seen? It is when it owns something that is saved (a trained factor, gates, a projection that was made for it), and
-- when its mode, training or evaluation, matters.
local function is_seen(apply)
  return apply.drop_path ~= 0 or #apply._parameters > 0 or apply:definition().gates or apply.make_projection
    or #own_children(apply) > 0
end

function Front:child_list()
  local names, modules = {}, {}
  for i, entry in ipairs(self._shown) do names[i], modules[i] = entry[1], entry[2] end
  for i = 1, #self do
    if self[i]:is(Apply) and is_seen(self[i]) then
      names[#names + 1] = self._names[i]
      modules[#modules + 1] = self[i]
    end
  end
  return names, modules
end

local function refuse(self)
  check.fail("%s: its layers are given at construction; make a new one", self.type)
end

function Front:insert(position, module, name)
  if not rawget(self, "_filling") then refuse(self) end
  return ResidualSequential.insert(self, position, module, name)
end

Front.remove = refuse
Front.replace = refuse
Front.slice = refuse

--- Steps that make a residual block: the input is recorded, the layers run, and `apply` joins both.
---@param layers table[]    {name, module} pairs
---@param shortcut? resin.nn.Module  what the recorded value goes through
---@param given? table  options of the Apply: drop_path, layer_scale, scale, alpha
---@return table[] steps
function Front.around(layers, shortcut, given)
  local steps = {{"save_input", Record("input")}}
  for _, entry in ipairs(layers) do steps[#steps + 1] = entry end
  steps[#steps + 1] = {"add_input", Front.join("input", shortcut, given)}
  return steps
end

--- The Apply that adds a record.
---@param record string
---@param shortcut? resin.nn.Module
---@param given? table
---@return resin.nn.Apply
function Front.join(record, shortcut, given)
  local o = {record_name = record, projection = shortcut}
  for name, value in pairs(given or {}) do o[name] = value end
  return Apply(o)
end

return Front
