--- A graph as DOT, the language of Graphviz.
-- The trunk, where values flow from layer to layer, is drawn straight by its weight; every recorded value has an edge of its own in
-- blue, which Graphviz leads around the boxes, with its operation as label. Containers are clusters.

local describe = require "resin.nn.describe"
local shapes = require "resin.nn.shapes"

local dot = {}

-- Fill colours of boxes by what a layer is: the first pattern that its type has.
local KINDS = {
  {"Conv", "#dbe9f6"}, {"Linear", "#e2f0d9"}, {"Bilinear", "#e2f0d9"}, {"Embedding", "#e2f0d9"}, {"Norm", "#fff2cc"},
  {"Pool", "#e8e0f0"}, {"Upsample", "#e8e0f0"}, {"Attention", "#fbe0d6"}, {"LSTM", "#d8f0ee"}, {"GRU", "#d8f0ee"},
  {"RNN", "#d8f0ee"}, {"Recurrent", "#d8f0ee"}, {"Dropout", "#f2f2f2"}, {"DropPath", "#f2f2f2"},
}
local PLAIN = "#f7f7f7"
local SKIP, NOTE = "#1f5fa8", "#555555"

local function colour_of(module)
  for _, kind in ipairs(KINDS) do
    if module.type:find(kind[1], 1, true) then return kind[2] end
  end
  return PLAIN
end

