--- Reports as text.

local text = {}

local function shape_text(shape) return "[" .. table.concat(shape, ", ") .. "]" end

local function number(value)
  if value == nil then return "" end
  if value ~= value or value == math.huge then return "not finite" end
  return ("%.3e"):format(value)
end

-- Rows of cells as aligned lines. The first columns are aligned to the left, as many as `left` says.
local function aligned(rows, left)
  local width = {}
  for _, row in ipairs(rows) do
    for c = 1, #row do width[c] = math.max(width[c] or 0, #row[c]) end
  end
  local lines = {}
  for i, row in ipairs(rows) do
    local cells = {}
    for c = 1, #row do
      local space = (" "):rep(width[c] - #row[c])
      cells[c] = c <= left and row[c] .. space or space .. row[c]
    end
    lines[i] = (table.concat(cells, "  "):gsub("%s+$", ""))
  end
  return lines
end
text.aligned = aligned

--- The guide's table.
---@param report resin.doctor.Report
---@return string
function text.gradient_table(report)
  local lines = {"Gradient Analysis:", ("-"):rep(50)}
  for _, p in ipairs(report.parameters) do
    if p.name:find("weight", 1, true) then
      lines[#lines + 1] = ("%s: gradient mean = %.3e"):format(p.name, p.mean)
    end
  end
  return table.concat(lines, "\n")
end

local function parameter_rows(report)
  local rows = {{"parameter", "shape", "", "norm", "mean |g|", "max |g|", "|g|/|w|", "zeros"}}
  for _, p in ipairs(report.parameters) do
    local note = p.verdict ~= "healthy" and p.verdict or p.closed and "closed" or ""
    rows[#rows + 1] = {p.name, shape_text(p.shape), note, number(p.norm), number(p.mean), number(p.max), number(p.ratio),
                       ("%.0f %%"):format(100 * p.zeros)}
  end
  return rows
end

local function path_rows(report)
  local rows = {{"residual path", "record", "operation", "", "skip", "branch", "alpha", "scale", "cosine", "grad skip", "grad branch"}}
  for _, p in ipairs(report.paths) do
    local note = p.verdict ~= "healthy" and p.verdict or p.note and p.note:match("^%a+") or ""
    rows[#rows + 1] = {p.name, p.record or "", p.operation or "", note, number(p.skip), number(p.branch),
                       p.alpha and ("%.4g"):format(p.alpha) or "", p.scale and ("%.4g"):format(p.scale) or "",
                       p.cosine and ("%.3f"):format(p.cosine) or "", number(p.skip_gradient), number(p.branch_gradient)}
  end
  return rows
end

local MOST = 10

--- The verdict and its reasons.
---@param report resin.doctor.Report
---@return string[] lines
function text.verdicts(report)
  local lines = {"verdict: " .. report.verdict}
  for i, v in ipairs(report.verdicts) do
    if i > MOST then
      lines[#lines + 1] = ("  and %d more"):format(#report.verdicts - MOST)
      break
    end
    lines[#lines + 1] = ("  %s: %s"):format(v.verdict, v.text)
  end
  return lines
end

local function append(lines, more)
  for _, line in ipairs(more) do lines[#lines + 1] = line end
end

--- Everything that a report knows.
---@param report resin.doctor.Report
---@return string
function text.report(report)
  local lines = aligned(parameter_rows(report), 3)
  if #report.paths > 0 then
    lines[#lines + 1] = ""
    append(lines, aligned(path_rows(report), 4))
  end
  lines[#lines + 1] = ""
  if report.depth_ratio then
    lines[#lines + 1] = ("first to last %s: %.3e / %.3e = %.3g"):format(report.profile, report.first, report.last, report.depth_ratio)
  end
  append(lines, text.verdicts(report))
  return table.concat(lines, "\n")
end

local function weights(report)
  local list, by_name = {}, {}
  for _, p in ipairs(report.parameters) do
    if p.is_weight then
      list[#list + 1] = p
      by_name[p.name] = p
    end
  end
  return list, by_name
end

local function all_in(list, by_name)
  for _, p in ipairs(list) do
    if not by_name[p.name] then return false end
  end
  return true
end

--- The weights of one or two reports in rows {name, entries}: by name where one model has all the names of the other, else
--- the k-th beside the k-th.
---@param reports resin.doctor.Report[]
---@return table[] rows  {name = string, [1] = entry or nil, [2] = entry or nil}
function text.paired(reports)
  local a, a_names = weights(reports[1])
  local rows = {}
  for i, p in ipairs(a) do rows[i] = {name = p.name, p} end
  if not reports[2] then return rows end
  local b, b_names = weights(reports[2])
  if all_in(a, b_names) or all_in(b, a_names) then
    local row_of = {}
    for _, row in ipairs(rows) do row_of[row.name] = row end
    for _, q in ipairs(b) do
      local row = row_of[q.name]
      if not row then
        row = {name = q.name}
        rows[#rows + 1] = row
      end
      row[2] = q
    end
  else
    for i, q in ipairs(b) do
      local row = rows[i]
      if not row then
        rows[i] = {name = q.name, [2] = q}
      else
        row[2] = q
        if row.name ~= q.name then row.name = row.name .. " / " .. q.name end
      end
    end
  end
  return rows
end

--- Two reports side by side, a line per weight.
---@param comparison resin.doctor.Comparison
---@return string
function text.comparison(comparison)
  local rows = {{"mean |g| of", comparison.names[1], comparison.names[2], "times"}}
  for _, row in ipairs(text.paired(comparison)) do
    local p, q = row[1], row[2]
    rows[#rows + 1] = {row.name, p and number(p.mean) or "-", q and number(q.mean) or "-",
                       p and q and p.mean > 0 and ("%.3g"):format(q.mean / p.mean) or ""}
  end
  local lines = aligned(rows, 1)
  lines[#lines + 1] = ""
  for i = 1, 2 do
    local report = comparison[i]
    local depth = report.depth_ratio and (" (first to last %.3g)"):format(report.depth_ratio) or ""
    lines[#lines + 1] = ("%s: %s%s"):format(comparison.names[i], report.verdict, depth)
  end
  return table.concat(lines, "\n")
end

return text
