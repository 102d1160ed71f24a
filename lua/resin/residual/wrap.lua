--- Residual: a skip around one function, with the norms that go with it; and residualize, which puts skips into a finished Sequential.
-- Both only make lists of Records, layers and Applies, and are ResidualSequentials.

local check = require "resin.check"
local class = require "resin.nn.class"
local parts = require "resin.nn.sequential"
local Apply = require "resin.residual.apply"
local Record = require "resin.residual.record"
local ResidualSequential = require "resin.residual.sequential"
local link = require "resin.residual.link"

local Sequential = parts.Sequential

-- ---- sizes that layers declare --------------------------------------------------------------------------------------------

local TAKES = {"in_features", "input_size", "embed_dim", "in_channels", "num_features"}
local GIVES = {"out_features", "hidden_size", "embed_dim", "out_channels", "num_features"}

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
---             BatchNorm. Both `features` and it follow from the layers of fn where they say their sizes.
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
  local layout, rank = link.layout_of(fn, last)
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
  if type(given) == "function" or (type(given) == "table" and rawget(given, "module_class")) then made = given(features) end
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

local RESIDUALIZE = {"every", "first", "last", "where", "need_projection"}
for _, name in ipairs(Apply.option_names) do
  if name ~= "record_name" and name ~= "records" and name ~= "weights" and name ~= "outer" then
    RESIDUALIZE[#RESIDUALIZE + 1] = name
  end
end

--- nn.residualize(sequential, {every = 2, first = 1, last = #sequential, where = nil, need_projection = true, …}): a
--- ResidualSequential of the same layers with a skip around every `every` of them. Layers keep their names, so a saved state of
--- the Sequential loads into it. What is left at the end stays without a skip. where(k, layers) chooses the groups; further options
--- are those of Apply (a `drop_path` may be a list of one number for each group).
---@param sequential resin.nn.Sequential
---@param options? table
---@return resin.nn.ResidualSequential
local function residualize(sequential, options)
  if not class.is_module(sequential) or not sequential:is(Sequential) then
    check.fail("residualize: argument 1 must be a Sequential, got %s", check.describe(sequential))
  end
  local o = check.options(options, RESIDUALIZE, "residualize")
  local n = #sequential
  local every = o.every == nil and 2 or check.integer(o.every, "residualize: every", 1)
  local first = o.first == nil and 1 or check.integer(o.first, "residualize: first", 1, math.max(n, 1))
  local last = o.last == nil and n or check.integer(o.last, "residualize: last", 0, n)
  if o.where ~= nil then check.func(o.where, "residualize: where") end
  local need_projection = o.need_projection == nil or check.boolean(o.need_projection, "residualize: need_projection")

  local names, list = sequential:child_list(), {}
  local function layer(i) list[#list + 1] = {names[i], sequential[i]} end
  for i = 1, first - 1 do layer(i) end
  local at, k = first, 0
  while at + every - 1 <= last do
    local group = {}
    for i = 1, every do group[i] = sequential[at + i - 1] end
    k = k + 1
    local wanted = not o.where or o.where(k, group)
    local name = "skip_" .. k
    if wanted then list[#list + 1] = {name, Record{name = name, need_projection = need_projection}} end
    for i = at, at + every - 1 do layer(i) end
    if wanted then
      local join = {record_name = name}
      for option, value in pairs(o) do
        if option ~= "every" and option ~= "first" and option ~= "last" and option ~= "where" and option ~= "need_projection" then
          join[option] = value
        end
      end
      if class.is_plain(join.drop_path) then join.drop_path = join.drop_path[k] end
      list[#list + 1] = {"join_" .. k, Apply(join)}
    end
    at = at + every
  end
  for i = at, n do layer(i) end
  local model = ResidualSequential(list)
  if not sequential.training then model:eval() end
  return model
end

return {Residual = Residual, residualize = residualize}
