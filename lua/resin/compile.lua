--- resin.compile: a function or a module as a program.
-- A compiled function keeps programs in `entries`, the one used last first. An entry belongs to one form of the arguments
-- (shapes and dtypes of the tensors, which C compares; `static`, everything else about them), to gradients on or off, and to the
-- modules that its recording met: their modes and parts (met.lua). All its workspaces share one block of memory.
-- While it is recorded the function runs, but its ops compute nothing; the first results come from the program too.

local lib = require "resin.lib"
local check = require "resin.check"
local scope = require "resin.scope"
local class = require "resin.nn.class"
local grad = require "resin.grad"
local met = require "resin.met"

local ffi, C, ctx = lib.ffi, lib.C, lib.ctx
local Tensor, wrap, structure = scope.Tensor, scope.wrap, class.structure
local type, getmetatable, setmetatable, select, pairs, ipairs = type, getmetatable, setmetatable, select, pairs, ipairs

local MOST_ARGUMENTS = 64

local arguments = ffi.new("rs_tensor *[?]", MOST_ARGUMENTS)
local results = ffi.new("rs_tensor *[?]", MOST_ARGUMENTS)
local out_program, out_workspace = ffi.new("rs_program *[1]"), ffi.new("rs_workspace *[1]")

---@class resin.Compiled
local Compiled = {}
Compiled.__index = Compiled
Compiled.__name = "resin.Compiled"

-- ---- arguments and results -------------------------------------------------------------------------------------------------

