--- Arithmetic on shapes for output_shape. A size that is not known is false.

local check = require "resin.check"

local shapes = {}

--- "[8, 3, ?, ?]"
---@param shape (integer|false)[]
---@return string
function shapes.text(shape)
  local parts = {}
  for i = 1, #shape do parts[i] = shape[i] and ("%d"):format(shape[i]) or "?" end
  return "[" .. table.concat(parts, ", ") .. "]"
end

--- Checks an input shape and the number of its dimensions.
---@param shape any
---@param what string  the layer's name
---@param min? integer
---@param max? integer
---@return (integer|false)[] shape
function shapes.check(shape, what, min, max)
  if type(shape) ~= "table" or getmetatable(shape) ~= nil then
    check.fail("%s: output_shape: the shape must be a table of sizes, got %s", what, check.describe(shape))
  end
  for i = 1, #shape do
    local size = shape[i]
    if size ~= false then check.integer(size, what .. ": output_shape: size " .. i, 0) end
  end
  if (min and #shape < min) or (max and #shape > max) then
    local wanted = min == max and tostring(min) or max and ("%d to %d"):format(min, max) or ("at least %d"):format(min)
    check.fail("%s: input %s has %d dimensions, expected %s", what, shapes.text(shape), #shape, wanted)
  end
  return shape
end

---@param shape (integer|false)[]
---@return (integer|false)[]
function shapes.copy(shape)
  local out = {}
  for i = 1, #shape do out[i] = shape[i] end
  return out
end

--- An integer or {h, w} as two numbers.
---@param value integer|integer[]
---@return integer h
---@return integer w
function shapes.pair(value)
  if type(value) == "table" then return value[1], value[2] end
  return value, value
end

--- Positions of a window of `kernel` in `size` elements.
---@param size integer|false
---@return integer|false
function shapes.windows(size, kernel, stride, padding, dilation, ceil_mode)
  if not size then return false end
  local span = size + 2 * padding - dilation * (kernel - 1) - 1
  if span < 0 then return 0 end
  local n = math.floor(span / stride)
  if ceil_mode then
    n = math.ceil(span / stride)
    if n * stride >= size + padding then n = n - 1 end   -- a window that starts in the right padding does not count
  end
  return n + 1
end

--- An integer or a table of `rank` integers as a table.
---@param value integer|integer[]
---@return integer[]
function shapes.list(value, rank)
  local out = {}
  for i = 1, rank do out[i] = type(value) == "table" and value[i] or value end
  return out
end

local function list_text(list) return "[" .. table.concat(list, ", ") .. "]" end

--- The output of a window that moves over the last dimensions.
---@param layer table  kernel_size, stride, padding, dilation as an integer or {h, w}
---@param shape (integer|false)[]
---@param channels integer|false
---@param rank? integer  how many dimensions, 2 when left out
---@return (integer|false)[]
function shapes.slide(layer, shape, channels, rank)
  rank = rank or 2
  local kernel, stride = shapes.list(layer.kernel_size, rank), shapes.list(layer.stride, rank)
  local padding, dilation = shapes.list(layer.padding, rank), shapes.list(layer.dilation or 1, rank)
  local n = #shape
  local out = shapes.copy(shape)
  out[n - rank] = channels
  for i = 1, rank do
    local at = n - rank + i
    out[at] = shapes.windows(shape[at], kernel[i], stride[i], padding[i], dilation[i], layer.ceil_mode)
  end
  for i = n - rank + 1, n do
    if out[i] == 0 then
      check.fail("%s: input %s is smaller than the kernel %s (padding %s)", layer.type, shapes.text(shape), list_text(kernel),
        list_text(padding))
    end
  end
  return out
end

return shapes