local function html(s) return (s:gsub("[&<>\"]", {["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;", ['"'] = "&quot;"})) end

local function quote(s) return '"' .. s:gsub('[\\"]', "\\%0"):gsub("\n", "\\n") .. '"' end

local function parameters(n) return describe.count(n) .. (n == 1 and " parameter" or " parameters") end

local function small(s) return ('<font point-size="9" color="%s">%s</font>'):format(NOTE, html(s)) end

local function blue(s) return ('<font point-size="9" color="%s">%s</font>'):format(SKIP, html(s)) end

-- "Conv2d(3, 16, 3, {padding = 1})": the type in bold, long options on a line of their own.
local function layer_label(node)
  local kind, rest = node.title:match("^([%w_]+)(.*)$")
  local lines = {}
  if not kind then
    lines[1] = html(node.title)
  else
    if rest == "()" then rest = "" end
    local options
    if #rest > 22 then
      local front, braces = rest:match("^%((.-),?%s*{(.*)}%)$")
      if front then rest, options = front ~= "" and "(" .. front .. ")" or "", braces end
    end
    lines[1] = ("<b>%s</b>%s"):format(html(kind), html(rest))
    if options then lines[2] = small(options) end
  end
  if node.parameters > 0 then lines[#lines + 1] = small(parameters(node.parameters)) end
  return "<" .. table.concat(lines, "<br/>") .. ">"
end

-- What is inside a module that is drawn as one box: the layers that its forward called, or its children.
local MOST_INSIDE = 8

local function inside(node)
  local module, lines = node.module, {}
  if module.builtin and not module.numbered then return "" end
  local list = {}
  for i, call in ipairs(node.calls or {}) do list[i] = call.module end
  if #list == 0 then
    local _, children = module:child_list()
    list = children
  end
  for i, inner in ipairs(list) do
    if i > MOST_INSIDE then
      lines[#lines + 1] = small(("and %d more"):format(#list - MOST_INSIDE))
      break
    end
    lines[#lines + 1] = small("· " .. inner:label():match("^[^\n]*"))
  end
  return #lines > 0 and "<br/>" .. table.concat(lines, "<br/>") or ""
end

local function box(node)
  local label = layer_label(node)
  if node.tag then
    local lines = {}
    for i, line in ipairs(node.tag) do lines[i] = blue(line) end
    label = label:sub(1, -2) .. "<br/>" .. table.concat(lines, "<br/>") .. ">"
  end
  label = label:sub(1, -2) .. inside(node) .. ">"
  return ('shape=box, style="rounded,filled", fillcolor="%s", label=%s'):format(colour_of(node.module), label)
end

local function apply(node)
  local symbol, lines = node.symbol, {}
  if node.parameters > 0 then lines[1] = small(parameters(node.parameters)) end
  if node.notes then lines[#lines + 1] = small(node.notes) end
  if #lines > 0 or #symbol > 4 then
    local label = ("<b>%s</b>"):format(html(symbol)) .. (lines[1] and "  " .. table.concat(lines, "<br/>") or "")
    return ('shape=box, style="rounded,filled", fillcolor="#cfe2f7", label=<%s>'):format(label)
  end
  return ('shape=circle, style=filled, fillcolor="#cfe2f7", fixedsize=true, width=%s, fontsize=%d, label=%s'):format(
    #symbol > 3 and "0.48" or "0.36", #symbol > 3 and 9 or #symbol == 3 and symbol:byte() < 128 and 10 or 16, quote(symbol))
end

local KIND_TEXT = {
  layer = box, projection = box, apply = apply, join = apply, split = apply,
  input = function(node) return ("shape=box, style=rounded, penwidth=0, label=<<b>%s</b>>"):format(html(node.title)) end,
  record = function() return 'shape=point, width=0.07, color="' .. SKIP .. '", xlabel=""' end,
}
KIND_TEXT.output = KIND_TEXT.input

local function node_id(node) return "n" .. node.id end

-- Widths in points that texts have at most, of letters in bold, plain and small; Helvetica's letters are half an em on average.
local BOLD, PLAIN_TEXT, SMALL = 6.8, 6, 5.2

local function letters(s) return select(2, s:gsub("[^\128-\191]", "")) end

-- The title: name, type and parameters in lines of their own. Gives it and its width.
local function cluster_title(cluster)
  local lines, first, width = {}, {}, 0
  if cluster.times then
    first[1] = ('<font point-size="14" color="#7a4fa3"><b>× %d</b></font>'):format(cluster.times)
    width = 22 + 8.5 * #tostring(cluster.times)
  end
  local name, kind = cluster.title, nil
  if name and name:find(": ", 1, true) then name, kind = name:match("^(.-): (.*)$") end
  if name and cluster.times and not cluster.block and not kind then name, kind = nil, name end
  if name then
    first[#first + 1] = ("<b>%s</b>"):format(html(name))
    width = width + BOLD * letters(name)
  end
  lines[1] = table.concat(first, "  ")
  local note = cluster.parameters > 0 and parameters(cluster.parameters) or nil
  if cluster.times and note then note = describe.count(cluster.parameters) .. (cluster.shared and " shared" or " in all") end
  for _, text in ipairs{kind or "", note or ""} do
    if text ~= "" then
      lines[#lines + 1] = small(text)
      width = math.max(width, SMALL * letters(text))
    end
  end
  return table.concat(lines, '<br align="left"/>') .. '<br align="left"/>', width
end

-- ---- room for titles ------------------------------------------------------------------------------------------------------
-- A title stands at the upper left of its cluster, and the trunk enters the cluster at its first node. So that it does not run
-- through the title, an invisible node as wide as the title stands left of the first node. Of clusters that begin with the same node
-- the innermost has it, for all of them.

local MARGIN, GAP = 8, 22       -- around what is in a cluster; between nodes that stand side by side

-- About half of a node's width.
local function half_width(node)
  if node.kind == "record" then return 0 end
  if node.kind == "apply" or node.kind == "join" or node.kind == "split" then return 13 end
  local kind, rest = node.title:match("^([%w_]+)(.*)$")
  if not kind then return PLAIN_TEXT * letters(node.title) / 2 end
  if #rest > 22 then rest = rest:match("^(%(.-),?%s*{.*}%)$") or rest end
  return (8 * 2 + 5.5 * #kind + 4.5 * #rest) / 2 * 0.9
end

-- The node that keeps room for the titles of the clusters around the first node of `cluster`, when it begins with that node itself.
local function write_room(out, cluster, indent, state)
  local first = cluster.items[1]
  if not state.down or not first or not first.is_node or first.kind == "input" then return end
  local width, depth, outer = 0, 0, cluster
  while outer.parent do
    local _, title = cluster_title(outer)
    width = math.max(width, title + 10 - MARGIN * depth)
    if outer.parent.items[1] ~= outer then break end
    outer, depth = outer.parent, depth + 1
  end
  width = width - half_width(first) - GAP
  if width <= 0 then return end
  state.rooms = state.rooms + 1
  out[#out + 1] = ('%sroom_%d [shape=box, style=invis, label="", width=%.2f, height=0.01, fixedsize=true];'):format(indent, state.rooms,
    width / 72)
  out[#out + 1] = ('%sroom_%d -> %s [style=invis, minlen=0, weight=10];'):format(indent, state.rooms, "n" .. first.id)
end

local write_tag

local function write_items(out, cluster, indent, state)
  for _, edge in ipairs(state.tags[cluster] or {}) do write_tag(out, edge, indent) end
  for _, item in ipairs(cluster.items) do
    if item.is_node then
      local group = item.kind ~= "projection" and (', group="g%d"'):format(item.group) or ""
      out[#out + 1] = ("%s%s [%s%s];"):format(indent, node_id(item), KIND_TEXT[item.kind](item), group)
    else
      state.clusters = state.clusters + 1
      out[#out + 1] = ("%ssubgraph cluster_%d {"):format(indent, state.clusters)
      local inner = indent .. "  "
      local style = item.times and 'style="rounded,dashed", color="#7a4fa3", penwidth=1.6' or 'style="rounded,filled", color="#bbbbbb", '
        .. 'fillcolor="#00000006"'
      out[#out + 1] = ("%slabel=<%s>; labeljust=l; fontsize=11; %s;"):format(inner, (cluster_title(item)), (style:gsub(", ", "; ")))
      write_room(out, item, inner, state)
      write_items(out, item, inner, state)
      out[#out + 1] = indent .. "}"
    end
  end
end

-- What is written on a skip: its operation, the record's name, the shape.
local function tag_lines(edge)
  local lines = {}
  local name = edge.record and not edge.record.unnamed and ("“%s”"):format(edge.record.title) or nil
  lines[1] = (edge.text or "") .. (name and " " .. name or "")
  if edge.shape then lines[2] = shapes.text(edge.shape) end
  return lines
end

local function trunk_text(edge)
  local attributes, label = {edge.side and "weight=1" or "weight=100"}, {}
  if edge.dotted then attributes[2] = "style=dotted" end
  -- A record is a mark on the arrow, so the arrow's shape is written behind it.
  if edge.to.kind == "record" then
    attributes[#attributes + 1] = "arrowhead=none"
  elseif edge.shape then
    label[1] = shapes.text(edge.shape)
  end
  if #label > 0 then
    for i, line in ipairs(label) do label[i] = html(line) end
    attributes[#attributes + 1] = ("label=<%s>"):format(" " .. table.concat(label, "<br/> ") .. " ")
  end
  return table.concat(attributes, ", ")
end

local SKIP_EDGE = 'color="' .. SKIP .. '", penwidth=1.3, weight=2'

-- A skip runs through a tag, a node of its own, so that Graphviz keeps room for the text; one with a projection through its box.
local function write_edge(out, edge)
  local from, to = node_id(edge.from), node_id(edge.to)
  if not edge.skip then
    out[#out + 1] = ("  %s -> %s [%s];"):format(from, to, trunk_text(edge))
  elseif edge.tag then
    out[#out + 1] = ("  %s -> %s [%s, arrowhead=none];"):format(from, edge.tag, SKIP_EDGE)
    out[#out + 1] = ("  %s -> %s [%s];"):format(edge.tag, to, SKIP_EDGE)
  else
    out[#out + 1] = ("  %s -> %s [%s];"):format(from, to, SKIP_EDGE)
  end
end

-- The innermost cluster around two nodes.
local function common(a, b)
  local around = {}
  while a do
    around[a] = true
    a = a.parent
  end
  while not around[b] do b = b.parent end
  return b
end

-- Gives each skip its tag, and each cluster the tags in it.
local function place_tags(g)
  local tags = {}
  for i, edge in ipairs(g.edges) do
    if edge.skip and edge.to.kind ~= "projection" then
      if edge.projected then
        edge.from.tag = edge.from.tag or tag_lines(edge)
      else
        edge.tag = "t" .. i
        local cluster = common(edge.from.cluster, edge.to.cluster)
        tags[cluster] = tags[cluster] or {}
        table.insert(tags[cluster], edge)
      end
    end
  end
  return tags
end

function write_tag(out, edge, indent)
  local lines = tag_lines(edge)
  for i, line in ipairs(lines) do lines[i] = blue(line) end
  out[#out + 1] = ('%s%s [shape=box, style="rounded,filled", color="%s", fillcolor=white, height=0, margin="0.06,0.02", label=<%s>];')
    :format(indent, edge.tag, SKIP, table.concat(lines, "<br/>"))
end

--- The DOT text.
---@param g table  from graph.of
---@param options {direction: "down"|"right", title: string?}
---@return string
function dot.text(g, options)
  local out = {
    "digraph model {",
    ('  graph [rankdir=%s, fontname="Helvetica", nodesep=0.3, ranksep=0.2, splines=true%s];'):format(
      options.direction == "right" and "LR" or "TB",
      options.title and (', labelloc=t, fontsize=14, label=%s'):format(quote(options.title)) or ""),
    '  node [fontname="Helvetica", fontsize=11, height=0.3, margin="0.12,0.05", color="#666666"];',
    ('  edge [fontname="Helvetica", fontsize=9, fontcolor="%s", color="#444444", arrowsize=0.6];'):format(NOTE),
  }
  write_items(out, g.root, "  ", {clusters = 0, rooms = 0, tags = place_tags(g), down = options.direction ~= "right"})
  for _, edge in ipairs(g.edges) do write_edge(out, edge) end
  out[#out + 1] = "}\n"
  return table.concat(out, "\n")
end

return dot
