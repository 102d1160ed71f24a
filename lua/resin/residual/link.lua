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
-- and n, slots (their number), unresolved and warnings (of names), children (by name), and sequence: each container, the number of
-- its children, and these, to see later whether the containers still are as they were.

local check = require "resin.check"
local combine = require "resin.residual.combine"
local Record = require "resin.residual.record"
local Apply = require "resin.residual.apply"
local parts = require "resin.nn.sequential"

local Sequential = parts.Sequential

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

-- Has an inner container recorded the name without letting it out? Says how to read it.
local function inner_record(frame, apply, name)
  local f = frame
  while f do
    local place = f.hidden[name]
    if place then
      return ("; layer %s (%s) records it inside, where it stays: give that %s export = true"):format(quote(place.key), place.type,
        apply.reads)
    end
    f = f.parent
  end
  return nil
end

local function missing(frame, apply, key, name)
  local layer = ("%s %s"):format(apply.type, quote(key))
  local text = ("%s: %s"):format(frame.container.type, layer)
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
  return {text = text, layer = layer, reads = apply.reads, name = name, known = known_names(frame), apply = apply,
          outer = apply.outer and frame.names[name] ~= nil, inner = inner_record(frame, apply, name)}
end

-- Notes that an Apply reads a name that is not there, for core.renew to say. It may be that of a container which is not made yet;
-- outer = true says so.
local function warn_missing(plan, why)
  plan.unresolved[#plan.unresolved + 1] = why
  if why.apply.outer then return end
  plan.warnings[#plan.warnings + 1] = {
    of = why.apply, what = why.name,
    text = ('%s: there is no %s "%s" before it (known: %s)%s'):format(why.text, why.reads, why.name, why.known,
      why.inner or ("; if it is a %s of a container around this one, say outer = true"):format(why.reads)),
  }
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
  if apply.outer and not apply.records then
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
                 coming = {}, hidden = {}, recent = nil}
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

-- ---- names that do not get in -------------------------------------------------------------------------------------------

-- {[container] = {[name] = "a Checkpoint"}}: names that its enclosing containers have, and the layer that keeps them out.
local barriers = setmetatable({}, {__mode = "k"})

