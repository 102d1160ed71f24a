--- Runs containers: the one mechanism under all residual fronts.
-- link.lua turns a container into a plan, emit.lua writes the plan's forward as a function, and this file holds what that function
-- calls: one Apply, and rare events. Nothing is kept between calls but the plan.

local lib = require "resin.lib"
local check = require "resin.check"
local scope = require "resin.scope"
local ops = require "resin.ops"
local class = require "resin.nn.class"
local Module = require "resin.nn.module"
local emit = require "resin.residual.emit"
local fit = require "resin.residual.fit"
local infer = require "resin.residual.infer"
local link = require "resin.residual.link"

local C = lib.C
local Tensor, free, current = scope.Tensor, scope.free, scope.current
local fail = check.fail
local getmetatable, type, select = getmetatable, type, select

local core = {}

-- ---- one Apply ------------------------------------------------------------------------------------------------------------

local FLOATS = {f32 = true, f64 = true, bf16 = true, f16 = true}

local function dtype_of(t) return FLOATS[t.dtype] and t.dtype or "f32" end

local function strides_of(apply, p)
  local s = p.stride
  rawset(apply.projection_layer, "stride", s[1] == s[2] and s[1] or #s == 1 and s[1] or s)
  rawset(apply, "stride_unknown", false)
end

-- Where step i is, for messages: "ResidualSequential 2 (Sequential), Sequential 1 (Linear)". A negative step has a message that
-- names itself, so only what is around it is told.
local function where(plan, step)
  local parts = {}
  local function add(k)
    parts[#parts + 1] = ("%s %s (%s)"):format(plan.owner[k], tostring(plan.key[k]), plan.module[k].type)
  end
  local i = math.abs(step)
  if not plan.module[i] then return nil end     -- before the first step, or another coroutine wrote here meanwhile
  for _, k in ipairs(link.path(plan, i)) do add(k) end
  if step > 0 then add(i) end
  return #parts > 0 and table.concat(parts, ", ") or nil
end

-- Says that the next message names step i itself.
local function names_itself(i) check.keys[check.depth] = -i end

-- The recorded value r made to fit x, where their shapes differ or the user's own projection wants it.
local function fitted(plan, i, apply, r, x)
  local record = plan.record[i]
  local name = link.quote(plan.key[i])
  local shapes = apply:definition().shapes
  if apply.own_projection then
    r = Module.run(apply.projection_layer, r)
    check.tensor(r, "Apply: what the projection returned")
  end
  local saved, now = r.shape, x.shape
  if fit.same(saved, now) then return r end
  local at = fit.feature_dim(#now, plan.layout[i], plan.spatial[i], apply.dim or nil)
  local projects = (record.module.need_projection or apply.make_projection) and not apply.own_projection
  if projects then
    if not apply.projection_layer or apply.stride_unknown then
      local p, why = fit.projection(saved, now, at)
      if not p then
        names_itself(i)
        apply:mismatch(name, record, saved, now, why)
      end
      if apply.projection_layer then strides_of(apply, p) else apply:add_projection(p, dtype_of(x)) end
    end
    local y = Module.run(apply.projection_layer, r)
    check.tensor(y, "Apply: what the projection returned")
    if shapes ~= "any" and not fit.same(y.shape, now, shapes == "concat" and at or nil) then
      names_itself(i)
      apply:mismatch(name, record, saved, now)
    end
    return y
  end
  if shapes == "any" or (shapes == "concat" and fit.same(saved, now, at)) or (apply.broadcast and fit.broadcast(saved, now)) then
    return r
  end
  names_itself(i)
  apply:mismatch(name, record, saved, now)
end

local function overwritten(plan, i)
  fail('Apply %s (record "%s"): the recorded value was overwritten in place after Record %s; clone it before (x:clone()), or use '
    .. "an operation that is not in place", link.quote(plan.key[i]), plan.record[i].name, plan.record[i].key)
end

local function not_a_tensor(what, y)
  fail("%s returned %s; it must return a tensor", what, check.describe(y))
end

-- The result of step i. Of the tensors that it makes only the result is left.
local function combined(plan, i, r, version, x)
  local apply = plan.module[i]
  if C.rs_tensor_version(r.h) ~= version then
    names_itself(i)
    overwritten(plan, i)
  end
  local saved = r
  if C.rs_tensor_same_shape(r.h, x.h) == 0 or apply.own_projection then r = fitted(plan, i, apply, r, x) end
  if plan.gated[i] and not apply.gate_layer then
    local shape = x.shape
    apply:add_gates(shape, fit.feature_dim(#shape, plan.layout[i], plan.spatial[i], apply.dim or nil), dtype_of(x))
  end
  local y = plan.run[i](x, r, apply, plan.layout[i], plan.spatial[i])
  if getmetatable(y) ~= Tensor then not_a_tensor("the operation", y) end
  if r ~= saved and r ~= y and r ~= x and r.s == current() then free(r) end
  return y
end

-- ---- rare events of a call ------------------------------------------------------------------------------------------------

-- x, or a copy of it when it shares memory with a recorded value that the next layer would overwrite.
local function for_writing(x, ...)
  for k = 1, select("#", ...) do
    if C.rs_tensor_same_storage(select(k, ...).h, x.h) ~= 0 then return ops.copy(x) end
  end
  return x
end

-- Layer i returned y, which is no tensor.
local function wrong(plan, i, y) not_a_tensor(plan.module[i].type, y) end

local function name_of(key) return type(key) == "number" and tostring(key - 1) or key end

local function put(list, key, value)
  list[#list + 1] = value
  list[name_of(key)] = value
end

local function keep(kept, value, depth)
  if getmetatable(value) == Tensor then
    kept[value] = true
  elseif class.is_plain(value) and depth < 8 then
    for _, v in pairs(value) do keep(kept, v, depth + 1) end
  end
end

-- What layer i returned besides its result. extras lists such values in order and by the layers' names; an inner container has
-- a list of its own in it. kept is the set of tensors among them.
local function more(plan, i, extras, kept, ...)
  extras, kept = extras or {}, kept or {}
  local list = extras
  for _, k in ipairs(link.path(plan, i)) do
    local inner = list[name_of(plan.key[k])]
    if not inner then
      inner = {}
      put(list, plan.key[k], inner)
    end
    list = inner
  end
  for n = 1, select("#", ...) do
    local value = select(n, ...)
    if value ~= nil then
      list[#list + 1] = value
      if n == 1 then list[name_of(plan.key[i])] = value end
      keep(kept, value, 0)
    end
  end
  return extras, kept
end

-- ---- options by name ------------------------------------------------------------------------------------------------------

local function child_names(places)
  local list = {}
  for i, place in ipairs(places) do list[i] = type(place.key) == "string" and place.key or tostring(i) end
  return #list > 0 and table.concat(list, ", ") or "none"
end

local function spread(places, by_name, given, out, what)
  if not class.is_plain(given) then
    fail("%s: options must be a table {child = options}, got %s", what, check.describe(given))
  end
  for key, value in pairs(given) do
    local place = by_name[key]
    if not place then
      fail("%s: there is no child %s (children: %s)", what, type(key) == "string" and ('"%s"'):format(key) or tostring(key),
        child_names(places))
    end
    local name = ("%s: %s"):format(what, type(place.key) == "string" and ('"%s"'):format(place.key) or tostring(place.position))
    if place.children then
      spread(place.children, place.by_name, value, out, name)
    elseif not place.index then
      fail("%s: a Record or Apply takes no options", name)
    else
      if not class.is_plain(value) then fail("%s: the options must be a table, got %s", name, check.describe(value)) end
      out[place.index] = value
    end
  end
  return out
end

-- ---- for containers -------------------------------------------------------------------------------------------------------

local function compile(plan, with_options)
  local fn = emit.forward(plan, with_options, current, check, where, Tensor, free, scope.call, C, more, wrong, combined, for_writing)
  plan[with_options and "forward_with_options" or "forward"] = fn
  return fn
end

--- Makes the plan of a container anew, and the layers that it determines.
---@param container resin.nn.Module
---@return table plan
function core.renew(container)
  local plan = link.plan(container)
  infer.try(plan)
  plan.fresh = emit.fresh(plan)
  rawset(container, "_plan", plan)
  return plan
end

--- The plan of a container: the one it has, or a new one after its children changed.
---@param container resin.nn.Module
---@return table plan
function core.plan(container)
  local plan = rawget(container, "_plan")
  if plan and plan.fresh(plan.sequence) then return plan end
  return core.renew(container)
end

--- A container's forward.
---@param container resin.nn.Module
---@param x resin.Tensor
---@param options? table  {child = options}, by name or position
---@return resin.Tensor
---@return table? extras  what layers returned besides their results
function core.forward(container, x, options)
  local plan = rawget(container, "_plan")
  if not plan or not plan.fresh(plan.sequence) then plan = core.renew(container) end
  if plan.unresolved[1] then link.require_resolved(plan) end
  if getmetatable(x) ~= Tensor or not x.h then check.tensor(x, container.type .. ": input") end
  if options == nil then return scope.run(plan.forward or compile(plan), plan, x) end
  options = spread(plan.children, plan.by_name, options, {}, container.type)
  return scope.run(plan.forward_with_options or compile(plan, true), plan, x, options)
end

return core
