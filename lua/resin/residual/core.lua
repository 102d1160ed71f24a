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
local recurrent = require "resin.residual.recurrent"

local spread_states, takes_more = recurrent.spread, recurrent.takes_more
local APPLY = link.APPLY
local C = lib.C
local Tensor, free, free_last, current = scope.Tensor, scope.free, scope.free_last, scope.current
local enter_open, leave_open = scope.enter_open, scope.leave_open
local fail = check.fail
local getmetatable, type, select = getmetatable, type, select

local core = {}

-- ---- one Apply ------------------------------------------------------------------------------------------------------------

local FLOATS = {f32 = true, f64 = true, bf16 = true, f16 = true}

local function dtype_of(t) return FLOATS[t.dtype] and t.dtype or "f32" end

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
    if not apply.projection_layer or apply.stride_unknown or apply.unsure then
      local p, why = fit.projection(saved, now, at)
      if not p then
        names_itself(i)
        apply:mismatch(name, record, saved, now, why)
      end
      if apply.unsure then apply:review_projection(p) end
      if not apply.projection_layer then
        apply:add_projection(p, dtype_of(x))
      elseif apply.stride_unknown then
        apply:set_stride(p)
      end
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

local function overwritten(plan, i, record)
  fail('%s %s (record "%s"): the recorded value was overwritten in place after %s %s; clone it before (x:clone()), or use '
    .. "an operation that is not in place", plan.module[i].type, link.quote(plan.key[i]), record.name, record.module.type, record.key)
end

local function not_a_tensor(what, y)
  fail("%s returned %s; it must return a tensor", what, check.describe(y))
end

-- The value that a transform makes of x.
local function through(transform, x, what)
  local y = Module.run(transform, x)
  if getmetatable(y) ~= Tensor then not_a_tensor(what, y) end
  return y
end

-- What RECORD step i keeps of x.
local function transformed(plan, i, x)
  local m = plan.module[i]
  return through(m.transform, x, m.type .. ": its transform")
end

-- t goes, unless somebody else still needs it.
local function discard(t, a, b, c)
  if t ~= a and t ~= b and t ~= c and t.s == current() then free(t) end
end

local function zeros_like(t) return ops.full(t.shape, 0, t.dtype) end

-- The shape of the decisions of stochastic depth about x: one per sample, or one.
local function decisions(apply, x)
  local shape = x.shape
  for i = apply.drop_path_mode == "batch" and 1 or 2, #shape do shape[i] = 1 end
  return shape
end

-- Whole samples of x are left out at random; the rest is scaled up.
local function drop(apply, x)
  local p = apply.drop_path
  if p == 1 then return ops.mul(x, 0) end       -- its gradients are zeros, not missing
  local ones = ops.full(decisions(apply, x), 1, dtype_of(x))
  local mask = ops.dropout(ones, p)
  local y = ops.mul(x, mask)
  free(ones)
  free(mask)
  return y
end

-- The result y of an operation that is not a sum, with the recorded value r in place of samples that are left out.
local function skip_some(apply, y, r, x)
  if apply.records then
    fail("%s: drop_path with records works with operation add, not with %s", apply.type, apply.operation_name)
  end
  if getmetatable(y) ~= Tensor then not_a_tensor("the operation", y) end
  if C.rs_tensor_same_shape(y.h, r.h) == 0 then
    fail("%s: drop_path: the recorded value %s stands for samples that are left out, but the result is %s; equal shapes are needed",
      apply.type, check.shape_text(r), check.shape_text(y))
  end
  local kept = ops.bernoulli(decisions(apply, x), 1 - apply.drop_path, "bool")
  local out = ops.where(kept, y, r)
  free(kept)
  return out
end

