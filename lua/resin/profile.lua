--- resin.profile(fn): where the time goes. Every kernel that runs, in a program or called op by op, is timed in C; here the events
-- become a table and, on request, a trace file for a browser's tracing page.

local lib = require "resin.lib"
local check = require "resin.check"
local text = require "resin.report.text"

local ffi, C, ctx = lib.ffi, lib.C, lib.ctx

---@class resin.Profile
---@field rows table[]  {op, kernel, where, calls, seconds, share, bytes, rate}, the most expensive first; share is of `kernels`
---@field seconds number  of all runs together, by the clock
---@field kernels number  seconds in kernels; the rest is Lua, checking, the tape and memory
---@field calls integer   kernels that ran (and were noted)
---@field dropped integer  kernels that ran when the buffer was full
---@field runs integer
local Profile = {}
Profile.__index = Profile
Profile.__name = "resin.Profile"

-- ---- rows -----------------------------------------------------------------------------------------------------------------

-- Numbers of the programs in the order in which they first ran.
local function program_number(known, program)
  if program == nil then return 0 end
  local key = tonumber(ffi.cast("uintptr_t", program))
  if not known[key] then
    known.n = known.n + 1
    known[key] = known.n
  end
  return known[key]
end

local function place(number, instruction)
  if number == 0 then return "eager" end
  return instruction and ("program %d #%d"):format(number, instruction + 1) or "program " .. number
end

