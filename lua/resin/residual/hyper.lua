--- HyperConnections: several residual streams instead of one (Zhu et al. 2024). Before a layer its input is mixed from the streams;
-- behind it the streams are mixed among themselves and take up the result:
--   input = sum over streams s of A[s, 1]·h[s]
--   h'[t] = beta[t]·layer(input) + sum over s of A[s, t + 1]·h[s]
-- A ([streams, streams + 1]) starts with one stream as the input, another for each layer in turn, and the identity behind it; beta
-- starts with ones. With dynamic = true each position adds its own part: A + 0.01·tanh(norm(h) W), beta likewise, where W starts
-- with zeros, the 0.01 are trained, and norm is RMS norm over the features.
-- Streams are the first dimension of the value that goes between the layers. With dynamic = true the features are its last: behind
-- convolutions they are moved there, and back for each layer (`order` and `back`, permutations; nil where nothing moves).

local check = require "resin.check"
local class = require "resin.nn.class"
local create = require "resin.create"
local Module = require "resin.nn.module"
local ops = require "resin.ops"
local parts = require "resin.nn.sequential"
local scope = require "resin.scope"
local shapes = require "resin.nn.shapes"
local fit = require "resin.residual.fit"
local link = require "resin.residual.link"
local Record = require "resin.residual.record"

local Numbered, Tensor = parts.Numbered, scope.Tensor

-- ---- one connection -------------------------------------------------------------------------------------------------------

---@class resin.nn.HyperConnection: resin.nn.Module
local HyperConnection = class.define("HyperConnection", Module, true)

local function parameter(t) return scope.promote(t):requires_grad_(true) end

function HyperConnection:init(branch, o, index)
  local n = o.streams
  local rows = {}
  for s = 1, n do
    rows[s] = {s == (index - 1) % n + 1 and 1 or 0}
    for t = 1, n do rows[s][t + 1] = s == t and 1 or 0 end
  end
  rawset(self, "streams", n)
  rawset(self, "dynamic", o.dynamic)
  rawset(self, "dim", o.dim)
  self:add_module("branch", branch)
  self:register_parameter("static_alpha", parameter(create.tensor(rows)))
  self:register_parameter("static_beta", parameter(create.ones(n)))
  if not o.dynamic then return end
  self:register_parameter("dynamic_alpha", parameter(create.zeros(o.features, n + 1)))
  self:register_parameter("dynamic_beta", parameter(create.zeros(o.features)))
  self:register_parameter("alpha_scale", parameter(create.full({1}, 0.01)))
  self:register_parameter("beta_scale", parameter(create.full({1}, 0.01)))
end

