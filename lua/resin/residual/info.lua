--- What the residual connections of a module are, as data, and switching single skips off and on: methods of every module
-- (residual/init.lua). Everything is read from plans (link.lua), so names are the resolved ones. A residual container that another
-- one laid out belongs to its plan; those inside other modules have plans of their own and are visited too.

local check = require "resin.check"
local core = require "resin.residual.core"
local infer = require "resin.residual.infer"
local link = require "resin.residual.link"
local shapes = require "resin.nn.shapes"

local RECORD, APPLY = link.RECORD, link.APPLY

local info = {}

-- The containers below a module that have a plan of their own: {{path, container}, …}.
local function containers_of(model)
  local done, list = {}, {}
  for path, m in model:named_modules() do
    if link.is_residual(m) and not done[m] then
      local sequence, at = core.plan(m).sequence, 1
      while sequence[at] do
        done[sequence[at]] = true
        at = at + 2 + sequence[at + 1]
      end
      list[#list + 1] = {path, m}
    end
  end
  return list
end

-- Calls visit(plan, i, prefix) for every Record and Apply below a module; prefix is the path of its container, "2.0." or "".
local function each_step(model, visit)
  for _, entry in ipairs(containers_of(model)) do
    local plan, prefix = core.plan(entry[2]), entry[1] == "" and "" or entry[1] .. "."
    for i = 1, plan.n do
      if plan.kind[i] == RECORD or plan.kind[i] == APPLY then visit(plan, i, prefix .. core.prefix_of(plan, i)) end
    end
  end
end

-- The shape of what each Record keeps, by plan and step, for an input of the model's of `shape`: {plan = {step = shape}}. Containers
-- that other modules call are given what they get in one run on zeros.
local function recorded_shapes(model, shape)
  local found, inputs = {}, nil
  for _, entry in ipairs(containers_of(model)) do
    local container = entry[2]
    local given = shape
    if container ~= model then
      inputs = inputs or require("resin.report.shaper").inputs(model, shape)
      given = inputs[container]
    end
    if given then
      local plan, list = core.plan(container), {}
      infer.build(plan, given, function(i, recorded) list[i] = recorded end)
      found[plan] = list
    end
  end
  return found
end

local function name_of(key) return type(key) == "number" and tostring(key - 1) or key end

local function record_names(plan, i)
  local names = {}
  for _, entry in ipairs(plan.many[i] and plan.many[i].records or {plan.record[i] or nil}) do names[#names + 1] = entry.name end
  return names
end

--- See Module:get_residual_info (residual/init.lua).
---@param model resin.nn.Module
---@param shape? (integer|false)[]
---@return {records: table[], applies: table[]}
function info.collect(model, shape)
  local found, by_plan = {records = {}, applies = {}}, {}
  if shape ~= nil then by_plan = recorded_shapes(model, shapes.check(shape, model.type .. ": get_residual_info")) end
  each_step(model, function(plan, i, prefix)
    local m, record = plan.module[i], plan.record[i]
    local path = prefix .. name_of(plan.key[i])
    if plan.kind[i] == RECORD then
      local readers = {}
      for k, step in ipairs(record.readers) do readers[k] = name_of(step.key) end
      found.records[#found.records + 1] = {
        name = record.name, need_projection = m.need_projection, path = path, type = m.type, readers = readers,
        shape = by_plan[plan] and by_plan[plan][i] or nil, module = m,
      }
    else
      local names = record_names(plan, i)
      found.applies[#found.applies + 1] = {
        operation = type(m.operation) == "function" and "function" or m.op and m.op.type or m.operation_name,
        record_name = names[1], record_names = names, path = path, type = m.type, alpha = m.alpha, scale = m.scale or nil,
        disabled = m.off or false, module = m,
      }
    end
  end)
  return found
end

local function switch_one(apply, name, names, on, how)
  local several = apply.records and #names > 1 and name ~= nil
  if not several then
    if on then apply:disable(how) else apply:enable() end
    return
  end
  if how == "bypass" then
    check.fail('disable_skip: "%s" is one of several records of an Apply, which can only be "zero"', name)
  end
  local off = {}
  if type(apply.off) == "table" then
    for key in pairs(apply.off) do off[key] = true end
  elseif apply.off then
    for _, key in ipairs(names) do off[key] = true end
  end
  off[name] = on or nil
  rawset(apply, "off", next(off) ~= nil and off)
end

local MOST = 12     -- paths that a message lists

local function none(what, name, names, found)
  if #found == 0 then check.fail('%s: there is no skip "%s": there is no Apply in this module', what, name) end
  local more = #found > MOST and (", and %d more"):format(#found - MOST) or ""
  check.fail('%s: there is no skip "%s" (known: %s); by the path of its Apply: %s%s', what, name, table.concat(names, ", "),
    table.concat(found, ", ", 1, math.min(#found, MOST)), more)
end

--- Disables (on = true) or enables skips: those of all Records called `name`, of the Applys called so in their containers, or the
--- one whose Apply or Record has this path.
---@param model resin.nn.Module
---@param name string
---@param on boolean
---@param how? string
function info.switch(model, name, on, how)
  local what = on and "disable_skip" or "enable_skip"
  check.string(name, what .. ": name")
  if how ~= nil then check.enum(how, what .. ": how", {"bypass", "zero"}) end
  local hit, known, found, seen = false, {}, {}, {}
  each_step(model, function(plan, i, prefix)
    if plan.kind[i] ~= APPLY then return end
    local apply, path = plan.module[i], prefix .. name_of(plan.key[i])
    local names = record_names(plan, i)
    found[#found + 1] = path
    for _, record in ipairs(names) do
      if not seen[record] then
        seen[record] = true
        known[#known + 1] = ('"%s"'):format(record)
      end
      if record == name or prefix .. record == name then
        hit = true
        switch_one(apply, record, names, on, how)
      end
    end
    if plan.key[i] == name or path == name then
      hit = true
      switch_one(apply, nil, names, on, how)
    end
  end)
  if not hit then none(what, name, known, found) end
end

return info
