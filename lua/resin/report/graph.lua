--- One description of a model for every drawing and table: nodes, edges and clusters, in the order in which the model runs.
-- Modules are laid open: a container that runs its children one after another, a residual one by its plan, branches and the other
-- containers of resin by what they do with their children, a model by its method drawn(), and a module of the user's own by its calls
-- in one run, when an input is given. Every other module is one node. (A table of costs wants these as one node too, with the calls
-- inside: `deep`.) A graph is {
--   nodes     in order; a node is {id, kind, name, title, module, parameters, input, output, dtype, view, calls, cluster, group}
--             kind: input, output, layer, record, apply, join (where branches meet), split (where halves part), or projection: any
--             module on a skip.
--             group: a number for each row of nodes that follow one another
--   edges     {from, to (nodes), shape, skip = true for a recorded value, text = what it is, dotted = true where code that is no
--             module stands between, side = true for a second value that is joined}
--   root      the outermost cluster: {title, items = nodes and clusters in order, parent, times = n, parameters, shared, block}
-- } Every node but the input has an edge to it that is no skip, its trunk, except that a projection stands on a skip.
-- While a graph is made, g.at is the node that the value comes from, g.shape its shape, and g.dotted is true when code that is no
-- module stands behind that node.

local class = require "resin.nn.class"
local describe = require "resin.nn.describe"
local fit = require "resin.residual.fit"
local link = require "resin.residual.link"
local core = require "resin.residual.core"
local Dense = require("resin.residual.branches").Dense
local HyperConnections = require("resin.residual.hyper").HyperConnections
local checkpoint = require "resin.residual.checkpoint"
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
  local text = module.forward == HyperConnections.forward and module:label() or module.type
  if type(key) == "string" then return key .. ": " .. text end
  return text
end

