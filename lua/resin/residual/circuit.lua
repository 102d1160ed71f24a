--- Circuit: torch-circuit's front of the residual core. Layers in a row, SaveInput and GetInput for skips, StartBlock and EndBlock
-- around what is repeated.
-- A Circuit is a ResidualSequential whose children are the expanded layers: blocks are unrolled when it is made, each SaveInput and
-- GetInput of a repeat with names of its own, and nothing of a block is left but the note of where each layer came from
-- (`_places`, a list beside the children). So there is no second way to run it.
--
-- Names. A SaveInput "r" in a block that is repeated more than once is called "r_repeat_<k>" outside of it, k from 0 as in
-- torch-circuit; in blocks inside blocks the innermost number comes first: "r_repeat_<inner>_repeat_<outer>". Inside its own
-- repeat it is "r". A GetInput looks in its own repeat first, then in the one around it, and so on. A name may be saved again; it
-- then means the later value.

local check = require "resin.check"
local class = require "resin.nn.class"
local fresh = require "resin.nn.fresh"
local Module = require "resin.nn.module"
local parts = require "resin.nn.sequential"
local arguments = require "resin.residual.arguments"
local combine = require "resin.residual.combine"
local core = require "resin.residual.core"
local Apply = require "resin.residual.apply"
local Record = require "resin.residual.record"
local ResidualSequential = require "resin.residual.sequential"

local Numbered, ModuleList = parts.Numbered, parts.ModuleList

-- ---- SaveInput and GetInput -----------------------------------------------------------------------------------------------

--- SaveInput(name, {transform = nil, need_projection = false, export = false}): keeps the value, or what the transform (a module or
--- a function) makes of it, under a name. The value itself goes on.
---@class resin.nn.SaveInput: resin.nn.Record
local SaveInput = class.define("SaveInput", Record, true)

local SAVE_NAMES = {"name", "transform", "need_projection", "export"}

function SaveInput:init(...)
  local o = arguments.read("SaveInput", SAVE_NAMES, 2, ...)
  if o.name == nil then check.fail("SaveInput: name is missing: SaveInput(name, {transform})") end
  self:configure(o)
end

function SaveInput:label()
  return arguments.call("SaveInput", self.name, {{"need_projection", self.need_projection}, {"export", self.export}})
end

--- GetInput(name, {op = "add", transform = nil, …}): joins what was saved, after the transform, with the current value. op is the
--- name of an operation as for Apply (or add, sub, mul, cat), a function of (current, saved) such as resin.F.mul, or a module,
--- which then belongs to the model. All further options of Apply are taken too (alpha, scale, dim, projection, …).
---@class resin.nn.GetInput: resin.nn.Apply
local GetInput = class.define("GetInput", Apply, true)

GetInput.reads = "SaveInput"