-- What step i lacks, or has too much: layers that follow from shapes.
local function complete(plan, i, apply, x)
  if apply.unsure then apply:review_projection(nil) end      -- it was not needed
  if apply:incomplete() then
    local shape = x.shape
    apply:add_gates(shape, fit.feature_dim(#shape, plan.layout[i], plan.spatial[i], apply.dim or nil), dtype_of(x))
  end
  plan.gated[i] = false
end

-- The result of step i. Of the tensors that it makes only the result is left.
local function combined(plan, i, r, version, x)
  local apply = plan.module[i]
  if C.rs_tensor_version(r.h) ~= version then
    names_itself(i)
    overwritten(plan, i, plan.record[i])
  end
  local off = apply.off
  if off == "bypass" then return x end
  local saved, input = r, x
  if apply.transform then r = through(apply.transform, r, apply.type .. ": its transform") end
  if C.rs_tensor_same_shape(r.h, x.h) == 0 or apply.own_projection then
    local before = r
    r = fitted(plan, i, apply, r, x)
    discard(before, saved, x, r)
  end
  if off then
    local before = r
    r = zeros_like(r)
    discard(before, saved, x)
  end
  if plan.gated[i] then complete(plan, i, apply, x) end
  local skips = apply.drop_path > 0 and apply.training
  if skips and apply.adds then x, skips = drop(apply, x), false end
  local y = plan.run[i](x, r, apply, plan.layout[i], plan.spatial[i])
  if skips then
    local before = y
    y = skip_some(apply, y, r, x)
    discard(before, saved, x, r)
  end
  if getmetatable(y) ~= Tensor then not_a_tensor("the operation", y) end
  if r ~= saved then discard(r, y, input, x) end
  if x ~= input then discard(x, y, saved) end
  return y
end

-- The same for an Apply of several records.
local function joined(plan, i, list, versions, x)
  local apply, records = plan.module[i], plan.many[i].records
  local kind = apply:definition().shapes
  local input, own = x, {}
  local function mine(t, before)
    if t ~= before then own[#own + 1] = t end
    return t
  end
  for k = 1, #list do
    local r = list[k]
    if C.rs_tensor_version(r.h) ~= versions[k] then
      names_itself(i)
      overwritten(plan, i, records[k])
    end
    if apply.transform then r = mine(through(apply.transform, r, apply.type .. ": its transform"), r) end
    local at = kind == "concat" and fit.feature_dim(x.ndim, plan.layout[i], plan.spatial[i], apply.dim or nil) or nil
    if kind ~= "any" and not apply.broadcast and not fit.same(r.shape, x.shape, at) then
      names_itself(i)
      apply:mismatch(link.quote(plan.key[i]), records[k], r.shape, x.shape)
    end
    local off = apply.off
    if off and (off == "zero" or off[records[k].name]) then r = mine(zeros_like(r)) end
    list[k] = r
  end
  if apply.drop_path > 0 and apply.training then
    if not apply.adds then skip_some(apply) end
    x = mine(drop(apply, x))
  end
  local y = plan.run[i](x, list, apply, plan.layout[i], plan.spatial[i])
  if getmetatable(y) ~= Tensor then not_a_tensor("the operation", y) end
  for k = 1, #own do discard(own[k], y, input) end
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

--- Adds what the child `key` of a container returned besides its result to the list of such values: in order, and the first by name.
---@param list table
---@param key string|integer
function core.add_extras(list, key, ...)
  for n = 1, select("#", ...) do
    local value = select(n, ...)
    if value ~= nil then
      list[#list + 1] = value
      if n == 1 then list[name_of(key)] = value end
    end
  end
end
local add_extras = core.add_extras

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
  add_extras(list, plan.key[i], ...)
  for n = 1, select("#", ...) do keep(kept, (select(n, ...)), 0) end
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
    if not place and key ~= "hidden" then
      fail("%s: there is no child %s (children: %s)", what, type(key) == "string" and ('"%s"'):format(key) or tostring(key),
        child_names(places))
    end
    local name = place and ("%s: %s"):format(what, type(place.key) == "string" and ('"%s"'):format(place.key) or tostring(place.position))
    if place and place.children then
      spread(place.children, place.by_name, value, out, name)
    elseif place and not place.index then
      fail("%s: a Record or Apply takes no options", name)
    elseif place then
      if not class.is_plain(value) then fail("%s: the options must be a table, got %s", name, check.describe(value)) end
      if not takes_more(place.module) then fail("%s: %s takes no options", name, place.module.type) end
      out[place.index] = value
    end
  end
  if given.hidden ~= nil and not by_name.hidden then spread_states(places, by_name, given.hidden, out, what) end
  return out
end

--- The options of a numbered container's children from those that it was given: {[i] = options}. For containers without a plan.
---@param container resin.nn.Numbered
---@param given table  {child = options, hidden = {child = state}}
---@return table
function core.child_options(container, given)
  local names, modules = container:child_list()
  local places, by_name = {}, {}
  for i = 1, #container do
    local named = names[i] ~= tostring(i - 1)
    places[i] = {name = names[i], position = i, key = named and names[i] or i, index = i, module = modules[i]}
    by_name[i], by_name[names[i]] = places[i], places[i]
  end
  return spread(places, by_name, given, {}, container.type)
end

-- ---- for containers -------------------------------------------------------------------------------------------------------

local function compile(plan, with_options, with_records)
  local fn = emit.forward(plan, with_options, with_records, current, check, where, Tensor, free_last, scope.call, C, more, wrong,
    combined, joined, transformed, for_writing)
  plan[with_records and "forward_with_records" or with_options and "forward_with_options" or "forward"] = fn
  return fn
end

-- What containers recorded in the last call that was asked to keep it: a list of {name, tensor, record}. Not a field of the
-- container, so that copies and files do not see it; weak keys.
local kept_records = setmetatable({}, {__mode = "k"})

-- Was keep_records ever set on a container? Until then no call looks for it.
local keeping = false

--- Lets a container, alone or as a part of another one, keep what it records (sequential.lua).
---@param container resin.nn.Module
---@param on boolean
function core.keep_records(container, on)
  rawset(container, "_keep_records", on or nil)
  keeping = keeping or on
end

-- Calls visit(container) for each container of a plan.
local function each_container(plan, visit)
  local s, at = plan.sequence, 1
  while s[at] do
    visit(s[at])
    at = at + 2 + s[at + 1]
  end
end

local function wants_records(plan)
  local wanted = false
  each_container(plan, function(container) wanted = wanted or rawget(container, "_keep_records") == true end)
  return wanted
end

local NO_OPTIONS = {}

-- Gives each container that wants it (and `asked`) its part of what a call recorded, under names as seen from there.
local function hand_out(plan, records, asked)
  local lists = {}
  each_container(plan, function(container)
    if container == asked or rawget(container, "_keep_records") then lists[container] = {} end
  end)
  local outermost = plan.sequence[1]
  for _, entry in ipairs(records) do
    local name, path = entry.record.name, link.path(plan, entry.step)
    for p = #path, 0, -1 do
      local list = lists[p == 0 and outermost or plan.module[path[p]]]
      if list then list[#list + 1] = {name = name, tensor = entry.tensor, record = entry.record.module} end
      if p > 0 then name = name_of(plan.key[path[p]]) .. "." .. name end
    end
  end
  for container, list in pairs(lists) do kept_records[container] = list end
end

local function run_recording(plan, x, options, asked)
  local y, extras, records = scope.run(plan.forward_with_records or compile(plan, true, true), plan, x, options or NO_OPTIONS, {})
  hand_out(plan, records, asked)
  return y, extras
end

-- Are all its layers resin's, so that its calls need no protection? Where this misses user code, scope.call protects that.
local function all_own(plan)
  for i = 1, plan.n do
    local m = plan.module[i]
    if plan.kind[i] == APPLY and type(m.operation) == "function" then return false end
    for _, inner in ipairs(m:modules()) do
      if not inner.builtin or type(rawget(inner, "fn")) == "function" then return false end
    end
  end
  return true
end

-- After a change of a container: projections of ours may not be what is wanted any more. One that serves at several steps stays.
local function doubt_projections(plan)
  local times = {}
  for i = 1, plan.n do
    local m = plan.module[i]
    if plan.kind[i] == APPLY and m.auto then times[m] = (times[m] or 0) + 1 end
  end
  for apply, n in pairs(times) do
    if n == 1 then rawset(apply, "unsure", true) end
  end
end

local function renew(container)
  if not class.is_module(container) then
    fail("forward was called with a dot: write block:forward(x), or block(x)")
  end
  local former = rawget(container, "_plan")
  local plan = link.plan(container)
  if former and not former.fresh(former.sequence) then doubt_projections(plan) end
  infer.try(plan)
  for i = 1, plan.n do
    local m = plan.module[i]
    if plan.kind[i] == APPLY then plan.gated[i] = m.unsure or m:incomplete() end
  end
  plan.fresh = emit.fresh(plan)
  plan.own = all_own(plan)
  rawset(container, "_plan", plan)
  return plan
end

-- Warnings that were given: {[module] = {[what] = true}}, so that a container around does not repeat them.
local told = setmetatable({}, {__mode = "k"})

local function tell(plan)
  for _, warning in ipairs(plan.warnings) do
    local known = told[warning.of] or {}
    told[warning.of] = known
    if not known[warning.what] then
      known[warning.what] = true
      check.warn("%s", warning.text)
    end
  end
end

--- Makes the plan of a container anew, and the layers that it determines.
---@param container resin.nn.Module
---@return table plan
function core.renew(container)
  local plan = scope.guard(renew, container)
  if plan.warnings[1] then tell(plan) end
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

-- The input, the plan and the options by step of a call.
local function prepare(container, x, options)
  local plan = core.plan(container)
  if plan.unresolved[1] then link.require_resolved(plan) end
  if getmetatable(x) ~= Tensor or not x.h then check.tensor(x, container.type .. ": input") end
  return plan, options and spread(plan.children, plan.by_name, options, {}, container.type)
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
  if keeping and wants_records(plan) then return core.record(container, x, options, rawget(container, "_keep_records") or false) end
  if options == nil then
    local forward = plan.forward or compile(plan)
    local s = plan.own and enter_open()
    if not s then return scope.run(forward, plan, x) end
    local y, extras = forward(plan, x)
    leave_open(s, y, extras)
    if extras ~= nil then return y, extras end
    return y
  end
  options = spread(plan.children, plan.by_name, options, {}, container.type)
  return scope.run(plan.forward_with_options or compile(plan, true), plan, x, options)
end

scope.owner = core.forward

--- A forward that keeps what it records, for get_recorded_tensor. What another call kept before is dropped.
---@param container resin.nn.Module
---@param x resin.Tensor
---@param options? table
---@param own? boolean  false: only containers inside asked for it
---@return resin.Tensor
---@return table? extras
function core.record(container, x, options, own)
  local plan, by_step = prepare(container, x, options)
  return run_recording(plan, x, by_step, own ~= false and container)
end

-- "2.0." in front of the names of step i's container, as in a state_dict; "" in the outermost.
local function prefix_of(plan, i)
  local parts = {}
  for _, k in ipairs(link.path(plan, i)) do parts[#parts + 1] = name_of(plan.key[k]) .. "." end
  return table.concat(parts)
end
core.prefix_of = prefix_of

--- What was recorded under a name in the last call that kept it: the tensor and the Record. Names of inner containers have their
--- path in front ("2.record_1"); without a name it is the value that was recorded last.
---@param container resin.nn.Module
---@param name? string
---@return resin.Tensor?
---@return resin.nn.Record?
function core.recorded(container, name)
  local kept = kept_records[container]
  if not kept then
    fail("%s: get_recorded_tensor: nothing was kept; call model:record(x), or set model.keep_records = true before a forward",
      container.type)
  end
  if name ~= nil then check.string(name, container.type .. ": get_recorded_tensor: name") end
  local names = {}
  for k = #kept, 1, -1 do
    local entry = kept[k]
    if name == nil or entry.name == name then return entry.tensor, entry.record end
    table.insert(names, 1, ('"%s"'):format(entry.name))
  end
  if name == nil then return nil end
  fail('%s: get_recorded_tensor: nothing was recorded as "%s" (known: %s)', container.type, name,
    #names > 0 and table.concat(names, ", ") or "none")
end

--- Forgets what a call kept.
---@param container resin.nn.Module
function core.forget(container) kept_records[container] = nil end

return core
