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
  layer = box, projection = box, apply = apply, join = apply,
  input = function(node) return ("shape=box, style=rounded, penwidth=0, label=<<b>%s</b>>"):format(html(node.title)) end,
  record = function() return 'shape=point, width=0.07, color="' .. SKIP .. '", xlabel=""' end,
}
KIND_TEXT.output = KIND_TEXT.input

local function node_id(node) return "n" .. node.id end

-- The title: name, type and parameters in lines of their own, short so that they keep clear of the trunk in the middle.
local function cluster_title(cluster)
  local lines, first = {}, {}
  if cluster.times then first[1] = ('<font point-size="14" color="#7a4fa3"><b>× %d</b></font>'):format(cluster.times) end
  local name, kind = cluster.title, nil
  if name and name:find(": ", 1, true) then name, kind = name:match("^(.*): (.-)$") end
  if name and cluster.times and not cluster.block and not kind then name, kind = nil, name end
  if name then first[#first + 1] = ("<b>%s</b>"):format(html(name)) end
  lines[1] = table.concat(first, "  ")
  if kind then lines[2] = small(kind) end
  local note = cluster.parameters > 0 and parameters(cluster.parameters) or nil
  if cluster.times and note then note = describe.count(cluster.parameters) .. (cluster.shared and " shared" or " in all") end
  if note then lines[#lines + 1] = small(note) end
  return table.concat(lines, '<br align="left"/>') .. '<br align="left"/>'
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
      out[#out + 1] = ("%slabel=<%s>; labeljust=l; fontsize=11; %s;"):format(inner, cluster_title(item), style:gsub(", ", "; "))
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
  local attributes, label = {"weight=100"}, {}
  -- A record is a mark on the arrow, so the arrow's shape is written behind it.
  if edge.to.kind == "record" then
    attributes[2] = "arrowhead=none"
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
  write_items(out, g.root, "  ", {clusters = 0, tags = place_tags(g)})
  for _, edge in ipairs(g.edges) do write_edge(out, edge) end
  out[#out + 1] = "}\n"
  return table.concat(out, "\n")
end

return dot
