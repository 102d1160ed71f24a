--- Writes the forward of a plan as straight Lua: one block of statements per step, recorded values in local variables.
-- A call of the function is then as fast as the same calls written by hand, compiled or interpreted, and what it records lives in
-- its own frame: it may be entered again while it runs (recursion, coroutines) and leaves nothing behind. Functions are kept by
-- their text, so equal blocks share one. For ResidualSequential(Record("in"), Linear(8, 8), Apply("add", "in")) the text is, in short:
--
--   r1, v1 = x, C.rs_tensor_version(x.h)
--   keys[depth] = 2
--   y, a, b, c = module[2]:forward(x)
--   if y ~= x then if x.s == here and x ~= r1 then free(here, x) end; x = y end
--   keys[depth] = 3
--   y = combined(plan, 3, r1, v1, x)
--   if r1 ~= y and r1.s == here then free(here, r1) end
--   x = y
--
-- keys[depth] is the step that runs, for messages.
--
-- Who is freed: a tensor that this call made (x.s == here) right after its last reader; never the container's input, the result,
-- a value that a later Apply reads, or what a layer returned besides its result (kept).

local link = require "resin.residual.link"

local LAYER, RECORD, APPLY = link.LAYER, link.RECORD, link.APPLY

local emit = {}

local HEAD = [[
local current, check, where, Tensor, free, call, C, more, wrong, combined, joined, transformed, for_writing = ...
local keys, push = check.keys, check.push
return function(plan, x, options, records)
  local here, module, depth = current(), plan.module, push(plan, 0, where) + 1
  local y, a, b, c, extras, kept
]]

local TAIL = [[
  check.depth = depth - 1
  if extras then return x, extras end
  return x
end
]]

-- The same for a call that keeps what it records.
local TAIL_RECORDS = [[
  check.depth = depth - 1
  return x, extras, records
end
]]

