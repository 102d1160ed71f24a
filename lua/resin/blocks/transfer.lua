--- track: the leaves that a forward runs, in order. transfer_weights: values between models that nest the same layers differently.

local check = require "resin.check"
local class = require "resin.nn.class"
local grad = require "resin.grad"
local observe = require "resin.nn.observe"
local scope = require "resin.scope"
local Tensor = require "resin.tensor"

local transfer = {}

-- ---- tracking -------------------------------------------------------------------------------------------------------------

-- A leaf has no layers inside, or weights of its own.
local function is_leaf(module)
  if module._parameters[1] then return true end
  local _, children = module:child_list()
  return #children == 0
end

local function shape_of(value)
  if Tensor.is(value) and value.h then return value.shape end
  return nil
end

local function state_of(module)
  local list = {}
  local transient = rawget(module, "_transient")
  for _, names in ipairs{module._parameters, module._buffers} do
    for _, name in ipairs(names) do
      local t = rawget(module, name)
      if t ~= nil and not (transient and transient[name]) then list[#list + 1] = {name = name, tensor = t} end
    end
  end
  return list
end

local function text_of(leaf)
  local input, output = leaf.input, leaf.output
  return ("%s %s: %s -> %s"):format(leaf.name == "" and "(model)" or leaf.name, leaf.module:label(),
    input and "[" .. table.concat(input, ", ") .. "]" or "?", output and "[" .. table.concat(output, ", ") .. "]" or "?")
end

local list_class = {
  __tostring = function(list)
    local lines = {}
    for i, leaf in ipairs(list) do lines[i] = text_of(leaf) end
    return table.concat(lines, "\n")
  end,
}

--- Runs a model on x and returns its leaves in the order in which they ran: a list of {name, type, module, input, output}, where
--- input and output are shapes. tostring gives one line per leaf. The model is in evaluation mode meanwhile, and
--- nothing of it is changed.
---   for _, leaf in ipairs(blocks.track(model, resin.randn(1, 3, 32, 32))) do print(leaf.name, leaf.type) end
---@param model resin.nn.Module
---@param x resin.Tensor
---@return table[] leaves
function transfer.track(model, x)
  if not class.is_module(model) then check.fail("track: the model must be a module, got %s", check.describe(model)) end
  check.tensor(x, "track: input")
  local names, modes, leaves = {}, {}, setmetatable({}, list_class)
  for name, module in model:named_modules() do
    names[module] = name
    modes[#modes + 1] = {module, rawget(module, "training")}
  end
  local visitor = {
    enter = function() end,
    leave = function(module, input, output)
      if is_leaf(module) then
        leaves[#leaves + 1] = {name = names[module] or "?", type = module.type, module = module, input = shape_of(input),
                               output = shape_of(output)}
      end
    end,
  }
  model:eval()
  local ok, err = pcall(observe.run, model, visitor, function() return grad.no_grad(scope.user, function() model(x) end) end)
  for _, entry in ipairs(modes) do rawset(entry[1], "training", entry[2]) end
  if not ok then error(err, 0) end
  return leaves
end

--- Tracker(model)(x): an object that remembers the last run. tracker.traced lists the leaves, tracker.parametrized those with
--- parameters or buffers.
---   local tracker = blocks.Tracker(model)
---   local n = #tracker(x).traced
---@param model resin.nn.Module
---@return table tracker
function transfer.Tracker(model)
  if not class.is_module(model) then check.fail("Tracker: the model must be a module, got %s", check.describe(model)) end
  return setmetatable({model = model, traced = {}, parametrized = {}}, {
    __call = function(self, x)
      self.traced, self.parametrized = transfer.track(model, x), setmetatable({}, list_class)
      for _, leaf in ipairs(self.traced) do
        if #state_of(leaf.module) > 0 then self.parametrized[#self.parametrized + 1] = leaf end
      end
      return self
    end,
  })
end

-- ---- transfer -------------------------------------------------------------------------------------------------------------

local function skipped(module, classes)
  for _, cls in ipairs(classes or {}) do
    if module:is(cls) then return true end
  end
  return false
end

-- The modules with values of their own, each once: in the order of execution when there is an input, of registration otherwise.
local function owners(model, input, skip)
  local list, seen = {}, {}
  local function add(name, module)
    if seen[module] or skipped(module, skip) then return end
    seen[module] = true
    local values = state_of(module)
    if #values > 0 then list[#list + 1] = {name = name, type = module.type, values = values} end
  end
  if input then
    for _, leaf in ipairs(transfer.track(model, input)) do add(leaf.name, leaf.module) end
  else
    for name, module in model:named_modules() do add(name, module) end
  end
  return list
end

local function said(owner) return ("%s (%s)"):format(owner.name == "" and "model" or owner.name, owner.type) end

local function compare(a, b, problems)
  if #a.values ~= #b.values then
    problems[#problems + 1] = ("%s has %d tensors but %s has %d"):format(said(a), #a.values, said(b), #b.values)
    return
  end
  for i, from in ipairs(a.values) do
    local to = b.values[i]
    local same = from.tensor.ndim == to.tensor.ndim
    for d, size in ipairs(from.tensor.shape) do same = same and size == to.tensor.shape[d] end
    if not same then
      problems[#problems + 1] = ("%s %s is %s but %s %s is %s"):format(said(a), from.name, check.shape_text(from.tensor), said(b),
        to.name, check.shape_text(to.tensor))
    end
  end
end

local function copy_all(from, to)
  local n = 0
  for i, owner in ipairs(from) do
    for k, value in ipairs(owner.values) do
      to[i].values[k].tensor:copy_(value.tensor)
      n = n + 1
    end
  end
  return n
end

local OPTIONS = {"input", "src_skip", "dst_skip"}

--- Copies all parameters and buffers of one model into another that holds the same layers in another nesting: the first layer with
--- values to the first, and so on. Counts and shapes are compared before anything is written.
---   blocks.transfer_weights(trained, model)
---   blocks.transfer_weights(trained, model, {input = x})     in the order of execution on x instead of registration
--- src_skip and dst_skip: lists of classes whose modules are left out.
---@param src resin.nn.Module
---@param dst resin.nn.Module
---@param options? {input?: resin.Tensor, src_skip?: table[], dst_skip?: table[]}
---@return integer n  how many tensors were copied
function transfer.transfer_weights(src, dst, options)
  if not class.is_module(src) then check.fail("transfer_weights: the source must be a module, got %s", check.describe(src)) end
  if not class.is_module(dst) then check.fail("transfer_weights: the destination must be a module, got %s", check.describe(dst)) end
  options = check.options(options, OPTIONS, "transfer_weights")
  for _, name in ipairs{"src_skip", "dst_skip"} do
    if options[name] ~= nil and not class.is_plain(options[name]) then
      check.fail("transfer_weights: %s must be a list of classes, got %s", name, check.describe(options[name]))
    end
  end
  local from, to = owners(src, options.input, options.src_skip), owners(dst, options.input, options.dst_skip)
  local problems = {}
  for i = 1, math.max(#from, #to) do
    if from[i] and to[i] then
      compare(from[i], to[i], problems)
    elseif from[i] then
      problems[#problems + 1] = said(from[i]) .. " of the source has no counterpart"
    else
      problems[#problems + 1] = said(to[i]) .. " of the destination has no counterpart"
    end
    if #problems == 8 then
      problems[9] = "…"
      break
    end
  end
  if #problems > 0 then
    check.fail("%s", ("transfer_weights: the models differ (source: %d layers with values, destination: %d):\n  "):format(#from, #to)
      .. table.concat(problems, "\n  "))
  end
  return grad.no_grad(copy_all, from, to)
end

return transfer
