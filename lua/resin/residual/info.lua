--- What a residual model consists of, as data, and switching single skips off and on. Everything is read from plans (link.lua), so
-- names are the resolved ones; containers inside other modules have plans of their own and are visited too.

local check = require "resin.check"
local core = require "resin.residual.core"
local infer = require "resin.residual.infer"
local link = require "resin.residual.link"

local RECORD, APPLY = link.RECORD, link.APPLY

local info = {}

-- Calls visit(plan, i, prefix) for every Record and Apply below a module; prefix is the path of its container, "2.0." or "".
local function each_step(model, visit)
  local done = {}
  for path, m in model:named_modules() do
    if link.is_residual(m) and not done[m] then
      local plan = core.plan(m)
      local sequence, at = plan.sequence, 1
      while sequence[at] do
        done[sequence[at]] = true
        at = at + 2 + sequence[at + 1]
      end
      local prefix = path == "" and "" or path .. "."
      for i = 1, plan.n do
        if plan.kind[i] == RECORD or plan.kind[i] == APPLY then visit(plan, i, prefix .. core.prefix_of(plan, i)) end
      end
    end
  end
end

local function name_of(key) return type(key) == "number" and tostring(key - 1) or key end

local function record_names(plan, i)
  local names = {}
  for _, entry in ipairs(plan.many[i] and plan.many[i].records or {plan.record[i] or nil}) do names[#names + 1] = entry.name end
  return names
end

--- See ResidualSequential:get_residual_info.
---@param model resin.nn.Module
---@param shape? (integer|false)[]
---@return {records: table[], applies: table[]}
function info.collect(model, shape)
  local found, shapes = {records = {}, applies = {}}, {}
  if shape ~= nil then
    infer.build(core.plan(model), shape, function(i, recorded) shapes[i] = recorded end)
  end
  each_step(model, function(plan, i, prefix)
    local m, record = plan.module[i], plan.record[i]
    local path = prefix .. name_of(plan.key[i])
    if plan.kind[i] == RECORD then
      local readers = {}
      for k, step in ipairs(record.readers) do readers[k] = name_of(step.key) end
      found.records[#found.records + 1] = {
        name = record.name, need_projection = m.need_projection, path = path, type = m.type, readers = readers,
        shape = plan == core.plan(model) and shapes[i] or nil, module = m,
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

--- Disables (on = true) or enables the skips called `name`, by Record or by Apply.
---@param model resin.nn.Module
---@param name string
---@param on boolean
---@param how? string
function info.switch(model, name, on, how)
  local what = on and "disable_skip" or "enable_skip"
  check.string(name, what .. ": name")
  if how ~= nil then check.enum(how, what .. ": how", {"bypass", "zero"}) end
  local hit, known, seen = false, {}, {}
  each_step(model, function(plan, i, prefix)
    if plan.kind[i] ~= APPLY then return end
    local apply, names = plan.module[i], record_names(plan, i)
    for _, record in ipairs(names) do
      if not seen[record] then
        seen[record] = true
        known[#known + 1] = ('"%s"'):format(record)
      end
      if record == name then
        hit = true
        switch_one(apply, name, names, on, how)
      end
    end
    if plan.key[i] == name or prefix .. name_of(plan.key[i]) == name then
      hit = true
      switch_one(apply, nil, names, on, how)
    end
  end)
  if not hit then
    check.fail('%s: there is no skip "%s" (known: %s)', what, name, #known > 0 and table.concat(known, ", ") or "none")
  end
end

return info