local function collect(self, events, n, by_instruction)
  local rows, found, known = {}, {}, {n = 0}
  local kernels = 0
  for i = 0, n - 1 do
    local e = events[i]
    local op, kernel = ffi.string(e.op), ffi.string(e.kernel)
    local number = program_number(known, e.program)
    local where = place(number, by_instruction and e.instruction)
    local key = op .. "/" .. kernel .. "/" .. where
    local row = found[key]
    if not row then
      row = {op = op, kernel = kernel, where = where, program = number > 0 and number or nil,
             instruction = number > 0 and by_instruction and e.instruction + 1 or nil, calls = 0, seconds = 0, bytes = 0}
      found[key] = row
      rows[#rows + 1] = row
    end
    row.calls = row.calls + 1
    row.seconds = row.seconds + e.seconds
    row.bytes = row.bytes + e.bytes
    kernels = kernels + e.seconds
  end
  for i, row in ipairs(rows) do
    row.share = kernels > 0 and row.seconds / kernels or 0
    row.rate = row.seconds > 0 and row.bytes / row.seconds or 0
    row.order = i
  end
  table.sort(rows, function(a, b)
    if a.seconds ~= b.seconds then return a.seconds > b.seconds end
    return a.order < b.order
  end)
  for _, row in ipairs(rows) do row.order = nil end
  self.rows, self.kernels, self.calls, self.programs = rows, kernels, n, known.n
end

-- ---- printing -------------------------------------------------------------------------------------------------------------

local HEAD = {"op", "kernel", "where", "calls", "total ms", "%", "mean us", "GB/s"}
local LEFT = 3
local MOST_ROWS = 40

function Profile:__tostring()
  local cells = {HEAD}
  for i = 1, math.min(#self.rows, self.lines) do
    local r = self.rows[i]
    cells[#cells + 1] = {r.op, r.kernel, r.where, ("%d"):format(r.calls), ("%.3f"):format(r.seconds * 1e3),
                         ("%.1f"):format(r.share * 100), ("%.2f"):format(r.seconds / r.calls * 1e6), ("%.1f"):format(r.rate / 1e9)}
  end
  local lines = text.columns(cells, LEFT)
  if #self.rows > self.lines then
    local rest = 0
    for i = self.lines + 1, #self.rows do rest = rest + self.rows[i].seconds end
    lines[#lines + 1] = ("and %s more: %.3f ms"):format(text.count(#self.rows - self.lines, "row"), rest * 1e3)
  end
  local whole = ("%s, %.3f ms"):format(text.count(self.runs, "run"), self.seconds * 1e3)
  local inside = ("%.3f ms in %s"):format(self.kernels * 1e3, text.count(self.calls, "kernel"))
  if self.dropped > 0 then
    lines[#lines + 1] = ("%s; %s, and %d more that ran when the buffer was full: give capacity = %d to see all"):format(whole, inside,
      self.dropped, self.calls + self.dropped)
  else
    lines[#lines + 1] = ("%s: %s (%.1f %%), the rest between them"):format(whole, inside, self.kernels / self.seconds * 100)
  end
  return table.concat(lines, "\n")
end

-- ---- the trace file -------------------------------------------------------------------------------------------------------

local ESCAPES = {['"'] = '\\"', ["\\"] = "\\\\", ["\n"] = "\\n", ["\r"] = "\\r", ["\t"] = "\\t"}

local function quoted(s)
  return '"' .. s:gsub('[%c"\\]', function(c) return ESCAPES[c] or ("\\u%04x"):format(c:byte()) end) .. '"'
end

-- Complete events ("X") in microseconds; every program has a line of its own, the runs of the function another.
local function trace_lines(events, n, marks)
  local known, lines = {n = 0}, {}
  local zero = marks[1] and marks[1][1] or 0
  local function add(fmt, ...) lines[#lines + 1] = fmt:format(...) end
  add('{"name": "process_name", "ph": "M", "pid": 1, "args": {"name": "resin"}}')
  for run, mark in ipairs(marks) do
    add('{"name": "run %d", "cat": "run", "ph": "X", "ts": %.3f, "dur": %.3f, "pid": 1, "tid": 0}', run, (mark[1] - zero) * 1e6,
      (mark[2] - mark[1]) * 1e6)
  end
  for i = 0, n - 1 do
    local e = events[i]
    local number = program_number(known, e.program)
    local instruction = number > 0 and (', "instruction": %d'):format(e.instruction + 1) or ""
    add('{"name": %s, "cat": %s, "ph": "X", "ts": %.3f, "dur": %.3f, "pid": 1, "tid": %d, "args": {"kernel": %s, "bytes": %.0f%s}}',
      quoted(ffi.string(e.op)), number > 0 and '"program"' or '"eager"', (e.start - zero) * 1e6, e.seconds * 1e6, number + 1,
      quoted(ffi.string(e.kernel)), e.bytes, instruction)
  end
  for tid = 0, known.n + 1 do
    local name = tid == 0 and "runs" or tid == 1 and "eager" or "program " .. (tid - 1)
    add('{"name": "thread_name", "ph": "M", "pid": 1, "tid": %d, "args": {"name": %s}}', tid, quoted(name))
  end
  return lines
end

local function write_trace(path, events, n, marks)
  local file, problem = io.open(path, "w")
  if not file then check.fail("profile: cannot write the trace: %s", problem) end
  local ok, why = file:write('{"displayTimeUnit": "ns", "traceEvents": [\n', table.concat(trace_lines(events, n, marks), ",\n"), "\n]}\n")
  if ok then ok, why = file:close() else file:close() end
  if not ok then check.fail("profile: cannot write the trace: %s", why) end
end

-- ---- running --------------------------------------------------------------------------------------------------------------

local OPTIONS = {"runs", "warm_up", "by", "trace", "capacity", "rows"}
local out_dropped = ffi.new("double[1]")

--- Runs fn and says which ops took how long, how often and at what rate of bytes.
---
--- options: runs = 1 (times that fn is called); warm_up = 0 (calls before that, which are not measured: a compiled function records
--- in its first ones); by = "op", or "instruction" for a row per instruction of a program; trace = "file.json" (a Chrome trace);
--- capacity = 100000 (kernels that are kept); rows = 40 (of the printed table).
--- The time of a kernel includes reading the clock, some 30 ns. Bytes are those of inputs and outputs.
---@param fn function
---@param options? table
---@return resin.Profile
local function profile(fn, options)
  check.func(fn, "profile: argument 1")
  options = check.options(options, OPTIONS, "profile")
  local runs = check.integer(options.runs or 1, "profile: runs", 1)
  local capacity = check.integer(options.capacity or 100000, "profile: capacity", 1, 1e8)
  local by = check.enum(options.by or "op", "profile: by", {"op", "instruction"})
  local path = options.trace and check.string(options.trace, "profile: trace")
  local self = setmetatable({runs = runs, lines = check.integer(options.rows or MOST_ROWS, "profile: rows", 1)}, Profile)
  for _ = 1, check.integer(options.warm_up or 0, "profile: warm_up", 0) do fn() end
  local events, marks = ffi.new("rs_profile_event[?]", capacity), {}
  local function all()
    for run = 1, runs do
      local begin = C.rs_time()
      fn()
      marks[run] = {begin, C.rs_time()}
    end
  end
  check.status(C.rs_profile_begin(ctx, events, capacity))
  local ok, message = xpcall(all, check.handler)
  local n = C.rs_profile_end(ctx, out_dropped)
  if not ok then error(message, 0) end
  self.seconds, self.dropped = 0, out_dropped[0]
  for _, mark in ipairs(marks) do self.seconds = self.seconds + mark[2] - mark[1] end
  collect(self, events, n, by == "instruction")
  if path then write_trace(path, events, n, marks) end
  return self
end

return profile
