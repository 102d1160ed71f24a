--- Containers whose children do not stand in a row: Parallel, where all see the same value, and Dense, where each sees everything
-- before it. Options and states go to the children by name or position, and what they return besides their results comes back so, as in
-- a ResidualSequential.

local lib = require "resin.lib"
local check = require "resin.check"
local class = require "resin.nn.class"
local Module = require "resin.nn.module"
local ops = require "resin.ops"
local parts = require "resin.nn.sequential"
local scope = require "resin.scope"
local shapes = require "resin.nn.shapes"
local core = require "resin.residual.core"
local fit = require "resin.residual.fit"
local link = require "resin.residual.link"

local C = lib.C
local Numbered, Tensor, free, current = parts.Numbered, scope.Tensor, scope.free, scope.current

-- The options in the last argument, and what is left: (a, b, {join = …}), {a, b, join = …} or ({{"name", a}, …}, {join = …}).
local function split(self, names, given, count)
  local last = given[count]
  local options, rest = {}, given
  if class.is_plain(last) then
    local named, list = {}, {}
    for key, value in pairs(last) do
      if type(key) == "string" then named[key] = value else list[key] = value end
    end
    if next(named) ~= nil then
      options = check.options(named, names, self.type)
      if count == 1 then
        rest = {list}
      else
        rest = {}
        for i = 1, count - 1 do rest[i] = given[i] end
      end
    end
  end
  return rest, options
end

-- The dimension of the features in values of ndim dimensions behind these children.
local function feature_dim(self, ndim)
  local layout, spatial
  for i = 1, #self do
    layout, spatial = link.layout_of(self[i], true)
    if layout then break end
  end
  return fit.feature_dim(ndim, layout, spatial, self.dim)
end

local function set_dim(self, o)
  if o.dim == nil then return end
  rawset(self, "dim", check.integer(o.dim, self.type .. ": dim", -8, 8))
  if o.dim == 0 then check.fail("%s: dim 0: dimensions count from 1 (-1 is the last)", self.type) end
end

-- The result of child i, and the list of what children returned besides.
local function run_child(self, i, x, options, extras)
  local depth = check.push(self.type, i, self[i].type)
  local y, a, b, c
  if options and options[i] then
    y, a, b, c = Module.run(self[i], x, options[i])
  else
    y, a, b, c = Module.run(self[i], x)
  end
  if getmetatable(y) ~= Tensor then check.fail("%s returned %s; it must return a tensor", self[i].type, check.describe(y)) end
  check.pop(depth)
  if a ~= nil then
    extras = extras or {}
    core.add_extras(extras, self._names[i] or i, a, b, c)
  end
  return y, extras
end

local function options_for(self, options)
  return options ~= nil and core.child_options(self, options) or nil
end

local function child_shape(self, i, shape)
  local depth = check.push(self.type, i, self[i].type)
  local out = self[i]:output_shape(shape)
  check.pop(depth)
  return out
end

local function same_shapes(self, list)
  for i = 2, #list do
    if not fit.same(list[1], list[i]) then
      check.fail('%s: child 1 gives %s but child %d gives %s; join = "%s" needs equal shapes', self.type, shapes.text(list[1]), i,
        shapes.text(list[i]), tostring(self.join))
    end
  end
end

-- Children joined along dimension `at`.
local function cat_shape(self, list, at)
  local out = shapes.copy(list[1])
  for i = 2, #list do
    if not fit.same(list[1], list[i], at) then
      check.fail("%s: %s and %s cannot be concatenated along dimension %d", self.type, shapes.text(list[1]), shapes.text(list[i]), at)
    end
    out[at] = out[at] and list[i][at] and out[at] + list[i][at]
  end
  return out
end

-- ---- Parallel -------------------------------------------------------------------------------------------------------------

--- nn.Parallel(a, b, …, {join = "add", dim = nil}): every child gets the input; their results are joined.
--- join  "add", "mean", "max", "multiply"; "cat" along dim (by default where the layers have their features); "stack" along a new
---       dimension dim (1 by default); a function(results) of a table, or a module called with all results
---@class resin.nn.Parallel: resin.nn.Numbered
local Parallel = class.define("Parallel", Numbered, true)

local JOINS = {"add", "cat", "max", "mean", "multiply", "stack"}
local TWO = {add = ops.add, mean = ops.add, max = ops.maximum, multiply = ops.mul}