-- Moves on: the value now comes from `node`.
local function step(g, node)
  add_edge(g, g.at, node, g.shape, {dotted = g.dotted})
  node.behind_code = g.dotted
  g.at, g.dotted = node, nil
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
  local ends, seen = {}, {}
  for _, m in ipairs(apply:modules()) do seen[m] = true end
  -- Its own parameters: what stands on the skip has a node; the operation belongs to it, although a front shows it elsewhere.
  local parameters = apply:num_parameters() + (apply.op and not seen[apply.op] and apply.op:num_parameters() or 0)
  for k, slot in ipairs(slots) do
    local r = records[slot]
    local from, shape, through = r.from, r.shape, r.through
    for _, field in ipairs{"transform", "projection_layer"} do
      local module = apply[field]
      if module then
        from, shape = add_on_skip(g, from, module, name .. "." .. field, shape, r.record)
        through = (through and through .. ", " or "") .. in_line(module)
        if k == 1 and seen[module] then parameters = parameters - from.parameters end
      end
    end
    ends[k] = {from = from, shape = shape, record = r.record, through = through}
  end
  local call = g.shaper and g.shaper:apply(plan, i, saved, g.shape)
  local operation = operation_text(apply)
  local node = add_node(g, {kind = "apply", name = g.names[apply] or name, operation = operation, module = apply,
                            parameters = parameters,
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

local function add_children(g, prefix, module)
  local names = module:child_list()
  for i = 1, #module do
    local key = names[i] == tostring(i - 1) and i or names[i]
    add_module(g, join(prefix, key), key, module[i])
  end
end

-- Where several values become one: ends are {node, shape, dotted} each.
local function add_join(g, name, how, module, ends, output)
  local node = add_node(g, {kind = "join", name = name, title = how, symbol = SYMBOLS[how] or how, operation = how, module = module,
                            output = output})
  for i, e in ipairs(ends) do add_edge(g, e[1], node, e[2], {side = i > 1 or nil, dotted = e[3]}) end
  g.at, g.shape, g.dotted = node, output, nil
  return node
end

-- Modules that all get the value: {name, module, dotted = true where it is not quite this value}. Gives the ends of their rows.
local function fan_out(g, prefix, branches)
  local input, ends = g.shape, {}
  local fork, dotted, outer = g.at, g.dotted, g.group
  for i, branch in ipairs(branches) do
    g.at, g.shape, g.dotted = fork, input, dotted or branch.dotted
    g.groups = (g.groups or 0) + 1
    if i > 1 then g.group = g.groups end
    add_module(g, join(prefix, branch[1] or i), branch[1] or i, branch[2])
    ends[i] = {g.at, g.shape, g.dotted}
    g.group = outer
  end
  return ends
end

-- A module whose branches all get its input: its method branches() gives a list of {name, module} and how they are joined.
local function add_branches(g, prefix, module, call)
  local input, branches, how = g.shape, module:branches()
  local node = add_join(g, prefix, how, module, fan_out(g, prefix, branches), call and call.output)
  node.input, node.dtype = input, call and call.dtype
end

-- ---- modules that hold others ---------------------------------------------------------------------------------------------

-- A list in a row: {name, module} each, or {add = {{name, module}, …}}, several that get the same value and are added.
local function add_row(g, prefix, list)
  for _, entry in ipairs(list) do
    if entry.add then
      local ends = fan_out(g, prefix, entry.add)
      add_join(g, join(prefix, "add"), "add", nil, ends, ends[1][2])
    else
      add_module(g, join(prefix, entry[1]), entry[1], entry[2])
    end
  end
end

-- The features' dimension in values of `shape` that such modules make.
local function feature_dim(shape, modules, dim)
  local layout, spatial
  for _, m in ipairs(modules) do
    layout, spatial = link.layout_of(m, true)
    if layout then break end
  end
  return fit.feature_dim(#shape, layout, spatial, dim)
end

local function with_size(shape, at, size)
  local out = {}
  for i = 1, #shape do out[i] = shape[i] end
  out[at] = size
  return out
end

-- nn.Dense: what each child makes is put beside all that was there before.
local function add_dense(g, prefix, module)
  for i = 1, #module do
    local before, shape, dotted = g.at, g.shape, g.dotted
    local key = module._names[i] or i
    add_module(g, join(prefix, key), key, module[i])
    if i < #module or module.output == "all" then
      local out, whole = g.shape, nil
      if shape and out then
        local at = feature_dim(shape, module, module.dim)
        whole = with_size(shape, at, shape[at] and out[at] and shape[at] + out[at])
      end
      add_join(g, join(prefix, "cat_" .. i), "concat", nil, {{g.at, out, g.dotted}, {before, shape, dotted}}, whole)
    end
  end
end

-- nn.Reversible: the value is split; then in turn y1 = x1 + f(x2) and y2 = x2 + g(y1), so that what f or g made is the input of the
-- next of them, and is added to what comes behind that.
local function add_reversible(g, prefix, module, call)
  local whole, shape = g.shape, nil
  if whole then
    local first = {}
    for i = 1, #module do first[i] = module[i].f end
    local at = feature_dim(whole, first, module.dim)
    shape = with_size(whole, at, whole[at] and whole[at] / 2)
  end
  local other = step(g, add_node(g, {kind = "split", name = prefix, title = "split", symbol = "split", output = shape}))
  for i = 1, #module do
    for _, part in ipairs{"f", "g"} do
      local name, input = join(join(prefix, i), part), g.at
      g.shape = shape
      add_module(g, name, part, module[i][part])
      add_join(g, name, "add", nil, {{g.at, shape, g.dotted}, {other, shape}}, shape)
      other = input
    end
  end
  add_join(g, prefix, "concat", nil, {{g.at, shape}, {other, shape}}, call and call.output)
end

-- A module of the user's own: what its forward called, in that order. A call that was given what another one returned stands behind
-- that one; where the value is neither that nor the module's input, code of the forward stands between.
local function add_calls(g, prefix, module, call)
  local names = {}
  for name, inner in module:named_modules() do names[inner] = name end
  local source = {[call.from or false] = {g.at, g.dotted}}
  for i, inner in ipairs(call.children) do
    local from = source[inner.from or false]
    if from then g.at, g.dotted = from[1], from[2] else g.dotted = true end
    g.shape = inner.input
    local name = names[inner.module] or tostring(i - 1)
    add_module(g, prefix == "" and name or prefix .. "." .. name, name, inner.module)
    source[inner.to or false] = {g.at, g.dotted}
  end
  source[false] = nil
  local last = source[call.to or false]
  if last then g.at, g.dotted = last[1], last[2] else g.dotted = true end
end

local MOST_CALLS = 60       -- of one forward, to be drawn

local HOLDERS = {
  [checkpoint.Checkpoint.forward] = function(g, prefix, module) add_row(g, prefix, {{"fn", module.fn}}) end,
  [checkpoint.Reversible.forward] = add_reversible,
  [Dense.forward] = add_dense,
  [HyperConnections.forward] = function(g, prefix, module)
    local list = {}
    for i = 1, #module do list[i] = {module._names[i] or i, module[i].branch} end
    add_row(g, prefix, list)
  end,
}

-- How a module is laid open: function(g, prefix, module, call), or nil. `plain`: its shapes are those of its children.
local function way_into(g, module, call)
  if link.is_residual(module) then return add_plan, true end
  if module.forward == Sequential.forward then return add_children, true end
  if type(module.branches) == "function" then return add_branches end
  if g.deep then return nil end
  local holder = HOLDERS[module.forward]
  if holder then return holder end
  if module.builtin and type(module.drawn) == "function" then
    return function(_, prefix) add_row(g, prefix, module:drawn()) end
  end
  local calls = not module.builtin and call and call.children
  if calls and #calls > 0 and #calls <= MOST_CALLS then return add_calls end
  return nil
end

-- The call of a module. Of a container whose shapes are its children's it only keeps the count of the calls.
local function call_of(g, module)
  if not g.shaper then return nil end
  local plain = link.is_residual(module) or module.forward == Sequential.forward
  if plain and not g.shaper.calls then return nil end
  return g.shaper:layer(module, g.shape)
end

local function add_content(g, name, module, call, way, plain)
  way(g, name, module, call)
  if call and not plain then g.shape = call.output end
end

function add_module(g, name, key, module)
  local call = call_of(g, module)
  local way, plain = way_into(g, module, call)
  if way then
    open(g, titled(key, module), module)
    add_content(g, name, module, call, way, plain)
    close(g)
  else
    add_layer(g, name, module, call)
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

local function build(model, answers, deep)
  local g = {nodes = {}, edges = {}, shaper = answers, names = {}, group = 0, deep = deep}
  for name, module in model:named_modules() do g.names[module] = name end
  g.root = open(g, model.type, model)
  local input = add_node(g, {kind = "input", title = "input", output = answers and answers.input, view = true})
  g.at, g.shape = input, answers and answers.input
  local call = call_of(g, model)
  local way, plain = way_into(g, model, call)
  if way then add_content(g, "", model, call, way, plain) else add_layer(g, "", model, call) end
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
---@param deep? boolean  for a table of costs: modules that are no rows of layers are one node, with the calls inside
---@return table graph
function graph.of(model, input, what, deep)
  return shaper.with(model, input, function(answers) return build(model, answers, deep) end, what, deep)
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
