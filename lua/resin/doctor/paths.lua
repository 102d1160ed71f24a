--- What each residual path does in one forward and backward.
-- The skip's contribution to an Apply is what its result loses when the recorded value is replaced by zeros, the branch's is what
-- it loses when the current value is. For add this is alpha*r and scale*x; it is as exact for gated, highway and concat, and
-- means something for every operation of one's own. Copies of both values are put in front of the operation, so that the
-- gradient that flows into the skip and the one into the branch are seen apart.

local ffi = require "ffi"
local lib = require "resin.lib"
local grad = require "resin.grad"
local ops = require "resin.ops"
local scope = require "resin.scope"
local Tensor = require "resin.tensor"
local create = require "resin.create"
local link = require "resin.residual.link"
local measure = require "resin.doctor.measure"

local C, ctx = lib.C, lib.ctx

local paths = {}

-- ---- the parameters of a branch -------------------------------------------------------------------------------------------

-- The layers between a Record and the Apply that reads it, and what the Apply itself trains: all parameters of the branch.
local function branch_parameters(plan, i)
  local found = {}
  local function add(module)
    for _, p in ipairs(module:parameters()) do found[#found + 1] = p end
  end
  local waiting = {}
  local slots = plan.many[i] and plan.many[i].slots or {plan.slot[i]}
  for _, slot in ipairs(slots) do waiting[slot] = true end
  for k = i - 1, 1, -1 do
    if plan.kind[k] == link.RECORD then waiting[plan.slot[k]] = nil end
    if next(waiting) == nil then break end
    if plan.kind[k] == link.LAYER then add(plan.module[k]) end
  end
  local own = plan.module[i]
  for _, name in ipairs{"scale", "alpha"} do
    local factor = own[name]
    if Tensor.is(factor) and factor.requires_grad then
      found[#found + 1] = factor
    elseif type(factor) == "table" and not Tensor.is(factor) and factor.parameters then
      add(factor)
    end
  end
  return found
end

-- The parameters of the factor in front of the branch: of `scale`, or of the alpha of "gated", which is 1 - alpha there.
local function branch_factor(apply)
  local factor = apply.operation_name == "gated" and apply.alpha or apply.scale
  if Tensor.is(factor) then return {factor} end
  return type(factor) == "table" and factor:parameters() or {}
end

-- ---- contributions --------------------------------------------------------------------------------------------------------

-- The result of the operation, its random numbers being those of the first run.
local function again(place, apply, state, x, r)
  C.rs_set_rng_state(ctx, state)
  return place.run(x, r, apply, place.layout, place.spatial)
end

-- fn of a value, or of each of a list of them: an Apply of several records has a list.
local function each(value, fn)
  if Tensor.is(value) then return fn(value) end
  local out = {}
  for i = 1, #value do out[i] = fn(value[i]) end
  return out
end

local function contributions(place, apply, state, x, r, y)
  x, r, y = x:detach(), each(r, Tensor.methods.detach), y:detach()
  local skip = ops.sub(y, again(place, apply, state, x, each(r, create.zeros_like)))
  local branch = ops.sub(y, again(place, apply, state, create.zeros_like(x), r))
  local s, b = measure.of(skip), measure.of(branch)
  local same = Tensor.is(r) and C.rs_tensor_same_shape(x.h, r.h) ~= 0
  return s, b, same and measure.cosine(x, r) or nil
end

local function run_contributions(...) return scope.run(contributions, ...) end

local function watched(t)
  local copy = ops.copy(t)
  if copy.requires_grad then copy:retain_grad() end
  return scope.promote(copy)
end

-- The norm of a value, or of all of a list together.
local function norm_of(value)
  if Tensor.is(value) then return measure.of(value).norm end
  local sum = 0
  for i = 1, #value do sum = sum + measure.of(value[i]).norm ^ 2 end
  return math.sqrt(sum)
end

local function gradient_norm(value)
  if Tensor.is(value) then return value.grad and measure.of(value.grad).norm or nil end
  local list = {}
  for i = 1, #value do list[#list + 1] = value[i].grad end
  return #list > 0 and norm_of(list) or nil
end

local function key_name(key) return type(key) == "number" and tostring(key - 1) or key end

-- The name of an Apply in the model, also of one that its container does not show among its children.
local function name_of(place, names, apply)
  if names[apply] then return names[apply] end
  local outer = names[place.container] or ""
  local parts = outer ~= "" and {outer} or {}
  for _, k in ipairs(link.path(place.plan, place.step)) do parts[#parts + 1] = key_name(place.plan.key[k]) end
  parts[#parts + 1] = key_name(place.plan.key[place.step])
  return table.concat(parts, ".")
end

local function record_names(place)
  local many, list = place.plan.many[place.step], {}
  for i, entry in ipairs(many and many.records or {place.plan.record[place.step] or nil}) do list[i] = entry.name end
  return table.concat(list, ", ")
end

local function operation_of(apply)
  if apply.op then return apply.op.type end
  return type(apply.operation) == "function" and "function" or apply.operation_name
end

local function ratio(a, b)
  if b == 0 then return nil end
  return a / b
end

--- A visitor for observe.run that collects one entry per Apply in `list`, in the order in which they run.
---@param list table
---@param names table<resin.nn.Module, string>  names of the Applys
---@return table visitor
function paths.visitor(list, names)
  local visitor = {}
  function visitor.apply(place, x, r, apply)
    local entry = {name = name_of(place, names, apply), record = record_names(place), operation = operation_of(apply),
                   parameters = branch_parameters(place.plan, place.step), factor = branch_factor(apply)}
    list[#list + 1] = entry
    if not Tensor.is(r) then r = {unpack(r)} end
    local before, after = ffi.new("double[4]"), ffi.new("double[4]")
    C.rs_get_rng_state(ctx, before)
    entry.x, entry.r = watched(x), each(r, watched)
    local y = place.run(entry.x, entry.r, apply, place.layout, place.spatial)
    C.rs_get_rng_state(ctx, after)
    if not Tensor.is(y) then return y end     -- the container says what is wrong with it
    local size = measure.of(y)
    entry.output, entry.output_rms, entry.shape = size.norm, size.rms, y.shape
    local ok, skip, branch, cosine = pcall(grad.no_grad, run_contributions, place, apply, before, x, r, y)
    C.rs_set_rng_state(ctx, after)
    if ok then
      entry.skip, entry.branch, entry.cosine = skip.norm, branch.norm, cosine
      entry.alpha, entry.scale = ratio(skip.norm, norm_of(r)), ratio(branch.norm, norm_of(x))
    end
    return y
  end
  return visitor
end

local function any_gradient(parameters)
  for _, p in ipairs(parameters) do
    local g = p.requires_grad and p.grad
    if g and measure.of(g).max > 0 then return true end
  end
  return false
end

--- After backward: the gradients into both sides, and whether a branch that adds little or nothing can still learn.
---@param list table
function paths.finish(list)
  for _, entry in ipairs(list) do
    if entry.x then
      entry.branch_gradient, entry.skip_gradient = gradient_norm(entry.x), gradient_norm(entry.r)
    end
    entry.learns = any_gradient(entry.parameters)
    entry.opening = any_gradient(entry.factor)
    entry.closed = entry.branch == 0 and entry.learns
    entry.x, entry.r, entry.factor = nil, nil, nil
  end
end

return paths
