--- Checkpoint and Reversible: layers that keep less for backward and compute it again.
-- Both run without gradients and put a node of resin.host in place of their graph. Checkpoint keeps its input and runs its function
-- once more when backward comes; Reversible keeps its output only, and computes each input from the output of the block.
-- The random state of the first run is put back for the second, so dropout drops the same; buffers (running statistics) are set back
-- after it, so they move once.

local lib = require "resin.lib"
local check = require "resin.check"
local class = require "resin.nn.class"
local grad = require "resin.grad"
local host = require "resin.host"
local Module = require "resin.nn.module"
local ops = require "resin.ops"
local parts = require "resin.nn.sequential"
local scope = require "resin.scope"
local shapes = require "resin.nn.shapes"
local fit = require "resin.residual.fit"
local link = require "resin.residual.link"
local Record = require "resin.residual.record"

local ffi, C, ctx = lib.ffi, lib.C, lib.ctx
local Tensor = scope.Tensor

-- ---- state that a second run must not change ------------------------------------------------------------------------------

local function random_state()
  local state = ffi.new("double[4]")
  C.rs_get_rng_state(ctx, state)
  return state
end

local function buffers_of(module)
  local list = {}
  for i, b in ipairs(module:buffers()) do list[i] = {b, C.rs_tensor_version(b.h), b:detach():clone()} end
  return list
end

local function restore(buffers)
  for _, entry in ipairs(buffers) do
    if C.rs_tensor_version(entry[1].h) ~= entry[2] then entry[1]:copy_(entry[3]) end
  end
end

local function needs_grad(module, list)
  if C.rs_get_grad_enabled(ctx) == 0 then return false end
  for i = 1, #list do
    if list[i].requires_grad then return true end
  end
  for _, p in ipairs(module:parameters()) do
    if p.requires_grad then return true end
  end
  return false
end

local function one_tensor(what, y)
  if getmetatable(y) ~= Tensor then check.fail("%s returned %s; it must return a tensor", what, check.describe(y)) end
  return y
end

-- A tensor of its own for a value that a run without gradients gave back: not an argument, not a parameter.
local function fresh(y, list)
  local shared = y.requires_grad
  for i = 1, #list do shared = shared or C.rs_tensor_same_storage(y.h, list[i].h) ~= 0 end
  return shared and grad.no_grad(ops.copy, y) or y
end

-- The tensor as a leaf that shares the storage.
local function leaf(t)
  local copy = scope.promote(t:detach())
  if t.requires_grad then copy:requires_grad_(true) end
  return copy
end

-- ---- Checkpoint -----------------------------------------------------------------------------------------------------------

--- nn.Checkpoint(fn): runs a module, a function, or a table of them in a row, and keeps only its input for backward, which runs
--- it once more. Tensors that need a gradient must be parameters of fn or arguments (up to four). One tensor comes out. It works in
--- backward, not in resin.grad or with create_graph. A layer that returns its state too goes into an nn.RecurrentWrapper.
---@class resin.nn.Checkpoint: resin.nn.Module
local Checkpoint = class.define("Checkpoint", Module, true)

function Checkpoint:init(fn)
  if fn == nil then check.fail("Checkpoint: fn is missing: Checkpoint(fn)") end
  if class.is_plain(fn) then fn = parts.Sequential(fn) else fn = Record.as_module(fn, "Checkpoint: fn") end
  self:add_module("fn", fn)
  rawset(self, "layout", (link.layout_of(fn, true)))
end

Checkpoint.passes_input = true
Checkpoint.options_to = "fn"

-- The one tensor that fn gave. A second result is an error: it would have no gradient.
local function only(fn, y, second)
  if second ~= nil then
    check.fail("Checkpoint: %s returned more than its result, but one tensor comes out of a Checkpoint; nn.RecurrentWrapper(layer) "
      .. "gives the output of a recurrent layer alone", fn.type)
  end
  return one_tensor("Checkpoint: " .. fn.type, y)
end

