--- fast:explain(): what resin.compile recorded, as text: for each program its instructions, what the passes made of them, and the
-- memory plan. Values are x (arguments), t (temporaries and views) and bindings, which carry the name of the parameter or of the
-- optimiser's state where the module, or the variables that the function uses, tell it.

local lib = require "resin.lib"
local check = require "resin.check"
local class = require "resin.nn.class"
local dtype = require "resin.dtype"
local text = require "resin.report.text"

local ffi, C = lib.ffi, lib.C
local concat = table.concat

local program_info, instruction_info = ffi.new("rs_program_info"), ffi.new("rs_instruction_info")
local value_info, attr_info, op_info = ffi.new("rs_value_info"), ffi.new("rs_attr_info"), ffi.new("rs_op_info")

local ARGUMENT, BOUND = 0, 1
local MOST_OPERANDS = 6       -- of an instruction that are shown; an optimiser's step has hundreds

-- ---- names of bindings ----------------------------------------------------------------------------------------------------

local function key_of(h) return tonumber(ffi.cast("uintptr_t", C.rs_tensor_data(h))) end

local out_grad = ffi.new("rs_tensor *[1]")

-- A parameter, and its gradient.
local function name_tensor(names, t, name)
  if not t.h then return end
  names[key_of(t.h)] = name
  if C.rs_tensor_grad(lib.ctx, t.h, out_grad) == 0 and out_grad[0] ~= nil then
    names[key_of(out_grad[0])] = "grad of " .. name
    C.rs_tensor_release(out_grad[0])
  end
end

local function name_module(names, module, prefix)
  for name, t in module:named_parameters() do name_tensor(names, t, prefix .. name) end
  for name, t in module:named_buffers() do name_tensor(names, t, prefix .. name) end
end

local function name_optimiser(names, optimiser)
  for g, group in ipairs(optimiser.param_groups) do
    local of = #optimiser.param_groups > 1 and ("%s group %d"):format(optimiser.type, g) or optimiser.type
    names[key_of(group.hyper.h)] = of .. " options"
    if group.steps then names[key_of(group.steps.h)] = of .. " steps" end
    for key, list in pairs(group.state) do
      for i, t in ipairs(list) do
        local parameter = group.params[i]
        local known = parameter and parameter.h and names[key_of(parameter.h)]
        if t and t.h then names[key_of(t.h)] = ("%s of %s"):format(key, known or group.names[i]) end
      end
    end
  end
end

