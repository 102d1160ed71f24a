--- model:visualize: a model as PDF, SVG or PNG through Graphviz, as DOT, or as text.
-- Text and DOT are written here. For the others the program `dot` of the package graphviz lays the drawing out.

local check = require "resin.check"
local dot = require "resin.report.dot"
local graph = require "resin.report.graph"
local lanes = require "resin.report.lanes"

local FORMATS = {"text", "dot", "svg", "pdf", "png"}
local ENDINGS = {txt = "text", text = "text", dot = "dot", gv = "dot", svg = "svg", pdf = "pdf", png = "png"}
local OPTIONS = {"path", "format", "shape", "input", "direction", "repeats", "title", "program"}

local function write(path, text, what)
  local file, why = io.open(path, "wb")
  if not file then check.fail("%s: cannot write %s", what, why) end
  file:write(text)
  file:close()
end

local function read(path)
  local file = io.open(path, "rb")
  if not file then return nil end
  local text = file:read("*a")
  file:close()
  return text
end

-- One word of a shell command.
local function word(s) return "'" .. s:gsub("'", "'\\''") .. "'" end

-- What Graphviz makes of a DOT text.
local function render(text, format, program, what)
  local source, target = os.tmpname(), os.tmpname()
  write(source, text, what)
  local pipe = io.popen(("%s -T%s -o %s %s 2>&1; echo \"status $?\""):format(word(program), format, word(target), word(source)))
  local output = pipe and pipe:read("*a") or "status 127"
  if pipe then pipe:close() end
  local message, status = output:match("^(.-)%s*status (%d+)%s*$")
  local drawing = read(target)
  os.remove(source)
  os.remove(target)
  if status == "127" or status == "126" then
    check.fail('%s: %s is drawn by the program "%s", which cannot be run; install the package graphviz (apt-get install graphviz), or '
      .. 'draw as DOT or text: format = "dot", format = "text"', what, format:upper(), program)
  end
  if status ~= "0" or not drawing or drawing == "" then
    check.fail('%s: the program "%s" failed: %s', what, program, message ~= "" and message or "it wrote nothing")
  end
  return drawing
end

local function format_of(o, what)
  if o.format ~= nil then return check.enum(o.format, what .. ": format", FORMATS) end
  if o.path == nil then return "text" end
  local ending = o.path:match("%.(%w+)$")
  local format = ending and ENDINGS[ending:lower()]
  if not format then
    check.fail('%s: %s does not end in .pdf, .svg, .png, .dot or .txt; name the file so, or give format = "svg"', what, o.path)
  end
  return format
end

--- Draws a model.
--- path       file to write; its ending chooses the format. Without a path nothing is written
--- format     "text" (the default without a path), "dot", "svg", "pdf", "png"
--- shape      of an input, such as {8, 3, 32, 32}: shapes are written on the edges; or `input`, a tensor to run the model with
--- direction  "down" (default) or "right"
--- repeats    false draws equal parts that follow one another in full instead of once with "× n"
--- title      above the drawing
--- program    of Graphviz, "dot" by default
--- Returns the drawing.
---@param model resin.nn.Module
---@param options? table
---@return string
return function(model, options)
  local what = model.type .. ": visualize"
  local o = check.options(options, OPTIONS, what)
  for _, name in ipairs{"path", "title", "program"} do
    if o[name] ~= nil then check.string(o[name], what .. ": " .. name) end
  end
  if o.repeats ~= nil then check.boolean(o.repeats, what .. ": repeats") end
  local direction = o.direction == nil and "down" or check.enum(o.direction, what .. ": direction", {"down", "right"})
  if o.shape ~= nil and o.input ~= nil then check.fail("%s: give shape or input, not both", what) end
  local format = format_of(o, what)

  local g = graph.of(model, o.input == nil and o.shape or o.input, what)
  if o.repeats ~= false then graph.fold(g) end
  local drawing
  if format == "text" then
    drawing = lanes.text(g, {title = o.title})
  else
    drawing = dot.text(g, {direction = direction, title = o.title})
    if format ~= "dot" then drawing = render(drawing, format, o.program or "dot", what) end
  end
  if o.path then write(o.path, drawing, what) end
  return drawing
end