-- Calls visit(container) for the residual containers in m that run with a plan of their own.
local function inner_containers(m, visit, seen)
  if seen[m] or (m.builtin and not m.numbered and #m._children == 0) then return end
  seen[m] = true
  if is_residual(m) then
    visit(m)
    return
  end
  local _, modules = m:child_list()
  for i = 1, #modules do inner_containers(modules[i], visit, seen) end
end

-- Containers inside the layer m, which lays out nothing itself, see none of the names of this frame: finds those that want one.
local function find_barriers(plan, frame, m, key)
  inner_containers(m, function(inner)
    local own = rawget(inner, "_plan")
    for _, why in ipairs(own and own.unresolved or {}) do
      local f = frame
      while f and not f.names[why.name] do f = f.parent end
      if f then
        barriers[inner] = barriers[inner] or {}
        barriers[inner][why.name] = m.type
        plan.warnings[#plan.warnings + 1] = {
          of = inner, what = m.type .. " " .. why.name,
          text = ('%s: layer %s (%s) holds a %s whose %s reads %s "%s" of this container, but names do not reach into a %s: it must '
            .. "record the value itself"):format(frame.container.type, quote(key), m.type, inner.type, why.layer, why.reads,
            why.name, m.type),
        }
      end
    end
  end, {})
end

-- ---- unnamed pairs --------------------------------------------------------------------------------------------------------

-- Two unnamed Applies that read one Record, with an unnamed Record before it that nobody reads: perhaps they were meant as pairs.
local function warn_ambiguous(plan, frame)
  for at, entry in ipairs(frame.order) do
    local first, second
    for _, step in ipairs(entry.readers) do
      if step.unnamed and first then second = second or step elseif step.unnamed then first = step end
    end
    for k = 1, second and at - 1 or 0 do
      local unread = frame.order[k]
      if not unread.module.name and #unread.readers == 0 then
        plan.warnings[#plan.warnings + 1] = {
          of = frame.container, what = "unnamed",
          text = ('%s: %s %s and %s %s both read the Record that ran last, %s ("%s"), and nobody reads %s ("%s"); name the one that is '
            .. 'meant: Apply("add", "%s")'):format(frame.container.type, first.module.type, quote(first.key), second.module.type,
            quote(second.key), entry.key, entry.name, unread.key, unread.name, unread.name),
        }
        return
      end
    end
  end
end

-- ---- laying out a container -----------------------------------------------------------------------------------------------

local function lay_out(plan, container, parent, children)
  local outer = parent
  while outer do
    if outer.container == container then check.fail("%s: a container cannot be inside itself", container.type) end
    outer = outer.parent
  end
  parts.Numbered.settle(container)
  local frame = frame_of(container, parent)
  local names = rawget(container, "_names") or {}
  remember(plan.sequence, container)
  for i = 1, #container do
    local child, key = container[i], names[i] or i
    local step = {module = child, owner = container.type, key = key, container = container}
    local place = {name = names[i] or tostring(i - 1), position = i, key = key, module = child}
    children[i] = place
    if child:is(Record) then
      if not child.aside then frame.count = frame.count + 1 end
      local entry = {name = child.name or automatic(frame), key = quote(key), module = child, slot = 0, readers = {}}
      add_name(frame, entry, key)
      if not child.aside then frame.recent = entry end
      place.record = entry
      step.kind, step.entry = RECORD, entry
      add(plan, step)
    elseif child:is(Apply) then
      step.kind, step.entries, step.last, step.unnamed = APPLY, {}, {}, not (child.records or child.record_name)
      for _, name in ipairs(child.records or {child.record_name or false}) do
        local entry, why = find(frame, child, key, name or nil)
        if entry then
          entry.readers[#entry.readers + 1] = step
          step.entries[#step.entries + 1] = entry
        else
          warn_missing(plan, why)
        end
      end
      add(plan, step)
    elseif transparent(child) then
      step.kind = ENTER
      add(plan, step)
      place.children = {}
      local inner = lay_out(plan, child, frame, place.children)
      for _, entry in ipairs(inner.order) do
        if entry.module.export then
          add_name(frame, entry, key)
        elseif entry.module.name then
          frame.hidden[entry.name] = {key = key, type = child.type}
        end
      end
      for name in pairs(inner.hidden) do frame.hidden[name] = frame.hidden[name] or {key = key, type = child.type} end
      add(plan, {kind = LEAVE, module = child, owner = container.type, key = key})
    else
      step.kind = LAYER
      add(plan, step)
      place.step = step
      find_barriers(plan, frame, child, key)
    end
  end
  warn_ambiguous(plan, frame)
  return frame
end

-- ---- layouts --------------------------------------------------------------------------------------------------------------

-- The layout that a layer gives its value (last = true) or expects of it, the dimensions of its image where they tell a batch from one
-- image, and in any case; a container's is that of a child.
local function layout_of(m, last)
  if m.layout then
    local rank = tonumber((m.type:match("(%d)d$")))
    return m.layout, m.type ~= "BatchNorm1d" and rank or nil, rank     -- that one takes [N, C] too
  end
  if transparent(m) then
    for i = last and #m or 1, last and 1 or #m, last and -1 or 1 do
      local layout, spatial, rank = layout_of(m[i], last)
      if layout then return layout, spatial, rank end
    end
  end
  return nil
end

-- The dimensions of the image behind (or before) a layer without a layout: as many, or not known where the layer changes the number
-- of dimensions. Where that cannot be seen, [C, L] is not told from [N, C] any more.
local function spatial_past(m, spatial)
  if not spatial then return nil end
  local depth = check.depth
  local ok, flat = pcall(m.output_shape, m, {3, 5})
  local also, deep = pcall(m.output_shape, m, {2, 3, 5, 7})
  check.depth = depth
  if (ok and #flat ~= 2) or (also and #deep ~= 4) then return nil end
  return (spatial > 1 or (ok and also)) and spatial or nil
end

-- Forward: what the layers before made. Where none did, backward: what the next one expects.
local function find_layouts(steps)
  local layout, spatial
  for _, step in ipairs(steps) do
    step.layout, step.spatial = layout, spatial
    if step.kind == LAYER then
      local l, s = layout_of(step.module, true)
      if l then layout, spatial = l, s else spatial = spatial_past(step.module, spatial) end
    end
  end
  layout, spatial = nil, nil
  for i = #steps, 1, -1 do
    local step = steps[i]
    if step.kind == LAYER then
      local l, s = layout_of(step.module, false)
      if l then layout, spatial = l, s else spatial = spatial_past(step.module, spatial) end
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
  local plan = {steps = {}, sequence = {}, unresolved = {}, warnings = {}, container = container, slots = 0, children = {},
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
    local hint = first.inner or "; check the name, or put this container into one that records it"
    local barrier = barriers[plan.container]
    if barrier and barrier[first.name] then
      hint = ("; a container around this one has it, but names do not reach into a %s: this container must record the value itself"):format(
        barrier[first.name])
    end
    check.fail('%s: there is no %s "%s" before it (known: %s)%s', first.text, first.reads, first.name, first.known, hint)
  end
end

link.quote = quote
link.layout_of = layout_of

return link
