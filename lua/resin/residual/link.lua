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
--   record   of APPLY: the entry {name, key, module} it reads; of RECORD: its own
--   many     of an APPLY of several records: {slots, last, records}, lists in its order; false otherwise
--   run      of APPLY: the function of its operation;  gated: it needs layers that follow from shapes
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
function link.is_transparent(m) return is_residual(m) or m.forward == Sequential.forward end
local transparent = link.is_transparent

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
  if former and not frame.container.rebinds then
    check.fail('%s: the record name "%s" is given twice, by %s %s and by %s %s', frame.container.type, entry.name,
      former.module.type, former.key, entry.module.type, quote(key))
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

local function missing(frame, apply, key, name)
  local text = ("%s: %s %s"):format(frame.container.type, apply.type, quote(key))
  local outer = frame
  while outer do
    local later = outer.coming[name]
    if later and not (apply.outer and outer == frame) then
      check.fail('%s: %s "%s" comes only later (layer %s); a %s must run before the %s that reads it', text, apply.reads, name,
        quote(later), apply.reads, apply.type)
    end
    outer = outer.parent
  end
  if not apply.outer then
    outer = frame
    while outer do
      for _, entry in ipairs(outer.order) do
        if slip(name, entry.name) then
          check.fail('%s: there is no %s "%s" (known: %s); did you mean "%s"? If it is a %s of an enclosing container, '
            .. "say outer = true", text, apply.reads, name, known_names(frame), entry.name, apply.reads)
        end
      end
      outer = outer.parent
    end
  end
  return {text = text, reads = apply.reads, name = name, known = known_names(frame), outer = apply.outer and frame.names[name] ~= nil}
end

local function find(frame, apply, key, name)
  local f = frame
  if name == nil then
    while f do
      if f.recent then return f.recent end
      if f.residual then break end
      f = f.parent
    end
    check.fail("%s: %s %s has no %s before it; put a %s into the container, or name one of an enclosing container",
      frame.container.type, apply.type, quote(key), apply.reads, apply.reads)
  end
  if apply.outer then
    while f and not f.residual do f = f.parent end
    f = f and f.parent
  end
  while f do
    local entry = f.names[name]
    if entry then return entry end
    f = f.parent
  end
  return nil, missing(frame, apply, key, name)
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
      step.kind, step.entries, step.last = APPLY, {}, {}
      for _, name in ipairs(child.records or {child.record_name or false}) do
        local entry, why = find(frame, child, key, name or nil)
        if entry then
          entry.readers[#entry.readers + 1] = step
          step.entries[#step.entries + 1] = entry
        else
          plan.unresolved[#plan.unresolved + 1] = why
        end
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
      entry.readers[#entry.readers].last[entry] = true
    end
  end
end

-- The records of an Apply of several, as parallel lists.
local function several(step)
  local many = {slots = {}, last = {}, records = {}}
  for k, entry in ipairs(step.entries) do
    many.slots[k], many.last[k], many.records[k] = entry.slot, step.last[entry] == true, entry
  end
  return many
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
                record = {}, many = {}, run = {}, gated = {}}
  lay_out(plan, container, nil, plan.children)
  find_layouts(plan.steps)
  number_slots(plan)
  local n = 0
  for _, step in ipairs(plan.steps) do
    local apply = step.kind == APPLY
    local entry = apply and step.entries[1] or step.entry
    n = n + 1
    step.index = n
    plan.kind[n], plan.module[n], plan.owner[n], plan.key[n] = step.kind, step.module, step.owner, step.key
    plan.slot[n] = entry and entry.slot or 0
    plan.layout[n], plan.spatial[n] = step.layout or false, step.spatial or false
    plan.record[n] = entry or false
    plan.many[n] = apply and step.module.records and several(step)
    plan.last[n] = apply and entry ~= nil and step.last[entry] == true
    plan.run[n] = apply and (combine.joiner(step.module) or combine.runner(step.module))
    plan.gated[n] = apply and step.module:incomplete()
  end
  plan.n = n
  plan.by_name = index_children(plan.children)
  for _, step in ipairs(plan.steps) do step.entries, step.last = nil, nil end   -- entries keep their readers
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
  if first and first.outer then
    check.fail('%s: outer = true looks for %s "%s" only in the enclosing containers, which have none; this container has one: '
      .. "leave outer out to read it", first.text, first.reads, first.name)
  end
  if first then
    check.fail('%s: there is no %s "%s" before it (known: %s); check the name, or put this container into one that records it',
      first.text, first.reads, first.name, first.known)
  end
end

link.quote = quote
link.layout_of = layout_of

return link