local GET_NAMES = {"name", "op", "transform"}
for _, name in ipairs(Apply.option_names) do
  if name ~= "operation" and name ~= "record_name" and name ~= "transform" then GET_NAMES[#GET_NAMES + 1] = name end
end

-- Other names of operations, and functions that are one.
local SHORT = {sub = "subtract", mul = "product", cat = "concat", maximum = "max", minimum = "min"}
local functions

local function operation_of(op)
  if type(op) == "string" then return SHORT[op:lower()] or op end
  if type(op) ~= "function" then return op end
  if not functions then
    functions = {}
    local F, ops = require "resin.functional", require "resin.ops"
    for _, name in ipairs{"add", "sub", "mul", "maximum", "minimum"} do
      functions[F[name]] = SHORT[name] or name
      functions[ops[name]] = SHORT[name] or name
    end
  end
  return functions[op] or op
end

function GetInput:init(...)
  local o = arguments.read("GetInput", GET_NAMES, 3, ...)
  if o.name == nil and o.records == nil then check.fail("GetInput: name is missing: GetInput(name, {op, transform})") end
  if o.name ~= nil then check.string(o.name, "GetInput: name") end
  if o.op ~= nil and not combine.find(operation_of(o.op)) and type(o.op) ~= "string" then
    check.fail("GetInput: op must be a name, a function of (current, saved) or a module, got %s", check.describe(o.op))
  end
  o.operation, o.record_name = operation_of(o.op), o.name
  o.op, o.name = nil, nil
  self:configure(o)
end

function GetInput:label()
  local list = {}
  for _, entry in ipairs(self:shown()) do
    if entry[1] == "operation" then
      list[#list + 1] = {"op", entry[2] ~= "add" and entry[2] or nil}
    elseif entry[1] ~= "record_name" then
      list[#list + 1] = entry
    end
  end
  return arguments.call("GetInput", self.record_name, list)
end

-- ---- blocks ---------------------------------------------------------------------------------------------------------------

local function not_a_layer(self)
  check.fail('%s "%s" only stands between the layers that a Circuit is made of; it cannot run', self.type, self.name)
end

--- StartBlock(name, num_repeats = 1, {share = true}): the layers up to EndBlock(name) are repeated. They are the same layers in
--- each repeat, or with share = false the first repeat has the given layers and each other one copies of its own, with weights drawn
--- anew as the layers' constructors do (nn/fresh.lua says what is drawn and what keeps its value).
--- StartBlock{name, num_repeats = n, body = function(i) … end} needs no EndBlock: the body is called for i from 1 to n and returns
--- the layers of that repeat, one, several, or a table of them.
---@class resin.nn.StartBlock: resin.nn.Module
local StartBlock = class.define("StartBlock", Module, true)

local START_NAMES = {"name", "num_repeats", "share", "body"}

function StartBlock:init(...)
  local o = arguments.read("StartBlock", START_NAMES, 2, ...)
  if o.name == nil then check.fail("StartBlock: name is missing: StartBlock(name, num_repeats, {share, body})") end
  self.name = check.string(o.name, "StartBlock: name")
  self.num_repeats = o.num_repeats == nil and 1 or check.integer(o.num_repeats, "StartBlock: num_repeats")
  if self.num_repeats < 1 then check.fail("StartBlock: num_repeats must be >= 1, got %d", self.num_repeats) end
  if o.body ~= nil then
    rawset(self, "body", check.func(o.body, "StartBlock: body"))
    if o.share ~= nil then check.fail("StartBlock: share is for layers up to an EndBlock; a body makes the layers of each repeat") end
  end
  self.share = o.share == nil or check.boolean(o.share, "StartBlock: share")
end

StartBlock.forward = not_a_layer

function StartBlock:label()
  return arguments.call("StartBlock", self.name, {{"num_repeats", self.num_repeats}, {"share", not self.share and "false" or nil}})
end

--- EndBlock(name): the end of the block that StartBlock(name) began.
---@class resin.nn.EndBlock: resin.nn.Module
local EndBlock = class.define("EndBlock", Module, true)

function EndBlock:init(...)
  local o = arguments.read("EndBlock", {"name"}, 1, ...)
  if o.name == nil then check.fail("EndBlock: name is missing: EndBlock(name)") end
  self.name = check.string(o.name, "EndBlock: name")
end

EndBlock.forward = not_a_layer

function EndBlock:label() return arguments.call("EndBlock", self.name, {}) end

-- ---- expansion ------------------------------------------------------------------------------------------------------------
-- An item is {module = …, name = … or false}, or {block = StartBlock, repeats = {items of repeat 1, …}}.

local function gather(items, list)
  for _, item in ipairs(items) do
    if item.block then
      for _, inner in ipairs(item.repeats) do gather(inner, list) end
    else
      list[#list + 1] = item.module
    end
  end
  return list
end

local function rebuild(items, from)
  local out = {}
  for i, item in ipairs(items) do
    if item.block then
      out[i] = {block = item.block, repeats = {}}
      for k, inner in ipairs(item.repeats) do out[i].repeats[k] = rebuild(inner, from) end
    else
      from.at = from.at + 1
      out[i] = {module = from.list[from.at], name = item.name}
    end
  end
  return out
end

-- Copies of items with weights of their own, drawn anew; what is shared among them stays shared.
local function copies(items) return rebuild(items, {list = fresh(ModuleList(gather(items, {})):clone()), at = 0}) end

local parse

local function body_items(block, k)
  local given = {block.body(k)}
  if #given == 1 and class.is_plain(given[1]) then given = given[1] end
  if #given == 0 then check.fail('StartBlock "%s": body(%d) returned no layers', block.name, k) end
  local list = ModuleList(given)
  local names, entries = rawget(list, "_names") or {}, {}
  for i = 1, #list do entries[i] = {module = list[i], name = names[i] or false} end
  local items, rest = parse(entries, 1, nil)
  if rest then check.fail('StartBlock "%s": body(%d): EndBlock "%s" without matching StartBlock', block.name, k, rest.name) end
  return items
end

-- The items of entries from position `at` to the EndBlock of `open`, or to the end; and the position after, or for a stray EndBlock
-- that module.
function parse(entries, at, open)
  local items = {}
  while entries[at] do
    local m = entries[at].module
    if m:is(EndBlock) then
      if open and m.name == open.name then return items, nil, at + 1 end
      return items, m
    elseif m:is(StartBlock) then
      local block = {block = m, repeats = {}}
      items[#items + 1] = block
      at = at + 1
      if m.body then
        for k = 1, m.num_repeats do block.repeats[k] = body_items(m, k) end
      else
        local inner, stray, after = parse(entries, at, m)
        if not after then
          local found = stray and (' (found EndBlock "%s" instead)'):format(stray.name) or ""
          check.fail('Circuit: no matching EndBlock found for StartBlock "%s"%s', m.name, found)
        end
        for k = 1, m.num_repeats do block.repeats[k] = (k == 1 or m.share) and inner or copies(inner) end
        at = after
      end
    else
      items[#items + 1] = entries[at]
      at = at + 1
    end
  end
  return items
end

-- Lays items out in `out`: {module, name, place}. place is the innermost repeat: {block, k, n, names, outer, group}; group is one
-- table for all repeats of a block.
local function unroll(items, out, place)
  for _, item in ipairs(items) do
    if item.block then
      local name, n, group = item.block.name, item.block.num_repeats, {}
      for k = 1, n do
        unroll(item.repeats[k], out, {block = name, k = k, n = n, names = {}, outer = place, group = group})
      end
    else
      out[#out + 1] = {module = item.module, name = item.name, place = place}
    end
  end
end

-- The name of something in a place, seen from outside of all repeats. With `bind` the places learn it.
local function outside(name, place, bind)
  local seen, at = name, place
  while at do
    if bind then at.names[seen] = bind end
    if at.n and at.n > 1 then seen = ("%s_repeat_%d"):format(seen, at.k - 1) end
    at = at.outer
  end
  return seen
end

-- A module of the same parts under another name. Layers that follow from shapes are made for all such copies at once.
local function renamed(m, field, value)
  local copy = setmetatable({}, getmetatable(m))
  class.instances[copy] = true
  for key, old in next, m do
    if class.is_plain(old) then
      local list = {}
      for k, v in pairs(old) do list[k] = v end
      old = list
    end
    rawset(copy, key, old)
  end
  copy._fixed[field] = value
  if m:is(Apply) then
    local twins = rawget(m, "twins") or {m}
    rawset(m, "twins", twins)
    rawset(copy, "twins", twins)
    twins[#twins + 1] = copy
  end
  return copy
end

local function lookup(place, name)
  while place do
    local full = place.names[name]
    if full then return full end
    place = place.outer
  end
  return name
end

-- Gives SaveInputs and GetInputs of repeats the names that they have in the whole circuit.
local function resolve(list)
  for _, item in ipairs(list) do
    local m, place = item.module, item.place
    if place and m:is(Record) and m.name then
      local full = outside(m.name, place)
      outside(m.name, place, full)
      if full ~= m.name then item.module = renamed(m, "name", full) end
    elseif place and m:is(Apply) and not m.outer then
      if m.records then
        local names, other = {}, false
        for i, name in ipairs(m.records) do
          names[i] = lookup(place, name)
          other = other or names[i] ~= name
        end
        if other then item.module = renamed(m, "records", names) end
      elseif m.record_name then
        local full = lookup(place, m.record_name)
        if full ~= m.record_name then item.module = renamed(m, "record_name", full) end
      end
    end
    if item.name then item.name = outside(item.name, place) end
  end
end

-- ---- the container --------------------------------------------------------------------------------------------------------

--- Circuit(layer, …), as nn.Sequential takes its children, with SaveInput, GetInput, StartBlock and EndBlock among them.
--- circuit[i] and its length are those of the expanded layers.
---@class resin.nn.Circuit: resin.nn.ResidualSequential
local Circuit = class.define("Circuit", ResidualSequential, true)

Circuit.rebinds = true      -- a name may be saved again

function Circuit:init(...)
  rawset(self, "_places", {})
  rawset(self, "_filling", true)
  Numbered.init(self, ...)
  local names, entries = rawget(self, "_names") or {}, {}
  for i = 1, #self do entries[i] = {module = self[i], name = names[i] or false} end
  for i = #entries, 1, -1 do Numbered.remove(self, i) end

  local items, stray = parse(entries, 1, nil)
  if stray then check.fail('Circuit: EndBlock "%s" without matching StartBlock', stray.name) end
  local list = {}
  unroll(items, list, false)
  resolve(list)
  local places = {}
  for i, item in ipairs(list) do
    Numbered.insert(self, i, item.module, item.name or nil)
    places[i] = item.place
  end
  rawset(self, "_places", places)
  rawset(self, "_filling", nil)
  core.renew(self)
end

function Circuit:insert(position, module, name)
  if class.is_module(module) and (module:is(StartBlock) or module:is(EndBlock)) and not rawget(self, "_filling") then
    check.fail("Circuit: insert: blocks are unrolled when the Circuit is made; a %s cannot be added later", module.type)
  end
  ResidualSequential.insert(self, position, module, name)
  if not rawget(self, "_filling") then
    local places, n = self._places, #self
    for i = n, position + 1, -1 do places[i] = places[i - 1] end
    local before, after = places[position - 1], places[position + 1]
    places[position] = before and before == after and before or false
  end
  return self
end

function Circuit:remove(position)
  position = Numbered.position_from(self, position, "remove")
  local removed = ResidualSequential.remove(self, position)
  local places = self._places
  for i = position, #self + 1 do places[i] = places[i + 1] end
  return removed
end

--- A Circuit of the layers from `first` to `last`; they are what they are in the whole, names included.
---@param first? integer
---@param last? integer
---@return resin.nn.Circuit
function Circuit:slice(first, last)
  local out = ResidualSequential.slice(self, first, last)
  local from = first or 1
  if from < 0 then from = #self + 1 + from end
  for i = 1, #out do out._places[i] = self._places[math.max(from, 1) + i - 1] end
  return out
end

-- The repeats around child i, outermost first: {{block, index, of}, …}.
local function repeats_of(self, i)
  local list, place = {}, self._places[i]
  while place do
    table.insert(list, 1, {block = place.block, index = place.k, of = place.n})
    place = place.outer
  end
  return list
end

local STRUCTURE = {__tostring = function(structure) return structure.text end}

--- The expanded layers: a list of {index, name, type, label, repeats = {{block, index, of}, …}}, outermost block first, with
--- their text as `text` and as tostring.
---@return table
function Circuit:expanded_structure()
  local names, list, lines, width = rawget(self, "_names") or {}, {}, {}, 0
  for i = 1, #self do
    local m = self[i]
    list[i] = {index = i, name = names[i] or nil, type = m.type, label = m:label(), repeats = repeats_of(self, i)}
    lines[i] = ("%d: %s"):format(i, list[i].label)
    width = math.max(width, #lines[i])
  end
  for i, entry in ipairs(list) do
    local where = {}
    for _, r in ipairs(entry.repeats) do where[#where + 1] = ("%s %d of %d"):format(r.block, r.index, r.of) end
    if #where > 0 then lines[i] = lines[i] .. (" "):rep(width - #lines[i] + 2) .. table.concat(where, ", ") end
  end
  list.text = table.concat(lines, "\n")
  return setmetatable(list, STRUCTURE)
end

--- The blocks in the order of their starts: {name, num_repeats, depth, repeats = {{first, last}, …}}, positions of children. A block
--- inside a repeated one is listed once for each time.
---@return table[]
function Circuit:blocks()
  local blocks, known = {}, {}
  for i = 1, #self do
    local chain, place = {}, self._places[i]
    while place do
      table.insert(chain, 1, place)
      place = place.outer
    end
    for depth, at in ipairs(chain) do
      local block = known[at.group]
      if not block then
        block = {name = at.block, num_repeats = at.n, depth = depth, repeats = {}}
        known[at.group] = block
        blocks[#blocks + 1] = block
      end
      block.repeats[at.k] = block.repeats[at.k] or {first = i}
      block.repeats[at.k].last = i
    end
  end
  return blocks
end

return {
  Circuit = Circuit, SaveInput = SaveInput, GetInput = GetInput, StartBlock = StartBlock, EndBlock = EndBlock,
  LambdaLayer = require("resin.nn.structural").Lambda,     -- torch-circuit's name for it
}