local TEXT = {
  writing = [[
  if module[$i].inplace then
    y = for_writing(x, $live)
    if y ~= x then
      if x.s == here$not_live and not (kept and kept[x]) then free(here, x) end
      x = y
    end
  end
]],
  layer = [[
  keys[depth] = $i
  y, a, b, c = $call
  if a ~= nil then extras, kept = more(plan, $i, extras, kept, a, b, c) end
  if y ~= x then
    if getmetatable(y) ~= Tensor then wrong(plan, $i, y) end
    if x.s == here$not_live and not (kept and kept[x]) then free(here, x) end
    x = y
  end
]],
  record = [[
  $r, $v = x, C.rs_tensor_version(x.h)
]],
  record_transformed = [[
  keys[depth] = $i
  $r = transformed(plan, $i, x)
  $v = C.rs_tensor_version($r.h)
]],
  keep = [[
  kept = kept or {}
  kept[$r] = true
  records[#records + 1] = {record = plan.record[$i], step = $i, tensor = $r}
]],
  keep_unread = [[
  y = plan.module[$i].transform and transformed(plan, $i, x) or x
  kept = kept or {}
  kept[y] = true
  records[#records + 1] = {record = plan.record[$i], step = $i, tensor = y}
]],
  join = [[
  keys[depth] = $i
  y = joined(plan, $i, {$rs}, {$vs}, x)
  if x ~= y and x.s == here$not_live and not (kept and kept[x]) then free(here, x) end
]],
  apply = [[
  keys[depth] = $i
  y = combined(plan, $i, $r, $v, x)
  if x ~= y and x.s == here$not_live and not (kept and kept[x]) then free(here, x) end
]],
  release = [[
  if $r ~= y and $r.s == here$not_others and not (kept and kept[$r]) then free(here, $r) end
  $r = nil
]],
}

-- Lua allows 200 local variables; past MANY slots they are entries of a table of the call.
local MANY = 80

-- " and x ~= r1 and x ~= r2" for the slots in use but `except`.
local function differs(value, slots, names, except)
  local parts = {}
  for _, k in ipairs(slots) do
    if k ~= except then parts[#parts + 1] = (" and %s ~= %s"):format(value, names.r(k)) end
  end
  return table.concat(parts)
end

local function without(list, value)
  local out = {}
  for _, v in ipairs(list) do
    if v ~= value then out[#out + 1] = v end
  end
  return out
end

--- The text of a plan's forward.
---@param plan table
---@param with_options boolean  layers get options[i]
---@param with_records boolean  what is recorded is put into the table `records` and kept
---@return string
function emit.text(plan, with_options, with_records)
  local many = plan.slots > MANY
  local names = {
    r = function(k) return (many and "r[%d]" or "r%d"):format(k) end,
    v = function(k) return (many and "v[%d]" or "v%d"):format(k) end,
  }
  local out = {HEAD}
  if many then out[2] = "  local r, v = {}, {}\n" end
  for k = 1, many and 0 or plan.slots do out[#out + 1] = ("  local r%d, v%d\n"):format(k, k) end

  local live = {}
  for i = 1, plan.n do
    local kind, slot, m = plan.kind[i], plan.slot[i], plan.module[i]
    local function write(name, values)
      values.i = tostring(i)
      out[#out + 1] = (TEXT[name]:gsub("%$([%a_]+)", values))
    end
    local place = {not_live = differs("x", live, names), r = names.r(slot), v = names.v(slot)}
    if kind == LAYER then
      if #live > 0 and (m.inplace or rawget(m, "inplace") ~= nil) then     -- a layer that can be switched to in place
        local list = {}
        for _, k in ipairs(live) do list[#list + 1] = names.r(k) end
        write("writing", {live = table.concat(list, ", "), not_live = place.not_live})
      end
      local option = with_options and ", options[$i]" or ""
      place.call = m.builtin and "module[$i]:forward(x" .. option .. ")"
        or "call(module[$i].forward, module[$i], x" .. option .. ")\n  check.depth = depth"
      place.call = place.call:gsub("%$i", tostring(i))
      write("layer", place)
    elseif kind == RECORD and slot > 0 then
      live[#live + 1] = slot
      write(m.transform and "record_transformed" or "record", place)
      if with_records then write("keep", place) end
    elseif kind == RECORD and with_records then
      write("keep_unread", place)
    elseif kind == APPLY and plan.many[i] then
      local several = plan.many[i]
      local rs, vs = {}, {}
      for k, s in ipairs(several.slots) do rs[k], vs[k] = names.r(s), names.v(s) end
      place.rs, place.vs = table.concat(rs, ", "), table.concat(vs, ", ")
      write("join", place)
      for k, s in ipairs(several.slots) do
        if several.last[k] then
          live = without(live, s)
          write("release", {r = names.r(s), not_others = differs(names.r(s), live, names)})
        end
      end
      out[#out + 1] = "  x = y\n"
    elseif kind == APPLY then
      write("apply", place)
      if plan.last[i] then
        live = without(live, slot)
        place.not_others = differs(place.r, live, names)
        write("release", place)
      end
      out[#out + 1] = "  x = y\n"
    end
  end
  out[#out + 1] = with_records and TAIL_RECORDS or TAIL
  return table.concat(out)
end

-- function(s): are the containers of the plan's sequence still as they were?
local function fresh_text(plan)
  local out, s, at = {"return function(s)\n  return true"}, plan.sequence, 1
  while s[at] do
    local n = s[at + 1]
    for i = 1, n do out[#out + 1] = ("    and s[%d][%d] == s[%d]"):format(at, i, at + 1 + i) end
    out[#out + 1] = ("    and rawget(s[%d], %d) == nil"):format(at, n + 1)
    at = at + 2 + n
  end
  out[#out + 1] = "end\n"
  return table.concat(out, "\n")
end

local compiled = setmetatable({}, {__mode = "v"})
local directory = debug.getinfo(1, "S").source:match("^(.*/)") or "@"

local function load_text(text, ...)
  local fn = compiled[text]
  if not fn then
    fn = assert(loadstring(text, directory .. "plan"))(...)
    compiled[text] = fn
  end
  return fn
end

--- The forward of a plan: function(plan, x, options).
---@param plan table
---@param with_options boolean
---@param with_records boolean
---@param ... any  what HEAD names
---@return function
function emit.forward(plan, with_options, with_records, ...)
  return load_text(emit.text(plan, with_options, with_records), ...)
end

--- function(plan.sequence): do the containers still have the children that the plan was made of?
---@param plan table
---@return function
function emit.fresh(plan) return load_text(fresh_text(plan)) end

return emit
