--- Layers without arithmetic: Flatten, Identity, Lambda.

local check = require "resin.check"
local class = require "resin.nn.class"
local args = require "resin.nn.args"
local Module = require "resin.nn.module"
local ops = require "resin.ops"
local scope = require "resin.scope"
local shapes = require "resin.nn.shapes"

--- Merges the dimensions from start_dim to end_dim, counted from 1. nn.Flatten({start_dim = 2, end_dim = -1}): by default all
--- but the batch.
---@class resin.nn.Flatten: resin.nn.Module
local Flatten = class.define("Flatten", Module, true)

Flatten.arguments = {
  {"start_dim", "integer", default = 2},
  {"end_dim", "integer", default = -1},
}

function Flatten:init(...)
  args.accept(self, Flatten.arguments, ...)
  for _, name in ipairs{"start_dim", "end_dim"} do
    if self[name] == 0 then check.fail("%s: %s 0: dimensions count from 1 (-1 is the last)", self.type, name) end
  end
end

function Flatten:forward(x)
  return ops.flatten(x, self.start_dim, self.end_dim)
end

function Flatten:output_shape(shape)
  shapes.check(shape, self.type)
  local n, first, last = #shape, self.start_dim, self.end_dim
  if first < 0 then first = n + 1 + first end
  if last < 0 then last = n + 1 + last end
  if first < 1 or last > n or first > last then
    check.fail("%s: input %s has no dimensions from %d to %d", self.type, shapes.text(shape), self.start_dim, self.end_dim)
  end
  local out, merged = {}, 1
  for i = 1, n do
    if i >= first and i <= last then
      merged = merged and shape[i] and merged * shape[i]
      if i == last then out[#out + 1] = merged or false end
    else
      out[#out + 1] = shape[i]
    end
  end
  return out
end

--- Returns its input. Arguments are accepted and ignored, so that it can stand in for any layer.
---@class resin.nn.Identity: resin.nn.Module
local Identity = class.define("Identity", Module, true)

function Identity:forward(x) return x end -- luacheck: no self

function Identity:output_shape(shape) return shapes.copy(shapes.check(shape, self.type)) end

--- A function as a layer: nn.Lambda(fn, {shape = function(shape) … end}). A plain function in the list of a container becomes
--- one. The function is kept by reference, so it is not part of a saved model.
---@class resin.nn.Lambda: resin.nn.Module
local Lambda = class.define("Lambda", Module, true)

Lambda.arguments = {
  {"fn", "function"},
  {"shape", "function", optional = true, hidden = true},
}

function Lambda:init(...)
  args.accept(self, Lambda.arguments, ...)
end

function Lambda:forward(...)
  return scope.call(self.fn, ...)
end

function Lambda:output_shape(shape)
  local rule = self.options.shape
  if not rule then
    check.fail("%s: the output shape of a function is not known; give it as nn.Lambda(fn, {shape = function(shape) … end})",
      self.type)
  end
  return shapes.check(rule(shapes.copy(shapes.check(shape, self.type))), self.type)
end

class.Lambda = Lambda

return {Flatten = Flatten, Identity = Identity, Lambda = Lambda}
