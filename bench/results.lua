-- bench/results.json and the table in docs/performance.md.
-- The file holds one row in each line, so that a run of some rows keeps the others as they are. A row is known by its workload,
-- variant, what is measured, dtype and threads.

local definitions = require "rows"

local results = {}

local KEYS = { "workload", "variant", "measure", "dtype", "threads", "mode", "ours_us", "ours_mb", "peers", "ratio_best", "ratios",
  "difference", "least_us", "cpu_us", "share_of_peak", "peak_gflops", "disturbed", "goal" }

local function encode(value)
  if type(value) == "number" then return ("%.6g"):format(value) end
  if type(value) == "string" then return '"' .. value:gsub('["\\]', "\\%0") .. '"' end
  local parts = {}
  for key, entry in pairs(value) do parts[#parts + 1] = encode(key) .. ": " .. encode(entry) end
  table.sort(parts)
  return "{" .. table.concat(parts, ", ") .. "}"
end

local function line_of(row)
  local parts = {}
  for _, key in ipairs(KEYS) do
    if row[key] ~= nil then parts[#parts + 1] = encode(key) .. ": " .. encode(row[key]) end
  end
  return "  {" .. table.concat(parts, ", ") .. "}"
end

-- A line that line_of wrote, as a table.
local function row_of(line)
  local text = line:match "^%s*({.*}),?$"
  if not text then return nil end
  local chunk = loadstring("return " .. text:gsub('("[^"]*"): ', "[%1] = "))
  return chunk and setfenv(chunk, {})()
end

local function key_of(row)
  return table.concat({ row.workload, row.variant or "", row.measure, row.dtype }, "|")
end

-- Places in the order of rows.lua.
local places = {}
for i, row in ipairs(definitions) do places[key_of(row)] = i end

local function comes_before(a, b)
  local i, j = places[key_of(a)] or 0, places[key_of(b)] or 0
  if i ~= j then return i < j end
  return a.threads < b.threads
end

--- The rows of the file.
function results.read(path)
  local file, rows = io.open(path), {}
  if not file then return rows end
  for line in file:lines() do rows[#rows + 1] = row_of(line) end
  file:close()
  return rows
end

--- Puts a row in the place of an older one and writes the file. Rows that are no longer defined go.
function results.put(path, row)
  local rows = { row }
  for _, other in ipairs(results.read(path)) do
    local same = key_of(other) == key_of(row) and other.threads == row.threads
    if places[key_of(other)] and not same then rows[#rows + 1] = other end
  end
  table.sort(rows, comes_before)
  local lines = {}
  for i, entry in ipairs(rows) do lines[i] = line_of(entry) end
  local file = assert(io.open(path .. ".tmp", "w"))
  file:write("[\n", table.concat(lines, ",\n"), "\n]\n")
  file:close()
  assert(os.rename(path .. ".tmp", path))
end

-- ---- goals ----------------------------------------------------------------------------------------------------------------

local NAMES = { eager = "eager", compile = "torch.compile", onnxruntime = "ONNX Runtime", best = "best peer" }
local ORDER = { "eager", "compile", "onnxruntime", "best" }

-- The ratio to PyTorch eager is that to its better layout.
local function ratio_to(row, name)
  if name == "best" then return row.ratio_best end
  local ratio = row.ratios and row.ratios[name]
  if name == "eager" and ratio and row.ratios.channels_last then ratio = math.min(ratio, row.ratios.channels_last) end
  return ratio
end

--- The goal of a row as text, and whether it is met: true, false, or nil when that is not known.
function results.goal(row)
  local texts, missed, unknown = {}, false, false
  local function add(text, value, good)
    texts[#texts + 1] = text
    if value == nil then unknown = true elseif not good then missed = true end
  end
  local goal = row.goal or {}
  for _, name in ipairs(ORDER) do
    local ratio = ratio_to(row, name)
    if goal[name] then add(("%.3g× %s"):format(goal[name], NAMES[name]), ratio, ratio and ratio >= goal[name]) end
  end
  local share, us = row.share_of_peak, row.ours_us
  if goal.peak then add(("%.0f %% of the peak"):format(100 * goal.peak), share, share and share >= goal.peak) end
  if goal.us then
    add(goal.us < 1000 and ("%g µs"):format(goal.us) or ("%g ms"):format(goal.us / 1000), us, us and us <= goal.us)
  end
  if missed then return table.concat(texts, ", "), false end
  return table.concat(texts, ", "), #texts > 0 and not unknown or nil
end

-- ---- the page -------------------------------------------------------------------------------------------------------------

local BEGIN, END = "<!-- bench/results.json, written by make bench -->", "<!-- end of bench/results.json -->"

local function amount(value)
  if not value then return "" end
  if value >= 1000 then return ("%.0f"):format(value) end
  return ("%.3g"):format(value)
end

-- Microseconds as text with a unit.
local function duration(us)
  if not us then return "" end
  if us < 1000 then return amount(us) .. " µs" end
  return amount(us / 1000) .. " ms"
end

local function table_line(row)
  local show = row.measure == "memory" and function(mb) return mb and amount(mb) .. " MB" or "" end or duration
  local peers, others = row.peers, {}
  local eager = peers.eager
  if peers.channels_last then eager = math.min(eager or math.huge, peers.channels_last) end
  for name, value in pairs(peers) do
    if name ~= "eager" and name ~= "channels_last" and not NAMES[name] then others[#others + 1] = name .. " " .. show(value) end
  end
  table.sort(others)
  local goal, met = results.goal(row)
  local name = row.workload .. (row.variant and ", " .. row.variant or "") .. (row.measure ~= "time" and ", " .. row.measure or "")
  local cells = { name, row.dtype, tostring(row.threads), show(row.ours_us or row.ours_mb), show(eager), show(peers.compile),
    show(peers.onnxruntime), row.ratio_best and ("%.2f"):format(row.ratio_best) or
      row.share_of_peak and ("%.0f %% of %.0f GFLOP/s"):format(100 * row.share_of_peak, row.peak_gflops) or "",
    goal, met == nil and "" or met and "yes" or "no" }
  if #others > 0 then cells[8] = cells[8] .. " (" .. table.concat(others, ", ") .. ")" end
  return "| " .. table.concat(cells, " | ") .. " |"
end

--- The table between the two markers of a page; the rest of the page stays.
function results.write_page(path, rows)
  local file = assert(io.open(path))
  local text = file:read "*a"
  file:close()
  local from, to = text:find(BEGIN, 1, true), text:find(END, 1, true)
  if not from or not to then return end
  local lines = { BEGIN, "",
    "| workload | dtype | threads | ours | PyTorch eager | torch.compile | ONNX Runtime | ratio to the best | goal | met |",
    "|---|---|---|---|---|---|---|---|---|---|" }
  for _, row in ipairs(rows) do lines[#lines + 1] = table_line(row) end
  lines[#lines + 1] = ""
  file = assert(io.open(path, "w"))
  file:write(text:sub(1, from - 1), table.concat(lines, "\n"), "\n", text:sub(to))
  file:close()
end

return results