local function again(data, gradient)
  local module, given = data.module, data.given
  for i = 1, 4 do
    local t = given[i]
    if data.versions[i] and C.rs_tensor_version(t.h) ~= data.versions[i] then
      check.fail("Checkpoint: argument %d was overwritten in place before backward; clone it first (x:clone())", i)
    end
  end
  local inputs = {}
  for i = 1, 4 do inputs[i] = data.versions[i] and leaf(given[i]) or given[i] end
  local buffers, now = buffers_of(module), random_state()
  C.rs_set_rng_state(ctx, data.random)
  local y = grad.enable_grad(Module.run, module, inputs[1], inputs[2], inputs[3], inputs[4])
  C.rs_set_rng_state(ctx, now)
  one_tensor("Checkpoint: " .. module.type, y)
  if y.requires_grad then y:backward(gradient) end
  grad.no_grad(restore, buffers)
  local grads = {}
  for k, i in ipairs(data.places) do grads[k] = inputs[i].requires_grad and inputs[i].grad or false end
  return grads
end

local function release(data)
  for i in pairs(data.versions) do scope.free(data.given[i]) end
end

function Checkpoint:forward(a, b, c, d)
  local given, list, places = {a, b, c, d}, {}, {}
  for i = 1, 4 do
    if getmetatable(given[i]) == Tensor then
      list[#list + 1] = given[i]
      places[#places + 1] = i
    end
  end
  local fn = self.fn
  if not needs_grad(fn, list) then
    local y, second = Module.run(fn, a, b, c, d)
    return only(fn, y, second)
  end
  host.check_recording("Checkpoint")
  local random = random_state()
  local y, second = grad.no_grad(Module.run, fn, a, b, c, d)
  only(fn, y, second)
  y = fresh(y, list)
  local versions = {}
  for _, i in ipairs(places) do
    versions[i] = C.rs_tensor_version(given[i].h)
    given[i] = leaf(given[i])
  end
  host.attach(y, list, {module = fn, given = given, versions = versions, places = places, random = random}, again, release)
  return y
end

function Checkpoint:output_shape(shape) return self.fn:output_shape(shape) end

-- ---- Reversible -----------------------------------------------------------------------------------------------------------

--- One block of nn.Reversible: y1 = x1 + f(x2), y2 = x2 + g(y1).
---@class resin.nn.ReversibleBlock: resin.nn.Module
local ReversibleBlock = class.define("ReversibleBlock", Module, true)

function ReversibleBlock:init(f, g)
  self:add_module("f", Record.as_module(f, "Reversible: f"))
  self:add_module("g", Record.as_module(g, "Reversible: g"))
end

function ReversibleBlock:forward()
  check.fail("%s: it runs inside Reversible", self.type)
end

--- nn.Reversible{{f, g}, {f2, g2}, …, dim = nil}: the input is cut in two halves x1, x2 along the features (or dim), and each block makes
--- y1 = x1 + f(x2), y2 = x2 + g(y1) of them (Gomez et al. 2017). f and g keep the shape of a half. Backward needs the output of the
--- last block only, however many there are. It works in backward, not in resin.grad or with create_graph.
---@class resin.nn.Reversible: resin.nn.Numbered
local Reversible = class.define("Reversible", parts.Numbered, true)

function Reversible:init(list)
  if list == nil then return end
  if not class.is_plain(list) then check.fail("Reversible: a table of pairs {f, g} is missing: Reversible{{f, g}, …}") end
  for key in pairs(list) do
    if key ~= "dim" and type(key) ~= "number" then check.fail('Reversible: unknown option "%s" (known: dim)', tostring(key)) end
  end
  if list.dim ~= nil then
    rawset(self, "dim", check.integer(list.dim, "Reversible: dim", -8, 8))
    if list.dim == 0 then check.fail("Reversible: dim 0: dimensions count from 1 (-1 is the last)") end
  end
  for i, pair in ipairs(list) do
    if class.is_module(pair) and pair:is(ReversibleBlock) then
      self:append(pair)
    elseif class.is_plain(pair) and #pair == 2 then
      self:append(ReversibleBlock(pair[1], pair[2]))
    else
      check.fail("Reversible: entry %d must be a pair {f, g}", i)
    end
  end
end

local function split_dim(self, ndim)
  local layout, spatial
  for i = 1, #self do
    layout, spatial = link.layout_of(self[i].f, true)
    if layout then break end
  end
  return fit.feature_dim(ndim, layout, spatial, self.dim)
end

local function halves(x, at)
  local n = tonumber(C.rs_tensor_size(x.h, at - 1)) / 2
  return ops.copy(ops.narrow(x, at, 1, n)), ops.copy(ops.narrow(x, at, n + 1, n))
end

-- f or g of block i.
local function part(self, i, name, x)
  local m = self[i][name]
  local depth = check.push(self.type, i, name .. ": " .. m.type)
  local y = one_tensor(m.type, Module.run(m, x))
  if C.rs_tensor_same_shape(x.h, y.h) == 0 then
    check.fail("it makes %s of %s; f and g of a Reversible must keep the shape of a half", check.shape_text(y), check.shape_text(x))
  end
  check.pop(depth)
  return y
end

-- random: receives the random state before each f and g.
local function run_blocks(self, x, at, random)
  local a, b = halves(x, at)
  for i = 1, #self do
    random[2 * i - 1] = random_state()
    a = ops.add(a, part(self, i, "f", b))
    random[2 * i] = random_state()
    b = ops.add(b, part(self, i, "g", a))
  end
  return ops.cat({a, b}, at)
end

-- name(input) once more with gradients; its gradient for `upstream` is added to `into`. Returns the value and the sum.
local function undo(self, i, name, input, random, upstream, into)
  local buffers = buffers_of(self[i][name])
  local start = input:detach():requires_grad_(true)
  local now = random_state()
  C.rs_set_rng_state(ctx, random)
  local y = grad.enable_grad(part, self, i, name, start)
  C.rs_set_rng_state(ctx, now)
  if y.requires_grad then y:backward(upstream) end
  grad.no_grad(restore, buffers)
  local own = start.grad
  return y:detach(), own and ops.add(into, own) or into
end

local function backward_blocks(data, gradient)
  local self, at, y = data.self, data.at, data.y
  if C.rs_tensor_version(y.h) ~= data.version then
    check.fail("Reversible: its result was overwritten in place before backward; clone it first (y:clone())")
  end
  local a, b = halves(y, at)
  local da, db = halves(gradient, at)
  for i = #self, 1, -1 do
    local value
    value, da = undo(self, i, "g", a, data.random[2 * i], db, da)
    b = ops.sub(b, value)
    value, db = undo(self, i, "f", b, data.random[2 * i - 1], da, db)
    a = ops.sub(a, value)
  end
  return {ops.cat({da, db}, at)}
end

local function backward(data, gradient) return grad.no_grad(backward_blocks, data, gradient) end

local function release_output(data) scope.free(data.y) end

function Reversible:forward(x)
  check.tensor(x, "Reversible: input")
  local at = split_dim(self, C.rs_tensor_ndim(x.h))
  local size = at >= 1 and C.rs_tensor_size(x.h, at - 1) or -1
  if size < 0 or size % 2 ~= 0 then
    check.fail("Reversible: dimension %d of the input %s must have an even size", at, check.shape_text(x))
  end
  local random = {}
  if not needs_grad(self, {x}) then return scope.run(run_blocks, self, x, at, random) end
  host.check_recording("Reversible")
  local y = grad.no_grad(scope.run, run_blocks, self, x, at, random)
  local kept = scope.promote(y:detach())
  host.attach(y, {x}, {self = self, y = kept, at = at, random = random, version = C.rs_tensor_version(kept.h)}, backward,
    release_output)
  return y
end

function Reversible:output_shape(shape)
  shapes.check(shape, self.type)
  return shapes.copy(shape)
end

function Reversible:slice(first, last)
  local out = parts.Numbered.slice(self, first, last)
  rawset(out, "dim", rawget(self, "dim"))
  return out
end

function Reversible:label() return self.dim and ("Reversible{dim = %d}"):format(self.dim) or "Reversible" end

return {Checkpoint = Checkpoint, Reversible = Reversible}
