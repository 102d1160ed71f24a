--- One description of a model for every drawing and table: nodes, edges and clusters, in the order in which the model runs.
-- A container that only runs its children one after another is laid open, a residual one by its plan; every other module is one
-- node. A graph is {
--   nodes     in order; a node is {id, kind, name, title, module, parameters, input, output, dtype, view, calls, cluster, group}
--             kind: input, output, layer, record, apply, join (where branches meet), or projection: any module on a skip.
--             group: a number for each row of nodes that follow one another
--   edges     {from, to (nodes), shape, skip = true for a recorded value, text = what it is}
--   root      the outermost cluster: {title, items = nodes and clusters in order, parent, times = n, parameters, shared, block}
-- } Every node but the input has an edge to it that is no skip, its trunk, except that a projection stands on a skip.

local class = require "resin.nn.class"
local describe = require "resin.nn.describe"
local link = require "resin.residual.link"
local core = require "resin.residual.core"
local Sequential = require("resin.nn.sequential").Sequential
local fold = require "resin.report.fold"
local shaper = require "resin.report.shaper"

local graph = {}

local LAYER, RECORD, APPLY, ENTER, LEAVE = link.LAYER, link.RECORD, link.APPLY, link.ENTER, link.LEAVE

-- ---- making ---------------------------------------------------------------------------------------------------------------

local function join(prefix, key)
  local name = type(key) == "number" and tostring(key - 1) or key
  return prefix == "" and name or prefix .. "." .. name
end

