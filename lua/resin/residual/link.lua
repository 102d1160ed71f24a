--- From a container to a plan: a flat list of steps with every record name resolved to a slot.
-- Containers inside (ResidualSequential and plain Sequential) are laid out in the same list, between an ENTER and a LEAVE step,
-- so one call keeps one table of recorded values and one scope. Each of them is a frame of names: an Apply sees the Records of
-- its own frame and of those around it that ran before; an inner Record is seen outside when it is exported. A name that no
-- frame knows stays unresolved, because the container may yet be put into another one.
--
-- A plan has these arrays, all indexed by step:
--   kind     LAYER, RECORD, APPLY, ENTER or LEAVE
--   module   the layer, Record, Apply or container
--   owner    type of the container it stands in; key: its name there or its position
--   slot     of RECORD and APPLY; 0 for an unresolved Apply
--   last     an APPLY that is the last reader of its slot
--   layout, spatial   of the value before the step (fit.lua)
--   record   of APPLY: the entry {name, key, module} it reads
--   run      of APPLY: the function of its operation;  gated: it needs gates
-- and n, slots (their number), unresolved, children (by name), and sequence: each container, the number of its children, and these,
-- to see later whether the containers still are as they were.

local check = require "resin.check"
local combine = require "resin.residual.combine"
local Record = require "resin.residual.record"
local Apply = require "resin.residual.apply"
local Sequential = require "resin.nn.sequential".Sequential

local link = {LAYER = 1, RECORD = 2, APPLY = 3, ENTER = 4, LEAVE = 5}
local LAYER, RECORD, APPLY, ENTER, LEAVE = 1, 2, 3, 4, 5

-- Set by sequential.lua: what a ResidualSequential's forward is.
link.forward = nil

--- Is it a ResidualSequential that runs as such?
---@param m resin.nn.Module
---@return boolean
function link.is_residual(m) return m.forward == link.forward end
local is_residual = link.is_residual

-- Is a container laid out in the plan of the one around it?
local function transparent(m) return is_residual(m) or m.forward == Sequential.forward end

local function quote(key) return type(key) == "string" and ('"%s"'):format(key) or tostring(key) end

-- ---- names ----------------------------------------------------------------------------------------------------------------