-- What the module, or the variables of the function (by the upvalues that it has), are called.
local function names_of(self)
  local names = {}
  if self.module then
    name_module(names, self.module, "")
    return names
  end
  if type(self.fn) ~= "function" then return names end
  local modules, optimisers = {}, {}
  for i = 1, 60 do
    local name, value = debug.getupvalue(self.fn, i)
    if not name then break end
    if class.is_module(value) then
      modules[#modules + 1] = {name, value}
    elseif type(value) == "table" and type(rawget(value, "param_groups")) == "table" then
      optimisers[#optimisers + 1] = value
    elseif check.Tensor and type(value) == "table" and getmetatable(value) == check.Tensor then
      name_tensor(names, value, name)
    end
  end
  for _, m in ipairs(modules) do name_module(names, m[2], #modules > 1 and m[1] .. "." or "") end
  for _, o in ipairs(optimisers) do name_optimiser(names, o) end
  return names
end

-- ---- values ---------------------------------------------------------------------------------------------------------------

-- A program being described: its names of values, given in the order in which they appear.
local function new_view(program, names) return {program = program, names = names, known = {}, temporaries = 0, bindings = 0} end

local function form(v)
  local shape = {}
  for d = 1, v.ndim do shape[d] = ("%d"):format(tonumber(v.shape[d - 1])) end
  local kind = dtype.names[v.dtype]
  return "[" .. concat(shape, ",") .. "]" .. (kind ~= "f32" and " " .. kind or "")
end

local function value_name(view, id)
  local known = view.known[id]
  if known then return known end
  local name
  if value_info.kind == ARGUMENT then
    name = "x" .. (id + 1)
  elseif value_info.kind == BOUND then
    name = value_info.bound ~= nil and view.names[key_of(value_info.bound)]
    if not name then
      view.bindings = view.bindings + 1
      name = "b" .. view.bindings
    end
  else
    view.temporaries = view.temporaries + 1
    name = "t" .. view.temporaries
  end
  view.known[id] = name
  return name
end

local function value_text(view, id)
  if id < 0 then return "-" end
  check.status(C.rs_program_value(view.program, id, value_info))
  return value_name(view, id) .. form(value_info)
end

local function values_text(view, ids, first, n)
  local parts = {}
  for i = 0, n - 1 do
    if i >= MOST_OPERANDS and n > MOST_OPERANDS + 1 then
      parts[#parts + 1] = ("and %d more"):format(n - i)
      break
    end
    parts[#parts + 1] = value_text(view, ids[first + i])
  end
  while parts[#parts] == "-" do parts[#parts] = nil end       -- left out at the end
  return concat(parts, ", ")
end

-- ---- attributes -----------------------------------------------------------------------------------------------------------

local function number_text(v) return ("%.14g"):format(v) end

-- An attribute's value as Lua gives it: dimensions and elements count from 1, choices by name. nil: the default.
local function attr_text(at, field)
  if at.count > 1 then
    local list = ffi.cast("const rs_list *", field)
    if list.n == 0 then return nil end
    local parts = {}
    for i = 0, tonumber(list.n) - 1 do
      local v = tonumber(list.v[i])
      parts[#parts + 1] = number_text(at.base_one ~= 0 and v >= 0 and v + 1 or v)
    end
    return #parts == 1 and parts[1] or "{" .. concat(parts, ", ") .. "}"
  end
  if at.kind == C.RS_ATTR_FLOAT then
    local v = ffi.cast("const double *", field)[0]
    return v ~= at.def and number_text(v) or nil
  end
  local v = tonumber(ffi.cast("const int64_t *", field)[0])
  if v == at.def then return nil end
  if at.kind == C.RS_ATTR_BOOL then return tostring(v ~= 0) end
  if at.kind == C.RS_ATTR_DTYPE then return dtype.names[v] or number_text(v) end
  if at.kind == C.RS_ATTR_ENUM then
    local at_choice = 0
    for choice in ffi.string(at.choices):gmatch("[^,]+") do
      if at_choice == v then return choice end
      at_choice = at_choice + 1
    end
  end
  return number_text(at.base_one ~= 0 and v >= 0 and v + 1 or v)
end

local function attrs_text(op, attrs)
  if attrs == nil then return "" end
  check.status(C.rs_op_describe(op, op_info))
  local parts = {}
  for i = 0, op_info.nattrs - 1 do
    check.status(C.rs_op_attr(op, i, attr_info))
    local shown = attr_text(attr_info, ffi.cast("const char *", attrs) + attr_info.offset)
    if shown then parts[#parts + 1] = ffi.string(attr_info.name) .. " = " .. shown end
  end
  return concat(parts, ", ")
end

-- ---- instructions ---------------------------------------------------------------------------------------------------------

local function cells_of(view, index)
  check.status(C.rs_program_instruction(view.program, index, instruction_info))
  local info = instruction_info
  local op, kernel, number, nin, nout = ffi.string(info.op), info.kernel ~= nil and ffi.string(info.kernel) or "view", info.number,
    info.nin, info.nout
  local ids, attrs, inplace = info.ids, info.attrs, info.inplace ~= 0
  local from = values_text(view, ids, 0, nin)
  local to = inplace and "in place" or values_text(view, ids, nin, nout)
  if to == "" then to = "in place" end
  local options = attrs_text(number, attrs)
  return {"  " .. (index + 1), op, kernel, (from ~= "" and from .. " " or "") .. "-> " .. to .. (options ~= "" and "   " .. options or "")}
end

--- How often each op stands in a program; views apart.
---@param program ffi.cdata*
---@return table<string, integer> counts
---@return integer views
local function count_ops(program)
  local counts, views = {}, 0
  for i = 0, C.rs_program_length(program) - 1 do
    check.status(C.rs_program_instruction(program, i, instruction_info))
    if instruction_info.kernel == nil then
      views = views + 1
    else
      local op = ffi.string(instruction_info.op)
      counts[op] = (counts[op] or 0) + 1
    end
  end
  return counts, views
end

-- "3 add, mul": the most frequent first; nothing for counts that are not above 0.
local function counted(counts)
  local order, parts = {}, {}
  for op, n in pairs(counts) do
    if n > 0 then order[#order + 1] = op end
  end
  table.sort(order, function(a, b)
    if counts[a] ~= counts[b] then return counts[a] > counts[b] end
    return a < b
  end)
  for i, op in ipairs(order) do parts[i] = counts[op] > 1 and ("%d %s"):format(counts[op], op) or op end
  return concat(parts, ", ")
end

-- What there is more of in b than in a.
local function more(a, b)
  local result = {}
  for op, n in pairs(b) do result[op] = n - (a[op] or 0) end
  return result
end

-- Instructions first..last-1, with a gap in the middle when there are more than `most`.
local function add_instructions(rows, breaks, view, first, last, most)
  local n = last - first
  local tail = n > most and math.floor(most / 4) or 0
  local gap_from, gap_to = n > most and first + most - tail or last, last - tail
  for i = first, last - 1 do
    if i < gap_from or i >= gap_to then
      rows[#rows + 1] = cells_of(view, i)
    elseif i == gap_from then
      breaks[#rows] = ("  ... %d more: explain{all = true}"):format(gap_to - gap_from)
    end
  end
end

local function add_all(lines, view, info, most)
  local rows, breaks = {}, {}
  local first = info.prologue
  if first > 0 then
    lines[#lines + 1] = "  -- once, and again after a write to what it reads"
    add_instructions(rows, breaks, view, 0, first, math.max(4, math.floor(most / 4)))
    breaks[#rows] = (breaks[#rows] and breaks[#rows] .. "\n" or "") .. "  -- at each run"
  end
  add_instructions(rows, breaks, view, first, info.instructions, most)
  for i, line in ipairs(text.columns(rows, {[2] = true, [3] = true, [4] = true})) do
    lines[#lines + 1] = line
    lines[#lines + 1] = breaks[i]
  end
end

-- ---- programs -------------------------------------------------------------------------------------------------------------

local function describe_program(lines, self, index, entry, names, most)
  local info = program_info
  C.rs_program_describe(entry.program, info)
  local view = new_view(entry.program, names)
  local arguments = {}
  for i = 0, info.inputs - 1 do arguments[#arguments + 1] = value_text(view, i) end
  local counts, views = count_ops(entry.program)
  local before = entry.length ~= info.instructions and (" (%d were recorded)"):format(entry.length) or ""
  lines[#lines + 1] = ("program %d of %d (%s)%s: %s%s, %s, %s in the prologue"):format(index, #self.entries, concat(arguments, ", "),
    self.module and "" or entry.grads and ", gradients on" or ", gradients off", text.count(info.instructions, "instruction"), before,
    text.count(views, "view"), info.prologue == 0 and "none" or ("%d"):format(info.prologue))
  add_all(lines, view, info, most)
  local outputs = {}
  for i = 0, entry.noutputs - 1 do
    local id = C.rs_program_output(entry.program, i)
    outputs[#outputs + 1] = value_text(view, id)
  end
  if #outputs > 0 then lines[#lines + 1] = "  returns " .. concat(outputs, ", ") end
  lines[#lines + 1] = "  ops: " .. counted(counts)
  local gone, new = counted(more(counts, entry.ops)), counted(more(entry.ops, counts))
  if gone ~= "" or new ~= "" then
    lines[#lines + 1] = ("  passes: %s -> %s"):format(gone ~= "" and gone or "nothing", new ~= "" and new or "nothing")
  end
  lines[#lines + 1] = ("  memory: temporaries %s in an arena of %s, prologue %s, %s %s, workspace %s%s"):format(
    text.bytes(info.temporary_bytes), text.bytes(info.arena_bytes), text.bytes(info.prologue_bytes), text.count(info.bound, "binding"),
    text.bytes(info.bound_bytes), text.bytes(C.rs_workspace_bytes(entry.workspace)),
    #self.entries > 1 and " (the arena is shared by all programs)" or "")
end

local report = {count_ops = count_ops}

--- The name of binding number `at`, counted from 1; nil when it has none.
---@param self resin.Compiled
---@param program ffi.cdata*
---@param at integer
---@return string?
function report.binding_name(self, program, at)
  C.rs_program_describe(program, program_info)
  for id = 0, program_info.values - 1 do
    check.status(C.rs_program_value(program, id, value_info))
    if value_info.kind == BOUND then at = at - 1 end
    if at == 0 then return names_of(self)[key_of(value_info.bound)] end
  end
end

local OPTIONS = {"all", "lines"}

--- Describes the programs of a compiled function, the one used last first.
--- options: lines = 60 (instructions shown of each program), all = true shows every one. Values are f32 unless they say otherwise.
---@param self resin.Compiled
---@param options? table
---@return string
function report.explain(self, options)
  options = check.options(options, OPTIONS, "explain")
  local most = check.integer(options.lines or 60, "explain: lines", 4)
  if options.all ~= nil and check.boolean(options.all, "explain: all") then most = math.huge end
  local lines = {tostring(self)}
  if #self.entries == 0 then
    lines[2] = "nothing is recorded yet: " .. (self.module and "call it first, in evaluation mode or without gradients" or
      "its second call records")
  end
  local names = names_of(self)
  for i, entry in ipairs(self.entries) do describe_program(lines, self, i, entry, names, most) end
  return concat(lines, "\n")
end

return report