local function add_node(g, node)
  node.id = #g.nodes + 1
  node.is_node = true
  node.cluster = g.cluster
  node.group = g.group
  node.parameters = node.parameters or 0
  g.nodes[node.id] = node
  g.cluster.items[#g.cluster.items + 1] = node
  return node
end

local function add_edge(g, from, to, shape, fields)
  local edge = fields or {}
  edge.from, edge.to, edge.shape = from, to, shape
  g.edges[#g.edges + 1] = edge
  return edge
end

local function open(g, title, module)
  local cluster = {title = title, module = module, items = {}, parent = g.cluster, parameters = module:num_parameters()}
  if g.cluster then g.cluster.items[#g.cluster.items + 1] = cluster end
  g.cluster = cluster
  return cluster
end

local function close(g) g.cluster = g.cluster.parent end

-- The title of a container: "block: ResidualSequential".
local function titled(key, module)
  if type(key) == "string" then return key .. ": " .. module.type end
  return module.type
end

-- Moves on: the value now comes from `node`.
local function step(g, node, edge_fields)
  add_edge(g, g.at, node, g.shape, edge_fields)
  g.at = node
  return node
end

local function add_layer(g, name, module, call)
  local node = add_node(g, {kind = "layer", name = g.names[module] or name, title = module:label(), module = module,
                            parameters = module:num_parameters(), input = call and call.input, output = call and call.output,
                            dtype = call and call.dtype,
                            view = call and call.view, calls = call and call.children})
  step(g, node)
  g.shape = call and call.output
  return node
end

-- ---- one Apply ------------------------------------------------------------------------------------------------------------

--- What stands in the circle of an Apply.
local SYMBOLS = {add = "+", subtract = "−", multiply = "×", concat = "cat", max = "max", min = "min", mean = "mean", gated = "gate",
                 product = "×", custom = "f"}

local function factor_text(name, value)
  if value == nil or value == false or value == 1 then return nil end
  if type(value) == "number" then return ("%s = %.6g"):format(name, value) end
  local trained = class.is_module(value) or value.requires_grad
  local now = class.is_module(value) and value:forward() or value
  local shown
  if now:numel() == 1 then
    shown = ("= %.4g"):format(now:item())
  else
    shown = ("of %d channels"):format(now:numel())
  end
  return ("%s %s%s"):format(name, shown, trained and ", learned" or "")
end

local function operation_text(apply)
  if apply.op then return apply.op:label() end
  local name = apply.operation_name
  if type(apply.operation) == "function" then return "function" end
  return name or "custom"
end

-- A module in one line: of a Sequential its layers.
local function in_line(module)
  if module.forward ~= Sequential.forward or #module == 0 then return module:label() end
  local parts = {}
  for i = 1, #module do parts[i] = module[i]:label() end
  return table.concat(parts, " → ")
end

-- A module that a recorded value runs through on its way: a projection, or the transform of either end.
local function add_on_skip(g, from, module, name, shape, record)
  local call = g.shaper and g.shaper:layer(module, shape)
  local node = add_node(g, {kind = "projection", name = g.names[module] or name, title = module:label(), module = module,
                            parameters = module:num_parameters(), input = shape, output = call and call.output,
                            dtype = call and call.dtype, view = call and call.view, calls = call and call.children})
  add_edge(g, from, node, shape, {skip = true, record = record})
  return node, node.output
end

-- The operation's own options, on a line of their own.
local function notes_of(apply)
  local notes = {factor_text("scale", apply.scale)}
  if apply.drop_path > 0 then notes[#notes + 1] = ("drop_path = %.4g"):format(apply.drop_path) end
  if type(apply.weights) == "string" then notes[#notes + 1] = apply.weights .. " weights, learned" end
  if apply.coupled then notes[#notes + 1] = "coupled" end
  if apply.off then notes[#notes + 1] = "switched off" end
  return #notes > 0 and table.concat(notes, ", ") or nil
end

-- records[slot] = {node that the value comes from, its record node, shape}
local function add_apply(g, name, plan, i, records)
  local apply = plan.module[i]
  local slots = plan.many[i] and plan.many[i].slots or {plan.slot[i]}
  local saved = {}
  for slot, value in pairs(records) do saved[slot] = value.shape end
  local ends, hidden = {}, 0
  for k, slot in ipairs(slots) do
    local r = records[slot]
    local from, shape, through = r.from, r.shape, r.through
    for _, field in ipairs{"transform", "projection_layer"} do
      local module = apply[field]
      if module then
        from, shape = add_on_skip(g, from, module, name .. "." .. field, shape, r.record)
        through = (through and through .. ", " or "") .. in_line(module)
        if k == 1 then hidden = hidden + from.parameters end
      end
    end
    ends[k] = {from = from, shape = shape, record = r.record, through = through}
  end
  local call = g.shaper and g.shaper:apply(plan, i, saved, g.shape)
  local operation = operation_text(apply)
  local node = add_node(g, {kind = "apply", name = g.names[apply] or name, operation = operation, module = apply,
                            parameters = apply:num_parameters() - hidden,
                            symbol = apply.op and apply.op.type or SYMBOLS[apply.operation_name] or operation,
                            title = operation, notes = notes_of(apply), alpha = factor_text("alpha", apply.alpha), skips = ends,
                            input = call and call.input, output = call and call.output, dtype = call and call.dtype,
                            calls = apply.op and call and call.children})
  step(g, node)
  for k, e in ipairs(ends) do
    local weight = type(apply.weights) == "table" and ("weight = %.4g"):format(apply.weights[k + 1]) or node.alpha
    add_edge(g, e.from, node, e.shape, {skip = true, record = e.record, projected = e.from.kind == "projection" or nil,
      text = operation .. (weight and ", " .. weight or "")})
  end
  g.shape = call and call.output
end

-- ---- containers -----------------------------------------------------------------------------------------------------------

local add_module

-- A value that later Applys read.
local function add_record(g, name, plan, i, records)
  local m = plan.module[i]
  local node = add_node(g, {kind = "record", name = name, title = plan.record[i].name, module = m, input = g.shape, output = g.shape,
                            view = true, unnamed = not m.name})
  step(g, node)
  local r = {from = node, shape = g.shape, record = node}
  if m.transform then
    r.from, r.shape = add_on_skip(g, node, m.transform, name .. ".transform", g.shape, node)
    r.through = in_line(m.transform)
  end
  records[plan.slot[i]] = r
end

-- The blocks of a Circuit: clusters to open before child i, and to close behind it.
local function blocks_of(container)
  local first, last = {}, {}
  if type(container.blocks) == "function" then
    for _, block in ipairs(container:blocks()) do
      if block.num_repeats > 1 then
        for _, part in ipairs(block.repeats) do
          first[part.first] = first[part.first] or {}
          table.insert(first[part.first], block.name)
          last[part.last] = (last[part.last] or 0) + 1
        end
      end
    end
  end
  return {first = first, last = last, at = 0}
end

local function open_block(g, name)
  local cluster = {title = name, block = true, items = {}, parent = g.cluster, parameters = 0}
  g.cluster.items[#g.cluster.items + 1] = cluster
  g.cluster = cluster
end

local function add_plan(g, prefix, module)
  local plan, path, records = core.plan(module), {prefix}, {}
  link.require_resolved(plan)
  local blocks = {blocks_of(module)}
  local function behind()
    local b = blocks[#blocks]
    for _ = 1, b.last[b.at] or 0 do close(g) end
  end
  for i = 1, plan.n do
    local kind, m = plan.kind[i], plan.module[i]
    local name = join(path[#path], plan.key[i])
    if kind ~= LEAVE then
      local b = blocks[#blocks]
      b.at = b.at + 1
      for _, title in ipairs(b.first[b.at] or {}) do open_block(g, title) end
    end
    if kind == LAYER then
      add_module(g, name, plan.key[i], m)
      behind()
    elseif kind == RECORD then
      if plan.slot[i] > 0 then add_record(g, name, plan, i, records) end     -- what nobody reads is not drawn
      behind()
    elseif kind == APPLY then
      add_apply(g, name, plan, i, records)
      behind()
    elseif kind == ENTER then
      open(g, titled(plan.key[i], m), m)
      path[#path + 1] = name
      blocks[#blocks + 1] = blocks_of(m)
    else
      path[#path], blocks[#blocks] = nil, nil
      close(g)
      behind()
    end
  end
end

local function inside(g, module, fn, ...)
  -- The call of the container itself, where calls are noted: its number must stay in step.
  if g.shaper and g.shaper.calls then g.shaper:layer(module) end
  fn(g, ...)
end

local function add_children(g, prefix, module)
  local names = module:child_list()
  for i = 1, #module do
    local key = names[i] == tostring(i - 1) and i or names[i]
    add_module(g, join(prefix, key), key, module[i])
  end
end

-- A module whose branches all get its input: its method branches() gives a list of {name, module} and how they are joined.
local function add_branches(g, prefix, module)
  local branches, how = module:branches()
  local input, ends = g.shape, {}
  local fork, outer = g.at, g.group
  for i, branch in ipairs(branches) do
    g.at, g.shape = fork, input
    g.groups = (g.groups or 0) + 1
    if i > 1 then g.group = g.groups end
    add_module(g, join(prefix, branch[1] or i), branch[1] or i, branch[2])
    ends[i] = {g.at, g.shape}
    g.group = outer
  end
  local node = add_node(g, {kind = "join", name = prefix, title = how, symbol = SYMBOLS[how] or how, operation = how, module = module})
  for _, e in ipairs(ends) do add_edge(g, e[1], node, e[2]) end
  g.at, g.shape = node, nil
  if g.shaper and not g.shaper.calls then
    local call = g.shaper:layer(module, input)
    g.shape = call and call.output
  end
  node.input, node.output = input, g.shape
end

function add_module(g, name, key, module)
  local residual = link.is_residual(module)
  if residual or module.forward == Sequential.forward then
    open(g, titled(key, module), module)
    inside(g, module, residual and add_plan or add_children, name, module)
    close(g)
  elseif type(module.branches) == "function" then
    open(g, titled(key, module), module)
    local call = g.shaper and g.shaper.calls and g.shaper:layer(module)
    add_branches(g, name, module)
    if call then
      g.shape = call.output
      g.at.output, g.at.dtype = call.output, call.dtype
    end
    close(g)
  else
    add_layer(g, name, module, g.shaper and g.shaper:layer(module, g.shape))
  end
end

-- ---- the whole ------------------------------------------------------------------------------------------------------------

-- Parameters of the clusters that no module stands for; a module that occurs again counts once.
local function count_blocks(cluster)
  local seen, n = {}, 0
  local function add(item)
    if not item.is_node then
      for _, inner in ipairs(item.items) do add(inner) end
    elseif item.module and not seen[item.module] then
      seen[item.module] = true
      n = n + item.parameters
    end
  end
  for _, item in ipairs(cluster.items) do
    if not item.is_node then count_blocks(item) end
  end
  if cluster.block then
    add(cluster)
    cluster.parameters = n
  end
end

local function build(model, answers)
  local g = {nodes = {}, edges = {}, shaper = answers, names = {}, group = 0}
  for name, module in model:named_modules() do g.names[module] = name end
  g.root = open(g, model.type, model)
  local input = add_node(g, {kind = "input", title = "input", output = answers and answers.input, view = true})
  g.at, g.shape = input, answers and answers.input
  local single = not (link.is_residual(model) or model.forward == Sequential.forward or type(model.branches) == "function")
  if single then
    add_layer(g, "", model, answers and answers:layer(model, g.shape))
  elseif link.is_residual(model) then
    inside(g, model, add_plan, "", model)
  elseif model.forward == Sequential.forward then
    inside(g, model, add_children, "", model)
  else
    inside(g, model, add_branches, "", model)
  end
  local output = add_node(g, {kind = "output", title = "output", input = g.shape, output = g.shape, view = true})
  step(g, output)
  g.input, g.output = input, output
  g.shaper, g.at, g.cluster, g.names = nil, nil, nil, nil
  count_blocks(g.root)
  return g
end

--- The graph of a model.
---@param model resin.nn.Module
---@param input? resin.Tensor|(integer|false)[]  gives shapes
---@param what string  for messages
---@param deep? boolean  the costs inside modules are wanted too
---@return table graph
function graph.of(model, input, what, deep)
  return shaper.with(model, input, function(answers) return build(model, answers) end, what, deep)
end

--- Draws equal parts that follow one another once, in a cluster with `times`.
graph.fold = fold.graph

--- "1,234 parameters"
---@param n integer
---@return string?
function graph.parameter_text(n)
  if n == 0 then return nil end
  return describe.count(n) .. (n == 1 and " parameter" or " parameters")
end

return graph