function Parallel:init(...)
  local count, given = select("#", ...), {...}
  local rest, o = split(self, {"join", "dim"}, given, count)
  local join = o.join
  if join == nil then join = "add" end
  rawset(self, "join", "custom")
  if class.is_module(join) then
    rawset(self, "join", nil)
    Module.add_module(self, "join", join)
  elseif type(join) == "function" then
    rawset(self, "join", join)
  else
    if type(join) ~= "string" then
      check.fail("Parallel: join must be a name, a function of a table of results or a module, got %s", check.describe(join))
    end
    rawset(self, "join", check.enum(join, "Parallel: join", JOINS))
  end
  set_dim(self, o)
  Numbered.init(self, unpack(rest, 1, math.max(#rest, count - 1)))
end

local function join_values(self, list)
  local join, first = self.join, list[1]
  if type(join) == "function" then return scope.call(join, list) end
  if class.is_module(join) then return Module.run(join, unpack(list)) end
  if join == "cat" then return ops.cat(list, feature_dim(self, C.rs_tensor_ndim(first.h))) end
  if join == "stack" then return ops.stack(list, self.dim or 1) end
  for i = 2, #list do
    if C.rs_tensor_same_shape(first.h, list[i].h) == 0 then
      local all = {}
      for k = 1, #list do all[k] = list[k].shape end
      same_shapes(self, all)
    end
  end
  local two, y = TWO[join], first
  for i = 2, #list do
    local next_y = two(y, list[i])
    if y ~= first then free(y) end
    y = next_y
  end
  if join ~= "mean" then return y end
  local mean = ops.mul(y, 1 / #list)
  if y ~= first then free(y) end
  return mean
end

local function run_parallel(self, x, options)
  if #self == 0 then check.fail("Parallel: there are no children") end
  local here, list, extras = current(), {}, nil
  for i = 1, #self do list[i], extras = run_child(self, i, x, options, extras) end
  local y = join_values(self, list)
  for i = 1, extras and 0 or #list do        -- extras may hold the results too
    local t = list[i]
    if t ~= x and t ~= y and t.s == here then free(t) end
  end
  return y, extras
end

function Parallel:forward(x, options)
  check.tensor(x, "Parallel: input")
  return scope.run(run_parallel, self, x, options_for(self, options))
end

function Parallel:output_shape(shape)
  shapes.check(shape, self.type)
  local list = {}
  for i = 1, #self do list[i] = child_shape(self, i, shape) end
  local join = self.join
  if type(join) ~= "string" then
    check.fail("Parallel: the shape of its result is not known, because join is a %s", class.is_module(join) and "module" or "function")
  end
  if join == "cat" then return cat_shape(self, list, feature_dim(self, #list[1])) end
  same_shapes(self, list)
  local out = shapes.copy(list[1])
  if join == "stack" then
    local dim = self.dim or 1
    if dim < 0 then dim = #out + 2 + dim end
    table.insert(out, dim, #list)
  end
  return out
end

function Parallel:label()
  local join = self.join
  local text = type(join) == "string" and ('%q'):format(join) or class.is_module(join) and join:label() or "function"
  return "Parallel{join = " .. text .. (self.dim and (", dim = %d"):format(self.dim) or "") .. "}"
end

--- For drawings: the children as {name, module} pairs, and how their results are joined.
---@return table[]
---@return string
function Parallel:branches()
  local list, join = {}, self.join
  for i = 1, #self do list[i] = {self._names[i] or i, self[i]} end
  return list, type(join) == "string" and join or class.is_module(join) and join.type or "function"
end

-- ---- Dense ----------------------------------------------------------------------------------------------------------------

--- nn.Dense(a, b, …, {dim = nil, output = "all"}): each child gets its input and all earlier results, concatenated (DenseNet); the
--- result is all of them, or with output = "last" that of the last child. Input first, then the children in order.
---@class resin.nn.Dense: resin.nn.Numbered
local Dense = class.define("Dense", Numbered, true)

function Dense:init(...)
  local count, given = select("#", ...), {...}
  local rest, o = split(self, {"dim", "output"}, given, count)
  rawset(self, "output", o.output == nil and "all" or check.enum(o.output, "Dense: output", {"all", "last"}))
  set_dim(self, o)
  Numbered.init(self, unpack(rest, 1, math.max(#rest, count - 1)))
end

local function run_dense(self, x, options)
  local list, all, y, extras = {x}, x, x, nil
  local here, at = current(), feature_dim(self, C.rs_tensor_ndim(x.h))
  for i = 1, #self do
    y, extras = run_child(self, i, all, options, extras)
    list[i + 1] = y
    if all ~= x and not extras then free(all) end
    if i < #self or self.output == "all" then all = ops.cat(list, at) end
  end
  local result = self.output == "all" and all or y
  for i = 2, extras and 0 or #list do
    local t = list[i]
    if t ~= x and t ~= result and t.s == here then free(t) end
  end
  return result, extras
end

function Dense:forward(x, options)
  check.tensor(x, "Dense: input")
  return scope.run(run_dense, self, x, options_for(self, options))
end

function Dense:output_shape(shape)
  local all = shapes.check(shape, self.type)
  local at, y = feature_dim(self, #shape), all
  for i = 1, #self do
    y = child_shape(self, i, all)
    all = cat_shape(self, {all, y}, at)
  end
  return shapes.copy(self.output == "all" and all or y)
end

function Dense:label()
  local list = {}
  if self.dim then list[1] = ("dim = %d"):format(self.dim) end
  if self.output ~= "all" then list[#list + 1] = 'output = "last"' end
  return #list > 0 and "Dense{" .. table.concat(list, ", ") .. "}" or "Dense"
end

-- What both have in common: their layout for an Apply behind them, and the options that a slice keeps.
for _, cls in ipairs{Parallel, Dense} do
  cls.passes_input = true
  local index = cls.__index
  cls.__index = function(self, key)
    if key == "layout" then
      for i = 1, #self do
        local layout = link.layout_of(self[i], true)
        if layout then return layout end
      end
      return nil
    end
    return index(self, key)
  end
  function cls:slice(first, last)
    local out = Numbered.slice(self, first, last)
    for _, name in ipairs{"join", "dim", "output"} do
      local value = rawget(self, name)
      if class.is_module(value) then
        rawset(out, name, nil)
        Module.add_module(out, name, value)
      else
        rawset(out, name, value)
      end
    end
    return out
  end
end

return {Parallel = Parallel, Dense = Dense}