-- The keys of a plain table in an order that depends on nothing else: numbers, then strings. flatten refuses others.
local function sorted_keys(value)
  local keys = {}
  for key in pairs(value) do keys[#keys + 1] = key end
  table.sort(keys, function(a, b)
    if type(a) == type(b) then return a < b end
    return type(a) == "number"
  end)
  return keys
end

local function check_keys(value, what)
  for key in pairs(value) do
    if type(key) ~= "number" and type(key) ~= "string" then
      check.fail("compile: %s: the keys of tables must be numbers and strings, got %s", what, check.describe(key))
    end
  end
end

-- Finds the tensors of a value, in order, and describes the rest as text.
local function flatten(value, tensors, text, depth, what)
  local kind = type(value)
  if kind == "table" and getmetatable(value) == Tensor then
    tensors[#tensors + 1] = value
    text[#text + 1] = "t"
  elseif kind == "table" and getmetatable(value) == nil then
    if depth > 6 then check.fail("compile: %s is nested too deeply", what) end
    check_keys(value, what)
    text[#text + 1] = "{"
    for _, key in ipairs(sorted_keys(value)) do
      text[#text + 1] = type(key) == "number" and ("[%.17g]="):format(key) or ("%q="):format(key)
      flatten(value[key], tensors, text, depth + 1, what)
    end
    text[#text + 1] = "}"
  elseif kind == "number" then
    text[#text + 1] = ("%.17g"):format(value)
  elseif kind == "string" then
    text[#text + 1] = ("%q"):format(value)
  elseif kind == "boolean" or kind == "nil" then
    text[#text + 1] = tostring(value)
  else
    check.fail("compile: %s must be made of tensors, numbers, strings, booleans and plain tables, got %s", what, check.describe(value))
  end
  text[#text + 1] = ","
end

-- A copy of a value that flatten accepted, in which change(tensor) stands for each tensor, in flatten's order.
local function map(value, change)
  if type(value) ~= "table" then return value end
  if getmetatable(value) == Tensor then return change(value) end
  local copy = {}
  for _, key in ipairs(sorted_keys(value)) do copy[key] = map(value[key], change) end
  return copy
end

-- What stands for tensor number `at` in the results of an entry.
local Place = {}

local function fill(value, tensors)
  if type(value) ~= "table" then return value end
  if getmetatable(value) == Place then return tensors[value.at] end
  local copy = {}
  for key, item in pairs(value) do copy[key] = fill(item, tensors) end
  return copy
end

-- ---- entries ---------------------------------------------------------------------------------------------------------------

-- All that exist, to be looked through when a tensor is freed.
local live = setmetatable({}, {__mode = "k"})

local function release(entry)
  if entry.workspace then C.rs_workspace_release(entry.workspace) end
  if entry.program then C.rs_program_release(entry.program) end
  entry.workspace, entry.program = nil, nil
end

-- Releases an entry that cannot fit any more.
local function drop(self, entry)
  release(entry)
  self.dropped = true
end

-- A finaliser for the C objects of an entry: they are released in this order.
local function guard(entry)
  entry.proxy = newproxy(true)
  getmetatable(entry.proxy).__gc = function() release(entry) end
  return entry
end

-- A program would keep a tensor alive that its owner has freed, and go on with it: it is dropped, so that the next call runs the
-- function again and fails where it uses the tensor. What a recording frees itself is of no interest.
function scope.recorded_freed(h)
  if C.rs_is_tracing(ctx) ~= 0 then return end
  for self in pairs(live) do
    local kept = {}
    for _, entry in ipairs(self.entries) do
      if C.rs_program_reads(entry.program, h) ~= 0 then release(entry) else kept[#kept + 1] = entry end
    end
    self.entries = kept
  end
end

local function precision() return ffi.string(C.rs_get_precision(ctx)) end

-- Parts of modules or optimisers have changed: what cannot fit any more goes.
local function review(self)
  self.version = structure.version
  local kept = {}
  for _, entry in ipairs(self.entries) do
    if entry.precision == precision() and met.same_structure(entry.met) then kept[#kept + 1] = entry
    else drop(self, entry) end
  end
  self.entries = kept
end

local function to_front(self, i)
  local entries = self.entries
  local entry = entries[i]
  for k = i, 2, -1 do entries[k] = entries[k - 1] end
  entries[1] = entry
end

-- The entry for `n` tensors in `arguments` and the other arguments `static`.
local function find(self, static, n, grads)
  if self.version ~= structure.version then review(self) end
  local entries = self.entries
  for i = 1, #entries do
    local e = entries[i]
    if e.static == static and e.grads == grads and met.same_modes(e.met) and C.rs_program_fits(e.program, arguments, n) ~= 0 then
      if not met.same_parts(e.met) then
        review(self)
        return find(self, static, n, grads)
      end
      if i > 1 then to_front(self, i) end
      return e
    end
  end
  return nil
end

-- ---- recording -------------------------------------------------------------------------------------------------------------

local function pack(...)
  local n = select("#", ...)
  return {n = n, ...}
end

-- It is called through a C function (gsub), which no yield can cross: whoever resumed us would find everything being recorded.
local function invoke(self, args)
  local returned
  string.gsub(".", ".", function() returned = pack(self.fn(unpack(args, 1, args.n))) end)
  return returned
end

local function handler(err)
  if type(err) == "string" and err:find("attempt to yield", 1, true) then
    local _, text = pcall(check.fail, "compile: a function cannot yield while it is recorded")
    err = text                       -- with the line where it happened
  end
  return check.handler(err)
end

local function report() return require("resin.report.program") end

local function finish_trace(tensors)
  if #tensors > MOST_ARGUMENTS then
    check.fail("compile: the function returns %d tensors; at most %d are possible", #tensors, MOST_ARGUMENTS)
  end
  for i, t in ipairs(tensors) do results[i - 1] = t.h or check.freed("compile: result") end
  check.status(C.rs_trace_end(ctx, results, #tensors, out_program))
end

-- What the recording made and nobody holds, and what programs held that were dropped, goes back to the system.
local function tidy(self)
  if self.recorded > 0 and not self.dropped then return end
  self.dropped = false
  scope.collect()
  C.rs_trim(ctx)
end

local function make_entry(self, static, n, grads, returned, noted)
  local tensors, rest = {}, {}
  for i = 1, returned.n do flatten(returned[i], tensors, rest, 1, "result " .. i) end
  finish_trace(tensors)
  local entry = {program = out_program[0], static = static, grads = grads, n = n, noutputs = #tensors, nresults = returned.n,
                 precision = precision()}
  local count = 0
  local function place()
    count = count + 1
    return setmetatable({at = count}, Place)
  end
  entry.template = {}
  for i = 1, returned.n do entry.template[i] = map(returned[i], place) end
  entry.single = returned.n == 1 and getmetatable(entry.template[1]) == Place
  entry.length, entry.ops = C.rs_program_length(entry.program), report().count_ops(entry.program)      -- as recorded
  tidy(self)
  entry.met = met.of(noted, entry.program)
  local rc = C.rs_program_optimize(entry.program, self.passes, self.dtype)
  if rc == 0 then
    local beside = self.entries[1] and self.entries[1].workspace
    rc = C.rs_workspace_create_beside(ctx, entry.program, beside, out_workspace)
  end
  if rc ~= 0 then
    local text = ffi.string(C.rs_last_error())
    release(entry)
    check.fail("compile: %s", text)
  end
  entry.workspace = out_workspace[0]
  return guard(entry)
end

-- The argument that holds tensor number `i`.
local function argument_of(args, i)
  local function count() i = i - 1 end
  for k = 1, args.n do
    map(args[k], count)
    if i <= 0 then return k end
  end
end

-- A recording needs contiguous tensors that are all different. Returns the number of the first tensor that a copy stands for now.
local function prepare(list, args)
  local seen, copied = {}, nil
  for i, t in ipairs(list) do
    if not t.h then check.freed("compile: argument " .. argument_of(args, i)) end
    if not t:is_contiguous() then list[i] = t:contiguous() end
    if seen[list[i]] then list[i] = list[i]:clone() end
    seen[list[i]] = true
    if list[i] ~= t then copied = copied or i end
  end
  return copied
end

-- What a program writes into a copy would be lost.
local function check_written(entry, args, copied)
  if copied and C.rs_program_writes_inputs(entry.program) ~= 0 then
    check.fail("compile: the function writes into an argument in place, so argument %d must be contiguous and not be given twice",
      argument_of(args, copied))
  end
end

-- The arguments with the tensors of `list` in their places.
local function put_back(args, list)
  local at = 0
  local function next_one()
    at = at + 1
    return list[at]
  end
  local new = {n = args.n}
  for i = 1, args.n do new[i] = map(args[i], next_one) end
  return new
end

local function fill_arguments(list)
  for i = 1, #list do arguments[i - 1] = list[i].h end
end

-- The arguments as tensors of their own, of the same memory and gradients: the function may meet an argument also as a tensor that
-- it captured, which stays what it is when other arguments come.
local function twins(list)
  local made = {}
  for i, t in ipairs(list) do
    check.status(C.rs_tensor_twin(t.h, results))
    made[i] = wrap(results[0])
  end
  return made
end

-- Says once that programs are dropped as fast as they are made.
local function count_eviction(self)
  self.evicted = self.evicted + 1
  if self.evicted == self.max_programs then
    check.warn("compile: %d programs were dropped to make room for others, and recording one takes longer than running without it; "
      .. "let the function keep more of them (max_programs = %d), or give it fewer shapes", self.evicted, 4 * self.max_programs)
  end
end

-- Runs the function while the context records, and makes an entry of what was recorded.
local function record(self, args, list, static, grads)
  local version, given = structure.version, twins(list)
  fill_arguments(given)
  check.status(C.rs_trace_begin(ctx, arguments, #list))
  met.begin(self.fn)
  local ok, returned = xpcall(invoke, handler, self, put_back(args, given))
  local noted = met.finish()
  if not ok then
    C.rs_trace_abort(ctx)
    error(returned, 0)
  end
  for i = 1, #list do
    if not given[i].h or not list[i].h then
      C.rs_trace_abort(ctx)
      check.fail("compile: the function frees argument %d; a program needs it at each run, so free it after the call", argument_of(args, i))
    end
  end
  local ended, entry = xpcall(make_entry, check.handler, self, static, #list, grads, returned, noted)
  if not ended then
    C.rs_trace_abort(ctx)
    error(entry, 0)
  end
  table.insert(self.entries, 1, entry)
  if structure.version ~= version or self.version ~= version then review(self) end
  self.recorded = self.recorded + 1
  if #self.entries > self.max_programs then
    release(table.remove(self.entries))
    count_eviction(self)
  end
  return entry
end

-- ---- calling ---------------------------------------------------------------------------------------------------------------

local function give(entry)
  if entry.single then return wrap(results[0]) end
  local tensors = {}
  for i = 1, entry.noutputs do tensors[i] = wrap(results[i - 1]) end
  local values = {}
  for i = 1, entry.nresults do values[i] = fill(entry.template[i], tensors) end
  return unpack(values, 1, entry.nresults)
end

-- Raises what C says, with the name that "record again" has in Lua and the names of parameters.
local function refused(self, entry)
  local text = ffi.string(C.rs_last_error()):gsub("record again", "record again: fast:reset()")
  local number = tonumber(text:match("bound tensor (%d+)"))
  local name = number and report().binding_name(self, entry.program, number)
  if name then text = text:gsub("(bound tensor %d+)", function(at) return ("%s (%s)"):format(at, name) end) end
  check.fail("%s", text)
end

local function run(self, entry, n)
  local rc = C.rs_program_call(entry.program, entry.workspace, arguments, n, results, entry.noutputs)
  if rc == C.RS_ERR_NOMEM then
    scope.collect()
    rc = C.rs_program_call(entry.program, entry.workspace, arguments, n, results, entry.noutputs)
  end
  if rc ~= 0 then refused(self, entry) end
  return give(entry)
end

-- A module in training mode with gradients on is to be differentiated by the caller: it runs as it is.
local function runs_eagerly(self, grads)
  return self.module and grads and self.module.training
end

-- Puts the tensors of `args` into `arguments` and finds the entry. Returns it (nil when there is none yet), the tensors, the
-- description of the rest, and what prepare returned.
local function look_up(self, args, grads)
  local list, text, plain = {}, {}, true
  for i = 1, args.n do
    flatten(args[i], list, text, 1, "argument " .. i)
    plain = plain and getmetatable(args[i]) == Tensor
  end
  local static = plain and #list or table.concat(text)
  if #list > MOST_ARGUMENTS then check.fail("compile: %d tensors were given; at most %d are possible", #list, MOST_ARGUMENTS) end
  local copied = prepare(list, args)
  fill_arguments(list)
  local entry = find(self, static, #list, grads)
  if entry then check_written(entry, args, copied) end
  return entry, list, static, copied
end

local function slow(self, args)
  local grads = C.rs_get_grad_enabled(ctx) ~= 0
  if C.rs_is_tracing(ctx) ~= 0 or runs_eagerly(self, grads) then return self.fn(unpack(args, 1, args.n)) end
  if self.module then grads = false end
  local entry, list, static, copied = look_up(self, args, grads)
  if not entry then
    if self.under_way and self.under_way.program then
      check.fail("compile: these arguments must be recorded, but a run in steps is under way; finish it or call fast:cancel() first")
    end
    if self.module then entry = grad.no_grad(record, self, args, list, static, grads)
    else entry = record(self, args, list, static, grads) end
    check_written(entry, args, copied)
    fill_arguments(list)
  end
  return run(self, entry, #list)
end

-- One, two or three tensors, the usual case, take a way without tables.
local function call(self, ...)
  local n = select("#", ...)
  if n >= 1 and n <= 3 then
    local a, b, c = ...
    if getmetatable(a) == Tensor and (n < 2 or getmetatable(b) == Tensor) and (n < 3 or getmetatable(c) == Tensor) then
      local entry = self.entries[1]
      if entry and entry.static == n and self.version == structure.version and a.h and (n < 2 or b.h) and (n < 3 or c.h)
        and not structure.met and entry.met:same() then
        local grads = C.rs_get_grad_enabled(ctx) ~= 0
        local module = self.module
        if module and not (grads and module.training) or not module and entry.grads == grads then
          arguments[0] = a.h
          if n > 1 then arguments[1] = b.h end
          if n > 2 then arguments[2] = c.h end
          if C.rs_program_fits(entry.program, arguments, n) ~= 0 then return run(self, entry, n) end
        end
      end
    end
    return slow(self, {n = n, a, b, c})
  end
  return slow(self, {n = n, ...})
end
Compiled.__call = call

-- ---- in steps --------------------------------------------------------------------------------------------------------------

--- Begins a run in steps, for work that is spread over frames. The program must have been recorded by a call before.
function Compiled:begin(...)
  if C.rs_is_tracing(ctx) ~= 0 then check.fail("compile: begin: a run in steps cannot be part of a recording") end
  local args = {n = select("#", ...), ...}
  local entry, list = look_up(self, args, not self.module and C.rs_get_grad_enabled(ctx) ~= 0)
  if not entry then
    check.fail("compile: begin: nothing was recorded for these arguments; call the compiled function once with them first")
  end
  if C.rs_program_begin(entry.program, entry.workspace, arguments, #list) ~= 0 then refused(self, entry) end
  self.under_way = entry
end

--- Goes on with a run for about `budget_us` microseconds (at least one instruction; 0: to the end).
---@param budget_us? number
---@return boolean done
---@return any ...  the results, when done
function Compiled:step(budget_us)
  local entry = self.under_way
  if not entry then check.fail("compile: step: no run is under way; call begin first") end
  if not entry.program then
    self.under_way = nil
    check.fail("compile: step: the program was dropped since begin (reset, changed modules or a freed tensor); begin again")
  end
  local rc = C.rs_program_step(entry.program, entry.workspace, check.number(budget_us or 0, "compile: step: budget_us", 0))
  if rc == C.RS_MORE then return false end
  self.under_way = nil
  check.status(rc)
  check.status(C.rs_program_finish(entry.program, entry.workspace, results, entry.noutputs))
  return true, give(entry)
end

--- Gives up a run in steps. What it has written already (parameters, state) stays written.
---@return resin.Compiled self
function Compiled:cancel()
  local entry = self.under_way
  if entry and entry.program then C.rs_program_cancel(entry.program, entry.workspace) end
  self.under_way = nil
  return self
end

-- ---- looking and resetting -------------------------------------------------------------------------------------------------

--- Forgets all recordings; the next call records again.
---@return resin.Compiled self
function Compiled:reset()
  for _, entry in ipairs(self.entries) do drop(self, entry) end
  self.entries = {}
  return self
end

--- Makes the next run compute again what it keeps of parameters (packed and folded weights). Needed only after writing to a
--- parameter through tensor:data().
---@return resin.Compiled self
function Compiled:refresh()
  for _, entry in ipairs(self.entries) do C.rs_workspace_refresh(entry.workspace) end
  return self
end

--- What was recorded, as text: instructions, kernels, shapes, what passes made of them, memory.
---@param options? table lines = 60 (instructions shown of each program); all = true
---@return string
function Compiled:explain(options)
  return report().explain(self, options)
end

function Compiled:__tostring()
  local instructions = self.entries[1] and C.rs_program_length(self.entries[1].program) or 0
  return ("resin.compile(%s): %d program%s%s"):format(self.module and self.module.type or "function", #self.entries,
    #self.entries == 1 and "" or "s", #self.entries > 0 and (", the last of %d instructions"):format(instructions) or "")
end

-- ---- making one ------------------------------------------------------------------------------------------------------------

local OPTIONS = {"max_programs", "passes", "precision"}

-- Bits of the passes to run: all, none (false), or a list of names.
local function pass_mask(given)
  if given == nil or given == true or given == "all" then return 2 ^ 32 - 1 end
  if given == false then return 0 end
  check.table(given, "compile: passes")
  local mask = 0
  for _, name in ipairs(given) do
    local found, known = nil, {}
    for i = 0, C.rs_pass_count() - 1 do
      known[i + 1] = ffi.string(C.rs_pass_name(i))
      if known[i + 1] == name then found = i end
    end
    if not found then check.fail("compile: there is no pass %q (known: %s)", tostring(name), table.concat(known, ", ")) end
    mask = mask + 2 ^ found
  end
  return mask
end

local function precision_code(given)
  if given == nil or given == "f32" then return C.RS_F32 end
  if given ~= "bf16" then check.fail('compile: precision must be "f32" or "bf16", got %s', check.describe(given)) end
  return C.RS_BF16
end

--- Makes a program of a module or a function: recorded once per combination of shapes and dtypes of its tensor arguments, then
--- replayed as one C call, with the same results. A function may contain backward and an optimiser's step: a whole training step is
--- one call. Parameters, optimiser state, buffers, random state and learning rates are read and written at each run. Everything
--- else in Lua happens only while recording: reading a value (`:item()`) is an error there, and branches are frozen.
--- Results carry no gradient. A module in training mode runs as it is while gradients are on; compile the whole step instead.
--- Tensors that the function makes and keeps elsewhere while it is recorded have no values: make lasting state before.
---@param fn function|resin.nn.Module
---@param options? table max_programs = 8 (recordings kept); passes = true (all), false (none) or a list of names; precision = "f32",
---or "bf16" to convolve and multiply in bf16 with sums in f32
---@return resin.Compiled
local function compile(fn, options)
  local module = class.is_module(fn) and fn or nil
  if not module then check.func(fn, "compile: argument 1, when it is no module,") end
  options = check.options(options, OPTIONS, "compile")
  local self = {entries = {}, version = structure.version, recorded = 0, evicted = 0, dropped = false, module = module,
                max_programs = check.integer(options.max_programs or 8, "compile: max_programs", 1, 1024),
                passes = pass_mask(options.passes), dtype = precision_code(options.precision)}
  self.fn = module and function(...) return module(...) end or fn
  live[self] = true
  return setmetatable(self, Compiled)
end

return compile
