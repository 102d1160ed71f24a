--- model:summary(shape): the layers in the order in which they run, with shapes, parameters, multiply-adds and memory.
-- The result is data; tostring of it is the table. A module of one's own is one line, and the layers that its forward called are
-- the lines below it.

local check = require "resin.check"
local describe = require "resin.nn.describe"
local shapes = require "resin.nn.shapes"
local cost = require "resin.report.cost"
local graph = require "resin.report.graph"
local text = require "resin.report.text"

---@class resin.report.Summary
---@field layers table[]  {name, title, type, depth, output, parameters, multiply_adds, bytes, shared}
---@field input (integer|false)[]
---@field output (integer|false)[]?
---@field parameters integer
---@field trainable integer
---@field multiply_adds number   of products and convolutions
---@field activation_bytes number  of all results, as training keeps them
---@field parameter_bytes number
local Summary = {}
Summary.__index = Summary

-- ---- collecting -----------------------------------------------------------------------------------------------------------

local function names_of(model)
  local names = {}
  for name, module in model:named_modules() do names[module] = name end
  return names
end

local function add_row(rows, seen, row, module)
  row.shared = seen[module] or false
  if row.shared then row.parameters = 0 end
  seen[module] = true
  rows[#rows + 1] = row
  return row
end

local add_call

-- The lines of the calls inside a module, and the number of their parameters.
local function add_calls(rows, seen, calls, depth, names)
  local parameters = 0
  for _, call in ipairs(calls) do parameters = parameters + add_call(rows, seen, call, depth, names) end
  return parameters
end

local function own_bytes(call) return call.view and 0 or cost.bytes(call.output, call.dtype or "f32") or 0 end

-- One call and, where the layer's cost is not known as a whole, the calls inside it. Returns the parameters of all of it.
function add_call(rows, seen, call, depth, names)
  local module = call.module
  local total = seen[module] and 0 or module:num_parameters()
  local products = cost.multiply_adds(module, call.input, call.output)
  local inner = not products and call.children and #call.children > 0
  local row = add_row(rows, seen, {name = call.name or names[module] or "", title = call.title or module:label(), type = module.type,
    depth = depth, output = call.output, parameters = total, multiply_adds = products or 0, bytes = inner and 0 or own_bytes(call)}, module)
  if inner then row.parameters = total - math.min(total, add_calls(rows, seen, call.children, depth + 1, names)) end
  return total
end

local function add_apply(rows, seen, node, names)
  local gates, products = node.module.gate_layer, 0
  if gates then
    for _, gate in ipairs(gates:children()) do products = products + (cost.multiply_adds(gate, node.input, node.input) or 0) end
  elseif node.module.op then
    products = cost.multiply_adds(node.module.op, node.input, node.output) or 0
  end
  local factors = {}
  if node.alpha then factors[#factors + 1] = node.alpha end
  if node.notes then factors[#factors + 1] = node.notes end
  local records = {}
  for k, skip in ipairs(node.skips) do records[k] = ('"%s"'):format(skip.record.title) end
  local title = ("%s %s %s%s"):format(node.module.type, node.operation, table.concat(records, ", "),
    #factors > 0 and " (" .. table.concat(factors, "; ") .. ")" or "")
  local known = seen[node.module]
  local row = add_row(rows, seen, {name = node.name, title = title, type = node.module.type, depth = 0, output = node.output,
    parameters = node.parameters, multiply_adds = products, bytes = cost.bytes(node.output, node.dtype or "f32") or 0}, node.module)
  if node.calls and products == 0 and #node.calls > 0 and not known then
    row.bytes = 0
    row.parameters = row.parameters - math.min(row.parameters, add_calls(rows, seen, node.calls, 1, names))
  end
end

local function add_node(rows, seen, node, names)
  if node.kind == "layer" or node.kind == "projection" then
    add_call(rows, seen, {module = node.module, name = node.name, title = node.title, input = node.input, output = node.output,
                          dtype = node.dtype, view = node.view, children = node.calls}, 0, names)
  elseif node.kind == "apply" then
    add_apply(rows, seen, node, names)
  elseif node.kind == "join" then
    add_row(rows, seen, {name = node.name, title = "join: " .. node.title, type = node.module.type, depth = 0, output = node.output,
      parameters = 0, multiply_adds = 0, bytes = cost.bytes(node.output, node.dtype or "f32") or 0}, node)
  end
end

-- ---- printing -------------------------------------------------------------------------------------------------------------

local function count_text(n) return n > 0 and describe.count(n) or "" end

local HEAD = {"name", "layer", "output", "parameters", "multiply-adds", "memory"}
local LEFT = 3          -- columns aligned to the left
local WIDEST = 60       -- of a title

local function cells_of(row)
  local title = ("  "):rep(row.depth) .. row.title
  if #title > WIDEST then title = title:sub(1, WIDEST - 3) .. "..." end
  return {row.name, title .. (row.shared and " (again)" or ""), row.output and shapes.text(row.output) or "?",
          count_text(row.parameters), count_text(row.multiply_adds), row.bytes > 0 and text.bytes(row.bytes) or ""}
end

function Summary:__tostring()
  local rows, width = {HEAD}, {}
  for _, row in ipairs(self.layers) do rows[#rows + 1] = cells_of(row) end
  rows[#rows + 1] = {"total", "", self.output and shapes.text(self.output) or "?", count_text(self.parameters),
                     count_text(self.multiply_adds), text.bytes(self.activation_bytes)}
  for _, row in ipairs(rows) do
    for c, cell in ipairs(row) do width[c] = math.max(width[c] or 0, #cell) end
  end
  local lines, whole = {}, -2
  for _, w in ipairs(width) do whole = whole + w + 2 end
  local rule = ("-"):rep(whole)
  lines[1] = ("%s, input %s"):format(self.type, shapes.text(self.input))
  for i, row in ipairs(rows) do
    local cells = {}
    for c, cell in ipairs(row) do
      local space = (" "):rep(width[c] - #cell)
      cells[c] = c <= LEFT and cell .. space or space .. cell
    end
    if i == 2 or i == #rows then lines[#lines + 1] = rule end
    lines[#lines + 1] = (table.concat(cells, "  "):gsub("%s+$", ""))
  end
  lines[#lines + 1] = ("parameters: %s%s, %s; results that training keeps: %s"):format(count_text(self.parameters) == "" and "0"
    or count_text(self.parameters), self.trainable < self.parameters and (" (%s trainable)"):format(describe.count(self.trainable)) or "",
    text.bytes(self.parameter_bytes), text.bytes(self.activation_bytes))
  return table.concat(lines, "\n")
end

-- ---- the method -----------------------------------------------------------------------------------------------------------

--- The summary of a model for an input: a shape such as {1, 3, 32, 32}, or a tensor. With a shape nothing is computed where the
--- layers know their shapes; with a tensor, or for modules that do not, the model runs once in evaluation mode without
--- gradients. Projections and gates that the shape determines are made, as model:build does.
---@param model resin.nn.Module
---@param input resin.Tensor|(integer|false)[]
---@return resin.report.Summary
local function summary(model, input)
  local what = model.type .. ": summary"
  if input == nil then
    check.fail("%s: give the shape of an input, such as model:summary{1, 3, 32, 32}, or an input", what)
  end
  local g = graph.of(model, input, what, true)
  local self = setmetatable({layers = {}, multiply_adds = 0, activation_bytes = 0, parameter_bytes = 0, type = model.type}, Summary)
  self.input, self.output = g.input.output, g.output.output
  local seen, names = {}, names_of(model)
  for _, node in ipairs(g.nodes) do add_node(self.layers, seen, node, names) end
  for _, row in ipairs(self.layers) do
    self.multiply_adds = self.multiply_adds + row.multiply_adds
    self.activation_bytes = self.activation_bytes + row.bytes
  end
  self.parameters, self.trainable = model:num_parameters(), model:num_parameters(true)
  for _, p in ipairs(model:parameters()) do self.parameter_bytes = self.parameter_bytes + cost.bytes(p.shape, p.dtype) end
  return self
end

return summary
