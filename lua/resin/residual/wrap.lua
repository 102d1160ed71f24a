--- Residual: a skip around one function, with the norms that go with it; and residualize, which puts skips into a finished Sequential.
-- Both only make lists of Records, layers and Applies, and are ResidualSequentials.

local check = require "resin.check"
local class = require "resin.nn.class"
local norm_of = require "resin.nn.norm_of"
local parts = require "resin.nn.sequential"
local Apply = require "resin.residual.apply"
local Record = require "resin.residual.record"
local ResidualSequential = require "resin.residual.sequential"
local Tensor = require "resin.tensor"
local link = require "resin.residual.link"

local Sequential = parts.Sequential

-- ---- sizes that layers declare --------------------------------------------------------------------------------------------

local TAKES = {"in_features", "input_size", "embed_dim", "in_channels", "num_features", "num_channels"}
local GIVES = {"out_features", "hidden_size", "embed_dim", "out_channels", "num_features", "num_channels"}

-- The features that a module takes, or gives (last = true), as its first or last layer with such a field says; nil when none does.
local function features_of(m, last)
  for _, name in ipairs(last and GIVES or TAKES) do
    local value = rawget(m, name)
    if type(value) == "number" then return value end
  end
  local sizes = rawget(m, "normalized_shape")
  if class.is_plain(sizes) then return sizes[#sizes] end
  local _, modules = m:child_list()
  for i = last and #modules or 1, last and 1 or #modules, last and -1 or 1 do
    local found = features_of(modules[i], last)
    if found then return found end
  end
  return nil
end

-- ---- Residual -------------------------------------------------------------------------------------------------------------

--- nn.Residual(fn, {norm = false, norm_layer = nil, features = nil, after = nil, need_projection = false, …}): fn(x) joined with x.
--- fn     a module, a function, or a table of them
--- norm   "pre" x + fn(norm(x)), "post" norm(x + fn(x)), "sandwich" x + norm(fn(norm(x)))
--- norm_layer  a class or function that makes a norm of `features` features, or a module; by default LayerNorm, behind convolutions
---             BatchNorm. Both `features` and it follow from the layers of fn where they say their sizes. Of the class
---             nn.GroupNorm it has as many groups as divide the features, 32 at most.
--- after  a module that runs on the result, such as an activation
--- All options of Apply are taken too: operation, alpha, scale, layer_scale, drop_path, projection, …
--- Children: skip, norm, fn, norm_after, join, after.
---@class resin.nn.Residual: resin.nn.ResidualSequential
local Residual = class.define("Residual", ResidualSequential, true)

local NAMES = {"norm", "norm_layer", "features", "after", "need_projection"}
for _, name in ipairs(Apply.option_names) do
  if name ~= "record_name" and name ~= "records" and name ~= "weights" and name ~= "outer" then NAMES[#NAMES + 1] = name end
end
local OWN = {norm = true, norm_layer = true, features = true, after = true, need_projection = true}

local function default_norm(fn, last, features)
  local layout, _, rank = link.layout_of(fn, last)
  if layout == "channels_first" and rank then
    local name = ("BatchNorm%dd"):format(rank)
    local Norm = require("resin.nn.norm")[name]
    if not Norm then check.fail("Residual: norm_layer is missing: there is no nn.%s", name) end
    return Norm(features)
  end
  return require("resin.nn.norm").LayerNorm(features)
end

-- A norm for what fn takes, or gives (last = true). `used` says that a given module is in use already.
local function make_norm(o, fn, last, used)
  local given = o.norm_layer
  if class.is_module(given) then return used and given:clone() or given end
  local features = o.features or features_of(fn, last) or features_of(fn, not last)
  if not features then
    check.fail("Residual: features is missing: how many the norm has cannot be seen in %s", fn:label())
  end
  if given == nil then return default_norm(fn, last, features) end
  local made
  if type(given) == "function" or (type(given) == "table" and rawget(given, "module_class")) then
    made = norm_of(given, features)
  end
  if not class.is_module(made) then
    check.fail("Residual: norm_layer must be a module, a layer's class or a function(features) that returns a module, got %s",
      check.describe(made == nil and given or made))
  end
  return made
end

function Residual:init(fn, options)
  if fn == nil then
    if options == nil then
      ResidualSequential.init(self)         -- an empty one, to be filled: what slice makes
      return
    end
    check.fail("Residual: fn is missing: Residual(fn, {options})")
  end
  if class.is_plain(fn) then fn = Sequential(fn) else fn = Record.as_module(fn, "Residual: fn") end
  local o = check.options(options, NAMES, "Residual")
  local norm = o.norm
  if norm then check.enum(norm, "Residual: norm", {"pre", "post", "sandwich"}) end
  if not norm and o.norm_layer ~= nil then check.fail('Residual: norm_layer needs norm = "pre", "post" or "sandwich"') end
  if o.features ~= nil then check.integer(o.features, "Residual: features", 1) end

  local join = {record_name = "skip"}
  for name, value in pairs(o) do
    if not OWN[name] then join[name] = value end
  end
  local list = {{"skip", Record{name = "skip", need_projection = o.need_projection}}}
  local function put(name, module) list[#list + 1] = {name, module} end
  if norm == "pre" or norm == "sandwich" then put("norm", make_norm(o, fn, false)) end
  put("fn", fn)
  if norm == "sandwich" then put("norm_after", make_norm(o, fn, true, true)) end
  put("join", Apply(join))
  if norm == "post" then put("norm", make_norm(o, fn, true)) end
  if o.after ~= nil then put("after", Record.as_module(o.after, "Residual: after")) end
  ResidualSequential.init(self, list)
end

-- ---- residualize ----------------------------------------------------------------------------------------------------------

local RESIDUALIZE = {"every", "first", "last", "where", "need_projection", "options"}
local OF_GROUPS = {every = true, first = true, last = true, where = true, need_projection = true, options = true}
local joins = {}
for _, name in ipairs(Apply.option_names) do
  if name ~= "record_name" and name ~= "records" and name ~= "weights" and name ~= "outer" then
    RESIDUALIZE[#RESIDUALIZE + 1] = name
    joins[#joins + 1] = name
  end
end

-- The groups of layers that get a skip: {k, first, last}, and the number of all groups.
local function groups_of(sequential, o, every, first, last)
  local groups, k = {}, 0
  for at = first, last - every + 1, every do
    local layers = {}
    for i = 1, every do layers[i] = sequential[at + i - 1] end
    k = k + 1
    if not o.where or o.where(k, layers) then groups[#groups + 1] = {k = k, first = at, last = at + every - 1} end
  end
  return groups, k
end

-- Has a value weights, which two skips must not share by mistake?
local function is_trained(value)
  if Tensor.is(value) then return value.requires_grad end
  return class.is_module(value) and #value:parameters() > 0
end

-- The options of the Apply of group k.
local function join_options(o, k)
  local join = {}
  for name, value in pairs(o) do
    if not OF_GROUPS[name] then join[name] = value end
  end
  for _, name in ipairs{"alpha", "scale"} do
    if type(join[name]) == "function" then join[name] = join[name](k) end
  end
  if class.is_plain(join.drop_path) then join.drop_path = join.drop_path[k] end
  if o.options == nil then return join end
  local own = o.options(k)
  if own ~= nil and not class.is_plain(own) then
    check.fail("residualize: options(%d) must return a table, got %s", k, check.describe(own))
  end
  for name, value in pairs(check.options(own, joins, ("residualize: options(%d)"):format(k))) do join[name] = value end
  return join
end

--- nn.residualize(sequential, {every = 2, first = 1, last = #sequential, where = nil, need_projection = true, …}): a
--- ResidualSequential of the same layers with a skip around every `every` of them. Layers keep their names, so a saved state of
--- the Sequential loads into it; Records and Applies that are there keep their pairs. What is left at the end stays without a skip.
--- where(k, layers) chooses the groups; further options are those of Apply. alpha and scale may be functions of k, which make a
--- factor for each skip; drop_path a list of one number for each group; options a function of k that returns a table of further
--- options of its skip.
---@param sequential resin.nn.Sequential
---@param options? table
---@return resin.nn.ResidualSequential
local function residualize(sequential, options)
  if not class.is_module(sequential) or not sequential:is(Sequential) then
    check.fail("residualize: argument 1 must be a Sequential, got %s", check.describe(sequential))
  end
  local o = check.options(options, RESIDUALIZE, "residualize")
  local names, n = sequential:child_list(), #sequential
  local every = o.every == nil and 2 or check.integer(o.every, "residualize: every", 1)
  local first = o.first == nil and 1 or check.integer(o.first, "residualize: first", 1, math.max(n, 1))
  local last = o.last == nil and n or check.integer(o.last, "residualize: last", 0, n)
  if o.where ~= nil then check.func(o.where, "residualize: where") end
  if o.options ~= nil then check.func(o.options, "residualize: options") end
  local need_projection = o.need_projection == nil or check.boolean(o.need_projection, "residualize: need_projection")

  local groups, count = groups_of(sequential, o, every, first, last)
  if class.is_plain(o.drop_path) and #o.drop_path ~= count then
    check.fail("residualize: drop_path must be a number or a list of one for each of the %d groups, got %d", count, #o.drop_path)
  end
  for _, name in ipairs{"alpha", "scale", "projection", "transform", "operation"} do
    if #groups > 1 and is_trained(o[name]) then
      local each = (name == "alpha" or name == "scale") and ("%s = function(k) ... end"):format(name)
        or ("options = function(k) return {%s = ...} end"):format(name)
      check.fail("residualize: %s would be one and the same in all %d skips; %s makes one for each", name, #groups, each)
    end
  end

  local list, at = {}, 1
  local function layers(to)
    for i = at, to do list[#list + 1] = {names[i], sequential[i]} end
    at = to + 1
  end
  for _, group in ipairs(groups) do
    layers(group.first - 1)
    local name, join = "skip_" .. group.k, join_options(o, group.k)
    local record = Record{name = name, need_projection = need_projection}
    record._fixed.aside = true           -- unnamed Applies among the layers read what they read before
    list[#list + 1] = {name, record}
    layers(group.last)
    join.record_name = name
    list[#list + 1] = {"join_" .. group.k, Apply(join)}
  end
  layers(n)
  local model = ResidualSequential(list)
  if not sequential.training then model:eval() end
  return model
end

return {Residual = Residual, residualize = residualize}
