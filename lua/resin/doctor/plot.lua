--- Gradients by depth as bars of text and as an SVG picture, both on a logarithmic scale. One or two reports share the axes.

local check = require "resin.check"
local text = require "resin.doctor.text"

local plot = {}

local FIELDS = {"ratio", "norm", "mean", "max"}
local TITLES = {ratio = "|gradient| / |weight|", norm = "norm of the gradient", mean = "mean of |gradient|", max = "max of |gradient|"}

local function field_of(options, what)
  options = check.options(options, {"width", "field", "title", "names"}, what)
  return options.field == nil and "norm" or check.enum(options.field, what .. ": field", FIELDS), options
end

-- The names of the weights in order, and for each report the values: values[r][k] belongs to names[k], nil where it has none.
local function series(reports, field)
  local names, values = {}, {}
  for r = 1, #reports do values[r] = {} end
  for k, row in ipairs(text.paired(reports)) do
    names[k] = row.name
    for r = 1, #reports do values[r][k] = row[r] and row[r][field] or nil end
  end
  return names, values
end

local function usable(v) return v and v > 0 and v < math.huge end

-- The powers of ten below and above all values.
local function decades(names, values)
  local low, high
  for _, list in ipairs(values) do
    for k = 1, #names do
      local v = list[k]
      if usable(v) then
        local d = math.log10(v)
        low, high = math.min(low or d, d), math.max(high or d, d)
      end
    end
  end
  if not low then return -1, 0 end
  low, high = math.floor(low), math.ceil(high)
  if low == high then high = low + 1 end
  return low, high
end

local function fraction(v, low, high) return (math.log10(v) - low) / (high - low) end

local MARKS = {"█", "▒"}

--- Bars of text, a line per weight and report.
---@param reports resin.doctor.Report[]
---@param options? {width: integer, field: string, names: string[]}
---@return string
function plot.bars(reports, options)
  local field
  field, options = field_of(options, "doctor: bars")
  local width = options.width == nil and 40 or check.integer(options.width, "doctor: bars: width", 10, 200)
  local names, values = series(reports, field)
  local low, high = decades(names, values)
  local longest = 0
  for _, name in ipairs(names) do longest = math.max(longest, #name) end
  local pad = (" "):rep(longest)
  local scale = ("1e%d"):format(low)
  local finish = ("1e%d"):format(high)
  local lines = {("%s, logarithmic"):format(TITLES[field]),
                 ("%s  %s%s%s"):format(pad, scale, (" "):rep(math.max(1, width - #scale - #finish)), finish)}
  for k, name in ipairs(names) do
    for r = 1, #reports do
      local v, bar, shown = values[r][k], "", "-"
      if v == 0 then
        shown = "0"
      elseif v and not usable(v) then
        bar, shown = MARKS[r]:rep(width), "not finite"
      elseif v then
        bar, shown = MARKS[r]:rep(math.max(1, math.floor(fraction(v, low, high) * width + 0.5))), ("%.2e"):format(v)
      end
      local title = r == 1 and name .. (" "):rep(longest - #name) or pad
      lines[#lines + 1] = ("%s  %s %s"):format(title, bar, shown)
    end
  end
  if options.names then
    lines[#lines + 1] = ("%s  %s %s   %s %s"):format(pad, MARKS[1], options.names[1], MARKS[2], options.names[2])
  end
  return table.concat(lines, "\n")
end

-- ---- SVG ------------------------------------------------------------------------------------------------------------------

local COLOURS = {"#2f6f9f", "#d9822b"}

local function escape(s) return (s:gsub("[&<>\"]", {["&"] = "&amp;", ["<"] = "&lt;", [">"] = "&gt;", ['"'] = "&quot;"})) end

local BODY, TOP, LEFT, FOOT = 260, 46, 62, 96
local MOST_LABELS = 40

local function bar(out, x, y, w, h, colour, title)
  out[#out + 1] = ('<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s"><title>%s</title></rect>'):format(x, y, w, h, colour,
    escape(title))
end

--- An SVG picture, weights from the input (left) to the output.
---@param reports resin.doctor.Report[]
---@param path? string  file to write
---@param options? {field: string, title: string, names: string[]}
---@return string svg
function plot.svg(reports, path, options)
  local field
  field, options = field_of(options, "doctor: plot")
  local names, values = series(reports, field)
  local low, high = decades(names, values)
  local count = math.max(#names, 1)
  local step = math.max(count > MOST_LABELS and 6 or 14, math.min(46, math.floor(720 / count)))
  local width, height = LEFT + step * count + 20, TOP + BODY + FOOT
  width = math.max(width, 320)
  local out = {
    ('<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="Helvetica, Arial, sans-serif" '
      .. 'font-size="11">'):format(width, height, width, height),
    ('<rect width="%d" height="%d" fill="white"/>'):format(width, height),
    ('<text x="%d" y="20" font-size="14">%s</text>'):format(LEFT, escape(options.title or TITLES[field] .. " by depth")),
  }
  local every = math.max(1, math.ceil((high - low) / 10))
  for d = low, high, every do
    local y = TOP + BODY * (1 - (d - low) / (high - low))
    out[#out + 1] = ('<line x1="%d" y1="%.1f" x2="%d" y2="%.1f" stroke="#dddddd"/>'):format(LEFT, y, width - 12, y)
    out[#out + 1] = ('<text x="%d" y="%.1f" text-anchor="end">1e%d</text>'):format(LEFT - 6, y + 4, d)
  end
  local space = step * 0.2
  local each = (step - space) / #reports
  local label_every = math.ceil(count / MOST_LABELS)
  for i, name in ipairs(names) do
    local left = LEFT + (i - 1) * step + space / 2
    for r = 1, #reports do
      local v = values[r][i]
      if usable(v) then
        local h = math.max(1, BODY * fraction(v, low, high))
        bar(out, left + (r - 1) * each, TOP + BODY - h, each, h, COLOURS[r], ("%s: %.3e"):format(name, v))
      end
    end
    if (i - 1) % label_every == 0 then
      local x, y = left + (step - space) / 2, TOP + BODY + 12
      out[#out + 1] = ('<text x="%.1f" y="%.1f" text-anchor="end" transform="rotate(-45 %.1f %.1f)">%s</text>'):format(x, y, x, y,
        escape(name))
    end
  end
  if options.names then
    for r = 1, #reports do
      local x = LEFT + (r - 1) * 150
      out[#out + 1] = ('<rect x="%d" y="28" width="10" height="10" fill="%s"/><text x="%d" y="37">%s</text>'):format(x, COLOURS[r],
        x + 15, escape(options.names[r]))
    end
  end
  out[#out + 1] = "</svg>\n"
  local svg = table.concat(out, "\n")
  if path ~= nil then
    check.string(path, "doctor: plot: path")
    local file, why = io.open(path, "w")
    if not file then check.fail("doctor: plot: cannot write %s: %s", path, why) end
    file:write(svg)
    file:close()
  end
  return svg
end

return plot
