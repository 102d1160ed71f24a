--- Folding: equal parts of a graph that follow one another are drawn once, as a cluster with `times`.
-- A part is some successive items of a cluster (nodes and inner clusters). Two parts are equal when their nodes are, with shapes,
-- and the edges among them; a part that may be folded is entered by one edge, at its first node, and left from one node. The
-- nodes of the other parts leave the graph, and what came out of the last part comes out of the one that stays.

local fold = {}

local SAVED = 4     -- nodes that folding must save, unless the model itself calls them repeats (blocks of a Circuit)

local function flatten(item, out)
  if item.is_node then
    out[#out + 1] = item
  else
    for _, inner in ipairs(item.items) do flatten(inner, out) end
  end
  return out
end

-- A learned factor counts as one whatever its value is.
local function factor(text)
  if not text then return "" end
  return (text:gsub("(%a+) =? ?[^,]*, learned", "%1 learned"))
end

local function shape_text(shape)
  if not shape then return "" end
  local parts = {}
  for i = 1, #shape do parts[i] = tostring(shape[i]) end
  return table.concat(parts, ",")
end

local function signature(item)
  if item.is_node then
    local title = item.kind == "record" and "" or item.title
    return table.concat({item.kind, title, item.parameters, shape_text(item.output), factor(item.notes), factor(item.alpha)}, "|")
  end
  local parts = {item.module and item.module.type or "", tostring(item.times), item.block and item.title or ""}
  for _, inner in ipairs(item.items) do parts[#parts + 1] = signature(inner) end
  return "{" .. table.concat(parts, ";") .. "}"
end

local function nodes_of(items, first, last)
  local nodes, index = {}, {}
  for i = first, last do flatten(items[i], nodes) end
  for k, node in ipairs(nodes) do index[node] = k end
  return nodes, index
end

-- The edges of a part: those inside as text, the number of those that come in, and the node that the others leave; nil when the
-- part cannot be folded.
local function wiring(edges, nodes, index)
  local inner, entering, exit = {}, 0, nil
  for _, node in ipairs(nodes) do
    for _, e in ipairs(edges.into[node] or {}) do
      local from = index[e.from]
      if from then
        inner[#inner + 1] = ("%d>%d%s%s"):format(from, index[node], e.skip and "s" or "", e.dotted and "." or "")
      else
        entering = entering + 1
        if index[node] ~= 1 or e.skip then return nil end
      end
    end
    for _, e in ipairs(edges.out[node] or {}) do
      if not index[e.to] then
        if e.skip or (exit and exit ~= node) then return nil end
        exit = node
      end
    end
  end
  if entering ~= 1 or not exit then return nil end
  return table.concat(inner, " "), index[exit]
end

-- How often the part items[i .. i+p-1] is repeated from i on.
local function count(edges, items, names, i, p)
  local times = 1
  while i + (times + 1) * p - 1 <= #items do
    for k = 0, p - 1 do
      if names[i + k] ~= names[i + times * p + k] then goto done end
    end
    times = times + 1
  end
  ::done::
  if times == 1 then return 1 end
  local nodes, index = nodes_of(items, i, i + p - 1)
  local first, exit = wiring(edges, nodes, index)
  if not first then return 1 end
  for t = 1, times - 1 do
    local others, other_index = nodes_of(items, i + t * p, i + (t + 1) * p - 1)
    local text, other_exit = wiring(edges, others, other_index)
    if text ~= first or other_exit ~= exit then
      times = t
      break
    end
  end
  return times, nodes, exit
end

-- Where learned values differ between the parts, the one that is drawn says only that they are learned.
local function forget_values(first, other)
  for k, node in ipairs(first) do
    for _, name in ipairs{"notes", "alpha"} do
      if node[name] and node[name] ~= other[k][name] then node[name] = factor(node[name]) end
    end
    if node.kind == "record" and node.title ~= other[k].title then node.title = node.title:gsub("_repeat_%d+", "") end
  end
end

local function remove(g, gone, last_exit, exit)
  local kept = {}
  for _, e in ipairs(g.edges) do
    if e.from == last_exit and not gone[e.to] then e.from = exit end
    if not gone[e.from] and not gone[e.to] then kept[#kept + 1] = e end
  end
  g.edges = kept
end

-- The parameters of an item with all its repeats.
local function total(item)
  if item.is_node or item.times then return item.parameters end
  local n = 0
  for _, inner in ipairs(item.items) do n = n + total(inner) end
  return n
end

-- Folds `times` parts of p items that begin at item i of a cluster.
local function merge(g, cluster, i, p, times, nodes, exit)
  local items = cluster.items
  local gone, one, all, shared = {}, 0, 0, true
  local last_exit
  for k = i, i + times * p - 1 do
    local n = total(items[k])
    all = all + n
    if k < i + p then one = one + n end
  end
  for t = 1, times - 1 do
    local others = nodes_of(items, i + t * p, i + (t + 1) * p - 1)
    for k, node in ipairs(others) do
      gone[node] = true
      if node.module ~= nodes[k].module and node.parameters > 0 then shared = false end
    end
    forget_values(nodes, others)
    last_exit = others[exit]
  end
  shared = shared and one > 0
  remove(g, gone, last_exit, nodes[exit])

  local folded = items[i]
  if p > 1 or folded.is_node or folded.times then
    folded = {items = {}, parent = cluster}
    for k = i, i + p - 1 do
      folded.items[#folded.items + 1] = items[k]
      if items[k].is_node then items[k].cluster = folded else items[k].parent = folded end
    end
  end
  folded.times, folded.shared, folded.parameters = times, shared, shared and one or all
  local rest = {}
  for k = 1, #items do
    if k == i then rest[#rest + 1] = folded elseif k < i or k >= i + times * p then rest[#rest + 1] = items[k] end
  end
  cluster.items = rest
end

local function edges_by_node(g)
  local edges = {into = {}, out = {}}
  for _, e in ipairs(g.edges) do
    edges.into[e.to] = edges.into[e.to] or {}
    edges.out[e.from] = edges.out[e.from] or {}
    table.insert(edges.into[e.to], e)
    table.insert(edges.out[e.from], e)
  end
  return edges
end

local LONGEST = 40      -- items of a part

local function fold_cluster(g, cluster)
  for _, item in ipairs(cluster.items) do
    if not item.is_node then fold_cluster(g, item) end
  end
  local i = 1
  local names, edges = {}, nil
  local function refresh()
    for k, item in ipairs(cluster.items) do names[k] = signature(item) end
    for k = #cluster.items + 1, #names do names[k] = nil end
    edges = edges_by_node(g)
  end
  refresh()
  while i <= #cluster.items do
    local best, best_p, best_nodes, best_exit = 1, nil, nil, nil
    local left = #cluster.items - i + 1
    for p = 1, math.min(LONGEST, math.floor(left / 2)) do
      local times, nodes, exit = count(edges, cluster.items, names, i, p)
      local wanted = p == 1 and cluster.items[i].block and not cluster.items[i].times
      if times > 1 and (wanted or (times - 1) * #nodes >= SAVED) and (not best_p or times * p > best * best_p) then
        best, best_p, best_nodes, best_exit = times, p, nodes, exit
      end
    end
    if best_p then
      merge(g, cluster, i, best_p, best, best_nodes, best_exit)
      refresh()
    end
    i = i + 1
  end
end

--- Folds a graph in place and numbers its nodes anew.
---@param g table
---@return table g
function fold.graph(g)
  fold_cluster(g, g.root)
  g.nodes = flatten(g.root, {})
  for id, node in ipairs(g.nodes) do node.id = id end
  return g
end

return fold
