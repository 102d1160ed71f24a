--- LearnableAlpha: a trained factor that stays between two bounds.
-- The parameter p is free; t = tanh(p) maps it into the bounds:
--   linear       value = (min + max)/2 + (max - min)/2 · t
--   logarithmic  value = exp((ln min + ln max)/2 + (ln max - ln min)/2 · t)
-- Logarithmic is chosen when min > 0 and max/min > 100. The buffers min_val, max_val and use_log are the state that is saved;
-- `_low`, `_high` and `_log` are the same numbers for forward. Invariant: they agree, or `_stale` is true.

local lib = require "resin.lib"
local check = require "resin.check"
local create = require "resin.create"
local class = require "resin.nn.class"
local args = require "resin.nn.args"
local Module = require "resin.nn.module"
local ops = require "resin.ops"
local scope = require "resin.scope"
local Tensor = require "resin.tensor"

local C, ctx, structure = lib.C, lib.ctx, class.structure

--- LearnableAlpha(initial_value = 1, min_value = 0, max_value = 1, use_log_space = nil, {size = nil, dtype = "f32"}).
--- alpha() is the value, a tensor; with `size` one value per channel. It takes part in arithmetic: 1 - alpha, alpha * x.
---@class resin.nn.LearnableAlpha: resin.nn.Module
---@field param resin.Tensor
---@field min_val resin.Tensor
---@field max_val resin.Tensor
---@field use_log resin.Tensor
local LearnableAlpha = class.define("LearnableAlpha", Module, true)

LearnableAlpha.arguments = {
  {"initial_value", "number", default = 1},
  {"min_value", "number", default = 0, hidden = true},
  {"max_value", "number", default = 1, hidden = true},
  {"use_log_space", "boolean", optional = true, hidden = true},
  {"size", "integer", min = 1, optional = true},
  {"dtype", "dtype", default = "f32", hidden = true},
}

local function clamp(value, low, high) return math.max(low, math.min(high, value)) end

local function atanh(t) return 0.5 * math.log((1 + t) / (1 - t)) end

-- The parameter whose value is nearest to `value`; at a bound it stays a little inside, where a gradient exists.
local function parameter_for(value, low, high, log)
  local t
  if log then
    value = clamp(value, 1.001 * low, 0.999 * high)
    t = (2 * math.log(value) - math.log(low) - math.log(high)) / (math.log(high) - math.log(low))
  else
    value = clamp(value, low + 1e-6, high - 1e-6)
    t = (2 * value - low - high) / (high - low)
  end
  return atanh(clamp(t, -0.999, 0.999))
end

function LearnableAlpha:init(...)
  local o = args.accept(self, LearnableAlpha.arguments, ...)
  local low, high, log = o.min_value, o.max_value, o.use_log_space
  if low >= high then check.fail("LearnableAlpha: min_value (%.14g) must be less than max_value (%.14g)", low, high) end
  check.number(o.initial_value, "LearnableAlpha: initial_value", low, high)
  if log == nil then log = low > 0 and high / low > 100 end
  if log and low <= 0 then
    check.fail("LearnableAlpha: use_log_space needs a min_value above 0, got %.14g", low)
  end
  local shape = o.size and {o.size} or {}
  local param = scope.promote(create.full(shape, parameter_for(o.initial_value, low, high, log), {dtype = o.dtype}))
  self:register_parameter("param", param:requires_grad_(true))
  self:register_buffer("min_val", create.full({}, low, {dtype = o.dtype}))
  self:register_buffer("max_val", create.full({}, high, {dtype = o.dtype}))
  self:register_buffer("use_log", create.tensor(log))
  rawset(self, "_low", low)
  rawset(self, "_high", high)
  rawset(self, "_log", log)
  rawset(self, "_stale", false)
end

-- Bounds are constants of a recording, so they are read beside it.
local function refresh(self)
  local former = C.rs_trace_pause(ctx, 1)
  rawset(self, "_low", self.min_val:item())
  rawset(self, "_high", self.max_val:item())
  rawset(self, "_log", self.use_log:item())
  rawset(self, "_stale", false)
  C.rs_trace_pause(ctx, former)
end

--- load_state_dict is about to write the buffers.
function LearnableAlpha:before_load()
  rawset(self, "_stale", true)
  structure.version = structure.version + 1
end

--- What of the module's fields a recording takes as constants, as text; it is asked again when structure.version has grown.
---@return string
function LearnableAlpha:recorded_constants()
  if self._stale then refresh(self) end
  return ("%.17g %.17g %s"):format(self._low, self._high, tostring(self._log))
end

--- The value within its bounds: a 0-d tensor, or [size].
---@return resin.Tensor
function LearnableAlpha:forward()
  if self._stale then refresh(self) end
  local low, high = self._low, self._high
  local log = self._log
  if log then low, high = math.log(low), math.log(high) end
  local t = ops.tanh(self.param)
  local scaled = ops.mul(t, (high - low) / 2)
  local value = ops.add(scaled, (low + high) / 2)
  if t.s then t:free() end
  if scaled.s then scaled:free() end
  if not log then return value end
  local exponent = value
  value = ops.exp(exponent)
  if exponent.s then exponent:free() end
  return value
end

--- The shape of the value: {} or {size}.
function LearnableAlpha:output_shape() return self.size and {self.size} or {} end

local function number(t) return ("%.4f"):format(t:item()) end

local function values_text(self)
  local value = self:forward()
  if C.rs_tensor_numel(value.h) == 1 then return "value = " .. number(value) end
  return ("size = %d, values %s to %s"):format(self.size, number(ops.amin(value)), number(ops.amax(value)))
end

function LearnableAlpha:label()
  if self._stale then refresh(self) end
  return ("LearnableAlpha{%s, bounds = {%.6g, %.6g}, %s}"):format(scope.run(values_text, self), self._low, self._high,
    self._log and "log" or "linear")
end

-- ---- arithmetic -----------------------------------------------------------------------------------------------------------

local function operand(x)
  if getmetatable(x) == LearnableAlpha then return x:forward() end
  return x
end

for _, name in ipairs{"add", "sub", "mul", "div", "pow"} do
  local op = ops[name]
  LearnableAlpha["__" .. name] = function(a, b) return op(operand(a), operand(b)) end
  -- With a tensor on the left Lua asks the tensor.
  Tensor["__" .. name] = function(a, b)
    if getmetatable(b) == LearnableAlpha then b = b:forward() end
    return op(a, b)
  end
end

function LearnableAlpha.__unm(a) return ops.neg(a:forward()) end

return LearnableAlpha
