--- A parameter group of an optimiser: its tensors, their state, and its options.
-- The numeric options live in `hyper`, the f64 tensor that the update op reads at each run, and nowhere else: group.lr = 0.1
-- writes there, so a recorded program sees it too. `steps` (i64 [n]) counts the updates of each parameter. State tensors lie in
-- arrays parallel to `params`: group.state.exp_avg[i].
--
-- The op's inputs are one C array {hyper, steps, n parameters, n gradients, n tensors of each state}; it is made again only when
-- the group grows, and a step refreshes handles and gradients in it.

local lib = require "resin.lib"
local check = require "resin.check"
local create = require "resin.create"
local scope = require "resin.scope"
local structure = require("resin.nn.class").structure

local ffi, C, ctx = lib.ffi, lib.C, lib.ctx

local array_type = ffi.typeof("rs_tensor *[?]")
local out = ffi.new("rs_tensor *[4]")

---@class resin.optim.Group
---@field params resin.Tensor[]
---@field names string[]   as in the state: of the module, or numbers
---@field module resin.nn.Module?  where params come from
---@field changes integer  grows when recordings that use the group are out of date
local Group = {}

-- ---- options --------------------------------------------------------------------------------------------------------------

local function read(group, rule)
  if rule.slot == nil then return group.flags[rule.name] end
  local values = group.values
  if rule.count == 2 then return {values[rule.slot], values[rule.slot + 1]} end
  return values[rule.slot]
end

-- Recordings that use the group are out of date.
local function changed(group)
  group.changes = group.changes + 1
  structure.version = structure.version + 1
end

-- Programs read the numbers in `hyper` at each run. A flag is part of an instruction, and an option that brings state tensors
-- (`buffers`: SGD's momentum) is another set of inputs: recordings are out of date then.
local function write(group, rule, value)
  if rule.slot == nil then
    local former = group.flags[rule.name]
    if former ~= nil and former ~= value then changed(group) end
    group.flags[rule.name] = value
  elseif rule.count == 2 then
    group.values[rule.slot], group.values[rule.slot + 1] = value[1], value[2]
  else
    if rule.buffers and value ~= 0 and group.array and not group.buffered then changed(group) end
    group.values[rule.slot] = value
  end
end

function Group.__index(group, key)
  local rule = rawget(group, "kind").rules[key]
  if rule then return read(group, rule) end
  return Group[key]
end

-- Fields of its own that are made later; all others exist from the start.
local LATER = {module = true, size = true, zero_n = true, zero_array = true}

--- Refuses a name that is no option of the optimiser.
---@param kind table  the optimiser's class
---@param key any
function Group.unknown(kind, key)
  local names = {}
  for i, rule in ipairs(kind.options) do names[i] = rule.name end
  check.fail("%s: there is no option %s (known: %s)", kind.type, type(key) == "string" and ("%q"):format(key) or tostring(key),
    table.concat(names, ", "))
end

function Group.__newindex(group, key, value)
  local rule = group.kind.rules[key]
  if not rule then
    if not LATER[key] then Group.unknown(group.kind, key) end
    return rawset(group, key, value)
  end
  write(group, rule, rule.check(value, group.kind.type .. ": " .. key, rule.min, rule.max))
end

--- A new, empty group.
---@param kind table  the optimiser's class
---@param options table  a value for each option
---@return resin.optim.Group
function Group.new(kind, options)
  local hyper = scope.promote(create.zeros({kind.numbers}, {dtype = "f64"}))
  local group = {
    kind = kind, params = {}, names = {}, state = {}, flags = {}, hyper = hyper, steps = false, n = 0, array = false,
    values = ffi.cast("double *", C.rs_tensor_data(hyper.h)), buffered = false, changes = 0,
  }
  for _, key in ipairs(kind.state_keys) do group.state[key] = {} end
  setmetatable(group, Group)
  for _, rule in ipairs(kind.options) do write(group, rule, options[rule.name]) end
  return group
end

-- ---- state ----------------------------------------------------------------------------------------------------------------

--- The counts of updates as a C array.
---@return ffi.cdata*
function Group:counts()
  return ffi.cast("int64_t *", C.rs_tensor_data(self.steps.h))
end

-- Makes steps, state tensors and the array fit the parameters.
local function grow(group)
  local params, n = group.params, #group.params
  local former = C.rs_trace_pause(ctx, 1)       -- a recording finds the state made
  changed(group)                                -- recordings that know the former state are out of date
  local steps = scope.promote(create.zeros({n}, {dtype = "i64"}))
  if group.steps then ffi.copy(C.rs_tensor_data(steps.h), C.rs_tensor_data(group.steps.h), 8 * math.min(group.n, n)) end
  rawset(group, "steps", steps)
  local keys = group.buffered and group.kind.state_keys or {}
  for _, key in ipairs(keys) do
    local list = group.state[key]
    for i = 1, n do
      if not list[i] then list[i] = scope.promote(create.zeros(params[i].shape, {dtype = params[i].dtype})) end
    end
  end
  local array = array_type(2 + n * (2 + #keys))
  array[0], array[1] = group.hyper.h, steps.h
  for k, key in ipairs(keys) do
    for i = 1, n do array[1 + n * (1 + k) + i] = group.state[key][i].h end
  end
  rawset(group, "array", array)
  rawset(group, "size", 2 + n * (2 + #keys))
  rawset(group, "n", n)
  C.rs_trace_pause(ctx, former)
end

--- Makes the state that a step needs. `buffered` says whether there are state tensors.
---@param buffered boolean
function Group:prepare(buffered)
  if self.n == #self.params and self.buffered == buffered and self.array then return end
  self.buffered = buffered
  grow(self)
end

-- ---- running --------------------------------------------------------------------------------------------------------------

local function release(array, first, n)
  for i = first, first + n - 1 do
    C.rs_tensor_release(array[i])
    array[i] = nil
  end
end

--- Updates the parameters that have a gradient by op number `op`, in one call.
---@param op integer
---@param attrs ffi.cdata*
function Group:run(op, attrs)
  local params, array, n = self.params, self.array, self.n
  for i = 1, n do
    local h = params[i].h
    if not h then check.freed(self.kind.type .. ": parameter " .. self.names[i]) end
    array[1 + i] = h
  end
  local rc, gradients, had = 0, n, 2 + n
  for i = 1, n do
    rc = C.rs_tensor_grad(ctx, array[1 + i], array + (1 + n + i))
    if rc ~= 0 then
      gradients = i - 1
      break
    end
  end
  if rc == 0 then
    rc = C.rs_call(ctx, op, array, self.size, attrs, out)
    if rc == C.RS_ERR_NOMEM then
      scope.collect()
      rc = C.rs_call(ctx, op, array, self.size, attrs, out)
    end
  end
  release(array, had, gradients)
  if rc ~= 0 then check.status(rc) end
end

--- Drops the gradients, in one call.
function Group:zero_grads()
  local params, n = self.params, #self.params
  if self.zero_n ~= n then
    self.zero_n = n
    self.zero_array = array_type(n)
  end
  local array = self.zero_array
  for i = 1, n do
    local h = params[i].h
    if not h then check.freed(self.kind.type .. ": parameter " .. self.names[i]) end
    array[i - 1] = h
  end
  C.rs_zero_grads(ctx, array, n)
end

return Group