local function known_names(frame)
  local list, seen = {}, {}
  while frame do
    for _, entry in ipairs(frame.order) do
      if not seen[entry.name] then
        seen[entry.name] = true
        list[#list + 1] = ('"%s"'):format(entry.name)
      end
    end
    frame = frame.parent
  end
  return #list > 0 and table.concat(list, ", ") or "none"
end

-- Are two names one slip of the finger apart? Names that count (block1, block2; skip_a, skip_b) are not.
local function slip(a, b)
  if a:lower() == b:lower() then return true end
  if #a > #b then a, b = b, a end
  if #a < 4 or #b - #a > 1 then return false end
  local i = 1
  while i <= #a and a:byte(i) == b:byte(i) do i = i + 1 end
  if #a < #b then return a:sub(i) == b:sub(i + 1) and not b:sub(i, i):find("%d") end
  if a:sub(i + 2) == b:sub(i + 2) and a:sub(i, i) == b:sub(i + 1, i + 1) and a:sub(i + 1, i + 1) == b:sub(i, i) then
    return not a:sub(i, i + 1):find("%d")
  end
  return i < #a and a:sub(i + 1) == b:sub(i + 1) and not (a:sub(i, i) .. b:sub(i, i)):find("%d")
end

local function add_name(frame, entry, key)
  local former = frame.names[entry.name]
  if former then
    check.fail('%s: the record name "%s" is given twice, by Record %s and by Record %s', frame.container.type, entry.name,
      former.key, quote(key))
  end
  frame.names[entry.name] = entry
  frame.order[#frame.order + 1] = entry
end

-- "record_<k>" for the k-th Record of the frame, or the next one that is free.
local function automatic(frame)
  local k = frame.count
  while frame.names["record_" .. k] or frame.coming["record_" .. k] do k = k + 1 end
  return "record_" .. k
end

local function missing(frame, apply, key)
  local name = apply.record_name
  local text = ("%s: Apply %s"):format(frame.container.type, quote(key))
  local outer = frame
  while outer do
    local later = outer.coming[name]
    if later and not (apply.outer and outer == frame) then
      check.fail('%s: Record "%s" comes only later (layer %s); a Record must run before the Apply that reads it', text, name,
        quote(later))
    end
    outer = outer.parent
  end
  if not apply.outer then
    outer = frame
    while outer do
      for _, entry in ipairs(outer.order) do
        if slip(name, entry.name) then
          check.fail('%s: there is no Record "%s" (known: %s); did you mean "%s"? If it is a Record of an enclosing container, '
            .. "say outer = true", text, name, known_names(frame), entry.name)
        end
      end
      outer = outer.parent
    end
  end
  return {text = text, name = name, known = known_names(frame)}
end

local function find(frame, apply, key)
  local f = frame
  if apply.record_name == nil then
    while f do
      if f.recent then return f.recent end
      if f.residual then break end
      f = f.parent
    end
    check.fail("%s: Apply %s has no Record before it; put a Record into the container, or name one of an enclosing container",
      frame.container.type, quote(key))
  end
  if apply.outer then
    while f and not f.residual do f = f.parent end
    f = f and f.parent
  end
  while f do
    local entry = f.names[apply.record_name]
    if entry then return entry end
    f = f.parent
  end
  return nil, missing(frame, apply, key)
end

-- ---- laying out -----------------------------------------------------------------------------------------------------------

local function add(plan, step)
  plan.steps[#plan.steps + 1] = step
  return step
end

local function frame_of(container, parent)
  local frame = {container = container, parent = parent, residual = is_residual(container), names = {}, order = {}, count = 0,
                 coming = {}, recent = nil}
  local names = rawget(container, "_names") or {}
  for i = 1, #container do
    local child = container[i]
    if child:is(Record) and child.name then frame.coming[child.name] = frame.coming[child.name] or names[i] or i end
  end
  return frame
end

-- Writes down a container, the number of its children, and the children.
local function remember(sequence, container)
  local n = #sequence
  sequence[n + 1], sequence[n + 2] = container, #container
  for i = 1, #container do sequence[n + 2 + i] = container[i] end
end

local function lay_out(plan, container, parent, children)
  local outer = parent
  while outer do
    if outer.container == container then check.fail("%s: a container cannot be inside itself", container.type) end
    outer = outer.parent
  end
  local frame = frame_of(container, parent)
  local names = rawget(container, "_names") or {}
  remember(plan.sequence, container)
  for i = 1, #container do
    local child, key = container[i], names[i] or i
    local step = {module = child, owner = container.type, key = key, container = container}
    local place = {name = names[i] or tostring(i - 1), position = i, key = key}
    children[i] = place
    if child:is(Record) then
      frame.count = frame.count + 1
      local entry = {name = child.name or automatic(frame), key = quote(key), module = child, slot = 0, readers = {}}
      add_name(frame, entry, key)
      frame.recent = entry
      step.kind, step.entry = RECORD, entry
      add(plan, step)
    elseif child:is(Apply) then
      local entry, why = find(frame, child, key)
      step.kind, step.entry = APPLY, entry
      if entry then
        entry.readers[#entry.readers + 1] = step
      else
        plan.unresolved[#plan.unresolved + 1] = why
      end
      add(plan, step)
    elseif transparent(child) then
      step.kind = ENTER
      add(plan, step)
      place.children = {}
      for _, entry in ipairs(lay_out(plan, child, frame, place.children).order) do
        if entry.module.export then add_name(frame, entry, key) end
      end
      add(plan, {kind = LEAVE, module = child, owner = container.type, key = key})
    else
      step.kind = LAYER
      add(plan, step)
      place.step = step
    end
  end
  return frame
end

-- ---- layouts --------------------------------------------------------------------------------------------------------------

-- The layout that a layer gives its value (last = true) or expects of it; a container's is that of a child.
local function layout_of(m, last)
  if m.layout then return m.layout, tonumber((m.type:match("(%d)d$"))) end
  if transparent(m) then
    for i = last and #m or 1, last and 1 or #m, last and -1 or 1 do
      local layout, spatial = layout_of(m[i], last)
      if layout then return layout, spatial end
    end
  end
  return nil
end

-- Forward: what the layers before made. Where none did, backward: what the next one expects.
local function find_layouts(steps)
  local layout, spatial
  for _, step in ipairs(steps) do
    step.layout, step.spatial = layout, spatial
    if step.kind == LAYER then
      local l, s = layout_of(step.module, true)
      if l then layout, spatial = l, s end
    end
  end
  layout, spatial = nil, nil
  for i = #steps, 1, -1 do
    local step = steps[i]
    if step.kind == LAYER then
      local l, s = layout_of(step.module, false)
      if l then layout, spatial = l, s end
    end
    if not step.layout then step.layout, step.spatial = layout, spatial end
  end
end

-- ---- the plan -------------------------------------------------------------------------------------------------------------

local function number_slots(plan)
  for _, step in ipairs(plan.steps) do
    local entry = step.entry
    if step.kind == RECORD and #entry.readers > 0 then
      plan.slots = plan.slots + 1
      entry.slot = plan.slots
      entry.readers[#entry.readers].last = true
    end
  end
end

-- Children by name and position, for options that are passed by name: {name → place}, places[i].
local function index_children(places)
  local by_name = {}
  for i, place in ipairs(places) do
    by_name[place.name] = place
    by_name[i] = place
    if place.step then place.index, place.step = place.step.index, nil end
    if place.children then place.by_name = index_children(place.children) end
  end
  return by_name
end

--- Makes the plan of a container.
---@param container resin.nn.Module
---@return table plan
function link.plan(container)
  local plan = {steps = {}, sequence = {}, unresolved = {}, slots = 0, children = {},
                kind = {}, module = {}, owner = {}, key = {}, slot = {}, last = {}, layout = {}, spatial = {},
                record = {}, run = {}, gated = {}}
  lay_out(plan, container, nil, plan.children)
  find_layouts(plan.steps)
  number_slots(plan)
  local n = 0
  for _, step in ipairs(plan.steps) do
    local entry = step.entry
    if step.kind ~= RECORD or entry.slot > 0 then
      n = n + 1
      step.index = n
      plan.kind[n], plan.module[n], plan.owner[n], plan.key[n] = step.kind, step.module, step.owner, step.key
      plan.slot[n] = entry and entry.slot or 0
      plan.last[n] = step.last == true
      plan.layout[n], plan.spatial[n] = step.layout or false, step.spatial or false
      plan.record[n] = step.kind == APPLY and entry and {name = entry.name, key = entry.key, module = entry.module} or false
      plan.run[n] = step.kind == APPLY and combine.runner(step.module) or false
      plan.gated[n] = step.kind == APPLY and step.module:definition().gates ~= nil
    end
  end
  plan.n = n
  plan.by_name = index_children(plan.children)
  plan.steps = nil
  return plan
end

--- The ENTER steps of the containers around step i, outermost first.
---@param plan table
---@param i integer
---@return integer[]
function link.path(plan, i)
  local path = {}
  for k = 1, i - 1 do
    if plan.kind[k] == ENTER then
      path[#path + 1] = k
    elseif plan.kind[k] == LEAVE then
      path[#path] = nil
    end
  end
  return path
end

--- Raises for the first name that no Record has.
---@param plan table
function link.require_resolved(plan)
  local first = plan.unresolved[1]
  if first then
    check.fail('%s: there is no Record "%s" before it (known: %s); check the name, or put this container into one that records it',
      first.text, first.name, first.known)
  end
end

link.quote = quote

return link
