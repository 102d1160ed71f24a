--- resin.doctor: what gradients and residual paths do, as data, as text and as pictures.
--   local report = doctor.examine(model, x)       -- one forward and backward; the model is left as it was
--   print(report)                                  -- the whole table; report.verdict, report.parameters, report.paths are data
--   print(doctor.compare(plain, residual, {x = x}))
-- Nothing is printed unless print_gradients is called.

local check = require "resin.check"
local class = require "resin.nn.class"
local grad = require "resin.grad"
local observe = require "resin.nn.observe"
local ops = require "resin.ops"
local Tensor = require "resin.tensor"
local measure = require "resin.doctor.measure"
local paths = require "resin.doctor.paths"
local plot = require "resin.doctor.plot"
local Report = require "resin.doctor.report"
local text = require "resin.doctor.text"
local verdict = require "resin.doctor.verdict"

local doctor = {thresholds = verdict.thresholds}

local function check_model(model, what)
  if not class.is_module(model) then check.fail("%s: the model must be a module, got %s", what, check.describe(model)) end
  return model
end

local function limits_of(given, what)
  local known, limits = {}, {}
  for name, value in pairs(verdict.thresholds) do
    known[#known + 1] = name
    limits[name] = value
  end
  table.sort(known)
  for name, value in pairs(check.options(given, known, what .. ": thresholds")) do
    limits[name] = check.number(value, what .. ": thresholds: " .. name, 0)
  end
  return limits
end

-- ---- parameters -----------------------------------------------------------------------------------------------------------

-- Parameters whose gradient is naturally zero for most values: vectors that the probe did not look up.
local function sparse_parameters(model)
  local sparse = {}
  for _, module in ipairs(model:modules()) do
    if module.type:find("Embedding", 1, true) and module.weight then sparse[module.weight] = true end
  end
  return sparse
end

local function read_parameters(report, model, closed)
  local sparse = sparse_parameters(model)
  for name, p in model:named_parameters() do
    local g = p.grad
    if g then
      local m, weight = measure.of(g), measure.of(p)
      local entry = {name = name, shape = p.shape, numel = p:numel(), norm = m.norm, mean = m.mean, max = m.max, zeros = m.zeros,
                     finite = m.finite, weight_norm = weight.norm, ratio = weight.norm > 0 and m.norm / weight.norm or nil,
                     is_weight = p.ndim >= 2, sparse = sparse[p] or false}
      entry.closed = m.max == 0 and closed[p] or false
      report.parameters[#report.parameters + 1] = entry
    elseif p.requires_grad then
      report.without_gradient[#report.without_gradient + 1] = name
    end
  end
end

local function new_report()
  return setmetatable({parameters = {}, without_gradient = {}, paths = {}}, Report)
end

--- The gradients that the model's parameters hold now, after a backward of one's own, judged.
---@param model resin.nn.Module
---@param options? {thresholds: table}
---@return resin.doctor.Report
function doctor.gradients(model, options)
  check_model(model, "doctor.gradients")
  options = check.options(options, {"thresholds"}, "doctor.gradients")
  local report = new_report()
  read_parameters(report, model, {})
  if #report.parameters == 0 then
    check.fail("doctor.gradients: no parameter of %s has a gradient; call backward first, or use doctor.examine(model, x)", model.type)
  end
  verdict.judge(report, limits_of(options.thresholds, "doctor.gradients"))
  return report
end

-- ---- probing --------------------------------------------------------------------------------------------------------------

-- The mean of the squares: the squared distance from zeros.
local function mean_square(y)
  return ops.mean(ops.square(y))
end

-- Gradients and buffers of the model, and a function that puts them back.
local function set_aside(model)
  local parameters, buffers, gradients, values = model:parameters(), model:buffers(), {}, {}
  for i, p in ipairs(parameters) do gradients[i] = p.grad or false end
  for i, b in ipairs(buffers) do values[i] = b:clone() end
  model:zero_grad()
  return function()
    for i, p in ipairs(parameters) do p.grad = gradients[i] or nil end
    grad.no_grad(function()
      for i, b in ipairs(buffers) do b:copy_(values[i]) end
    end)
  end
end

local function probe(model, x, loss_fn, report)
  local names = {}
  for name, module in model:named_modules() do names[module] = name end
  local y = grad.enable_grad(function()
    return (observe.run(model, paths.visitor(report.paths, names), function() return (model(x)) end))
  end)
  check.tensor(y, "doctor.examine: what the model returned")
  local loss = grad.enable_grad(loss_fn, y, x)
  check.tensor(loss, "doctor.examine: the loss")
  if loss:numel() ~= 1 then check.fail("doctor.examine: the loss must be one number, got %s", check.describe(loss)) end
  report.loss = loss:item()
  loss:backward()
  paths.finish(report.paths)
end

local function closed_parameters(report)
  local closed = {}
  for _, path in ipairs(report.paths) do
    if path.closed then
      for _, p in ipairs(path.parameters) do closed[p] = true end
    end
    path.parameters = nil
  end
  return closed
end

--- Runs the model forward and backward once, watches its residual paths, and reports. Gradients and buffers (running
--- statistics) are put back, so training can go on. The mode, training or evaluation, is the model's.
---@param model resin.nn.Module
---@param x resin.Tensor
---@param loss_fn? fun(y: resin.Tensor, x: resin.Tensor): resin.Tensor|table  the loss of an output; or options {loss, thresholds}.
---Without one the loss is the mean of the squares of the output.
---@return resin.doctor.Report
function doctor.examine(model, x, loss_fn)
  check_model(model, "doctor.examine")
  check.tensor(x, "doctor.examine: x")
  local options = {}
  if class.is_plain(loss_fn) then
    options = check.options(loss_fn, {"loss", "thresholds"}, "doctor.examine")
    loss_fn = options.loss
  end
  if loss_fn == nil then
    loss_fn = mean_square
  elseif not class.is_module(loss_fn) then
    check.func(loss_fn, "doctor.examine: loss")
  end
  local limits = limits_of(options.thresholds, "doctor.examine")
  local report = new_report()
  local put_back = set_aside(model)
  local ok, err = pcall(probe, model, x, loss_fn, report)
  if ok then
    ok, err = pcall(read_parameters, report, model, closed_parameters(report))
  end
  put_back()
  if not ok then error(err, 0) end
  verdict.judge(report, limits)
  return report
end

--- Prints the guide's table of mean gradients, for the mean of the squares of model(x) as loss, and returns the report.
---@param model resin.nn.Module
---@param x resin.Tensor
---@param loss_fn? function|table  as for examine
---@return resin.doctor.Report
function doctor.print_gradients(model, x, loss_fn)
  local report = doctor.examine(model, x, loss_fn)
  print(report:gradient_table())
  return report
end

-- ---- two models -----------------------------------------------------------------------------------------------------------

--- Two reports: [1] and [2]; tostring(comparison) shows the weights' gradients side by side.
---@class resin.doctor.Comparison
---@field names string[]
local Comparison = {}
Comparison.__index = Comparison
Comparison.__tostring = text.comparison

local function with_names(self, options)
  local out = {names = self.names}
  for k, v in pairs(options or {}) do out[k] = v end
  return out
end

--- Both gradient norms by depth as bars of text.
---@param options? {width: integer, field: string}
---@return string
function Comparison:bars(options) return plot.bars(self, with_names(self, options)) end

--- Both as an SVG picture.
---@param path? string
---@param options? {field: string, title: string}
---@return string svg
function Comparison:plot(path, options) return plot.svg(self, path, with_names(self, options)) end

--- Examines two models with the same input, for example without and with skips. Reports may be given instead of models.
---@param a resin.nn.Module|resin.doctor.Report
---@param b resin.nn.Module|resin.doctor.Report
---@param options? {x: resin.Tensor, loss: function, names: string[], thresholds: table}
---@return resin.doctor.Comparison
function doctor.compare(a, b, options)
  if Tensor.is(options) then options = {x = options} end
  options = check.options(options, {"x", "loss", "names", "thresholds"}, "doctor.compare")
  local names = options.names or {"without", "with"}
  if not (class.is_plain(names) and type(names[1]) == "string" and type(names[2]) == "string") then
    check.fail("doctor.compare: names must be two strings")
  end
  local pair = {names = names}
  for i, given in ipairs{a, b} do
    if getmetatable(given) == Report then
      pair[i] = given
    else
      check_model(given, "doctor.compare")
      check.tensor(options.x, "doctor.compare: x")
      pair[i] = doctor.examine(given, options.x, {loss = options.loss, thresholds = options.thresholds})
    end
  end
  return setmetatable(pair, Comparison)
end

--- How many values of a parameter's gradient (or of a tensor) lie in each power of ten: {[-3] = n, …, zero = n, total = n}.
---@param t resin.Tensor
---@return table
function doctor.histogram(t)
  check.tensor(t, "doctor.histogram: argument")
  return measure.histogram(t.requires_grad and t.grad or t)
end

return doctor