-- Runs the layer on what was mixed for it; shape is that of one stream.
local function branch(self, input, shape, back)
  local x = ops.reshape(input, shape)
  if back then
    x = ops.permute(x, back)
    shape = x.shape
  end
  local y = Module.run(self.branch, x)
  if getmetatable(y) ~= Tensor then
    check.fail("%s returned %s; it must return a tensor", self.branch.type, check.describe(y))
  end
  local out = y.shape
  for i = 1, math.max(#out, #shape) do
    if out[i] ~= shape[i] then
      check.fail("HyperConnections: %s makes %s of %s; it must keep the shape", self.branch:label(), shapes.text(out), shapes.text(shape))
    end
  end
  return y
end

-- h: [streams, M]
local function static(self, h, shape)
  local n = self.streams
  local mixed = ops.matmul(ops.transpose(self.static_alpha, 1, 2), h)              -- [1 + streams, M]
  local y = branch(self, ops.narrow(mixed, 1, 1, 1), shape)
  local taken = ops.mul(ops.reshape(self.static_beta, {n, 1}), ops.reshape(y, {1, -1}))
  return ops.add(taken, ops.narrow(mixed, 1, 2, n))
end

-- h: [streams, positions, features]; shape has the features last
local function dynamic(self, h, shape, order, back)
  local n, features = self.streams, shape[#shape]
  local normed = ops.rms_norm(h, nil, features)
  local function own(weights, columns, scale)                                       -- [streams, positions, columns]
    local w = ops.matmul(normed, ops.reshape(weights, {features, columns}))
    return ops.mul(ops.tanh(w), scale)
  end
  local alpha = ops.add(own(self.dynamic_alpha, n + 1, self.alpha_scale), ops.reshape(self.static_alpha, {n, 1, n + 1}))
  local beta = ops.add(own(self.dynamic_beta, 1, self.beta_scale), ops.reshape(self.static_beta, {n, 1, 1}))
  local mixed = ops.matmul(ops.permute(alpha, {2, 3, 1}), ops.permute(h, {2, 1, 3}))  -- [positions, 1 + streams, features]
  mixed = ops.permute(mixed, {2, 1, 3})
  local y = branch(self, ops.narrow(mixed, 1, 1, 1), shape, back)
  if order then y = ops.permute(y, order) end
  local taken = ops.mul(beta, ops.reshape(y, {1, -1, features}))
  return ops.add(taken, ops.narrow(mixed, 1, 2, n))
end

-- ---- the container --------------------------------------------------------------------------------------------------------

--- nn.HyperConnections(layer, …, {streams = 4, dynamic = false, features = nil, dim = nil}): the layers in a row, each with a
--- hyper-connection around it; they must keep the shape of their input. The input goes into all streams; the result is their sum.
--- dynamic = true needs `features`, the size of the dimension where the layers have their features: the channels of convolutions, the last
--- dimension of others, or `dim`.
---@class resin.nn.HyperConnections: resin.nn.Numbered
local HyperConnections = class.define("HyperConnections", Numbered, true)

local NAMES = {"streams", "dynamic", "features", "dim"}

function HyperConnections:init(...)
  local count, given = select("#", ...), {...}
  local named, list = {}, {}
  local last = given[count]
  if class.is_plain(last) then
    for key, value in pairs(last) do
      if type(key) == "string" then named[key] = value else list[key] = value end
    end
    given[count] = nil
  end
  if count > 1 or not class.is_plain(last) then
    for i = #given, 1, -1 do table.insert(list, 1, given[i]) end
  end
  check.options(named, NAMES, "HyperConnections")
  local o = {
    streams = named.streams == nil and 4 or check.integer(named.streams, "HyperConnections: streams", 1),
    dynamic = named.dynamic ~= nil and check.boolean(named.dynamic, "HyperConnections: dynamic"),
    features = named.features ~= nil and check.integer(named.features, "HyperConnections: features", 1) or nil,
    dim = named.dim ~= nil and check.integer(named.dim, "HyperConnections: dim", -8, 8) or nil,
  }
  if o.dynamic and not o.features then
    check.fail("HyperConnections: dynamic = true needs features, the size of the dimension of the features")
  end
  if o.dim == 0 then check.fail("HyperConnections: dim 0: dimensions count from 1 (-1 is the last)") end
  rawset(self, "settings", o)
  for _, layer in ipairs(list) do
    local name
    if class.is_plain(layer) then name, layer = layer[1], layer[2] end
    self:append(layer, name)
  end
end

function HyperConnections:insert(position, layer, name)
  layer = Record.as_module(layer, ("HyperConnections: entry %s"):format(tostring(position)))
  if not layer:is(HyperConnection) then
    layer = HyperConnection(layer, self.settings, position)
  elseif #self == 0 then                   -- a slice starts like this
    local alpha = rawget(layer, "dynamic_alpha")
    rawset(self, "settings", {streams = layer.streams, dynamic = layer.dynamic, features = alpha and alpha.shape[1] or nil,
      dim = layer.dim})
  end
  if rawget(self, "layout") == nil then rawset(self, "layout", (link.layout_of(layer.branch, true))) end
  return Numbered.insert(self, position, layer, name)
end

function HyperConnections:replace(position, layer)
  position = Numbered.position_from(self, position, "replace")
  layer = Record.as_module(layer, ("HyperConnections: entry %d"):format(position))
  if not layer:is(HyperConnection) then layer = HyperConnection(layer, self.settings, position) end
  return Numbered.replace(self, position, layer)
end

-- The dimension of the features in values of ndim dimensions.
local function feature_dim(self, ndim)
  local layout, spatial
  for i = 1, #self do
    layout, spatial = link.layout_of(self[i].branch, true)
    if layout then break end
  end
  return fit.feature_dim(ndim, layout, spatial, self.settings.dim)
end

-- The permutations that move dimension `at` of n to the end, and back.
local function to_the_end(at, n)
  local order, back = {}, {}
  for i = 1, n do
    if i ~= at then order[#order + 1] = i end
  end
  order[n] = at
  for i = 1, n do back[order[i]] = i end
  return order, back
end

local function run(self, x)
  local o, shape = self.settings, x.shape
  local order, back
  if o.dynamic then
    local at = feature_dim(self, #shape)
    if shape[at] ~= o.features then
      check.fail("HyperConnections: input %s has %d features (dimension %d), expected %d", shapes.text(shape), shape[at] or 0, at,
        o.features)
    end
    if at ~= #shape then
      order, back = to_the_end(at, #shape)
      x = ops.permute(x, order)
      shape = x.shape
    end
  end
  local width = shape[#shape]
  local flat = o.dynamic and {1, -1, width} or {1, -1}
  local streams = {}
  for i = 1, o.streams do streams[i] = ops.reshape(x, flat) end
  local h = ops.cat(streams, 1)
  for i = 1, #self do
    local connection = self[i]
    local depth = check.push(self.type, i, connection.branch.type)
    h = scope.run(o.dynamic and dynamic or static, connection, h, shape, order, back)
    check.pop(depth)
  end
  local y = ops.reshape(ops.sum(h, 1), shape)
  return back and ops.copy(ops.permute(y, back)) or y
end

function HyperConnections:forward(x)
  check.tensor(x, "HyperConnections: input")
  return scope.run(run, self, x)
end

function HyperConnections:output_shape(shape)
  shapes.check(shape, self.type)
  for i = 1, #self do
    local depth = check.push(self.type, i, self[i].branch.type)
    local out = self[i].branch:output_shape(shape)
    if not (#out == #shape and require("resin.residual.fit").same(out, shape)) then
      check.fail("it makes %s of %s; a layer of HyperConnections must keep the shape", shapes.text(out), shapes.text(shape))
    end
    check.pop(depth)
  end
  return shapes.copy(shape)
end

function HyperConnections:label()
  local o = self.settings
  return ("HyperConnections{streams = %d%s%s}"):format(o.streams, o.dynamic and (", dynamic = true, features = %d"):format(o.features)
    or "", o.dim and (", dim = %d"):format(o.dim) or "")
end

function HyperConnection:forward()
  check.fail("%s: it runs inside HyperConnections", self.type)
end

return {HyperConnections = HyperConnections}
