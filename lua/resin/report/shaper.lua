--- The shapes of the values in a model, by two ways that answer alike.
-- static   follows a shape by what layers say of themselves: computes nothing. It gives up (returns nil) at the first layer that
--          does not know, for example a module of one's own whose forward is plain Lua.
-- observed runs the model once, in evaluation mode and without gradients, and notes every call.
-- Either way the one that asks walks the model in the order in which it runs, and gets a call for each layer:
--   {module, input = shape, output = shape, dtype = string, view = the result is no memory of its own, children = calls inside,
--    from, to = numbers of the input and the output: equal numbers are the same tensor}; the last three only when observed

local check = require "resin.check"
local class = require "resin.nn.class"
local create = require "resin.create"
local grad = require "resin.grad"
local lib = require "resin.lib"
local observe = require "resin.nn.observe"
local shapes = require "resin.nn.shapes"
local cost = require "resin.report.cost"
local Tensor = require "resin.tensor"
local infer = require "resin.residual.infer"

local C = lib.C
local shaper = {}

-- ---- static ---------------------------------------------------------------------------------------------------------------

local FLOATS = {f32 = true, f64 = true, bf16 = true, f16 = true}

local function float_of(model)
  for _, p in ipairs(model:parameters()) do
    if FLOATS[p.dtype] then return p.dtype end
  end
  return "f32"
end

local VIEWS = {Flatten = true, Identity = true, Unflatten = true, View = true, Record = true, Dropout = true, DropPath = true}

local Static = {}
Static.__index = Static

-- Does a table of costs need to look inside? Then the model has to run.
local function hides_layers(module, input, output)
  local _, children = module:child_list()
  return #children > 0 and not cost.multiply_adds(module, input, output)
end

function Static:layer(module, input)
  if not input then return nil end
  local depth = check.depth
  local ok, output = pcall(module.output_shape, module, input)
  check.depth = depth
  if not ok or not output then
    self.failed = true
    return nil
  end
  if self.deep and hides_layers(module, input, output) then self.failed = true end
  if not self.deep and not module.builtin and #module:children() > 0 then self.failed = true end     -- what it calls is to be seen
  return {module = module, input = input, output = output, dtype = self.dtype, view = VIEWS[module.type] or module.inplace or false}
end

function Static:apply(plan, i, recorded, current)
  if not current then return nil end
  local d = plan.many[i] and infer.decide_many(plan, i, recorded, current)
    or infer.decide(plan, i, recorded[plan.slot[i]], current)
  local op = plan.module[i].op
  if not d.result or (self.deep and op and hides_layers(op, current, d.result)) then
    self.failed = true
    return nil
  end
  return {module = plan.module[i], input = current, output = d.result, dtype = self.dtype}
end

-- ---- observed -------------------------------------------------------------------------------------------------------------

local Observed = {}
Observed.__index = Observed

-- The next call of a module. A call whose input and output are no tensors still counts.
function Observed:layer(module)
  local list = self.calls[module]
  if not list then return nil end
  local at = (list.at or 0) + 1
  list.at = at
  return list[at]
end

function Observed:apply(plan, i) return self:layer(plan.module[i]) end

local function shape_of(value) return Tensor.is(value) and value.shape or nil end

local function run(model, x)
  local calls, stack, top = {}, {}, {}
  local numbers, count = setmetatable({}, {__mode = "k"}), 0
  local function number_of(value)
    if not Tensor.is(value) then return nil end
    if not numbers[value] then
      count = count + 1
      numbers[value] = count
    end
    return numbers[value]
  end
  local function note(call)
    local list = calls[call.module]
    if not list then
      list = {}
      calls[call.module] = list
    end
    list[#list + 1] = call
  end
  local visitor = {}
  function visitor.enter(module, input)
    local call = {module = module, input = shape_of(input), children = {}, from = number_of(input)}
    note(call)
    local outer = stack[#stack] or top
    if outer.children then outer.children[#outer.children + 1] = call end
    stack[#stack + 1] = call
  end
  function visitor.leave(_, input, output)
    local call = table.remove(stack)
    call.output, call.to = shape_of(output), number_of(output)
    call.dtype = Tensor.is(output) and output.dtype or "f32"
    call.view = Tensor.is(input) and Tensor.is(output) and C.rs_tensor_same_storage(input.h, output.h) ~= 0
  end
  function visitor.apply(place, current, saved, apply)
    local call = {module = apply, input = shape_of(current), children = {}}
    note(call)
    local outer = stack[#stack] or top
    if outer.children then outer.children[#outer.children + 1] = call end
    stack[#stack + 1] = call
    local y = place.run(current, saved, apply, place.layout, place.spatial)
    stack[#stack] = nil
    call.output, call.dtype = shape_of(y), Tensor.is(y) and y.dtype or "f32"
    return y
  end
  observe.run(model, visitor, function() return (model(x)) end)
  return setmetatable({calls = calls, input = x.shape}, Observed)
end

-- fn(...) in evaluation mode; each module's own mode is put back.
local function evaluating(model, fn, ...)
  local modules, modes = model:modules(), {}
  for i = 1, #modules do modes[i], modules[i].training = rawget(modules[i], "training"), false end
  local depth = check.depth
  local ok, out = pcall(grad.no_grad, fn, model, ...)
  check.depth = depth
  for i = 1, #modules do rawset(modules[i], "training", modes[i]) end
  if not ok then error(out, 0) end
  return out
end

local function run_on_shape(model, shape)
  local size = {}
  for i = 1, #shape do size[i] = shape[i] or 1 end
  local ok, out = pcall(run, model, create.zeros(size, {dtype = float_of(model)}))
  if ok then return out end
  local as_ids, ids = pcall(run, model, create.ones(size, {dtype = "i64"}))     -- a model of words
  if as_ids then return ids end
  error(out, 0)
end

--- What each module below gets in a run on zeros of `shape`: the shape of its first input. {module = shape}
---@param model resin.nn.Module
---@param shape (integer|false)[]
---@return table<resin.nn.Module, integer[]>
function shaper.inputs(model, shape)
  local inputs = {}
  for module, list in pairs(evaluating(model, run_on_shape, shape).calls) do inputs[module] = list[1].input end
  return inputs
end

-- ---- choosing -------------------------------------------------------------------------------------------------------------

--- What answers for a model and an input: a tensor, a shape, or nil (no shapes). use(shaper) may be called twice: with
--- the static one, and with the observed one when the static gave up.
---@param model resin.nn.Module
---@param input resin.Tensor|(integer|false)[]|nil
---@param use fun(shaper: table?): any
---@param what string  for messages
---@param deep? boolean  the static one gives up at modules whose costs lie in the layers inside them
function shaper.with(model, input, use, what, deep)
  if input == nil then return use(nil) end
  if Tensor.is(input) then return use(evaluating(model, run, check.tensor(input, what .. ": input"))) end
  if not class.is_plain(input) then
    check.fail("%s: the input must be a shape such as {8, 64} or a tensor, got %s", what, check.describe(input))
  end
  shapes.check(input, what)
  local depth = check.depth
  if pcall(infer.module, model, input) then
    local static = setmetatable({dtype = float_of(model), input = input, deep = deep or false}, Static)
    local result = use(static)
    if not static.failed then return result end
  end
  check.depth = depth
  return use(evaluating(model, run_on_shape, input))
end

return shaper
