--- The printed tree of a module.
--   Sequential
--     [1] Conv2d(1, 8, 3, {padding = 1})    80
--     [2] ReLU()
--     head  Linear(8, 10)                   90
--   total: 170 parameters
-- [i] is what Lua indexes; a name is shown as it stands. Numbers on the right count the layer's own parameters.

local lib = require "resin.lib"

local C = lib.C
local describe = {}

--- 1234567 → "1,234,567"
---@param n number
---@return string
function describe.count(n)
  local text = ("%d"):format(n)
  local sign, digits = text:match("^(%-?)(%d+)$")
  digits = digits:reverse():gsub("(%d%d%d)", "%1,"):reverse():gsub("^,", "")
  return sign .. digits
end

local function own_parameters(module)
  local n, found = 0, false
  for _, name in ipairs(module._parameters) do
    local tensor = rawget(module, name)
    if tensor ~= nil then n, found = n + tonumber(C.rs_tensor_numel(tensor.h)), true end
  end
  return n, found
end

local function add_lines(module, title, depth, lines, seen, label)
  local text = ("  "):rep(depth) .. (title ~= "" and title .. " " or "") .. (label or module:label())
  if seen[module] then
    lines[#lines + 1] = {text .. " (shared)"}
    return
  end
  seen[module] = true
  local n, found = own_parameters(module)
  lines[#lines + 1] = {text, found and describe.count(n) or nil}
  local names, modules = module:child_list()
  for i = 1, #modules do
    local shown = module.numbered and names[i] == tostring(i - 1) and "[" .. i .. "]" or names[i] .. ":"
    local known = module.child_label and module[i] == modules[i] and module:child_label(i) or nil   -- what the container knows of it
    add_lines(modules[i], shown, depth + 1, lines, seen, known)
  end
end

---@param self resin.nn.Module
---@return string
function describe.tree(self)
  local lines = {}
  add_lines(self, "", 0, lines, {})
  local widest, most = 0, 0
  for _, line in ipairs(lines) do
    if line[2] then
      widest = math.max(widest, #line[1])
      most = math.max(most, #line[2])
    end
  end
  local out = {}
  for i, line in ipairs(lines) do
    if line[2] then
      out[i] = line[1] .. (" "):rep(widest - #line[1] + 2 + most - #line[2]) .. line[2]
    else
      out[i] = line[1]
    end
  end
  local total, trainable = self:num_parameters(), self:num_parameters(true)
  out[#out + 1] = "total: " .. describe.count(total) .. " parameters"
    .. (trainable < total and (" (%s trainable)"):format(describe.count(trainable)) or "")
  return table.concat(out, "\n")
end

return describe
