--- A graph as text: a line per node from top to bottom, and every edge that is not from one line to the next in a lane of its own
-- at the left.
--
--     ○ input
--   ╭─● record "in"
--   │ ■ 1  Linear(8, 8)     72
--   ╰▶⊕ add "in"
--
-- Lanes are intervals of lines; two that share a line never share a column, and short ones stand near the nodes.

local describe = require "resin.nn.describe"
local shapes = require "resin.nn.shapes"

local lanes = {}

local MARKS = {input = "○", output = "○", layer = "■", record = "●", apply = "⊕", join = "⊕", split = "◇"}
local SYMBOLS = {["+"] = "⊕", ["−"] = "⊖", ["×"] = "⊗"}

-- Characters of a UTF-8 text.
local function width(s) return select(2, s:gsub("[^\128-\191]", "")) end

local function pad(s, n) return s .. (" "):rep(n - width(s)) end

-- ---- lines ----------------------------------------------------------------------------------------------------------------

local function cluster_text(cluster)
  local parts = {}
  if cluster.title then parts[1] = cluster.title end
  if cluster.times then parts[#parts + 1] = "× " .. cluster.times end
  return table.concat(parts, " ")
end

local function node_text(node)
  if node.kind == "record" then return node.unnamed and "record" or ('record "%s"'):format(node.title) end
  if node.kind == "apply" then
    local parts, names = {}, {}
    for _, skip in ipairs(node.skips) do
      if not skip.record.unnamed then names[#names + 1] = ('"%s"'):format(skip.record.title) end
    end
    parts[1] = node.operation .. (#names > 0 and " " or "") .. table.concat(names, ", ")
    for _, skip in ipairs(node.skips) do
      if skip.through then parts[#parts + 1] = "through " .. skip.through end
    end
    parts[#parts + 1] = node.alpha
    parts[#parts + 1] = node.notes
    return table.concat(parts, ", ")
  end
  return node.title .. (node.behind_code and " (behind code)" or "")
end

-- The last part of a node's name: its key in its container.
local function key_of(node)
  local kind = node.kind
  if kind == "input" or kind == "output" or kind == "record" or kind == "join" or kind == "split" or not node.name then return "" end
  return node.name:match("[^.]*$")
end

-- Of an Apply also those of the modules on its skips.
local function node_parameters(node)
  local n = node.parameters
  for _, skip in ipairs(node.skips or {}) do
    if skip.from.kind == "projection" then n = n + skip.from.parameters end
  end
  return n
end

local function collect(cluster, depth, lines, line_of)
  for _, item in ipairs(cluster.items) do
    if item.is_node then
      if item.kind ~= "projection" then
        lines[#lines + 1] = {node = item, depth = depth}
        line_of[item] = #lines
        if item.kind == "layer" and item.calls and not item.module.builtin then
          for _, call in ipairs(item.calls) do
            lines[#lines + 1] = {call = call, depth = depth + 1}
          end
        end
      end
    else
      lines[#lines + 1] = {cluster = item, depth = depth}
      collect(item, depth + 1, lines, line_of)
    end
  end
end

-- ---- lanes ----------------------------------------------------------------------------------------------------------------

-- Edges as intervals {first, last, column}. An edge through a projection is one.
local function intervals(g, line_of, lines)
  local list = {}
  local function next_node(line)
    local k = line + 1
    while lines[k] and not lines[k].node do k = k + 1 end
    return k
  end
  local trunk = {}
  for _, edge in ipairs(g.edges) do
    local from, to = edge.from, edge.to
    if to.kind ~= "projection" then
      if from.kind == "projection" then from = edge.record end
      local first, last = line_of[from], line_of[to]
      if not edge.skip and next_node(first) == last then
        trunk[first] = true
      else
        list[#list + 1] = {first = first, last = last}
      end
    end
  end
  table.sort(list, function(a, b)
    local x, y = a.last - a.first, b.last - b.first
    if x ~= y then return x < y end
    return a.first < b.first
  end)
  local used = {}
  local columns = 0
  for _, lane in ipairs(list) do
    local column = 1
    while true do
      local taken = used[column]
      local free = true
      for line = lane.first, lane.last do free = free and not (taken and taken[line]) end
      if free then break end
      column = column + 1
    end
    used[column] = used[column] or {}
    for line = lane.first, lane.last do used[column][line] = lane end
    lane.column = column
    columns = math.max(columns, column)
  end
  return used, columns, trunk
end

-- The lanes of one line, from the outermost column to the trunk: two characters each.
local function lane_text(used, columns, line)
  local outer, arrow = 0, false
  for c = 1, columns do
    local lane = used[c] and used[c][line]
    if lane and (lane.first == line or lane.last == line) then outer = c end
    if lane and lane.last == line then arrow = true end
  end
  local out = {}
  for c = columns, 1, -1 do
    local lane = used[c] and used[c][line]
    local here, after = " ", " "
    if lane and lane.first == line then
      here = c == outer and "╭" or "┬"
    elseif lane and lane.last == line then
      here = c == outer and "╰" or "┴"
    elseif lane then
      here = c < outer and "┼" or "│"
    elseif c < outer then
      here = "─"
    end
    if c <= outer then after = "─" end
    if c == 1 and arrow then after = "▶" end
    out[#out + 1] = here .. after
  end
  return table.concat(out)
end

-- ---- the drawing ----------------------------------------------------------------------------------------------------------

local function indent_of(depth) return ("│ "):rep(depth) end

--- The drawing.
---@param g table
---@param options {title: string?}
---@return string
function lanes.text(g, options)
  local lines, line_of = {}, {}
  collect(g.root, 0, lines, line_of)
  local used, columns, trunk = intervals(g, line_of, lines)
  local rows, widest, most = {}, 0, 0
  local on_trunk = false
  for i, line in ipairs(lines) do
    local left, count, shape = lane_text(used, columns, i), "", ""
    local text
    if line.node then
      local node = line.node
      local mark = SYMBOLS[node.symbol] or MARKS[node.kind]
      local key = key_of(node)
      text = ("%s%s %s%s%s"):format(left, mark, indent_of(line.depth), key ~= "" and key .. "  " or "", node_text(node))
      local n = node_parameters(node)
      if n > 0 then count = describe.count(n) end
      if node.output and node.kind ~= "record" then shape = shapes.text(node.output) end
      on_trunk = trunk[i] or false
    elseif line.call then
      text = ("%s%s %s%s"):format(left, on_trunk and "│" or " ", indent_of(line.depth), line.call.module:label())
      if line.call.output then shape = shapes.text(line.call.output) end
    else
      text = ("%s%s %s┌ %s"):format(left, on_trunk and "│" or " ", indent_of(line.depth), cluster_text(line.cluster))
      local n = line.cluster.parameters
      if n > 0 then count = line.cluster.times and ("(%s%s)"):format(describe.count(n), line.cluster.shared and " shared" or "") or "" end
    end
    rows[i] = {text, count, shape}
    widest, most = math.max(widest, width(text)), math.max(most, #count)
  end
  local out = {}
  if options.title then out[1] = options.title end
  for _, row in ipairs(rows) do
    local s = pad(row[1], widest) .. (most > 0 and "  " .. (" "):rep(most - #row[2]) .. row[2] or "") .. "  " .. row[3]
    out[#out + 1] = (s:gsub("%s+$", ""))
  end
  return table.concat(out, "\n") .. "\n"
end

return lanes
