--- Text of tables: columns, numbers and bytes as people read them.

local text = {}

local UNITS = {{2 ^ 30, "GB"}, {2 ^ 20, "MB"}, {2 ^ 10, "KB"}}

--- 1536 → "1.5 KB"
---@param n number
---@return string
function text.bytes(n)
  for _, unit in ipairs(UNITS) do
    if n >= unit[1] then return ("%.1f %s"):format(n / unit[1], unit[2]) end
  end
  return ("%d B"):format(n)
end

--- The lines of a table: each cell as wide as the widest of its column.
---@param rows string[][]
---@param left table<integer, boolean>|integer  columns aligned to the left: a set, or the number of the last of them
---@return string[]
function text.columns(rows, left)
  local width = {}
  for _, row in ipairs(rows) do
    for c, cell in ipairs(row) do width[c] = math.max(width[c] or 0, #cell) end
  end
  local lines = {}
  for i, row in ipairs(rows) do
    local cells = {}
    for c, cell in ipairs(row) do
      local space = (" "):rep(width[c] - #cell)
      local to_left = type(left) == "number" and c <= left or type(left) == "table" and left[c]
      cells[c] = to_left and cell .. space or space .. cell
    end
    lines[i] = (table.concat(cells, "  "):gsub("%s+$", ""))
  end
  return lines
end

--- "1 program", "2 programs"
---@param n integer
---@param one string
---@param many? string
---@return string
function text.count(n, one, many)
  return ("%d %s"):format(n, n == 1 and one or many or one .. "s")
end

return text
